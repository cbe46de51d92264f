//! `quic`: Polykey 1.x, exactly as WIRE.md says. One stream a call; on it JSON objects, one behind the other.
//!
//! What nodes ask each other is written and read here and nowhere else. Further methods of the reference (vaults,
//! notifications) are streams of the embedder: the name of their protocol is [`PREFIX`] and the method. Such a stream is
//! handed over raw, in both directions. Who opened it writes a [`write_request`] first; who was called finds that as the
//! first object of what it reads, and answers with [`write_result`] or [`write_error`]. [`ObjectDecoder`] cuts objects out of
//! a stream and hands back what follows them.

mod classes;
mod message;
mod methods;
mod object;
mod questions;

pub use message::{
    RemoteError, Request, Response, parse_request, parse_response, write_error, write_further, write_request,
    write_result,
};
#[cfg(test)]
use methods::Method;
pub(in crate::rpc) use methods::{Form, PARTS_LIMIT, answer, calls, exchange, invalid, read, token};
pub(crate) use methods::{parse_address, write_address};
pub use object::{MAX_DEPTH, MAX_FIRST_OBJECT, MAX_OBJECT, ObjectDecoder, ObjectFault};
pub use questions::{decode_answer, decode_question, encode_answer, encode_question};

/// Stands before the name of a method where it is the protocol of a stream of the embedder.
pub const PREFIX: &str = "polykey:";

#[cfg(test)]
mod tests;

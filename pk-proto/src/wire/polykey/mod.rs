//! `quic`: Polykey 1.x, as described in docs/WIRE.md. One stream per call, with consecutive JSON
//! objects.
//!
//! Messages of the node layer are encoded and decoded only here. Other methods of the reference
//! (vaults, notifications) are streams of the embedder: the name of their protocol is [`PREFIX`]
//! followed by the method. Such a stream is handed over raw, in both directions. The opener writes
//! a [`write_request`] first; the called embedder finds it as the first object of its data, and
//! answers with [`write_result`] or [`write_error`]. [`ObjectDecoder`] splits a stream into objects
//! and returns what follows them.

pub(super) mod address;
mod authentication;
mod classes;
pub(super) mod format;
mod message;
mod methods;
pub(super) mod object;
mod requests;
mod unserved;

pub(crate) use self::address::write_address;
pub(crate) use self::authentication::{
    AuthenticationError, authenticate, authentication, write_authentication_error,
};
pub use self::format::PREFIX;
pub use self::message::{
    RemoteError, Request, Response, parse_request, parse_response, write_error, write_further,
    write_request, write_result,
};
pub(crate) use self::methods::{PARTS_LIMIT, answer, encode_call, exchange, invalid, read, token};
pub use self::object::{MAX_DEPTH, MAX_FIRST_OBJECT, MAX_OBJECT, ObjectDecoder, ObjectFault};
pub use self::requests::{
    decode_rpc_request, decode_rpc_response, encode_rpc_request, encode_rpc_response,
};
pub(crate) use self::unserved::unserved;

#[cfg(test)]
use self::format::Method;

#[cfg(test)]
mod tests;

//! Requests and responses as messages, for code that plays a peer: tests, simulations, fuzzers.

use alloc::vec::Vec;
use core::time::Duration;

use bytes::Bytes;

use super::ObjectFault;
use super::format::PolykeyFormat;
use super::methods::{answer, encode_call, read};
use crate::types::time::UnixMillis;
use crate::wire::message::{RpcRequest, RpcResponse};
use crate::wire::parsed_message::ParsedMessage;

/// Encodes a request as messages, each on its own stream, of a caller that waits for `timeout`.
/// Empty if this dialect does not support it.
pub fn encode_rpc_request(question: &RpcRequest, timeout: Duration) -> Vec<Bytes> {
    encode_call(question, timeout).1.into_iter().map(|(bytes, _)| bytes).collect()
}

/// Decodes the request in the first message of a call.
///
/// # Errors
/// `NotAMessage` if it is not one, or its method is not a request.
pub fn decode_rpc_request(object: &Bytes) -> Result<RpcRequest, ObjectFault> {
    match read(object, PolykeyFormat::First)? {
        ParsedMessage::Request { request: question, .. } => Ok(question),
        _ => Err(ObjectFault::NotAMessage),
    }
}

/// Encodes a response: the data before the end of the stream.
pub fn encode_rpc_response(question: &RpcRequest, response: RpcResponse, now: UnixMillis) -> Bytes {
    let (_, encode_call) = encode_call(question, Duration::ZERO);
    let format = encode_call.first().map_or(PolykeyFormat::Alive, |(_, format)| *format);
    answer(format, response, now)
}

/// Decodes one message of the response to a request with one call: of a list, one element.
/// `Ok(None)` if it only shows that the peer is alive, or is an error.
///
/// # Errors
/// `NotAMessage` if it is not a response to this.
pub fn decode_rpc_response(
    question: &RpcRequest,
    object: &Bytes,
) -> Result<Option<RpcResponse>, ObjectFault> {
    let (_, encode_call) = encode_call(question, Duration::ZERO);
    let [(_, format)] = encode_call[..] else { return Err(ObjectFault::NotAMessage) };
    match read(object, format) {
        Ok(ParsedMessage::Response(answer)) => Ok(Some(answer)),
        Ok(ParsedMessage::Part(part)) => Ok(part),
        Ok(ParsedMessage::Failure(_)) => Ok(None),
        _ => Err(ObjectFault::NotAMessage),
    }
}

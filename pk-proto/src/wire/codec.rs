//! The interface of a dialect: requests and responses to bytes, and back.
//!
//! A connection uses one [`Dialect`], selected by its ALPN. A dialect determines how messages are
//! framed and encoded, how many streams a request takes, and what a stream may carry after its
//! first message; nothing else.

use alloc::vec::Vec;
use core::time::Duration;

use bytes::Bytes;

use super::dialect::Dialect;
use super::fault::{Unsupported, WireFault};
use super::frame::{FrameDecoder, FrameFault};
use super::message::{RpcRequest, RpcResponse};
use super::native::hello::Hello;
use super::native::{Message, V1};
use super::parsed_message::{NetworkMessage, ParsedMessage, StreamFormat};
use super::polykey::{AuthenticationError, MAX_FIRST_OBJECT, MAX_OBJECT, ObjectDecoder};
use super::{native, polykey};
use crate::types::address::NodeAddress;
use crate::types::id::NodeId;
use crate::types::network_id::NetworkId;
use crate::types::time::UnixMillis;

/// Splits the bytes of a stream into messages.
#[derive(Debug)]
pub(crate) enum Decoder {
    Native(FrameDecoder),
    Polykey(ObjectDecoder),
}

impl Decoder {
    /// `window` is the number of bytes that all streams of a connection may hold.
    pub(crate) fn new(dialect: Dialect, window: u64) -> Self {
        match dialect {
            Dialect::Native => Self::Native(FrameDecoder::new()),
            Dialect::Polykey => {
                // Two streams can always proceed.
                let half = usize::try_from(window / 2).unwrap_or(usize::MAX) - 1;
                Self::Polykey(ObjectDecoder::new(MAX_FIRST_OBJECT.min(half), MAX_OBJECT.min(half)))
            }
        }
    }

    pub(crate) fn push(&mut self, chunk: Bytes) {
        match self {
            Self::Native(decoder) => decoder.push(chunk),
            Self::Polykey(decoder) => decoder.push(&chunk),
        }
    }

    /// Returns the next complete message; `None` if more bytes are [`wanted`](Self::wanted).
    pub(crate) fn next(&mut self) -> Result<Option<Bytes>, WireFault> {
        match self {
            Self::Native(decoder) => decoder.next().map_err(WireFault::Frame),
            Self::Polykey(decoder) => decoder.next().map_err(WireFault::Object),
        }
    }

    /// Returns the number of pushed bytes that are in no returned message.
    pub(crate) fn buffered(&self) -> usize {
        match self {
            Self::Native(decoder) => decoder.buffered(),
            Self::Polykey(decoder) => decoder.buffered(),
        }
    }

    /// Returns how many more bytes may arrive now: on `pk/1` what the present message needs, on
    /// `quic`, where messages have no length prefix, some more.
    pub(crate) fn wanted(&self) -> usize {
        match self {
            Self::Native(decoder) => decoder.wanted(),
            Self::Polykey(decoder) => decoder.wanted(),
        }
    }

    /// Returns everything after the last returned message.
    pub(crate) fn into_unread(self) -> Bytes {
        match self {
            Self::Native(decoder) => decoder.into_unread(),
            Self::Polykey(decoder) => decoder.into_unread(),
        }
    }
}

/// Decodes a message of a peer, on a stream of this form.
pub(crate) fn read(message: &Bytes, format: StreamFormat) -> Result<ParsedMessage, WireFault> {
    match format {
        StreamFormat::Native => read_native(message),
        StreamFormat::Polykey(format) => polykey::read(message, format).map_err(WireFault::Object),
    }
}

fn read_native(frame: &[u8]) -> Result<ParsedMessage, WireFault> {
    let format = StreamFormat::Native;
    let Message::V1(message) = native::decode(frame)?;
    let wait = |ms: u32| Some(Duration::from_millis(ms.into()));
    Ok(match message {
        V1::Hello(hello) => ParsedMessage::Hello(hello),
        V1::Call { deadline_ms, request: question } => {
            ParsedMessage::Request { request: question, format, timeout: wait(deadline_ms) }
        }
        V1::Exchange { deadline_ms, token } => {
            ParsedMessage::Exchange { token, format, timeout: wait(deadline_ms) }
        }
        V1::Token { token } => ParsedMessage::Token(token),
        V1::Network { network } => {
            ParsedMessage::Network { message: NetworkMessage::Member(Some(network)), format }
        }
        V1::External { address } => ParsedMessage::External(address),
        V1::Answer(answer) => ParsedMessage::Response(answer),
        V1::Open { protocol } => ParsedMessage::Open { protocol, header: Bytes::new() },
        V1::Accepted => ParsedMessage::Accepted,
    })
}

/// An encoded request.
pub(crate) struct EncodedCall {
    /// First message of each stream, with the format of its answers. Empty if the request cannot be
    /// sent.
    pub(crate) streams: Vec<(Bytes, StreamFormat)>,
    /// Response if all streams end well without one.
    pub(crate) default_response: Option<RpcResponse>,
}

/// Encodes a request to a node with these features.
pub(crate) fn encode_call(
    dialect: Dialect,
    features: u64,
    question: RpcRequest,
    timeout: Duration,
) -> EncodedCall {
    match dialect {
        Dialect::Native => {
            let known = features & native::needed_for(&question) == native::needed_for(&question);
            let message = V1::Call { deadline_ms: millis(timeout), request: question };
            let streams =
                native_bytes(message).filter(|_| known).map(|bytes| (bytes, StreamFormat::Native));
            EncodedCall { streams: streams.into_iter().collect(), default_response: None }
        }
        Dialect::Polykey => {
            let (default_response, streams) = polykey::encode_call(&question, timeout);
            let streams = streams
                .into_iter()
                .map(|(bytes, format)| (bytes, StreamFormat::Polykey(format)))
                .collect();
            EncodedCall { streams, default_response }
        }
    }
}

/// Encodes the response to a request in this form.
pub(crate) fn answer(
    format: StreamFormat,
    answer: RpcResponse,
    now: UnixMillis,
) -> Result<Bytes, FrameFault> {
    match format {
        StreamFormat::Native => {
            let answer = match answer {
                RpcResponse::Closest(closest) => RpcResponse::Closest(native::fit(closest)),
                answer => answer,
            };
            native::encode(&Message::V1(V1::Answer(answer)))
        }
        StreamFormat::Polykey(format) => Ok(polykey::answer(format, answer, now)),
    }
}

/// Encodes the response to an invalid request.
pub(crate) fn invalid(format: StreamFormat, why: &str, now: UnixMillis) -> Option<Bytes> {
    match format {
        StreamFormat::Native => None,
        StreamFormat::Polykey(_) => Some(polykey::invalid(why, now)),
    }
}

/// Encodes the response to the first message of an application stream that is not accepted; `None`
/// if it is reset.
pub(crate) fn unserved(
    dialect: Dialect,
    protocol: &str,
    header: &[u8],
    peer: &NodeId,
    now: UnixMillis,
) -> Option<Bytes> {
    match dialect {
        Dialect::Native => None,
        Dialect::Polykey => polykey::unserved(protocol, header, peer, now),
    }
}

/// Encodes the first message of an exchange, and returns the format of the rest.
pub(crate) fn exchange(
    dialect: Dialect,
    token: Bytes,
    timeout: Duration,
) -> Option<(Bytes, StreamFormat)> {
    match dialect {
        Dialect::Native => {
            let message = V1::Exchange { deadline_ms: millis(timeout), token };
            native_bytes(message).map(|bytes| (bytes, StreamFormat::Native))
        }
        Dialect::Polykey => {
            let (bytes, format) = polykey::exchange(core::str::from_utf8(&token).ok()?, timeout);
            Some((bytes, StreamFormat::Polykey(format)))
        }
    }
}

/// Encodes a further message of an exchange.
pub(crate) fn token(format: StreamFormat, token: Bytes) -> Option<Bytes> {
    match format {
        StreamFormat::Native => native_bytes(V1::Token { token }),
        StreamFormat::Polykey(format) => {
            core::str::from_utf8(&token).ok().map(|token| polykey::token(format, token))
        }
    }
}

/// Encodes the first message of an application stream; `None` if the embedder writes it.
pub(crate) fn open(dialect: Dialect, protocol: &str) -> Result<Option<Bytes>, Unsupported> {
    match dialect {
        Dialect::Native => {
            native_bytes(V1::Open { protocol: protocol.into() }).map(Some).ok_or(Unsupported)
        }
        Dialect::Polykey if protocol.starts_with(polykey::PREFIX) => Ok(None),
        Dialect::Polykey => Err(Unsupported),
    }
}

/// Encodes the acceptance of an application stream; empty if the dialect has none.
pub(crate) fn accepted(dialect: Dialect) -> Bytes {
    match dialect {
        Dialect::Native => native_bytes(V1::Accepted).unwrap_or_default(),
        Dialect::Polykey => Bytes::new(),
    }
}

/// Encodes the first message on a connection of `pk/1`.
pub(crate) fn hello(hello: Hello) -> Option<Bytes> {
    native_bytes(V1::Hello(hello))
}

/// Encodes the message with the local network, on `pk/1`.
pub(crate) fn network(network: NetworkId) -> Option<Bytes> {
    native_bytes(V1::Network { network })
}

/// Encodes the message with the external address of the local node, on `pk/1`.
pub(crate) fn external(address: Option<NodeAddress>) -> Option<Bytes> {
    native_bytes(V1::External { address })
}

/// Encodes the first message of the authentication of a caller, on `quic`, and returns the format
/// of the rest.
pub(crate) fn authenticate(network: &NetworkId, timeout: Duration) -> (Bytes, StreamFormat) {
    let (bytes, format) = polykey::authenticate(network, timeout);
    (bytes, StreamFormat::Polykey(format))
}

/// Encodes a further message of an authentication, of either side. `None` on `pk/1`.
pub(crate) fn authentication(format: StreamFormat, message: &NetworkMessage) -> Option<Bytes> {
    match format {
        StreamFormat::Native => None,
        StreamFormat::Polykey(format) => Some(polykey::authentication(format, message)),
    }
}

/// Encodes the error that ends an authentication, or a request before it; `None` on `pk/1`, where
/// only the connection has a reason.
pub(crate) fn network_refused(
    format: StreamFormat,
    why: AuthenticationError,
    now: UnixMillis,
) -> Option<Bytes> {
    match format {
        StreamFormat::Native => None,
        StreamFormat::Polykey(_) => Some(polykey::write_authentication_error(why, now)),
    }
}

fn native_bytes(message: V1) -> Option<Bytes> {
    native::encode(&Message::V1(message)).ok()
}

fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}

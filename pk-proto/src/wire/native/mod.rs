//! `pk/1`: each frame contains one [`Message`] in postcard, in its only valid encoding.
//!
//! The wire format is declared in `native/wire.rs` and grows only at the ends of its enums. A
//! reader distinguishes a message of an unknown kind ([`FrameFault::Unknown`]: the stream is
//! refused, the connection stays) from an invalid one ([`FrameFault::Malformed`]).

pub(crate) mod hello;
mod message;
mod read;
mod wire;
mod write;

use bytes::Bytes;
use serde::Serialize;

pub use self::hello::Hello;
use self::message::allow;
pub use self::message::{
    MAX_AGENT, MAX_CLAIMS, MAX_NODES, MAX_PER_NODE, MAX_SHARED_ID, MAX_TOKEN, Message, V1,
};
use self::read::read;
use self::write::{write, write_active, write_connection, write_known, write_known_address};
use super::closest::ClosestNodes;
use super::frame::{FrameFault, MAX_FRAME, build_frame};
use super::message::{RpcRequest, RpcResponse, SignalTerms};
use crate::claims::ClaimId;
use crate::types::address::{Host, NodeAddress};

/// Encodes a frame, with its header.
///
/// # Errors
/// `Malformed` for what [`decode`] refuses: texts and lists above their limits, addresses that are
/// meaningless elsewhere or for this node only. [`fit`] makes every [`ClosestNodes`] valid.
/// `TooLong` above [`MAX_FRAME`].
pub fn encode(message: &Message) -> Result<Bytes, FrameFault> {
    let expected = expected_size(message);
    let message = write(message)?;
    build_frame(expected, |frame| {
        postcard::to_extend(&message, frame).map_err(|_| FrameFault::Malformed)
    })
}

/// Returns the length that the encoding of a message probably has, so that its memory is allocated
/// once.
fn expected_size(message: &Message) -> usize {
    let Message::V1(message) = message;
    let tokens = |claims: &[(ClaimId, Bytes)]| -> usize {
        claims.iter().map(|(_, token)| token.len() + 20).sum()
    };
    match message {
        V1::Answer(RpcResponse::Closest(closest)) => {
            let known = closest.known.iter().map(|(_, contact)| 36 + 28 * contact.len());
            let connections = closest.connected.iter().map(|active| active.connections.len());
            let connected = connections.map(|count| 36 + 76 * count);
            known.chain(connected).sum::<usize>() + 8
        }
        V1::Answer(RpcResponse::Claims(page)) => tokens(&page.claims) + 8,
        V1::Answer(RpcResponse::SignedClaim(token)) | V1::Token { token } => token.len() + 8,
        V1::Call { request: RpcRequest::SignClaim(token), .. } => token.len() + 16,
        V1::Exchange { token, .. } => token.len() + 16,
        V1::Hello(hello) => hello.agent.len() + 32,
        V1::Open { protocol } => protocol.len() + 16,
        V1::Network { network } => network.as_str().len() + 16,
        V1::Call {
            request: RpcRequest::Signal(_) | RpcRequest::Punch(_) | RpcRequest::Candidates(_),
            ..
        }
        | V1::Answer(RpcResponse::Candidates(_)) => 256,
        V1::Call { .. } => 64,
        V1::Answer(_) | V1::Accepted | V1::External { .. } => 40,
    }
}

/// Decodes the message in a frame without its header. Allocates at most a small multiple of the
/// frame.
///
/// # Errors
/// `Unknown` for an unknown version or kind of message, request or response; what follows it is not
/// parsed. `Malformed` for everything that [`encode`] does not produce exactly. `TooLong` above
/// [`MAX_FRAME`].
pub fn decode(frame: &[u8]) -> Result<Message, FrameFault> {
    if frame.len() > MAX_FRAME {
        return Err(FrameFault::TooLong(u32::try_from(frame.len()).unwrap_or(u32::MAX)));
    }
    check_kinds(frame)?;
    let (message, rest) = postcard::take_from_bytes(frame).map_err(|_| FrameFault::Malformed)?;
    // Postcard accepts longer encodings of a number, but never a shorter one than it produces.
    allow(rest.is_empty() && size(&message) == frame.len())?;
    read(message)
}

/// Returns the extensions that a node must support for this request.
pub(crate) fn needed_for(question: &RpcRequest) -> u64 {
    let terms = match question {
        RpcRequest::Signal(signal) => signal.terms,
        RpcRequest::Punch(punch) => punch.request.terms,
        RpcRequest::Claims { .. } => return Hello::CLAIMS,
        RpcRequest::SignClaim(_) => return Hello::EXCHANGE,
        RpcRequest::Relay { .. } | RpcRequest::Circuit { .. } | RpcRequest::Candidates(_) => {
            return Hello::RELAY;
        }
        RpcRequest::Ping { .. } | RpcRequest::Closest { .. } => return 0,
    };
    if terms == SignalTerms::Plain { Hello::PLAIN_SIGNALS } else { 0 }
}

/// Returns the part of a response that can be sent: the first nodes and addresses up to the limits,
/// without addresses that are meaningless elsewhere (zones, port 0) or for this node only (not
/// global). Nodes without a remaining address are left out.
pub fn fit(closest: ClosestNodes) -> ClosestNodes {
    // Tags and the two counts take less.
    let mut room = MAX_FRAME - 16;
    // Almost always there is room for everything.
    let ample = size_limit(&closest) <= room;
    let mut fits = |size: &dyn Fn() -> usize| {
        let size = if ample { 0 } else { size() };
        let fits = size <= room;
        room -= if fits { size } else { 0 };
        fits
    };
    let local = closest.known.into_iter().filter_map(|(node, contact)| {
        let can_send = |entry: &&(_, _)| write_known_address(entry).is_ok();
        let contact = match contact.len() <= MAX_PER_NODE && contact.iter().all(|e| can_send(&e)) {
            true => contact,
            false => contact.iter().filter(can_send).take(MAX_PER_NODE).cloned().collect(),
        };
        (!contact.is_empty()
            && write_known(node, &contact).is_ok_and(|known| fits(&|| size(&known))))
        .then_some((node, contact))
    });
    let local = local.take(MAX_NODES).collect();
    let active = closest.connected.into_iter().filter_map(|mut active| {
        active.connections.retain(|connection| write_connection(connection).is_ok());
        active.connections.truncate(MAX_PER_NODE);
        (!active.connections.is_empty()
            && write_active(&active).is_ok_and(|active| fits(&|| size(&active))))
        .then_some(active)
    });
    ClosestNodes { known: local, connected: active.take(MAX_NODES).collect() }
}

/// Returns a length that the lists of a response do not exceed.
fn size_limit(closest: &ClosestNodes) -> usize {
    // An address with its data and a connection without its id; a node with a count.
    const ENTRY: usize = 48;
    const NODE: usize = 40;
    let host = |address: &NodeAddress| match &address.host {
        Host::Name(name) => name.as_str().len(),
        Host::Ip(_) | Host::Zoned(..) => 0,
    };
    let known = closest.known.iter().flat_map(|(_, contact)| contact.iter());
    let known: usize = known.map(|(address, _)| ENTRY + host(address)).sum();
    let connected = closest.connected.iter().flat_map(|active| &active.connections);
    let connected: usize = connected
        .map(|connection| ENTRY + host(&connection.address) + connection.shared_id.len())
        .sum();
    known + connected + NODE * (closest.known.len() + closest.connected.len())
}

/// Returns the length of the encoding, without allocating.
fn size(value: &impl Serialize) -> usize {
    postcard::serialize_with_flavor(value, postcard::ser_flavors::Size::default())
        .unwrap_or(usize::MAX)
}

/// Checks only the tags.
fn check_kinds(frame: &[u8]) -> Result<(), FrameFault> {
    use self::wire::kinds;

    let known = |kind, count| if kind < count { Ok(()) } else { Err(FrameFault::Unknown) };
    let (version, rest) = number(frame)?;
    known(version, kinds::VERSIONS)?;
    let (kind, rest) = number(rest)?;
    known(kind, kinds::V1)?;
    match kind {
        kinds::V1_CALL => {
            let (_deadline, rest) = number(rest)?;
            known(number(rest)?.0, kinds::QUESTIONS)
        }
        kinds::V1_ANSWER => known(number(rest)?.0, kinds::ANSWERS),
        _ => Ok(()),
    }
}

/// Parses a number in its only valid encoding, which is also that of a tag. Returns the rest as
/// well.
fn number(bytes: &[u8]) -> Result<(u32, &[u8]), FrameFault> {
    let (number, rest) =
        postcard::take_from_bytes::<u32>(bytes).map_err(|_| FrameFault::Malformed)?;
    match postcard::to_slice(&number, &mut [0; 5]) {
        Ok(proper) if bytes.starts_with(proper) => Ok((number, rest)),
        _ => Err(FrameFault::Malformed),
    }
}

#[cfg(test)]
mod tests;

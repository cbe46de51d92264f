//! `pk/1`: each frame contains one [`Message`] in postcard, in its only valid encoding.
//!
//! The wire format is declared in `native/wire.rs` and grows only at the ends of its enums. A
//! reader distinguishes a message of an unknown kind ([`FrameFault::Unknown`]: the stream is
//! refused, the connection stays) from an invalid one ([`FrameFault::Malformed`]).

mod external;
pub(crate) mod hello;
mod wire;

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use core::net::IpAddr;

use bytes::Bytes;
use serde::Serialize;
use smallvec::SmallVec;

pub use self::hello::Hello;
use super::closest::{ActiveConnection, ActiveNode, ClosestNodes, ClosestNodesQuery};
use super::frame::{FrameFault, MAX_FRAME, build_frame};
use super::message::{
    ClaimsPage, PunchRequest, RpcRequest, RpcResponse, SignalRequest, SignalTerms, is_protocol_name,
};
use super::polykey::address::parse_address;
use super::signal::address_text;
use crate::claims::{ClaimId, MAX_TOKEN_LEN};
use crate::types::address::{Host, Hostname, NodeAddress, NodeContactAddressData, Scopes};
use crate::types::contact::NodeContact;
use crate::types::id::NodeId;
use crate::types::network_id::NetworkId;
use crate::types::signature::Signature;
use crate::types::time::UnixMillis;

/// Maximum number of nodes in each list of a response.
pub const MAX_NODES: usize = wire::NODES;
/// Maximum number of addresses or connections of one node in a response.
pub const MAX_PER_NODE: usize = wire::PER_NODE;
/// Maximum length of a connection's shared id, in bytes.
pub const MAX_SHARED_ID: usize = 64;
/// Maximum length of [`Hello::agent`], in bytes.
pub const MAX_AGENT: usize = 64;

/// Maximum length of a token, in bytes.
pub const MAX_TOKEN: usize = MAX_TOKEN_LEN;
/// Maximum number of claims in one response.
pub const MAX_CLAIMS: usize = wire::CLAIMS;

/// Content of one frame.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Message {
    /// A message of version 1 of the protocol.
    V1(V1),
}

/// A message of version 1.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum V1 {
    /// The first message of each side on the control stream.
    Hello(Hello),
    /// The first and only message of a call.
    Call {
        /// Time that the caller waits, in milliseconds.
        deadline_ms: u32,
        /// Request.
        request: RpcRequest,
    },
    /// The first and only message of the response.
    Answer(RpcResponse),
    /// The first message of an application stream.
    Open {
        /// Its protocol (see [`is_protocol_name`]).
        protocol: String,
    },
    /// The response to `Open`: all that follows, in both directions, belongs to the application.
    Accepted,
    /// The first message of an exchange (docs/DESIGN.md, Claims), only to a node with
    /// [`Hello::EXCHANGE`].
    Exchange {
        /// Time that the initiator waits, in milliseconds.
        deadline_ms: u32,
        /// Its half-signed claim; at most [`MAX_TOKEN`] bytes.
        token: Bytes,
    },
    /// A further message of an exchange, from either side.
    Token {
        /// A claim; at most [`MAX_TOKEN`] bytes.
        token: Bytes,
    },
    /// The second message of each side on the control stream, if both belong to a network
    /// ([`Hello::NETWORK`]).
    Network {
        /// Network of the sender.
        network: NetworkId,
    },
    /// A further message on the control stream, only to a node with [`Hello::EXTERNAL`]: a router
    /// passes packets for this address on to the sender.
    External {
        /// External address: an IP address without a zone, and a port.
        address: NodeAddress,
    },
}

/// Encodes a frame, with its header.
///
/// # Errors
/// `Malformed` for what [`decode`] refuses: texts and lists above their limits, addresses that are
/// meaningless elsewhere or for this node only. [`fit`] makes every [`ClosestNodes`] valid.
/// `TooLong` above [`MAX_FRAME`].
pub fn encode(message: &Message) -> Result<Bytes, FrameFault> {
    if let Message::V1(V1::External { address }) = message {
        return external::encode(address);
    }
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
    if let Some(message) = external::decode(frame) {
        return message;
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

/// Refuses what [`write()`] does not produce: texts above their limits, and values that the types
/// behind it normalize.
fn read(message: wire::Message<'_>) -> Result<Message, FrameFault> {
    let wire::Message::V1(message) = message;
    Ok(Message::V1(match message {
        wire::V1::Hello { version_min, version_max, features, agent } => {
            allow(agent.len() <= MAX_AGENT)?;
            V1::Hello(Hello { version_min, version_max, features, agent: agent.into() })
        }
        wire::V1::Call { deadline_ms, question } => {
            let question = match question {
                wire::RpcRequest::Ping { nonce } => RpcRequest::Ping { nonce },
                wire::RpcRequest::Closest { target, local, active } => RpcRequest::Closest {
                    target,
                    query: ClosestNodesQuery { known: local, connected: active },
                },
                wire::RpcRequest::Signal(signal) => RpcRequest::Signal(read_signal(&signal)?),
                wire::RpcRequest::SignClaim { token } => RpcRequest::SignClaim(read_token(&token)?),
                wire::RpcRequest::Punch { source, address, request, relay_signature } => {
                    let (address, request) = (read_address(&address)?, read_signal(&request)?);
                    let address_text = address_text(&request.terms, &address);
                    let relay_signature = read_signature(&relay_signature)?;
                    RpcRequest::Punch(Box::new(PunchRequest {
                        source,
                        address,
                        address_text,
                        request,
                        relay_signature,
                    }))
                }
                wire::RpcRequest::PlainSignal { target, signature } => {
                    RpcRequest::Signal(read_plain_signal(target, &signature)?)
                }
                wire::RpcRequest::PlainPunch {
                    source,
                    target,
                    address: address_text,
                    signature,
                    relay_signature,
                } => RpcRequest::Punch(Box::new(PunchRequest {
                    source,
                    address: parse_address(address_text).map_err(|_| FrameFault::Malformed)?,
                    address_text: address_text.into(),
                    request: read_plain_signal(target, &signature)?,
                    relay_signature: read_signature(&relay_signature)?,
                })),
                wire::RpcRequest::Claims { after, max_bytes } => {
                    RpcRequest::Claims { after: after.map(ClaimId::from_bytes), max_bytes }
                }
                wire::RpcRequest::Relay { target } => RpcRequest::Relay { target },
                wire::RpcRequest::Circuit { source, address, same_network } => {
                    let address = address.as_ref().map(read_address).transpose()?;
                    RpcRequest::Circuit { source, address, same_network }
                }
                wire::RpcRequest::Candidates { addresses } => {
                    RpcRequest::Candidates(read_addresses(&addresses)?)
                }
            };
            V1::Call { deadline_ms, request: question }
        }
        wire::V1::Answer(wire::RpcResponse::Pong { nonce }) => {
            V1::Answer(RpcResponse::Pong { nonce })
        }
        wire::V1::Answer(wire::RpcResponse::Closest { local, active }) => {
            let local = local.0.iter().map(read_known).collect::<Result<_, _>>()?;
            let active = active.0.into_iter().map(read_active).collect::<Result<_, _>>()?;
            V1::Answer(RpcResponse::Closest(ClosestNodes { known: local, connected: active }))
        }
        wire::V1::Answer(wire::RpcResponse::Signalled { address }) => {
            V1::Answer(RpcResponse::Signalled { address: read_address(&address)? })
        }
        wire::V1::Answer(wire::RpcResponse::Punching) => V1::Answer(RpcResponse::Punching),
        wire::V1::Answer(wire::RpcResponse::SignedClaim { token }) => {
            V1::Answer(RpcResponse::SignedClaim(read_token(&token)?))
        }
        wire::V1::Answer(wire::RpcResponse::Refused(number)) => V1::Answer(RpcResponse::Refused(
            wire::refusals::read(number).ok_or(FrameFault::Unknown)?,
        )),
        wire::V1::Answer(wire::RpcResponse::Claims { claims, more }) => {
            let read = |claim: wire::Claim<'_>| {
                Ok((ClaimId::from_bytes(claim.id), read_token(&claim.token)?))
            };
            let claims = claims.0.into_iter().map(read).collect::<Result<_, _>>()?;
            V1::Answer(RpcResponse::Claims(ClaimsPage { claims, more }))
        }
        wire::V1::Answer(wire::RpcResponse::Circuit { address, same_network }) => {
            let address = address.as_ref().map(read_address).transpose()?;
            V1::Answer(RpcResponse::Circuit { address, same_network })
        }
        wire::V1::Answer(wire::RpcResponse::Candidates { addresses }) => {
            V1::Answer(RpcResponse::Candidates(read_addresses(&addresses)?))
        }
        wire::V1::Open { protocol } => {
            allow(is_protocol_name(protocol))?;
            V1::Open { protocol: protocol.into() }
        }
        wire::V1::Accepted => V1::Accepted,
        wire::V1::Exchange { deadline_ms, token } => {
            V1::Exchange { deadline_ms, token: read_token(&token)? }
        }
        wire::V1::Token { token } => V1::Token { token: read_token(&token)? },
        wire::V1::Network { name } => {
            V1::Network { network: name.parse().map_err(|_| FrameFault::Malformed)? }
        }
    }))
}

fn read_token(token: &wire::Octets<'_>) -> Result<Bytes, FrameFault> {
    allow(token.0.len() <= MAX_TOKEN)?;
    Ok(Bytes::copy_from_slice(token.0))
}

fn read_addresses(
    addresses: &wire::List<wire::Address<'_>, MAX_PER_NODE>,
) -> Result<Vec<NodeAddress>, FrameFault> {
    addresses.0.iter().map(read_address).collect()
}

fn read_signal(signal: &wire::Signal<'_>) -> Result<SignalRequest, FrameFault> {
    let wire::Signal { target, expires, nonce, ref signature } = *signal;
    let terms = SignalTerms::Once { expires: UnixMillis(expires), nonce };
    Ok(SignalRequest { target, terms, signature: read_signature(signature)? })
}

fn read_plain_signal(
    target: NodeId,
    signature: &wire::Octets<'_>,
) -> Result<SignalRequest, FrameFault> {
    Ok(SignalRequest { target, terms: SignalTerms::Plain, signature: read_signature(signature)? })
}

fn read_signature(bytes: &wire::Octets<'_>) -> Result<Signature, FrameFault> {
    bytes.0.try_into().map(Signature).map_err(|_| FrameFault::Malformed)
}

fn read_known(known: &wire::Known<'_>) -> Result<(NodeId, NodeContact), FrameFault> {
    let read = |known: &wire::KnownAddress<'_>| {
        let connected_time = UnixMillis(known.connected_time);
        let data =
            NodeContactAddressData { mode: known.mode, connected_time, scopes: Scopes::GLOBAL };
        Ok((read_address(&known.address)?, data))
    };
    let contact = known.addresses.0.iter().map(read).collect::<Result<NodeContact, _>>()?;
    // A contact sorts its addresses and has none of them twice.
    let unchanged = |(entry, known): (_, &wire::KnownAddress<'_>)| {
        write_known_address(entry).is_ok_and(|written| written == *known)
    };
    allow(contact.len() == known.addresses.0.len())?;
    allow(contact.iter().zip(&known.addresses.0).all(unchanged))?;
    Ok((known.node, contact))
}

fn read_active(active: wire::Active<'_>) -> Result<ActiveNode, FrameFault> {
    let read = |connection: wire::Connection<'_>| {
        allow(connection.shared_id.0.len() <= MAX_SHARED_ID)?;
        let shared_id = Bytes::copy_from_slice(connection.shared_id.0);
        let address = read_address(&connection.address)?;
        let wire::Connection { primary, idle_in_ms, .. } = connection;
        Ok(ActiveConnection { shared_id, address, primary, idle_in_ms })
    };
    let connections = active.connections.0.into_iter().map(read).collect::<Result<_, _>>()?;
    Ok(ActiveNode { node: active.node, connections })
}

fn read_address(address: &wire::Address<'_>) -> Result<NodeAddress, FrameFault> {
    let host = match address.host {
        wire::Host::V4(octets) => Host::Ip(IpAddr::from(octets)),
        wire::Host::V6(octets) => Host::Ip(IpAddr::from(octets)),
        wire::Host::Name(name) => {
            Host::Name(name.parse::<Hostname>().map_err(|_| FrameFault::Malformed)?)
        }
    };
    let read = NodeAddress { host, port: address.port };
    allow(write_address(&read)? == *address)?;
    Ok(read)
}

fn write(message: &Message) -> Result<wire::Message<'_>, FrameFault> {
    let Message::V1(message) = message;
    Ok(wire::Message::V1(match message {
        V1::Hello(Hello { version_min, version_max, features, agent }) => {
            allow(agent.len() <= MAX_AGENT)?;
            wire::V1::Hello {
                version_min: *version_min,
                version_max: *version_max,
                features: *features,
                agent,
            }
        }
        V1::Call { deadline_ms, request: question } => {
            let question = match question {
                RpcRequest::Ping { nonce } => wire::RpcRequest::Ping { nonce: *nonce },
                RpcRequest::Closest {
                    target,
                    query: ClosestNodesQuery { known: local, connected: active },
                } => wire::RpcRequest::Closest { target: *target, local: *local, active: *active },
                RpcRequest::Signal(signal) => match write_signal(signal) {
                    Some(signal) => wire::RpcRequest::Signal(signal),
                    None => wire::RpcRequest::PlainSignal {
                        target: signal.target,
                        signature: wire::Octets(&signal.signature.0),
                    },
                },
                RpcRequest::Punch(punch) => write_punch(punch)?,
                RpcRequest::SignClaim(token) => {
                    wire::RpcRequest::SignClaim { token: write_token(token)? }
                }
                RpcRequest::Claims { after, max_bytes } => wire::RpcRequest::Claims {
                    after: after.map(|id| *id.as_bytes()),
                    max_bytes: *max_bytes,
                },
                RpcRequest::Relay { target } => wire::RpcRequest::Relay { target: *target },
                RpcRequest::Circuit { source, address, same_network } => {
                    wire::RpcRequest::Circuit {
                        source: *source,
                        address: address.as_ref().map(write_address).transpose()?,
                        same_network: *same_network,
                    }
                }
                RpcRequest::Candidates(addresses) => {
                    wire::RpcRequest::Candidates { addresses: list(addresses, write_address)? }
                }
            };
            wire::V1::Call { deadline_ms: *deadline_ms, question }
        }
        V1::Answer(RpcResponse::Pong { nonce }) => {
            wire::V1::Answer(wire::RpcResponse::Pong { nonce: *nonce })
        }
        V1::Answer(RpcResponse::Closest(ClosestNodes { known: local, connected: active })) => {
            wire::V1::Answer(wire::RpcResponse::Closest {
                local: list(local, |(node, contact)| write_known(*node, contact))?,
                active: list(active, write_active)?,
            })
        }
        V1::Answer(RpcResponse::Signalled { address }) => {
            wire::V1::Answer(wire::RpcResponse::Signalled { address: write_address(address)? })
        }
        V1::Answer(RpcResponse::Punching) => wire::V1::Answer(wire::RpcResponse::Punching),
        V1::Answer(RpcResponse::SignedClaim(token)) => {
            wire::V1::Answer(wire::RpcResponse::SignedClaim { token: write_token(token)? })
        }
        V1::Answer(RpcResponse::Refused(refusal)) => {
            wire::V1::Answer(wire::RpcResponse::Refused(wire::refusals::write(*refusal)))
        }
        V1::Answer(RpcResponse::Circuit { address, same_network }) => {
            wire::V1::Answer(wire::RpcResponse::Circuit {
                address: address.as_ref().map(write_address).transpose()?,
                same_network: *same_network,
            })
        }
        V1::Answer(RpcResponse::Candidates(addresses)) => {
            wire::V1::Answer(wire::RpcResponse::Candidates {
                addresses: list(addresses, write_address)?,
            })
        }
        V1::Answer(RpcResponse::Claims(ClaimsPage { claims, more })) => {
            wire::V1::Answer(wire::RpcResponse::Claims {
                claims: list(claims, |(id, token)| {
                    Ok(wire::Claim { id: *id.as_bytes(), token: write_token(token)? })
                })?,
                more: *more,
            })
        }
        V1::Open { protocol } => {
            allow(is_protocol_name(protocol))?;
            wire::V1::Open { protocol }
        }
        V1::Accepted => wire::V1::Accepted,
        V1::Exchange { deadline_ms, token } => {
            wire::V1::Exchange { deadline_ms: *deadline_ms, token: write_token(token)? }
        }
        V1::Token { token } => wire::V1::Token { token: write_token(token)? },
        V1::Network { network } => wire::V1::Network { name: network.as_str() },
        // It has an encoding of its own.
        V1::External { .. } => return Err(FrameFault::Malformed),
    }))
}

fn write_token(token: &[u8]) -> Result<wire::Octets<'_>, FrameFault> {
    allow(token.len() <= MAX_TOKEN)?;
    Ok(wire::Octets(token))
}

/// `None` for a plain one.
fn write_signal(signal: &SignalRequest) -> Option<wire::Signal<'_>> {
    let SignalRequest { target, terms, ref signature } = *signal;
    let SignalTerms::Once { expires, nonce } = terms else { return None };
    Some(wire::Signal { target, expires: expires.0, nonce, signature: wire::Octets(&signature.0) })
}

fn write_punch(punch: &PunchRequest) -> Result<wire::RpcRequest<'_>, FrameFault> {
    let PunchRequest { source, address, address_text: text, request, relay_signature } = punch;
    let (source, relay_signature) = (*source, wire::Octets(&relay_signature.0));
    Ok(match write_signal(request) {
        Some(signal) => {
            allow(*text == address_text(&request.terms, address))?;
            wire::RpcRequest::Punch {
                source,
                address: write_address(address)?,
                request: signal,
                relay_signature,
            }
        }
        None => {
            allow(parse_address(text).as_ref() == Ok(address))?;
            let (target, signature) = (request.target, wire::Octets(&request.signature.0));
            wire::RpcRequest::PlainPunch {
                source,
                target,
                address: text,
                signature,
                relay_signature,
            }
        }
    })
}

fn write_known(node: NodeId, contact: &NodeContact) -> Result<wire::Known<'_>, FrameFault> {
    Ok(wire::Known { node, addresses: list(contact.iter(), write_known_address)? })
}

fn write_known_address(
    (address, data): &(NodeAddress, NodeContactAddressData),
) -> Result<wire::KnownAddress<'_>, FrameFault> {
    allow(data.scopes.global)?;
    let address = write_address(address)?;
    Ok(wire::KnownAddress { address, mode: data.mode, connected_time: data.connected_time.0 })
}

fn write_active(active: &ActiveNode) -> Result<wire::Active<'_>, FrameFault> {
    Ok(wire::Active {
        node: active.node,
        connections: list(&active.connections, write_connection)?,
    })
}

fn write_connection(connection: &ActiveConnection) -> Result<wire::Connection<'_>, FrameFault> {
    let ActiveConnection { shared_id, address, primary, idle_in_ms } = connection;
    allow(shared_id.len() <= MAX_SHARED_ID)?;
    let (shared_id, address) = (wire::Octets(shared_id), write_address(address)?);
    Ok(wire::Connection { shared_id, address, primary: *primary, idle_in_ms: *idle_in_ms })
}

fn write_address(address: &NodeAddress) -> Result<wire::Address<'_>, FrameFault> {
    let host = match &address.host {
        Host::Ip(IpAddr::V4(ip)) => wire::Host::V4(ip.octets()),
        Host::Ip(IpAddr::V6(ip)) if ip.to_ipv4_mapped().is_none() => wire::Host::V6(ip.octets()),
        Host::Name(name) => wire::Host::Name(name.as_str()),
        Host::Ip(_) | Host::Zoned(..) => return Err(FrameFault::Malformed),
    };
    allow(address.port != 0)?;
    Ok(wire::Address { host, port: address.port })
}

fn list<'a, T: 'a, W, const CAP: usize>(
    elements: impl IntoIterator<Item = &'a T>,
    write: impl Fn(&'a T) -> Result<W, FrameFault>,
) -> Result<wire::List<W, CAP>, FrameFault> {
    let elements = elements.into_iter();
    let mut list = SmallVec::with_capacity(elements.size_hint().0.min(CAP));
    for element in elements {
        allow(list.len() < CAP)?;
        list.push(write(element)?);
    }
    Ok(wire::List(list))
}

fn allow(allowed: bool) -> Result<(), FrameFault> {
    if allowed { Ok(()) } else { Err(FrameFault::Malformed) }
}

#[cfg(test)]
mod tests;

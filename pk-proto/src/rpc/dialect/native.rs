//! `pk/1`: each frame holds one [`Message`] in postcard, in the only encoding that it has.
//!
//! What stands on the wire is declared in `native/wire.rs` and grows at the ends of its enums only. A reader tells a message
//! of a kind it does not know ([`FrameFault::Unknown`]: the stream is refused, the connection lives) from one that nobody may
//! send ([`FrameFault::Malformed`]).

mod wire;

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use core::net::IpAddr;

use bytes::Bytes;
use serde::Serialize;

use super::super::call::{Answer, ClaimsPage, PunchRequest, Question, SignalRequest, SignalTerms, is_protocol_name};
use super::super::frame::{FrameFault, MAX_FRAME, encode_frame};
use super::polykey;
use crate::address::{Host, Hostname, NodeAddress, NodeContactAddressData, Scopes};
use crate::claims::{ClaimId, MAX_TOKEN_LEN};
use crate::graph::NodeContact;
use crate::id::NodeId;
use crate::io::Signature;
use crate::request::{ActiveConnection, ActiveNode, Closest, ClosestLists};
use crate::signal::address_text;
use crate::time::UnixMillis;

/// Nodes in each list of an answer, at most.
pub const MAX_NODES: usize = wire::NODES;
/// Addresses or connections of one node in an answer, at most.
pub const MAX_PER_NODE: usize = wire::PER_NODE;
/// Bytes of a connection's shared id, at most.
pub const MAX_SHARED_ID: usize = 64;
/// Bytes of [`Hello::agent`], at most.
pub const MAX_AGENT: usize = 64;

/// Bytes of a token, at most.
pub const MAX_TOKEN: usize = MAX_TOKEN_LEN;
/// Claims in one answer, at most.
pub const MAX_CLAIMS: usize = wire::CLAIMS;

/// What one frame says.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Message {
    /// In version 1 of the protocol.
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
        /// How long the caller waits, in milliseconds.
        deadline_ms: u32,
        /// What it asks.
        question: Question,
    },
    /// The first and only message that answers a call.
    Answer(Answer),
    /// The first message of an application stream.
    Open {
        /// Its protocol (see [`is_protocol_name`]).
        protocol: String,
    },
    /// The answer to `Open`: all that follows, in both directions, belongs to the application.
    Accepted,
    /// The first message of an exchange (DESIGN section 6), only to a node with [`Hello::EXCHANGE`].
    Exchange {
        /// How long the initiator waits, in milliseconds.
        deadline_ms: u32,
        /// Its half-signed claim; at most [`MAX_TOKEN`] bytes.
        token: Bytes,
    },
    /// A further message of an exchange, of either side.
    Token {
        /// A claim; at most [`MAX_TOKEN`] bytes.
        token: Bytes,
    },
}

/// Who a node is and what it can do.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub struct Hello {
    /// The oldest version that it speaks.
    pub version_min: u16,
    /// The newest version that it speaks.
    pub version_max: u16,
    /// One bit for each extension that it speaks.
    pub features: u64,
    /// Names the software, for people; at most [`MAX_AGENT`] bytes.
    pub agent: String,
}

impl Hello {
    /// The extension of claims: `Exchange` and `Token`, and the question `SignClaim`.
    pub const EXCHANGE: u64 = 1;
    /// The extension of chains: the question `Claims`.
    pub const CLAIMS: u64 = 2;
    /// The extension of signals between nodes of which one speaks Polykey 1.x: [`SignalTerms::Plain`].
    pub const PLAIN_SIGNALS: u64 = 4;
}

/// The frame, with its header, that says `message`.
///
/// # Errors
/// `Malformed` for what [`decode`] refuses: texts and lists over their caps, addresses that mean nothing elsewhere or are for
/// this node only. [`fit`] makes every [`Closest`] one that can be sent. `TooLong` over [`MAX_FRAME`].
pub fn encode(message: &Message) -> Result<Bytes, FrameFault> {
    encode_frame(&payload(message)?)
}

/// The message in a frame whose header was taken off. Allocates no more than a small multiple of the frame.
///
/// # Errors
/// `Unknown` for a version or a kind of message, question or answer that this version does not know; whatever follows it is
/// not looked at. `Malformed` for everything that [`encode`] does not write, to the bit. `TooLong` over [`MAX_FRAME`].
pub fn decode(frame: &[u8]) -> Result<Message, FrameFault> {
    if frame.len() > MAX_FRAME {
        return Err(FrameFault::TooLong(u32::try_from(frame.len()).unwrap_or(u32::MAX)));
    }
    check_kinds(frame)?;
    let (message, rest) = postcard::take_from_bytes(frame).map_err(|_| FrameFault::Malformed)?;
    let message = read(message)?;
    // Postcard takes more than one encoding of a number, and the types behind `read` put into order what they are given.
    if !rest.is_empty() || payload(&message)? != frame {
        return Err(FrameFault::Malformed);
    }
    Ok(message)
}

/// The extensions that a node must speak to be asked this.
pub(in crate::rpc) fn needed_for(question: &Question) -> u64 {
    let terms = match question {
        Question::Signal(signal) => signal.terms,
        Question::Punch(punch) => punch.request.terms,
        Question::Claims { .. } => return Hello::CLAIMS,
        Question::SignClaim(_) => return Hello::EXCHANGE,
        Question::Ping { .. } | Question::Closest { .. } => return 0,
    };
    if terms == SignalTerms::Plain { Hello::PLAIN_SIGNALS } else { 0 }
}

/// What of an answer can be sent: the first nodes and addresses up to the caps, without what means nothing elsewhere (zones,
/// port 0) or is for this node only (addresses that are not global). Nodes without any address left are left out.
pub fn fit(closest: Closest) -> Closest {
    // Tags and the two counts take less.
    let mut room = MAX_FRAME - 16;
    let mut fits = |size: usize| {
        let fits = size <= room;
        room -= if fits { size } else { 0 };
        fits
    };
    let local = closest.local.into_iter().filter_map(|(node, contact)| {
        let kept = contact.iter().filter(|entry| write_known_address(entry).is_ok()).take(MAX_PER_NODE).cloned();
        let contact: NodeContact = kept.collect();
        (!contact.is_empty() && write_known(node, &contact).is_ok_and(|known| fits(size(&known))))
            .then_some((node, contact))
    });
    let local = local.take(MAX_NODES).collect();
    let active = closest.active.into_iter().filter_map(|mut active| {
        active.connections.retain(|connection| write_connection(connection).is_ok());
        active.connections.truncate(MAX_PER_NODE);
        (!active.connections.is_empty() && write_active(&active).is_ok_and(|active| fits(size(&active))))
            .then_some(active)
    });
    Closest { local, active: active.take(MAX_NODES).collect() }
}

fn size(value: &impl Serialize) -> usize {
    postcard::to_allocvec(value).map_or(usize::MAX, |bytes| bytes.len())
}

fn payload(message: &Message) -> Result<Vec<u8>, FrameFault> {
    postcard::to_allocvec(&write(message)?).map_err(|_| FrameFault::Malformed)
}

/// Looks at nothing but the tags.
fn check_kinds(frame: &[u8]) -> Result<(), FrameFault> {
    use wire::kinds;

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

/// A number in its only proper encoding, which is also that of a tag, and what follows.
fn number(bytes: &[u8]) -> Result<(u32, &[u8]), FrameFault> {
    let (number, rest) = postcard::take_from_bytes::<u32>(bytes).map_err(|_| FrameFault::Malformed)?;
    match postcard::to_slice(&number, &mut [0; 5]) {
        Ok(proper) if bytes.starts_with(proper) => Ok((number, rest)),
        _ => Err(FrameFault::Malformed),
    }
}

fn read(message: wire::Message<'_>) -> Result<Message, FrameFault> {
    let wire::Message::V1(message) = message;
    Ok(Message::V1(match message {
        wire::V1::Hello { version_min, version_max, features, agent } => {
            V1::Hello(Hello { version_min, version_max, features, agent: agent.into() })
        }
        wire::V1::Call { deadline_ms, question } => {
            let question = match question {
                wire::Question::Ping { nonce } => Question::Ping { nonce },
                wire::Question::Closest { target, local, active } => {
                    Question::Closest { target, lists: ClosestLists { local, active } }
                }
                wire::Question::Signal(signal) => Question::Signal(read_signal(&signal)?),
                wire::Question::SignClaim { token } => Question::SignClaim(read_token(&token)?),
                wire::Question::Punch { source, address, request, relay_signature } => {
                    let (address, request) = (read_address(&address)?, read_signal(&request)?);
                    let address_text = address_text(&request.terms, &address);
                    let relay_signature = read_signature(&relay_signature)?;
                    Question::Punch(Box::new(PunchRequest { source, address, address_text, request, relay_signature }))
                }
                wire::Question::PlainSignal { target, signature } => {
                    Question::Signal(read_plain_signal(target, &signature)?)
                }
                wire::Question::PlainPunch { source, target, address: address_text, signature, relay_signature } => {
                    Question::Punch(Box::new(PunchRequest {
                        source,
                        address: polykey::parse_address(address_text).map_err(|_| FrameFault::Malformed)?,
                        address_text: address_text.into(),
                        request: read_plain_signal(target, &signature)?,
                        relay_signature: read_signature(&relay_signature)?,
                    }))
                }
                wire::Question::Claims { after, max_bytes } => {
                    Question::Claims { after: after.map(ClaimId::from_bytes), max_bytes }
                }
            };
            V1::Call { deadline_ms, question }
        }
        wire::V1::Answer(wire::Answer::Pong { nonce }) => V1::Answer(Answer::Pong { nonce }),
        wire::V1::Answer(wire::Answer::Closest { local, active }) => {
            let local = local.0.into_iter().map(read_known).collect::<Result<_, _>>()?;
            let active = active.0.into_iter().map(read_active).collect::<Result<_, _>>()?;
            V1::Answer(Answer::Closest(Closest { local, active }))
        }
        wire::V1::Answer(wire::Answer::Signalled { address }) => {
            V1::Answer(Answer::Signalled { address: read_address(&address)? })
        }
        wire::V1::Answer(wire::Answer::Punching) => V1::Answer(Answer::Punching),
        wire::V1::Answer(wire::Answer::SignedClaim { token }) => V1::Answer(Answer::SignedClaim(read_token(&token)?)),
        wire::V1::Answer(wire::Answer::Refused(number)) => {
            V1::Answer(Answer::Refused(wire::refusals::read(number).ok_or(FrameFault::Unknown)?))
        }
        wire::V1::Answer(wire::Answer::Claims { claims, more }) => {
            let read = |claim: wire::Claim<'_>| Ok((ClaimId::from_bytes(claim.id), read_token(&claim.token)?));
            let claims = claims.0.into_iter().map(read).collect::<Result<_, _>>()?;
            V1::Answer(Answer::Claims(ClaimsPage { claims, more }))
        }
        wire::V1::Open { protocol } => V1::Open { protocol: protocol.into() },
        wire::V1::Accepted => V1::Accepted,
        wire::V1::Exchange { deadline_ms, token } => V1::Exchange { deadline_ms, token: read_token(&token)? },
        wire::V1::Token { token } => V1::Token { token: read_token(&token)? },
    }))
}

fn read_token(token: &wire::Octets<'_>) -> Result<Bytes, FrameFault> {
    allow(token.0.len() <= MAX_TOKEN)?;
    Ok(Bytes::copy_from_slice(token.0))
}

fn read_signal(signal: &wire::Signal<'_>) -> Result<SignalRequest, FrameFault> {
    let wire::Signal { target, expires, nonce, ref signature } = *signal;
    let terms = SignalTerms::Once { expires: UnixMillis(expires), nonce };
    Ok(SignalRequest { target, terms, signature: read_signature(signature)? })
}

fn read_plain_signal(target: NodeId, signature: &wire::Octets<'_>) -> Result<SignalRequest, FrameFault> {
    Ok(SignalRequest { target, terms: SignalTerms::Plain, signature: read_signature(signature)? })
}

fn read_signature(bytes: &wire::Octets<'_>) -> Result<Signature, FrameFault> {
    bytes.0.try_into().map(Signature).map_err(|_| FrameFault::Malformed)
}

fn read_known(known: wire::Known<'_>) -> Result<(NodeId, NodeContact), FrameFault> {
    let read = |known: wire::KnownAddress<'_>| {
        let connected_time = UnixMillis(known.connected_time);
        let data = NodeContactAddressData { mode: known.mode, connected_time, scopes: Scopes::GLOBAL };
        Ok((read_address(&known.address)?, data))
    };
    Ok((known.node, known.addresses.0.into_iter().map(read).collect::<Result<_, _>>()?))
}

fn read_active(active: wire::Active<'_>) -> Result<ActiveNode, FrameFault> {
    let read = |connection: wire::Connection<'_>| {
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
        wire::Host::Name(name) => Host::Name(name.parse::<Hostname>().map_err(|_| FrameFault::Malformed)?),
    };
    Ok(NodeAddress { host, port: address.port })
}

fn write(message: &Message) -> Result<wire::Message<'_>, FrameFault> {
    let Message::V1(message) = message;
    Ok(wire::Message::V1(match message {
        V1::Hello(Hello { version_min, version_max, features, agent }) => {
            allow(agent.len() <= MAX_AGENT)?;
            wire::V1::Hello { version_min: *version_min, version_max: *version_max, features: *features, agent }
        }
        V1::Call { deadline_ms, question } => {
            let question = match question {
                Question::Ping { nonce } => wire::Question::Ping { nonce: *nonce },
                Question::Closest { target, lists: ClosestLists { local, active } } => {
                    wire::Question::Closest { target: *target, local: *local, active: *active }
                }
                Question::Signal(signal) => match write_signal(signal) {
                    Some(signal) => wire::Question::Signal(signal),
                    None => wire::Question::PlainSignal {
                        target: signal.target,
                        signature: wire::Octets(&signal.signature.0),
                    },
                },
                Question::Punch(punch) => write_punch(punch)?,
                Question::SignClaim(token) => wire::Question::SignClaim { token: write_token(token)? },
                Question::Claims { after, max_bytes } => {
                    wire::Question::Claims { after: after.map(|id| *id.as_bytes()), max_bytes: *max_bytes }
                }
            };
            wire::V1::Call { deadline_ms: *deadline_ms, question }
        }
        V1::Answer(Answer::Pong { nonce }) => wire::V1::Answer(wire::Answer::Pong { nonce: *nonce }),
        V1::Answer(Answer::Closest(Closest { local, active })) => wire::V1::Answer(wire::Answer::Closest {
            local: list(local, |(node, contact)| write_known(*node, contact))?,
            active: list(active, write_active)?,
        }),
        V1::Answer(Answer::Signalled { address }) => {
            wire::V1::Answer(wire::Answer::Signalled { address: write_address(address)? })
        }
        V1::Answer(Answer::Punching) => wire::V1::Answer(wire::Answer::Punching),
        V1::Answer(Answer::SignedClaim(token)) => {
            wire::V1::Answer(wire::Answer::SignedClaim { token: write_token(token)? })
        }
        V1::Answer(Answer::Refused(refusal)) => {
            wire::V1::Answer(wire::Answer::Refused(wire::refusals::write(*refusal)))
        }
        V1::Answer(Answer::Claims(ClaimsPage { claims, more })) => wire::V1::Answer(wire::Answer::Claims {
            claims: list(claims, |(id, token)| Ok(wire::Claim { id: *id.as_bytes(), token: write_token(token)? }))?,
            more: *more,
        }),
        V1::Open { protocol } => {
            allow(is_protocol_name(protocol))?;
            wire::V1::Open { protocol }
        }
        V1::Accepted => wire::V1::Accepted,
        V1::Exchange { deadline_ms, token } => {
            wire::V1::Exchange { deadline_ms: *deadline_ms, token: write_token(token)? }
        }
        V1::Token { token } => wire::V1::Token { token: write_token(token)? },
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

fn write_punch(punch: &PunchRequest) -> Result<wire::Question<'_>, FrameFault> {
    let PunchRequest { source, address, address_text: text, request, relay_signature } = punch;
    let (source, relay_signature) = (*source, wire::Octets(&relay_signature.0));
    Ok(match write_signal(request) {
        Some(signal) => {
            allow(*text == address_text(&request.terms, address))?;
            wire::Question::Punch { source, address: write_address(address)?, request: signal, relay_signature }
        }
        None => {
            allow(polykey::parse_address(text).as_ref() == Ok(address))?;
            let (target, signature) = (request.target, wire::Octets(&request.signature.0));
            wire::Question::PlainPunch { source, target, address: text, signature, relay_signature }
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
    Ok(wire::Active { node: active.node, connections: list(&active.connections, write_connection)? })
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
    let elements = elements.into_iter().map(write).collect::<Result<Vec<_>, _>>()?;
    allow(elements.len() <= CAP)?;
    Ok(wire::List(elements))
}

fn allow(allowed: bool) -> Result<(), FrameFault> {
    if allowed { Ok(()) } else { Err(FrameFault::Malformed) }
}

#[cfg(test)]
mod tests;

//! From messages to the wire format.

use core::net::IpAddr;

use smallvec::SmallVec;

use super::hello::Hello;
use super::message::{MAX_AGENT, MAX_SHARED_ID, MAX_TOKEN, Message, V1, allow};
use super::wire;
use crate::types::address::{Host, NodeAddress, NodeContactAddressData};
use crate::types::contact::NodeContact;
use crate::types::id::NodeId;
use crate::wire::closest::{ActiveConnection, ActiveNode, ClosestNodes, ClosestNodesQuery};
use crate::wire::frame::FrameFault;
use crate::wire::message::{
    ClaimsPage, PunchRequest, RpcRequest, RpcResponse, SignalRequest, SignalTerms, is_protocol_name,
};
use crate::wire::polykey::address::parse_address;
use crate::wire::signal::address_text;

pub(super) fn write(message: &Message) -> Result<wire::Message<'_>, FrameFault> {
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
        V1::External { address } => {
            allow(address.as_ref().is_none_or(|it| !matches!(it.host, Host::Name(_))))?;
            wire::V1::External { address: address.as_ref().map(write_address).transpose()? }
        }
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

pub(super) fn write_known(
    node: NodeId,
    contact: &NodeContact,
) -> Result<wire::Known<'_>, FrameFault> {
    Ok(wire::Known { node, addresses: list(contact.iter(), write_known_address)? })
}

pub(super) fn write_known_address(
    (address, data): &(NodeAddress, NodeContactAddressData),
) -> Result<wire::KnownAddress<'_>, FrameFault> {
    allow(data.scopes.global)?;
    let address = write_address(address)?;
    Ok(wire::KnownAddress { address, mode: data.mode, connected_time: data.connected_time.0 })
}

pub(super) fn write_active(active: &ActiveNode) -> Result<wire::Active<'_>, FrameFault> {
    Ok(wire::Active {
        node: active.node,
        connections: list(&active.connections, write_connection)?,
    })
}

pub(super) fn write_connection(
    connection: &ActiveConnection,
) -> Result<wire::Connection<'_>, FrameFault> {
    let ActiveConnection { shared_id, address, primary, idle_in_ms } = connection;
    allow(shared_id.len() <= MAX_SHARED_ID)?;
    let (shared_id, address) = (wire::Octets(shared_id), write_address(address)?);
    Ok(wire::Connection { shared_id, address, primary: *primary, idle_in_ms: *idle_in_ms })
}

pub(super) fn write_address(address: &NodeAddress) -> Result<wire::Address<'_>, FrameFault> {
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

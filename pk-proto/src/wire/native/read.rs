//! From the wire format to messages.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::net::IpAddr;

use bytes::Bytes;

use super::hello::Hello;
use super::message::{MAX_AGENT, MAX_PER_NODE, MAX_SHARED_ID, MAX_TOKEN, Message, V1, allow};
use super::wire;
use super::write::{write_address, write_known_address};
use crate::claims::ClaimId;
use crate::types::address::{Host, Hostname, NodeAddress, NodeContactAddressData, Scopes};
use crate::types::contact::NodeContact;
use crate::types::id::NodeId;
use crate::types::signature::Signature;
use crate::types::time::UnixMillis;
use crate::wire::closest::{ActiveConnection, ActiveNode, ClosestNodes, ClosestNodesQuery};
use crate::wire::frame::FrameFault;
use crate::wire::message::{
    ClaimsPage, PunchRequest, RpcRequest, RpcResponse, SignalRequest, SignalTerms, is_protocol_name,
};
use crate::wire::polykey::address::parse_address;
use crate::wire::signal::address_text;

/// Refuses what [`write()`] does not produce: texts above their limits, and values that the types
/// behind it normalize.
pub(super) fn read(message: wire::Message<'_>) -> Result<Message, FrameFault> {
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
        wire::V1::External { address } => {
            let address = address.as_ref().map(read_address).transpose()?;
            allow(address.as_ref().is_none_or(|it| !matches!(it.host, Host::Name(_))))?;
            V1::External { address }
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

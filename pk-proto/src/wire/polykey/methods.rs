//! The methods of the node layer (docs/WIRE.md section 5): parameters and results, and the
//! corresponding requests and responses.

use alloc::borrow::{Cow, ToOwned};
use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;
use core::marker::PhantomData;
use core::time::Duration;

use bytes::Bytes;
use data_encoding::BASE64URL_NOPAD;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use super::ObjectFault;
use super::address::{address, host_text, parse_address, write_address};
use super::authentication::read_authentication;
use super::classes::{failure, write_invalid, write_refusal};
use super::format::{Method, PREFIX, PolykeyFormat};
use super::message::{
    Request, Response, json, parse_request, parse_response, quoted, whole, write_further,
    write_request, write_result,
};
use crate::claims::ClaimId;
use crate::types::address::{ContactMode, NodeAddress, NodeContactAddressData, Scopes};
use crate::types::contact::NodeContact;
use crate::types::id::NodeId;
use crate::types::signature::Signature;
use crate::types::time::UnixMillis;
use crate::wire::closest::{ActiveConnection, ActiveNode, ClosestNodes, ClosestNodesQuery};
use crate::wire::message::{
    ClaimsPage, PunchRequest, RpcRequest, RpcResponse, SERVED_BYTES, SignalRequest, SignalTerms,
};
use crate::wire::native::{MAX_PER_NODE, MAX_SHARED_ID, fit};
use crate::wire::parsed_message;
use crate::wire::parsed_message::{NetworkMessage, ParsedMessage};

/// Maximum number of results of one call that are read.
pub(crate) const PARTS_LIMIT: u32 = 256;
/// Maximum number of members of an object that is a map.
const ENTRIES: usize = 256;

const INVALID_NODE_ID: &str = "Node ID must be multibase base32hex encoded public-keys";
pub(crate) const INVALID: &str = "Input data failed validation";

// -- decoding

/// Decodes a message on a stream of this form.
pub(crate) fn read(object: &Bytes, format: PolykeyFormat) -> Result<ParsedMessage, ObjectFault> {
    match format {
        PolykeyFormat::First => read_first(object),
        PolykeyFormat::Call { method, ours: false } => {
            let request = parse_request(object)?;
            match method {
                Method::CrossSign if request.method == method.name() => read_token(request.params)
                    .map(ParsedMessage::Token)
                    .map_err(|_| ObjectFault::NotAMessage),
                Method::Authenticate if request.method == method.name() => {
                    read_network(request.params, format)
                }
                _ => Err(ObjectFault::NotAMessage),
            }
        }
        PolykeyFormat::Call { .. } | PolykeyFormat::Alive => match parse_response(object)? {
            Response::Error(error) => Ok(ParsedMessage::Failure(failure(&error))),
            Response::Result(result) => read_result(result, format),
        },
    }
}

fn read_first(object: &Bytes) -> Result<ParsedMessage, ObjectFault> {
    let Request { method: name, params, timeout } = parse_request(object)?;
    let Some(method) = Method::named(&name) else {
        return Ok(ParsedMessage::Open {
            protocol: [PREFIX, &name].concat(),
            header: object.clone(),
        });
    };
    let format = parsed_message::StreamFormat::Polykey(PolykeyFormat::Call { method, ours: false });
    let question = match method {
        Method::CrossSign => {
            return Ok(match read_token(params) {
                Ok(token) => ParsedMessage::Exchange { token, format, timeout },
                Err(why) => ParsedMessage::Invalid { why, format },
            });
        }
        Method::Authenticate => {
            let message = read_authentication(params).unwrap_or(NetworkMessage::Invalid);
            return Ok(ParsedMessage::Network { message, format });
        }
        Method::ClaimsGet => read_claims(params),
        Method::NetworkSign => read_token(params).map(RpcRequest::SignClaim),
        Method::ClosestLocal => {
            read_closest(params, ClosestNodesQuery { known: true, connected: false })
        }
        Method::ClosestActive => {
            read_closest(params, ClosestNodesQuery { known: false, connected: true })
        }
        Method::SignalInitial => read_signal(params).map(RpcRequest::Signal),
        Method::SignalFinal => read_punch(params).map(|punch| RpcRequest::Punch(Box::new(punch))),
    };
    Ok(match question {
        Ok(question) => ParsedMessage::Request { request: question, format, timeout },
        Err(why) => ParsedMessage::Invalid { why, format },
    })
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawClosest<'a> {
    #[serde(borrow)]
    node_id_encoded: Cow<'a, str>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawSignal<'a> {
    #[serde(borrow)]
    target_node_id_encoded: Cow<'a, str>,
    #[serde(borrow)]
    signature: Cow<'a, str>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawPunch<'a> {
    #[serde(borrow)]
    source_node_id_encoded: Cow<'a, str>,
    #[serde(borrow)]
    target_node_id_encoded: Cow<'a, str>,
    #[serde(borrow)]
    address: &'a RawValue,
    #[serde(borrow)]
    request_signature: Cow<'a, str>,
    #[serde(borrow)]
    relay_signature: Cow<'a, str>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawToken<'a> {
    #[serde(borrow)]
    signed_token_encoded: &'a RawValue,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawClaims<'a> {
    #[serde(borrow, default)]
    claim_id_encoded: Cow<'a, str>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawClaim<'a> {
    #[serde(borrow)]
    claim_id_encoded: Cow<'a, str>,
    #[serde(borrow)]
    signed_token_encoded: &'a RawValue,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawKnown<'a> {
    #[serde(borrow)]
    node_id_encoded: Cow<'a, str>,
    #[serde(borrow)]
    node_contact: Entries<'a, RawData<'a>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawData<'a> {
    #[serde(borrow)]
    mode: Cow<'a, str>,
    #[serde(borrow)]
    connected_time: &'a RawValue,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawActive<'a> {
    #[serde(borrow)]
    node_id: Cow<'a, str>,
    #[serde(borrow)]
    connections: Entries<'a, RawConnection<'a>>,
}

#[derive(Deserialize)]
struct RawConnection<'a> {
    #[serde(borrow)]
    host: Cow<'a, str>,
    port: u16,
    #[serde(borrow)]
    timeout: Option<&'a RawValue>,
    primary: bool,
}

fn read_closest(params: &str, query: ClosestNodesQuery) -> Result<RpcRequest, &'static str> {
    let raw: RawClosest<'_> = json(params).map_err(|_| INVALID)?;
    Ok(RpcRequest::Closest { target: node_id(&raw.node_id_encoded)?, query })
}

fn read_signal(params: &str) -> Result<SignalRequest, &'static str> {
    let raw: RawSignal<'_> = json(params).map_err(|_| INVALID)?;
    let target = node_id(&raw.target_node_id_encoded)?;
    Ok(SignalRequest { target, terms: SignalTerms::Plain, signature: signature(&raw.signature) })
}

fn read_punch(params: &str) -> Result<PunchRequest, &'static str> {
    let raw: RawPunch<'_> = json(params).map_err(|_| INVALID)?;
    let target = node_id(&raw.target_node_id_encoded)?;
    let signed = signature(&raw.request_signature);
    Ok(PunchRequest {
        source: node_id(&raw.source_node_id_encoded)?,
        address: parse_address(raw.address.get()).map_err(|_| INVALID)?,
        address_text: raw.address.get().to_owned(),
        request: SignalRequest { target, terms: SignalTerms::Plain, signature: signed },
        relay_signature: signature(&raw.relay_signature),
    })
}

fn read_token(params: &str) -> Result<Bytes, &'static str> {
    let raw: RawToken<'_> = json(params).map_err(|_| INVALID)?;
    Ok(Bytes::copy_from_slice(raw.signed_token_encoded.get().as_bytes()))
}

fn read_network(params: &str, format: PolykeyFormat) -> Result<ParsedMessage, ObjectFault> {
    let message = read_authentication(params).ok_or(ObjectFault::NotAMessage)?;
    let format = parsed_message::StreamFormat::Polykey(format);
    Ok(ParsedMessage::Network { message, format })
}

/// The reference ignores this parameter and sends its whole chain. This node sends the claims after
/// the given one, if it is a claim id.
fn read_claims(params: &str) -> Result<RpcRequest, &'static str> {
    let raw: RawClaims<'_> = json(params).map_err(|_| INVALID)?;
    Ok(RpcRequest::Claims { after: raw.claim_id_encoded.parse().ok(), max_bytes: SERVED_BYTES })
}

fn read_claim(raw: &RawClaim<'_>) -> Result<(ClaimId, Bytes), ObjectFault> {
    let id = raw.claim_id_encoded.parse().map_err(|_| ObjectFault::NotAMessage)?;
    Ok((id, Bytes::copy_from_slice(raw.signed_token_encoded.get().as_bytes())))
}

fn read_result(result: &str, format: PolykeyFormat) -> Result<ParsedMessage, ObjectFault> {
    Ok(match format.method() {
        None => ParsedMessage::Part(None),
        Some(Method::ClosestLocal) => {
            let local = Vec::from([read_known(json(result)?)?]);
            ParsedMessage::Part(Some(RpcResponse::Closest(ClosestNodes {
                known: local,
                connected: Vec::new(),
            })))
        }
        Some(Method::ClosestActive) => {
            let active = Vec::from([read_active(json(result)?)?]);
            ParsedMessage::Part(Some(RpcResponse::Closest(ClosestNodes {
                known: Vec::new(),
                connected: active,
            })))
        }
        Some(Method::SignalInitial) => {
            ParsedMessage::Response(RpcResponse::Signalled { address: parse_address(result)? })
        }
        Some(Method::SignalFinal) => ParsedMessage::Response(RpcResponse::Punching),
        Some(Method::ClaimsGet) => {
            let claims = Vec::from([read_claim(&json(result)?)?]);
            ParsedMessage::Part(Some(RpcResponse::Claims(ClaimsPage { claims, more: false })))
        }
        Some(Method::NetworkSign) => {
            let token = read_token(result).map_err(|_| ObjectFault::NotAMessage)?;
            ParsedMessage::Response(RpcResponse::SignedClaim(token))
        }
        Some(Method::Authenticate) => read_network(result, format)?,
        Some(Method::CrossSign) => {
            ParsedMessage::Token(read_token(result).map_err(|_| ObjectFault::NotAMessage)?)
        }
    })
}

/// Addresses that are meaningless here are left out.
fn read_known(raw: RawKnown<'_>) -> Result<(NodeId, NodeContact), ObjectFault> {
    let node = node_id(&raw.node_id_encoded).map_err(|_| ObjectFault::NotAMessage)?;
    let addresses = raw.node_contact.0.into_iter().filter_map(|(key, data)| {
        let mode = MODES.iter().find(|(_, name)| *name == data.mode)?.0;
        let connected_time = UnixMillis(whole(data.connected_time)?);
        let data = NodeContactAddressData { mode, connected_time, scopes: Scopes::GLOBAL };
        Some((NodeAddress::from_contact_key(&key).ok()?, data))
    });
    Ok((node, addresses.take(MAX_PER_NODE).collect()))
}

fn read_active(raw: RawActive<'_>) -> Result<ActiveNode, ObjectFault> {
    let node = node_id(&raw.node_id).map_err(|_| ObjectFault::NotAMessage)?;
    let connections = raw.connections.0.into_iter().filter_map(|(id, raw)| {
        Some(ActiveConnection {
            shared_id: Some(Bytes::from(id.into_owned()))
                .filter(|id| id.len() <= MAX_SHARED_ID && is_text(id))?,
            address: address(&raw.host, raw.port)?,
            primary: raw.primary,
            idle_in_ms: raw.timeout.and_then(whole),
        })
    });
    Ok(ActiveNode { node, connections: connections.take(MAX_PER_NODE).collect() })
}

fn node_id(text: &str) -> Result<NodeId, &'static str> {
    text.parse().map_err(|_| INVALID_NODE_ID)
}

/// Bytes that are not a signature are replaced by one that no key can make (its point has small
/// order), and are refused with the same error, because the reference does not distinguish them.
fn signature(text: &str) -> Signature {
    let bytes =
        BASE64URL_NOPAD.decode(text.as_bytes()).ok().and_then(|bytes| bytes.try_into().ok());
    Signature(bytes.unwrap_or([0; 64]))
}

/// The members of an object, in order; at most [`ENTRIES`].
struct Entries<'a, T>(Vec<(Cow<'a, str>, T)>);

impl<'de: 'a, 'a, T: Deserialize<'de>> Deserialize<'de> for Entries<'a, T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members<'a, T>(PhantomData<(&'a str, T)>);

        #[derive(Deserialize)]
        struct Key<'a>(#[serde(borrow)] Cow<'a, str>);

        impl<'de: 'a, 'a, T: Deserialize<'de>> Visitor<'de> for Members<'a, T> {
            type Value = Vec<(Cow<'a, str>, T)>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "at most {ENTRIES} members")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut entries = Vec::new();
                while let Some((Key(key), value)) = map.next_entry()? {
                    if entries.len() == ENTRIES {
                        return Err(serde::de::Error::invalid_length(ENTRIES + 1, &self));
                    }
                    entries.push((key, value));
                }
                Ok(entries)
            }
        }

        deserializer.deserialize_map(Members(PhantomData)).map(Self)
    }
}

const MODES: [(ContactMode, &str); 3] = [
    (ContactMode::Direct, "direct"),
    (ContactMode::Signal, "signal"),
    (ContactMode::Relay, "relay"),
];

// -- encoding

/// Encodes a request as calls: the first message of each and the format of its response; and the
/// response if they end well without one.
pub(crate) fn encode_call(
    question: &RpcRequest,
    timeout: Duration,
) -> (Option<RpcResponse>, Vec<(Bytes, PolykeyFormat)>) {
    let call = |method: Method, format, params: &str| {
        (write_request(method.name(), params, Some(timeout)), format)
    };
    let ours = |method| PolykeyFormat::Call { method, ours: true };
    let of_node = |target: &NodeId| format!("{{\"nodeIdEncoded\":\"{target}\"}}");
    match question {
        // The reference has no ping. This call is cheap, and has no effect.
        RpcRequest::Ping { nonce } => {
            let absent = of_node(&NodeId::from_bytes([0; 32]));
            let calls = Vec::from([call(Method::ClosestActive, PolykeyFormat::Alive, &absent)]);
            (Some(RpcResponse::Pong { nonce: *nonce }), calls)
        }
        RpcRequest::Closest { target, query } => {
            let methods =
                [(query.known, Method::ClosestLocal), (query.connected, Method::ClosestActive)];
            let asked = methods.into_iter().filter(|(asked, _)| *asked);
            let calls =
                asked.map(|(_, method)| call(method, ours(method), &of_node(target))).collect();
            (Some(RpcResponse::Closest(ClosestNodes::default())), calls)
        }
        RpcRequest::Claims { after, .. } => {
            let after = after.map(|id| id.to_string()).unwrap_or_default();
            let params = format!("{{\"claimIdEncoded\":\"{after}\"}}");
            let method = Method::ClaimsGet;
            (
                Some(RpcResponse::Claims(ClaimsPage::default())),
                Vec::from([call(method, ours(method), &params)]),
            )
        }
        RpcRequest::SignClaim(token) => {
            let method = Method::NetworkSign;
            let params = core::str::from_utf8(token).map(token_params);
            (None, params.map(|params| call(method, ours(method), &params)).into_iter().collect())
        }
        RpcRequest::Signal(SignalRequest { terms: SignalTerms::Once { .. }, .. }) => {
            (None, Vec::new())
        }
        RpcRequest::Signal(signal) => {
            let method = Method::SignalInitial;
            (None, Vec::from([call(method, ours(method), &signal_params(signal))]))
        }
        RpcRequest::Punch(punch) if punch.request.terms != SignalTerms::Plain => (None, Vec::new()),
        RpcRequest::Punch(punch) => {
            let method = Method::SignalFinal;
            (None, Vec::from([call(method, ours(method), &punch_params(punch))]))
        }
        // The reference does not relay.
        RpcRequest::Relay { .. } | RpcRequest::Circuit { .. } | RpcRequest::Candidates(_) => {
            (None, Vec::new())
        }
    }
}

fn signal_params(signal: &SignalRequest) -> String {
    let SignalRequest { target, signature, .. } = signal;
    format!("{{\"targetNodeIdEncoded\":\"{target}\",\"signature\":\"{signature:?}\"}}")
}

fn punch_params(punch: &PunchRequest) -> String {
    let PunchRequest { source, address_text, request, relay_signature, .. } = punch;
    let SignalRequest { target, signature, .. } = request;
    format!(
        concat!(
            "{{\"sourceNodeIdEncoded\":\"{source}\",\"targetNodeIdEncoded\":\"{target}\",\"address\":{address_text},",
            "\"requestSignature\":\"{signature:?}\",\"relaySignature\":\"{relay_signature:?}\"}}"
        ),
        source = source,
        target = target,
        address_text = address_text,
        signature = signature,
        relay_signature = relay_signature,
    )
}

/// Encodes the response to a request in this form.
pub(crate) fn answer(format: PolykeyFormat, answer: RpcResponse, now: UnixMillis) -> Bytes {
    match answer {
        RpcResponse::Refused(refusal) => write_refusal(refusal, format.method(), now),
        RpcResponse::Closest(closest) => write_closest(fit(closest)).into(),
        RpcResponse::Claims(page) => write_claims(&page).into(),
        RpcResponse::SignedClaim(token) => write_result(&token_params(&text(&token))),
        RpcResponse::Signalled { address } => write_result(&write_address(&address)),
        RpcResponse::Punching
        | RpcResponse::Pong { .. }
        | RpcResponse::Circuit { .. }
        | RpcResponse::Candidates(_) => write_result("{}"),
    }
}

/// Encodes the response to invalid parameters.
pub(crate) fn invalid(why: &str, now: UnixMillis) -> Bytes {
    write_invalid(why, now)
}

/// Encodes the first message of an exchange.
pub(crate) fn exchange(token: &str, timeout: Duration) -> (Bytes, PolykeyFormat) {
    let method = Method::CrossSign;
    (
        write_request(method.name(), &token_params(token), Some(timeout)),
        PolykeyFormat::Call { method, ours: true },
    )
}

/// Encodes a further message of an exchange.
pub(crate) fn token(format: PolykeyFormat, token: &str) -> Bytes {
    match format {
        PolykeyFormat::Call { method, ours: true } => {
            write_further(method.name(), &token_params(token))
        }
        PolykeyFormat::Call { .. } | PolykeyFormat::First | PolykeyFormat::Alive => {
            write_result(&token_params(token))
        }
    }
}

/// Tokens are JSON, and so UTF-8.
fn text(token: &[u8]) -> Cow<'_, str> {
    String::from_utf8_lossy(token)
}

fn write_claims(page: &ClaimsPage) -> Vec<u8> {
    let claims = page.claims.iter().map(|(id, token)| {
        write_result(&format!(
            "{{\"claimIdEncoded\":\"{id}\",\"signedTokenEncoded\":{}}}",
            text(token)
        ))
    });
    claims.flatten().collect()
}

fn token_params(token: &str) -> String {
    format!("{{\"signedTokenEncoded\":{token}}}")
}

fn write_closest(closest: ClosestNodes) -> String {
    let mut text = String::new();
    let mut result = |result: String| {
        text.push_str(core::str::from_utf8(&write_result(&result)).unwrap_or_default());
    };
    for (node, contact) in closest.known {
        let addresses = contact.iter().map(|(address, data)| {
            let mode = MODES
                .iter()
                .find(|(mode, _)| *mode == data.mode)
                .map_or("direct", |(_, name)| name);
            let (key, time) = (quoted(&address.contact_key()), data.connected_time.0);
            format!(
                "{key}:{{\"mode\":\"{mode}\",\"connectedTime\":{time},\"scopes\":[\"global\"]}}"
            )
        });
        let addresses = addresses.collect::<Vec<_>>().join(",");
        result(format!("{{\"nodeIdEncoded\":\"{node}\",\"nodeContact\":{{{addresses}}}}}"));
    }
    for ActiveNode { node, connections } in closest.connected {
        let connections = connections.iter().map(|connection| {
            let id = quoted(&shared_id_text(&connection.shared_id));
            let NodeAddress { host, port } = &connection.address;
            let (host, primary) = (host_text(host), connection.primary);
            let timeout =
                connection.idle_in_ms.map(|ms| format!("\"timeout\":{ms},")).unwrap_or_default();
            format!("{id}:{{\"host\":{host},\"port\":{port},{timeout}\"primary\":{primary}}}")
        });
        let connections = connections.collect::<Vec<_>>().join(",");
        result(format!("{{\"nodeId\":\"{node}\",\"connections\":{{{connections}}}}}"));
    }
    text
}

/// On this dialect the shared id of a connection is a text; others, which are random bytes, are
/// encoded as one.
fn shared_id_text(id: &[u8]) -> String {
    match core::str::from_utf8(id) {
        Ok(text) if is_text(id) => text.to_owned(),
        _ => BASE64URL_NOPAD.encode(id),
    }
}

fn is_text(id: &[u8]) -> bool {
    id.iter().all(|byte| matches!(byte, b' '..=b'~'))
}

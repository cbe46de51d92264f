//! The methods of the node layer (WIRE.md section 5): parameters and results, and the questions and answers that they are.

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

use super::classes::{failure, write_invalid, write_refusal};
use super::message::{
    Request, Response, json, parse_request, parse_response, quoted, whole, write_further, write_request, write_result,
};
use super::{ObjectFault, PREFIX};
use crate::address::{ContactMode, Host, NodeAddress, NodeContactAddressData, Scopes};
use crate::claims::ClaimId;
use crate::graph::NodeContact;
use crate::id::NodeId;
use crate::io::Signature;
use crate::request::{ActiveConnection, ActiveNode, Closest, ClosestLists};
use crate::rpc::codec::Said;
use crate::rpc::native::{MAX_PER_NODE, MAX_SHARED_ID, fit};
use crate::rpc::pages::SERVED_BYTES;
use crate::rpc::{Answer, ClaimsPage, PunchRequest, Question, SignalRequest, SignalTerms, codec};
use crate::time::UnixMillis;

/// Results of one call that are read; nobody needs more.
pub(in crate::rpc) const PARTS_LIMIT: u32 = 256;
/// Members of an object that is a map.
const ENTRIES: usize = 256;

const INVALID_NODE_ID: &str = "Node ID must be multibase base32hex encoded public-keys";
const INVALID: &str = "Input data failed validation";

/// A method that nodes call on each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::rpc) enum Method {
    ClosestLocal,
    ClosestActive,
    SignalInitial,
    SignalFinal,
    ClaimsGet,
    CrossSign,
    NetworkSign,
}

impl Method {
    const ALL: [Self; 7] = [
        Self::ClosestLocal,
        Self::ClosestActive,
        Self::SignalInitial,
        Self::SignalFinal,
        Self::ClaimsGet,
        Self::CrossSign,
        Self::NetworkSign,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::ClosestLocal => "nodesClosestLocalNodesGet",
            Self::ClosestActive => "nodesClosestActiveConnectionsGet",
            Self::SignalInitial => "nodesConnectionSignalInitial",
            Self::SignalFinal => "nodesConnectionSignalFinal",
            Self::ClaimsGet => "nodesClaimsGet",
            Self::CrossSign => "nodesCrossSignClaim",
            Self::NetworkSign => "nodesClaimNetworkSign",
        }
    }

    fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|method| method.name() == name)
    }
}

/// What is read on a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::rpc) enum Form {
    /// The first message of a peer.
    First,
    /// What a peer that called it says further, or answers to our call.
    Call { method: Method, ours: bool },
    /// Answers that say nothing but that the peer is there.
    Alive,
}

impl Form {
    /// Whether the end of the peer's direction is the end of its answer.
    pub(in crate::rpc) fn is_list(self) -> bool {
        match self {
            Self::Alive => true,
            Self::Call { method, .. } => {
                matches!(method, Method::ClosestLocal | Method::ClosestActive | Method::ClaimsGet)
            }
            Self::First => false,
        }
    }

    fn method(self) -> Option<Method> {
        match self {
            Self::Call { method, .. } => Some(method),
            Self::First | Self::Alive => None,
        }
    }
}

// -- reading

/// What a message says on a stream of this form.
pub(in crate::rpc) fn read(object: &Bytes, form: Form) -> Result<Said, ObjectFault> {
    match form {
        Form::First => read_first(object),
        Form::Call { method, ours: false } => {
            let request = parse_request(object)?;
            match method {
                Method::CrossSign if request.method == method.name() => {
                    read_token(request.params).map(Said::Token).map_err(|_| ObjectFault::NotAMessage)
                }
                _ => Err(ObjectFault::NotAMessage),
            }
        }
        Form::Call { .. } | Form::Alive => match parse_response(object)? {
            Response::Error(error) => Ok(Said::Failed(failure(&error))),
            Response::Result(result) => read_result(result, form),
        },
    }
}

fn read_first(object: &Bytes) -> Result<Said, ObjectFault> {
    let Request { method: name, params, timeout } = parse_request(object)?;
    let Some(method) = Method::named(&name) else {
        return Ok(Said::Open { protocol: [PREFIX, &name].concat(), header: object.clone() });
    };
    let form = codec::Form::Polykey(Form::Call { method, ours: false });
    let question = match method {
        Method::CrossSign => {
            return Ok(match read_token(params) {
                Ok(token) => Said::Exchange { token, form, timeout },
                Err(why) => Said::Invalid { why, form },
            });
        }
        Method::ClaimsGet => read_claims(params),
        Method::NetworkSign => read_token(params).map(Question::SignClaim),
        Method::ClosestLocal => read_closest(params, ClosestLists { local: true, active: false }),
        Method::ClosestActive => read_closest(params, ClosestLists { local: false, active: true }),
        Method::SignalInitial => read_signal(params).map(Question::Signal),
        Method::SignalFinal => read_punch(params).map(|punch| Question::Punch(Box::new(punch))),
    };
    Ok(match question {
        Ok(question) => Said::Call { question, form, timeout },
        Err(why) => Said::Invalid { why, form },
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

#[derive(Deserialize)]
struct RawAddress<'a> {
    #[serde(borrow)]
    host: Cow<'a, str>,
    port: u16,
}

fn read_closest(params: &str, lists: ClosestLists) -> Result<Question, &'static str> {
    let raw: RawClosest<'_> = json(params).map_err(|_| INVALID)?;
    Ok(Question::Closest { target: node_id(&raw.node_id_encoded)?, lists })
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

/// The reference takes any text here and tells its whole chain. We tell what is behind the claim that was named, if one was.
fn read_claims(params: &str) -> Result<Question, &'static str> {
    let raw: RawClaims<'_> = json(params).map_err(|_| INVALID)?;
    Ok(Question::Claims { after: raw.claim_id_encoded.parse().ok(), max_bytes: SERVED_BYTES })
}

fn read_claim(raw: &RawClaim<'_>) -> Result<(ClaimId, Bytes), ObjectFault> {
    let id = raw.claim_id_encoded.parse().map_err(|_| ObjectFault::NotAMessage)?;
    Ok((id, Bytes::copy_from_slice(raw.signed_token_encoded.get().as_bytes())))
}

fn read_result(result: &str, form: Form) -> Result<Said, ObjectFault> {
    Ok(match form.method() {
        None => Said::Part(None),
        Some(Method::ClosestLocal) => {
            let local = Vec::from([read_known(json(result)?)?]);
            Said::Part(Some(Answer::Closest(Closest { local, active: Vec::new() })))
        }
        Some(Method::ClosestActive) => {
            let active = Vec::from([read_active(json(result)?)?]);
            Said::Part(Some(Answer::Closest(Closest { local: Vec::new(), active })))
        }
        Some(Method::SignalInitial) => Said::Answer(Answer::Signalled { address: parse_address(result)? }),
        Some(Method::SignalFinal) => Said::Answer(Answer::Punching),
        Some(Method::ClaimsGet) => {
            let claims = Vec::from([read_claim(&json(result)?)?]);
            Said::Part(Some(Answer::Claims(ClaimsPage { claims, more: false })))
        }
        Some(Method::NetworkSign) => {
            let token = read_token(result).map_err(|_| ObjectFault::NotAMessage)?;
            Said::Answer(Answer::SignedClaim(token))
        }
        Some(Method::CrossSign) => Said::Token(read_token(result).map_err(|_| ObjectFault::NotAMessage)?),
    })
}

/// Addresses that mean nothing here are left out.
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
            shared_id: Some(Bytes::from(id.into_owned())).filter(|id| id.len() <= MAX_SHARED_ID && is_text(id))?,
            address: address(&raw.host, raw.port)?,
            primary: raw.primary,
            idle_in_ms: raw.timeout.and_then(whole),
        })
    });
    Ok(ActiveNode { node, connections: connections.take(MAX_PER_NODE).collect() })
}

/// Reads the text of an address, as [`write_address`] writes it or another node did.
pub(crate) fn parse_address(text: &str) -> Result<NodeAddress, ObjectFault> {
    let raw: RawAddress<'_> = json(text)?;
    address(&raw.host, raw.port).ok_or(ObjectFault::NotAMessage)
}

fn address(host: &str, port: u16) -> Option<NodeAddress> {
    Some(NodeAddress { host: host.parse().ok()?, port }).filter(|_| port != 0)
}

fn node_id(text: &str) -> Result<NodeId, &'static str> {
    text.parse().map_err(|_| INVALID_NODE_ID)
}

/// What is no signature at all is one that nobody has made (its point has a small order), and so refused in the same words:
/// the reference does not tell them apart.
fn signature(text: &str) -> Signature {
    let bytes = BASE64URL_NOPAD.decode(text.as_bytes()).ok().and_then(|bytes| bytes.try_into().ok());
    Signature(bytes.unwrap_or([0; 64]))
}

/// The members of an object, in their order; not more than [`ENTRIES`].
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

const MODES: [(ContactMode, &str); 3] =
    [(ContactMode::Direct, "direct"), (ContactMode::Signal, "signal"), (ContactMode::Relay, "relay")];

// -- writing

/// The calls that ask a question: the first message of each and how its answer is read; and what is answered if they end
/// well without saying it.
pub(in crate::rpc) fn calls(question: &Question, timeout: Duration) -> (Option<Answer>, Vec<(Bytes, Form)>) {
    let call = |method: Method, form, params: &str| (write_request(method.name(), params, Some(timeout)), form);
    let ours = |method| Form::Call { method, ours: true };
    let of_node = |target: &NodeId| format!("{{\"nodeIdEncoded\":\"{target}\"}}");
    match question {
        // The reference has no ping. This is cheap, and has no effect.
        Question::Ping { nonce } => {
            let nobody = of_node(&NodeId::from_bytes([0; 32]));
            let calls = Vec::from([call(Method::ClosestActive, Form::Alive, &nobody)]);
            (Some(Answer::Pong { nonce: *nonce }), calls)
        }
        Question::Closest { target, lists } => {
            let methods = [(lists.local, Method::ClosestLocal), (lists.active, Method::ClosestActive)];
            let asked = methods.into_iter().filter(|(asked, _)| *asked);
            let calls = asked.map(|(_, method)| call(method, ours(method), &of_node(target))).collect();
            (Some(Answer::Closest(Closest::default())), calls)
        }
        Question::Claims { after, .. } => {
            let after = after.map(|id| id.to_string()).unwrap_or_default();
            let params = format!("{{\"claimIdEncoded\":\"{after}\"}}");
            let method = Method::ClaimsGet;
            (Some(Answer::Claims(ClaimsPage::default())), Vec::from([call(method, ours(method), &params)]))
        }
        Question::SignClaim(token) => {
            let method = Method::NetworkSign;
            let params = core::str::from_utf8(token).map(token_params);
            (None, params.map(|params| call(method, ours(method), &params)).into_iter().collect())
        }
        Question::Signal(SignalRequest { terms: SignalTerms::Once { .. }, .. }) => (None, Vec::new()),
        Question::Signal(signal) => {
            let method = Method::SignalInitial;
            (None, Vec::from([call(method, ours(method), &signal_params(signal))]))
        }
        Question::Punch(punch) if punch.request.terms != SignalTerms::Plain => (None, Vec::new()),
        Question::Punch(punch) => {
            let method = Method::SignalFinal;
            (None, Vec::from([call(method, ours(method), &punch_params(punch))]))
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

/// The answer to a question that was asked in this form.
pub(in crate::rpc) fn answer(form: Form, answer: Answer, now: UnixMillis) -> Bytes {
    match answer {
        Answer::Refused(refusal) => write_refusal(refusal, form.method(), now),
        Answer::Closest(closest) => write_closest(fit(closest)).into(),
        Answer::Claims(page) => write_claims(&page).into(),
        Answer::SignedClaim(token) => write_result(&token_params(&text(&token))),
        Answer::Signalled { address } => write_result(&write_address(&address)),
        Answer::Punching | Answer::Pong { .. } => write_result("{}"),
    }
}

/// The answer to parameters that make no question.
pub(in crate::rpc) fn invalid(why: &str, now: UnixMillis) -> Bytes {
    write_invalid(why, now)
}

/// The first message of an exchange.
pub(in crate::rpc) fn exchange(token: &str, timeout: Duration) -> (Bytes, Form) {
    let method = Method::CrossSign;
    (write_request(method.name(), &token_params(token), Some(timeout)), Form::Call { method, ours: true })
}

/// A further message of an exchange.
pub(in crate::rpc) fn token(form: Form, token: &str) -> Bytes {
    match form {
        Form::Call { method, ours: true } => write_further(method.name(), &token_params(token)),
        Form::Call { .. } | Form::First | Form::Alive => write_result(&token_params(token)),
    }
}

/// Tokens are JSON, and so UTF-8.
fn text(token: &[u8]) -> Cow<'_, str> {
    String::from_utf8_lossy(token)
}

fn write_claims(page: &ClaimsPage) -> Vec<u8> {
    let claims = page.claims.iter().map(|(id, token)| {
        write_result(&format!("{{\"claimIdEncoded\":\"{id}\",\"signedTokenEncoded\":{}}}", text(token)))
    });
    claims.flatten().collect()
}

fn token_params(token: &str) -> String {
    format!("{{\"signedTokenEncoded\":{token}}}")
}

fn write_closest(closest: Closest) -> String {
    let mut text = String::new();
    let mut result = |result: String| text.push_str(core::str::from_utf8(&write_result(&result)).unwrap_or_default());
    for (node, contact) in closest.local {
        let addresses = contact.iter().map(|(address, data)| {
            let mode = MODES.iter().find(|(mode, _)| *mode == data.mode).map_or("direct", |(_, name)| name);
            let (key, time) = (quoted(&address.contact_key()), data.connected_time.0);
            format!("{key}:{{\"mode\":\"{mode}\",\"connectedTime\":{time},\"scopes\":[\"global\"]}}")
        });
        let addresses = addresses.collect::<Vec<_>>().join(",");
        result(format!("{{\"nodeIdEncoded\":\"{node}\",\"nodeContact\":{{{addresses}}}}}"));
    }
    for ActiveNode { node, connections } in closest.active {
        let connections = connections.iter().map(|connection| {
            let id = quoted(&shared_id_text(&connection.shared_id));
            let NodeAddress { host, port } = &connection.address;
            let (host, primary) = (host_text(host), connection.primary);
            let timeout = connection.idle_in_ms.map(|ms| format!("\"timeout\":{ms},")).unwrap_or_default();
            format!("{id}:{{\"host\":{host},\"port\":{port},{timeout}\"primary\":{primary}}}")
        });
        let connections = connections.collect::<Vec<_>>().join(",");
        result(format!("{{\"nodeId\":\"{node}\",\"connections\":{{{connections}}}}}"));
    }
    text
}

/// The text of an address, to the byte what `JSON.stringify` makes of it: relays sign it.
pub(crate) fn write_address(address: &NodeAddress) -> String {
    format!("{{\"host\":{},\"port\":{}}}", host_text(&address.host), address.port)
}

fn host_text(host: &Host) -> String {
    match host {
        // The reference tells IPv6 hosts as the socket does: compressed.
        Host::Ip(ip) => quoted(&ip.to_string()),
        host => quoted(&host.to_string()),
    }
}

/// On this dialect the name of a connection is a text; others, which are bytes as random as keys, become one.
fn shared_id_text(id: &[u8]) -> String {
    match core::str::from_utf8(id) {
        Ok(text) if is_text(id) => text.to_owned(),
        _ => BASE64URL_NOPAD.encode(id),
    }
}

fn is_text(id: &[u8]) -> bool {
    id.iter().all(|byte| matches!(byte, b' '..=b'~'))
}

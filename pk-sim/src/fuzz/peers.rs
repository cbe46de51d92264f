//! Data from peers: honest answers with valid frames and signatures, requests, and other bytes.

use bytes::Bytes;
use pk_proto::claims::{
    ChainHead, Claim, ClaimContent, ClaimId, ClaimLinkNode, DigestAlgorithm, SignedToken,
};
use pk_proto::native::{self, Hello, Message, V1};
use pk_proto::polykey::{self, MAX_FIRST_OBJECT, MAX_OBJECT, ObjectDecoder};
use pk_proto::signal::{address_text, relay_bytes, request_bytes};
use pk_proto::{
    ActiveConnection, ActiveNode, ClaimsPage, ClosestNodes, ClosestNodesQuery, ConnectionId,
    ContactMode, Dialect, NodeAddress, NodeContact, NodeContactAddressData, NodeId, PunchRequest,
    Refusal, RpcRequest, RpcResponse, Scopes, SignalRequest, SignalTerms, Signature, StreamId,
    UnixMillis,
};

use super::cast::Cast;
use super::driver::{Driver, Stream};
use super::script::Script;
use crate::host::identity::Key;

/// Why a peer refuses.
const REFUSALS: [Refusal; 8] = [
    Refusal::NotConnected,
    Refusal::RateLimited,
    Refusal::Signature,
    Refusal::Expired,
    Refusal::Busy,
    Refusal::Denied,
    Refusal::Stale,
    Refusal::Claim,
];

/// What a peer sends on one stream: bytes, and whether its direction ends behind them.
pub(super) type SentBytes = (Vec<u8>, bool);

/// The first frame of the control stream.
pub(super) fn hello(script: &mut Script<'_>) -> Vec<u8> {
    let features = match script.byte() {
        byte @ 0..=7 => byte.into(),
        _ => Hello::EXCHANGE | Hello::CLAIMS | Hello::PLAIN_SIGNALS | Hello::RELAY,
    };
    let hello = Hello {
        version_min: 1,
        version_max: 1 + u16::from(script.byte() & 1),
        features,
        agent: "fuzz".into(),
    };
    frame(&Message::V1(V1::Hello(hello)))
}

/// What a peer opens a stream with.
pub(super) fn opening(
    script: &mut Script<'_>,
    driver: &Driver,
    conn: ConnectionId,
) -> Vec<SentBytes> {
    let Some(of) = driver.conns.get(&conn) else { return Vec::new() };
    let key = Cast::get().key(&of.peer);
    let deadline_ms = [0, 1, 500, 10_000, u32::MAX][script.below(5)];
    if script.below(8) == 7 {
        let protocol = ["chat/1", "files/2", ""][script.below(3)];
        return match (of.dialect, script.below(2)) {
            (dialect, 0) => {
                vec![(exchange(dialect, deadline_ms, first_claim(script, driver, of.peer)), false)]
            }
            (Dialect::Native, _) => {
                vec![(frame(&Message::V1(V1::Open { protocol: protocol.into() })), false)]
            }
            (Dialect::Polykey, _) => {
                vec![(polykey::write_request("vaultsScan", "{}", None).into(), false)]
            }
        };
    }
    let question = question(script, driver, key, of.peer);
    asked(of.dialect, deadline_ms, question)
}

/// What a peer begins an exchange of claims with, or asks for a signature with; sound but for its
/// moment.
pub(super) fn claiming(
    script: &mut Script<'_>,
    driver: &Driver,
    conn: ConnectionId,
) -> Option<SentBytes> {
    const DEADLINE_MS: u32 = 60_000;
    let of = driver.conns.get(&conn)?;
    if script.below(4) == 3 {
        let question = RpcRequest::SignClaim(network_claim(script, driver, of.peer));
        return asked(of.dialect, DEADLINE_MS, question).pop();
    }
    // The same claim again within so many minutes, as a peer that resumes an exchange makes it.
    let minute = 60_000 * (1 + script.below(4) as u64);
    let unix = UnixMillis(driver.unix().0 / minute * minute);
    let token = claim(unix, (of.peer, driver.node.own_id()), of.peer, None);
    Some((exchange(of.dialect, DEADLINE_MS, token), false))
}

/// The beginning of an exchange.
fn exchange(dialect: Dialect, deadline_ms: u32, token: Bytes) -> Vec<u8> {
    match dialect {
        Dialect::Native => frame(&Message::V1(V1::Exchange { deadline_ms, token })),
        Dialect::Polykey => {
            polykey::write_request("nodesCrossSignClaim", &signed_token(&token), None).into()
        }
    }
}

/// A question, on as many streams as its dialect needs.
fn asked(dialect: Dialect, deadline_ms: u32, question: RpcRequest) -> Vec<SentBytes> {
    match dialect {
        Dialect::Native => {
            let circuit = opens_circuit(&question);
            vec![(frame(&Message::V1(V1::Call { deadline_ms, request: question })), !circuit)]
        }
        Dialect::Polykey => {
            let objects = polykey::encode_rpc_request(
                &question,
                std::time::Duration::from_millis(deadline_ms.into()),
            );
            objects.into_iter().map(|object| (object.into(), true)).collect()
        }
    }
}

/// Returns whether a stream remains open after its request and its answer.
fn opens_circuit(question: &RpcRequest) -> bool {
    matches!(question, RpcRequest::Relay { .. } | RpcRequest::Circuit { .. })
}

/// Returns what an honest peer answers to the data of the machine on a stream. `None` if nothing
/// needs an answer.
pub(super) fn answer(
    script: &mut Script<'_>,
    driver: &mut Driver,
    stream: StreamId,
) -> Option<SentBytes> {
    let Stream { conn, written, fin, steps, .. } = driver.streams.get(&stream)?;
    let of = driver.conns.get(conn)?;
    if *written && !fin && *steps > 0 {
        // An exchange of the peer is over.
        return Some((Vec::new(), true));
    }
    match of.dialect {
        Dialect::Native => answer_native(script, driver, stream, of.peer),
        Dialect::Polykey => answer_polykey(script, driver, stream, of.peer),
    }
}

fn answer_native(
    script: &mut Script<'_>,
    driver: &mut Driver,
    stream: StreamId,
    peer: NodeId,
) -> Option<SentBytes> {
    let payload = driver.streams.get_mut(&stream)?.frames.next().ok()??;
    let Ok(Message::V1(message)) = native::decode(&payload) else { return None };
    let say = |message| Some((frame(&Message::V1(message)), false));
    match message {
        // On the control stream of a peer it has come first.
        V1::Hello(_) => stream.is_ours().then(|| (hello(script), false)),
        V1::Call { request: question, .. } => {
            let answer = answer_to(script, &question, peer);
            // Sometimes the peer ends a circuit at once.
            let is_over = !opens_circuit(&question) || script.byte() >= 224;
            Some((frame(&Message::V1(V1::Answer(answer))), is_over))
        }
        V1::Open { .. } => say(V1::Accepted),
        V1::Exchange { .. } if script.byte() >= 224 => {
            let refusal = REFUSALS[script.below(REFUSALS.len())];
            Some((frame(&Message::V1(V1::Answer(RpcResponse::Refused(refusal)))), true))
        }
        V1::Exchange { token, .. } => {
            // Both of the peer's messages at once: the claim of the machine, signed, and its own.
            let mut said = frame(&Message::V1(V1::Token { token: signed(&token, peer) }));
            let own = claim(driver.unix(), (driver.node.own_id(), peer), peer, None);
            said.extend(frame(&Message::V1(V1::Token { token: own })));
            Some((said, false))
        }
        // Sometimes the peer dies before it confirms the exchange.
        V1::Token { .. } if script.byte() >= 224 => None,
        // The end of the direction completes the peer's part of the exchange.
        V1::Token { .. } if stream.is_ours() => Some((Vec::new(), true)),
        V1::Token { token } => {
            let of = driver.streams.get_mut(&stream)?;
            of.steps += 1;
            // To an exchange of the peer the machine sends the peer's claim first, which needs no
            // answer, and then its own.
            if of.steps == 2 {
                say(V1::Token { token: signed(&token, peer) })
            } else {
                Some((Vec::new(), false))
            }
        }
        _ => None,
    }
}

fn answer_polykey(
    script: &mut Script<'_>,
    driver: &mut Driver,
    stream: StreamId,
    peer: NodeId,
) -> Option<SentBytes> {
    let mut decoder = ObjectDecoder::new(MAX_FIRST_OBJECT, MAX_OBJECT);
    let of = driver.streams.get_mut(&stream)?;
    let sent = std::mem::take(&mut of.sent);
    decoder.push(&sent);
    let first = decoder.next().ok()??;
    if let Ok(question) = polykey::decode_rpc_request(&first) {
        let (unix, answer) = (driver.unix(), answer_to(script, &question, peer));
        return Some((polykey::encode_rpc_response(&question, answer, unix).into(), true));
    }
    let mut tokens = vec![token_in(&first)?];
    while let Ok(Some(object)) = decoder.next() {
        tokens.extend(token_in(&object));
    }
    if !stream.is_ours() {
        // As above, to the second one.
        let before = of.steps as usize;
        of.steps += u32::try_from(tokens.len()).unwrap_or(u32::MAX);
        let mine = 1usize.checked_sub(before).and_then(|at| tokens.get(at));
        let further = |token| {
            polykey::write_further("nodesCrossSignClaim", &signed_token(&signed(token, peer)))
        };
        return mine.filter(|_| script.byte() < 224).map(|token| (further(token).into(), false));
    }
    let how = script.byte();
    let (unix, token) = (driver.unix(), tokens.swap_remove(0));
    let of = driver.streams.get_mut(&stream)?;
    let begun = of.steps > 0;
    of.steps += 1;
    match (begun, how) {
        (false, 224..) => {
            let refused = RpcResponse::Refused(REFUSALS[script.below(REFUSALS.len())]);
            Some((
                polykey::encode_rpc_response(&RpcRequest::SignClaim(token), refused, unix).into(),
                true,
            ))
        }
        (false, _) => {
            let own = claim(unix, (driver.node.own_id(), peer), peer, None);
            let said = [signed(&token, peer), own]
                .map(|token| polykey::write_result(&signed_token(&token)));
            Some((said.concat(), false))
        }
        (true, 224..) => None,
        (true, _) => Some((Vec::new(), true)),
    }
}

fn answer_to(script: &mut Script<'_>, question: &RpcRequest, peer: NodeId) -> RpcResponse {
    if script.byte() >= 240 {
        return RpcResponse::Refused(REFUSALS[script.below(REFUSALS.len())]);
    }
    match question {
        RpcRequest::Ping { nonce } => RpcResponse::Pong { nonce: *nonce },
        RpcRequest::Closest { query, .. } => {
            RpcResponse::Closest(native::fit(closest(script, *query)))
        }
        RpcRequest::Signal(_) => RpcResponse::Signalled { address: address(script) },
        RpcRequest::Punch(_) => RpcResponse::Punching,
        RpcRequest::Claims { after, .. } => RpcResponse::Claims(chain(script, peer, *after)),
        RpcRequest::SignClaim(token) => RpcResponse::SignedClaim(signed(token, peer)),
        RpcRequest::Relay { .. } | RpcRequest::Circuit { .. } => {
            let same_network = script.byte().is_multiple_of(2);
            let address = (!script.byte().is_multiple_of(4)).then(|| address(script));
            RpcResponse::Circuit { address, same_network }
        }
        RpcRequest::Candidates(_) => RpcResponse::Candidates(vec![address(script)]),
    }
}

fn question(
    script: &mut Script<'_>,
    driver: &Driver,
    key: Option<&Key>,
    peer: NodeId,
) -> RpcRequest {
    let cast = Cast::get();
    let target = cast.id(script.byte());
    match script.below(10) {
        0 => RpcRequest::Ping { nonce: script.byte().into() },
        1 => {
            let query =
                ClosestNodesQuery { known: script.below(4) > 0, connected: script.below(4) > 0 };
            RpcRequest::Closest { target, query }
        }
        2 => RpcRequest::Signal(signal(script, driver, key, &peer, target)),
        3 => {
            let (source, address) = (cast.id(script.byte()), address(script));
            let request = signal(script, driver, cast.key(&source), &source, driver.node.own_id());
            let address_text = address_text(&request.terms, &address);
            let relay_signature = sign(key, &relay_bytes(&source, &address_text, &request));
            RpcRequest::Punch(Box::new(PunchRequest {
                source,
                address,
                address_text,
                request,
                relay_signature,
            }))
        }
        4 => RpcRequest::Claims {
            after: script.raw::<ClaimId>().filter(|_| script.below(2) > 0),
            max_bytes: 1 << 16,
        },
        5 => RpcRequest::SignClaim(network_claim(script, driver, peer)),
        6 => RpcRequest::SignClaim(Bytes::copy_from_slice(script.bytes())),
        7 => RpcRequest::Relay { target },
        8 => {
            let same_network = script.below(2) > 0;
            let address = (script.below(4) > 0).then(|| address(script));
            RpcRequest::Circuit { source: target, address, same_network }
        }
        _ => RpcRequest::Candidates(vec![address(script)]),
    }
}

fn signal(
    script: &mut Script<'_>,
    driver: &Driver,
    key: Option<&Key>,
    source: &NodeId,
    target: NodeId,
) -> SignalRequest {
    let terms = match script.below(4) {
        0 => SignalTerms::Plain,
        1 => SignalTerms::Once {
            expires: script.raw().unwrap_or_default(),
            nonce: [script.byte(); 16],
        },
        _ => {
            let ahead = u64::from(script.byte()) * 1000;
            SignalTerms::Once {
                expires: UnixMillis(driver.unix().0.saturating_add(ahead)),
                nonce: [script.byte(); 16],
            }
        }
    };
    let signature = sign(key, &request_bytes(source, &target, &terms));
    SignalRequest { target, terms, signature }
}

fn sign(key: Option<&Key>, bytes: &[u8]) -> Signature {
    key.map_or(Signature([7; 64]), |key| key.sign(bytes))
}

/// Nodes that a peer knows, or claims to know.
fn closest(script: &mut Script<'_>, query: ClosestNodesQuery) -> ClosestNodes {
    let mut closest = ClosestNodes::default();
    for _ in 0..script.below(5) {
        let (node, address) = (Cast::get().id(script.byte()), address(script));
        if query.known && script.below(2) == 0 {
            let connected_time = script.raw().unwrap_or_default();
            let data = NodeContactAddressData {
                mode: ContactMode::Direct,
                connected_time,
                scopes: Scopes::GLOBAL,
            };
            closest.known.push((node, NodeContact::from(vec![(address, data)])));
        } else if query.connected {
            let shared_id = Bytes::from(vec![script.byte(); 8]);
            let connection =
                ActiveConnection { shared_id, address, primary: true, idle_in_ms: None };
            closest.connected.push(ActiveNode { node, connections: vec![connection] });
        }
    }
    closest
}

fn address(script: &mut Script<'_>) -> NodeAddress {
    script.raw().unwrap_or_else(|| std::net::SocketAddr::from(([20, 0, 1, 1], 1314)).into())
}

/// A page of the chain of a peer: sound, or with one claim that is not.
fn chain(script: &mut Script<'_>, peer: NodeId, after: Option<ClaimId>) -> ClaimsPage {
    let mut page = ClaimsPage::default();
    if after.is_some() && script.below(2) == 0 {
        return page;
    }
    // One claim of it may lack a signature.
    let (mut head, bad) = (None, script.below(64));
    // Sometimes more than are verified in one call.
    let length = if script.below(4) == 3 { 45 } else { script.below(6) };
    for index in 0..length {
        let other = Cast::get().id(script.byte());
        let unix = UnixMillis(crate::host::EPOCH + 1000 * index as u64);
        let token = claim(unix, (peer, other), peer, head.as_ref());
        let token = if index + 1 == bad { token } else { signed(&token, other) };
        let Ok(claim) = Claim::parse(&token) else { break };
        head = Some(ChainHead::of(&claim, DigestAlgorithm::Blake3));
        page.claims.push((claim.id(), token));
    }
    page.more = script.byte() > 240;
    page
}

/// The claim with which a peer starts an exchange.
fn first_claim(script: &mut Script<'_>, driver: &Driver, peer: NodeId) -> Bytes {
    match script.below(8) {
        0 => Bytes::copy_from_slice(script.bytes()),
        1 => claim(driver.unix(), (peer, Cast::get().id(script.byte())), peer, None),
        _ => claim(
            UnixMillis(driver.unix().0 / 60_000 * 60_000),
            (peer, driver.node.own_id()),
            peer,
            None,
        ),
    }
}

fn network_claim(script: &mut Script<'_>, driver: &Driver, peer: NodeId) -> Bytes {
    let typ = ["ClaimNetworkAccess", "ClaimNetworkAuthority", "ClaimLinkNode"][script.below(3)];
    let (issuer, subject) = (peer.to_string(), driver.node.own_id().to_string());
    let content = ClaimContent {
        typ: typ.into(),
        issuer: Some(issuer),
        subject: Some(subject),
        members: "{}".into(),
    };
    write_claim(&content, driver.unix(), peer, None)
}

/// A link of these two, as the next claim of `owner`, with its signature.
fn claim(
    unix: UnixMillis,
    (issuer, subject): (NodeId, NodeId),
    owner: NodeId,
    prev: Option<&ChainHead>,
) -> Bytes {
    write_claim(&ClaimContent::link(&ClaimLinkNode { issuer, subject }), unix, owner, prev)
}

fn write_claim(
    content: &ClaimContent,
    unix: UnixMillis,
    owner: NodeId,
    prev: Option<&ChainHead>,
) -> Bytes {
    let id = ClaimId::next(&owner, unix, prev.map(|prev| prev.id))
        .unwrap_or(ClaimId::from_bytes([0xff; 16]));
    let Ok(draft) = Claim::draft(content, id, unix, prev) else { return Bytes::new() };
    let unsigned: Bytes = draft.claim().token().to_json().into();
    let Some(key) = Cast::get().key(&owner) else { return unsigned };
    let signature = key.sign(&draft.signing_input(&owner));
    draft.sign(owner, signature).map_or(unsigned, |half| half.claim().token().to_json().into())
}

/// A token with another signature, if the signer has a key and has not signed it before.
fn signed(token: &Bytes, signer: NodeId) -> Bytes {
    let Some((key, mut parsed)) = Cast::get().key(&signer).zip(SignedToken::parse(token).ok())
    else {
        return token.clone();
    };
    let signature = key.sign(&parsed.signing_input(&signer));
    match parsed.add_signature(signer, signature) {
        Ok(()) => parsed.to_json().into(),
        Err(_) => token.clone(),
    }
}

/// A token as the parameters or the result of a call of Polykey 1.x.
fn signed_token(token: &Bytes) -> String {
    format!("{{\"signedTokenEncoded\":{}}}", String::from_utf8_lossy(token))
}

/// The token in an object of Polykey 1.x.
fn token_in(object: &Bytes) -> Option<Bytes> {
    let text = std::str::from_utf8(object).ok()?;
    let (_, rest) = text.split_once("\"signedTokenEncoded\":")?;
    // The object ends behind the token, after the braces of its parents.
    let end = (0..4).map(|braces| rest.len().saturating_sub(braces)).find_map(|end| {
        let token = rest.get(..end)?;
        SignedToken::parse(token.as_bytes()).is_ok().then_some(end)
    })?;
    Some(Bytes::copy_from_slice(&rest.as_bytes()[..end]))
}

fn frame(message: &Message) -> Vec<u8> {
    native::encode(message).map(Into::into).unwrap_or_default()
}

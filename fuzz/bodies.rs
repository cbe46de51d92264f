//! What each fuzz target checks. Included by the targets, and by `pk-proto/tests/fuzz_corpus.rs`,
//! which replays the committed corpus with `cargo test`.
//!
//! Each body panics if an invariant is broken, and otherwise returns whether the input was accepted
//! as valid.
#![allow(
    dead_code,
    clippy::unwrap_used,
    reason = "each target uses one body; a broken invariant is a panic"
)]

use std::time::Duration;

use bytes::Bytes;
use ed25519_dalek::{Signer, SigningKey};
use pk_proto::cert::{Certificate, KnownSignatures, Verified, verify_client, verify_server};
use pk_proto::claims::{
    ChainFaultKind, ChainHead, ChainVerifier, Claim, ClaimContent, ClaimId, ClaimLinkNode,
    DigestAlgorithm, SignedToken,
};
use pk_proto::{
    ClosestNodesQuery, FrameDecoder, FrameFault, MAX_FRAME, NodeAddress, NodeId, RpcRequest,
    RpcResponse, SeedNode, SignalRequest, SignalTerms, Signature, UnixMillis, encode_frame,
    native::{self, Message, V1},
    polykey::{self, ObjectDecoder},
};

/// Body of a fuzz target.
pub(crate) type Body = fn(&[u8]) -> bool;

/// Targets that drive whole machines, whose bodies and replays are elsewhere: `machine` and `pair`
/// in `pk_sim::fuzz` and `pk-sim/tests/simulator/fuzz.rs`, `embedder` in `examples/fuzz-embedder`,
/// `datagrams` and `relay` in `fuzz/` and `pk-quic/tests/fuzz.rs`, `gateway` in `fuzz/` and
/// `pk-portmap/tests/fuzz.rs`.
pub(crate) const MACHINES: &[&str] =
    &["datagrams", "embedder", "gateway", "machine", "mdns", "pair", "relay"];

/// All other targets by name, which is also the name of their corpus.
pub(crate) const TARGETS: &[(&str, Body)] = &[
    ("certificate", certificate),
    ("claim_chain", claim_chain),
    ("frame_decoder", frame_decoder),
    ("native_message", native_message),
    ("node_id", node_id),
    ("object_decoder", object_decoder),
    ("polykey_message", polykey_message),
    ("seed_node", seed_node),
    ("token", token),
];

/// A chain is verified equally by both ends, as far as both have to verify it, and proves no id
/// that is not in it.
///
/// Bytes 0 to 3: the time. Byte 4: the certificate whose node is expected. Then each certificate,
/// after its length as `u16`; the last one may be truncated.
pub(crate) fn certificate(data: &[u8]) -> bool {
    let Some((time, rest)) = data.split_first_chunk() else { return false };
    let Some((&asked, mut rest)) = rest.split_first() else { return false };
    let now = u64::from(u32::from_be_bytes(*time));
    let mut chain = Vec::new();
    while let Some((length, after)) = rest.split_first_chunk() {
        let (der, after) = after.split_at(after.len().min(u16::from_be_bytes(*length).into()));
        chain.push(der);
        rest = after;
    }

    let parsed: Vec<_> = chain.iter().map(|der| Certificate::parse(der)).collect();
    let mut ids = Vec::new();
    for (der, certificate) in chain.iter().zip(&parsed) {
        if let Ok(certificate) = certificate {
            assert_eq!(certificate.as_der(), *der);
            ids.push(certificate.node_id());
        }
    }
    let sound = |verified: &Verified, asked: Option<NodeId>| {
        assert_eq!(verified.matched_id, asked);
        assert_eq!(verified.chain.first(), Some(&verified.leaf));
        assert!(asked.is_none_or(|asked| verified.chain.contains(&asked)));
        assert!(verified.chain.iter().all(|id| ids.contains(id)));
        // Every accepted id has a certificate that its own key signed.
        let mut proven = parsed
            .iter()
            .flatten()
            .filter(|certificate| certificate.verify_node_signature().is_ok());
        assert!(
            verified.chain.iter().all(|id| proven.any(|certificate| certificate.node_id() == *id))
        );
    };
    let client = verify_client(&chain, now);
    let asked = ids.get(usize::from(asked) % ids.len().max(1)).copied();
    let server = verify_server(&chain, asked.as_slice(), now);
    if let Ok(client) = &client {
        sound(client, None);
        let server = verify_server(&chain, &[client.leaf], now);
        assert_eq!(server.as_ref().map(|server| &server.chain), Ok(&client.chain));
    }
    if let Ok(server) = &server {
        sound(server, asked);
    }
    assert!(verify_server(&chain, &[], now).is_err());
    // A memory of signatures changes no result.
    let mut known = KnownSignatures::new(4);
    for _ in 0..2 {
        assert_eq!(known.verify_client(&chain, now), client);
        assert_eq!(known.verify_server(&chain, asked.as_slice(), now), server);
    }
    client.is_ok() || server.is_ok()
}

/// A chain is accepted exactly up to its first invalid claim, whose fault is named.
///
/// Two bytes per claim: whether it is valid or its fault, and how it is made.
pub(crate) fn claim_chain(data: &[u8]) -> bool {
    let key = |number: u8| SigningKey::from_bytes(&[number; 32]);
    let id = |key: &SigningKey| NodeId::from_bytes(key.verifying_key().to_bytes());
    let sign = |token: &mut SignedToken, key: &SigningKey| {
        let signature = Signature(key.sign(&token.signing_input(&id(key))).to_bytes());
        token.add_signature(id(key), signature).unwrap();
    };
    let (old, new) = (key(1), key(2));
    let mut verifier = ChainVerifier::new(vec![id(&new), id(&old)]);
    let (mut taken, mut renewed): (Vec<Claim>, bool) = (Vec::new(), false);
    for step in data.chunks_exact(2).take(32) {
        let (kind, how) = (step[0] % 16, step[1]);
        let last = taken.last();
        let other = key(10 + how % 4);
        let owner = if how & 4 == 0 && !renewed { &old } else { &new };
        let (mut issuer, mut subject) = (id(owner), id(&other));
        if how & 8 != 0 {
            (issuer, subject) = (subject, issuer);
        }
        let unix = UnixMillis(1_700_000_000_000 + u64::from(how >> 4));
        let mut named = ClaimId::next(&id(owner), unix, last.map(Claim::id)).unwrap();
        let algorithm = DigestAlgorithm::ALL[usize::from(how >> 6)];
        let mut prev = last.map(|last| ChainHead::of(last, algorithm));
        let mut fault = None;
        match (kind, &mut prev) {
            // Numbers may have gaps if no claim is missing.
            (8, Some(prev)) => prev.seq += 1 + u64::from(how),
            (7, prev) | (8, prev @ None) => {
                let missing = ClaimId::from_bytes([how; 16]);
                let made_up = ChainHead { id: missing, seq: 0, digest: algorithm.digest(b"") };
                let prev = prev.get_or_insert(made_up);
                (prev.id, prev.seq) = (missing, prev.seq + 1);
                fault = Some(ChainFaultKind::SeqGap(prev.seq + 1));
            }
            (9, Some(prev)) => {
                prev.seq -= 1;
                fault = Some(ChainFaultKind::Fork(prev.seq + 1));
            }
            (10, Some(prev)) => {
                named = prev.id;
                fault = Some(ChainFaultKind::Order);
            }
            (11, Some(prev)) => {
                prev.id = ClaimId::from_bytes([how; 16]);
                fault = Some(ChainFaultKind::PrevClaimId);
            }
            (12, Some(prev)) => {
                prev.digest = algorithm.digest(&[how]);
                fault = Some(ChainFaultKind::PrevDigest);
            }
            (13, _) => {
                issuer = id(&key(20));
                subject = id(&other);
                fault = Some(ChainFaultKind::Parties);
            }
            _ => {}
        }
        let content = ClaimContent::link(&ClaimLinkNode { issuer, subject });
        let mut token =
            Claim::draft(&content, named, unix, prev.as_ref()).unwrap().claim().token().clone();
        sign(&mut token, if kind == 14 && renewed { &old } else { owner });
        if kind == 14 && renewed {
            fault = Some(ChainFaultKind::KeyOrder);
        }
        sign(&mut token, &other);
        let mut json = token.to_json().into_bytes();
        if kind == 15 {
            // Whatever it is, it has a signature.
            let at = usize::from(how) * 5 % json.len();
            json[at] ^= 1;
        }
        match verifier.read(None, &json).and_then(|claim| verifier.verify(&claim).map(|()| claim)) {
            Ok(claim) => {
                assert!(fault.is_none() && kind != 15, "{kind} {how}");
                renewed |= *owner == new;
                taken.push(claim);
            }
            Err(found) => {
                assert!(kind == 15 || Some(found.kind) == fault, "{kind} {how}: {found} {fault:?}");
                assert_eq!(found.seq, taken.last().map_or(0, Claim::seq) + 1);
                assert_eq!(verifier.fault(), Some(found));
                // The chain has ended, also for a claim that would have been valid.
                let good =
                    taken.first().map(|first| first.token().to_json().into_bytes()).unwrap_or(json);
                assert_eq!(verifier.read(None, &good), Err(found));
                break;
            }
        }
    }
    assert_eq!(verifier.head(), taken.last().map(|last| (last.id(), last.seq())));
    verifier.fault().is_none() && !taken.is_empty()
}

/// A plan and a stream of bytes: however the plan splits the stream into chunks, the frames are
/// those of the whole stream.
///
/// Byte 0: length of the plan. Each byte of the plan is a chunk: its length (bits 0 to 5, times
/// 1024 with bit 6), and whether all frames are taken after it (bit 7). The plan is repeated; what
/// it does not reach is one chunk.
pub(crate) fn frame_decoder(data: &[u8]) -> bool {
    let Some((&length, rest)) = data.split_first() else { return false };
    let (plan, mut left) = rest.split_at(rest.len().min(length.into()));
    let (expected, end) = frames(left);

    let mut decoder = FrameDecoder::new();
    let (mut frames, mut pushed, mut taken) = (Vec::new(), 0, 0);
    let mut fault = None;
    for step in plan.iter().cycle().take(4096).chain([&0xff]) {
        if left.is_empty() && *step != 0xff {
            continue;
        }
        let size = usize::from(step & 0x3f) << if step & 0x40 == 0 { 0 } else { 10 };
        let (chunk, after) =
            left.split_at(if left.len() < size || *step == 0xff { left.len() } else { size });
        left = after;
        pushed += chunk.len();
        decoder.push(Bytes::copy_from_slice(chunk));
        while step & 0x80 != 0 && fault.is_none() {
            let wanted = decoder.wanted();
            match decoder.next() {
                Ok(Some(frame)) => {
                    assert_eq!(wanted, 0);
                    taken += 4 + frame.len();
                    frames.push(frame);
                }
                Ok(None) => {
                    assert!(wanted > 0);
                    assert!(decoder.buffered() < 4 + MAX_FRAME);
                    break;
                }
                Err(error) => {
                    assert_eq!(wanted, 0);
                    fault = Some(error);
                }
            }
        }
        assert_eq!(decoder.buffered(), if fault.is_some() { 0 } else { pushed - taken });
    }

    assert_eq!(frames, expected);
    for frame in &frames {
        assert!(
            encode_frame(frame)
                .is_ok_and(|encoded| encoded.len() == 4 + frame.len() && encoded.ends_with(frame))
        );
    }
    match end {
        Ok(unread) => {
            assert_eq!(fault, None);
            assert_eq!(decoder.next(), Ok(None));
            assert_eq!(decoder.into_unread(), unread);
        }
        Err(error) => {
            assert_eq!(fault, Some(error));
            assert_eq!(decoder.next(), Err(error));
            assert!(decoder.into_unread().is_empty());
        }
    }
    end.is_ok() && !frames.is_empty()
}

/// Returns the payloads in a stream, and what follows the last one.
fn frames(mut stream: &[u8]) -> (Vec<&[u8]>, Result<&[u8], FrameFault>) {
    let mut frames = Vec::new();
    while let Some((header, rest)) = stream.split_first_chunk() {
        let length = u32::from_be_bytes(*header);
        if length == 0 {
            return (frames, Err(FrameFault::Malformed));
        }
        if length > 65_536 {
            return (frames, Err(FrameFault::TooLong(length)));
        }
        let Some((frame, rest)) = rest.split_at_checked(length as usize) else { break };
        frames.push(frame);
        stream = rest;
    }
    (frames, Ok(stream))
}

/// Bytes that decode to a message are the only encoding of that message.
pub(crate) fn native_message(data: &[u8]) -> bool {
    let message = match native::decode(data) {
        Ok(message) => message,
        Err(fault) => {
            assert_eq!(matches!(fault, FrameFault::TooLong(_)), data.len() > MAX_FRAME);
            return false;
        }
    };
    assert_eq!(native::encode(&message), encode_frame(data), "{message:?}");
    if let Message::V1(V1::Answer(RpcResponse::Closest(closest))) = message {
        let fitted = native::fit(closest);
        assert_eq!(native::fit(fitted.clone()), fitted);
        assert!(native::encode(&Message::V1(V1::Answer(RpcResponse::Closest(fitted)))).is_ok());
    }
    true
}

/// A plan and a stream of bytes, as for `frame_decoder`: however the plan splits the stream, the
/// objects are those of the whole stream, and those of a JSON parser.
pub(crate) fn object_decoder(data: &[u8]) -> bool {
    const FIRST: usize = 2048;
    const LATER: usize = 512;
    let Some((&length, rest)) = data.split_first() else { return false };
    let (plan, stream) = rest.split_at(rest.len().min(length.into()));

    let mut whole = ObjectDecoder::new(FIRST, LATER);
    whole.push(stream);
    let mut expected = Vec::new();
    let end = loop {
        match whole.next() {
            Ok(Some(object)) => expected.push(object),
            Ok(None) => break None,
            Err(fault) => break Some(fault),
        }
    };

    let mut decoder = ObjectDecoder::new(FIRST, LATER);
    let (mut objects, mut left, mut fault) = (Vec::new(), stream, None);
    for step in plan.iter().cycle().take(4096).chain([&0xff]) {
        let size = if *step == 0xff { left.len() } else { left.len().min(usize::from(*step)) };
        let (chunk, after) = left.split_at(size);
        left = after;
        decoder.push(chunk);
        while fault.is_none() {
            match decoder.next() {
                Ok(Some(object)) => objects.push(object),
                Ok(None) => {
                    let limit = if objects.is_empty() { FIRST } else { LATER };
                    assert!(decoder.buffered() <= limit);
                    assert!(
                        (1..=limit.max(4096) + 1 - decoder.buffered()).contains(&decoder.wanted())
                    );
                    break;
                }
                Err(error) => fault = Some(error),
            }
        }
    }
    assert_eq!((&objects, fault), (&expected, end));
    if fault.is_some() {
        assert_eq!((decoder.buffered(), decoder.wanted(), decoder.next().err()), (0, 0, fault));
        assert!(decoder.into_unread().is_empty());
    } else {
        assert!(stream.ends_with(&decoder.into_unread()));
    }

    let mut parser = serde_json::Deserializer::from_slice(stream).into_iter::<serde_json::Value>();
    let (mut begin, mut limit) = (0, FIRST);
    for object in &objects {
        let blank = stream[begin..].iter().take_while(|byte| byte.is_ascii_whitespace()).count();
        assert_eq!(stream[begin + blank..][..object.len()], object[..]);
        assert!(object.len() <= limit);
        begin += blank + object.len();
        limit = LATER;
        match parser.next() {
            Some(Ok(_)) => assert_eq!(parser.byte_offset(), begin),
            // JSON has more rules than brackets and strings. What follows is not compared.
            _ => break,
        }
    }
    end.is_none() && !objects.is_empty()
}

/// Byte 0: the request that the rest answers, or that it is a request. A decoded message is encoded
/// so that it decodes to the same message, even if the input contained more.
pub(crate) fn polykey_message(data: &[u8]) -> bool {
    let Some((&kind, rest)) = data.split_first() else { return false };
    let object = Bytes::copy_from_slice(rest);
    let now = UnixMillis(1_767_225_600_000);
    let target = NodeId::from_bytes([7; 32]);
    let closest = |local, active| RpcRequest::Closest {
        target,
        query: ClosestNodesQuery { known: local, connected: active },
    };
    let signature = Signature([0; 64]);
    let signal = SignalRequest { target, terms: SignalTerms::Plain, signature };
    let question = match kind {
        0 => {
            let _ = polykey::parse_response(&object);
            let Ok(request) = polykey::parse_request(&object) else { return false };
            let again = polykey::write_further(&request.method, request.params);
            assert_eq!(polykey::parse_request(&again), Ok(request));
            let Ok(question) = polykey::decode_rpc_request(&object) else { return false };
            let [message] = &polykey::encode_rpc_request(&question, Duration::from_millis(5))[..]
            else {
                unreachable!("one call was read: {question:?}")
            };
            assert_eq!(polykey::decode_rpc_request(message), Ok(question));
            return true;
        }
        1 => closest(true, false),
        2 => closest(false, true),
        3 => RpcRequest::Signal(signal),
        4 => RpcRequest::Claims { after: None, max_bytes: 1 },
        5 => RpcRequest::SignClaim(Bytes::from_static(b"{}")),
        6 => RpcRequest::Ping { nonce: 1 },
        _ => return false,
    };
    let Ok(Some(answer)) = polykey::decode_rpc_response(&question, &object) else { return false };
    let once = polykey::encode_rpc_response(&question, answer, now);
    // Possibly none of it may be forwarded.
    if once.is_empty() {
        return true;
    }
    let Ok(Some(read)) = polykey::decode_rpc_response(&question, &once) else {
        unreachable!("what was written is read")
    };
    assert_eq!(polykey::encode_rpc_response(&question, read, now), once);
    true
}

/// Every valid text of an id is the text of that id, and any 32 bytes are an id.
pub(crate) fn node_id(data: &[u8]) -> bool {
    if let Ok(bytes) = <[u8; 32]>::try_from(data) {
        let id = NodeId::from_bytes(bytes);
        assert_eq!(id.to_string().parse(), Ok(id));
    }
    let Some(id) = std::str::from_utf8(data).ok().and_then(|text| text.parse::<NodeId>().ok())
    else {
        return false;
    };
    let text = id.to_string();
    assert_eq!(text.len(), NodeId::TEXT_LEN);
    assert_eq!(text.parse(), Ok(id));
    true
}

/// The text of a seed node parses to that seed node, and so does the key of its address.
pub(crate) fn seed_node(data: &[u8]) -> bool {
    let Some(seed) = std::str::from_utf8(data).ok().and_then(|text| text.parse::<SeedNode>().ok())
    else {
        return false;
    };
    assert_eq!(seed.to_string().parse(), Ok(seed.clone()));
    assert_eq!(seed.address.to_string().parse(), Ok(seed.address.clone()));
    assert_eq!(NodeAddress::from_contact_key(&seed.address.contact_key()), Ok(seed.address));
    true
}

/// A token is encoded as it was decoded, and the content of a claim makes that claim.
pub(crate) fn token(data: &[u8]) -> bool {
    let Ok(token) = SignedToken::parse(data) else { return false };
    assert_eq!(SignedToken::parse(token.to_json().as_bytes()).as_ref(), Ok(&token));
    assert_eq!(SignedToken::try_from(&token.encoded()).as_ref(), Ok(&token));
    assert_eq!(
        SignedToken::new(token.payload().into()).map(|made| made.payload().to_owned()),
        Ok(token.payload().to_owned())
    );
    assert!(token.digest_preimage()[11..].starts_with(token.payload().as_bytes()));
    for signature in token.signatures() {
        let _ = token.verify(&signature.signer());
    }

    let Ok(claim) = Claim::try_from(token.clone()) else { return true };
    assert_eq!(claim.token(), &token);
    assert_eq!(claim.member("jti"), Some(&*format!("\"{}\"", claim.id())));
    let prev = match (claim.prev_claim_id(), claim.prev_digest()) {
        (Some(id), Some(digest)) => Some(ChainHead { id, seq: claim.seq() - 1, digest: *digest }),
        (None, None) if claim.seq() == 1 => None,
        _ => return true,
    };
    let unix = claim.issued_at().checked_mul(1000);
    if let (true, Some(unix)) = (claim.issued_at() == claim.not_before(), unix) {
        let content = ClaimContent {
            typ: claim.typ().into(),
            issuer: claim.issuer().map(Into::into),
            subject: claim.subject().map(Into::into),
            members: claim.members(),
        };
        let made = Claim::draft(&content, claim.id(), UnixMillis(unix), prev.as_ref());
        assert_eq!(
            made.map(|made| made.claim().token().payload().to_owned()),
            Ok(token.payload().to_owned())
        );
    }
    true
}

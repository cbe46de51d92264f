//! Claims over Polykey 1.x (`quic`), in virtual time: chains that are sent in one answer, and
//! exchanges.

use pk_proto::claims::{Claim, ClaimPolicy, claim_row};
use pk_proto::polykey::{ObjectDecoder, Response, parse_response, write_request, write_result};
use pk_proto::{
    ChainData, Dialect, Event, Failure, Input, Output, PeerFault, Refusal, Reply, Request,
    RequestId, StoreOp, StoreRow, StreamId,
};
use pk_sim::{Cluster, HostId, Key};

use crate::common::chains::chain;
use crate::common::{Bare, NO, SECOND, sent};

const SEED: u64 = 5;

fn key(node: HostId) -> Key {
    Key::numbered(SEED, node as u64)
}

/// A chain of node 1 with this many links.
fn links(count: u64) -> Vec<Claim> {
    let friends: Vec<_> = (0..count).map(|number| Key::numbered(SEED + 1, number)).collect();
    chain(&key(1), &friends)
}

/// Two nodes of which these are like the reference, and which allow all claims.
fn cluster(reference: &[HostId]) -> Cluster {
    let builder = Cluster::quiet()
        .nodes(2)
        .seed(SEED)
        .config(|config| config.claim_policy = ClaimPolicy::All);
    let mut cluster = builder.build();
    for node in reference {
        cluster.host_mut(*node).dialects = vec![Dialect::Polykey];
    }
    (0..2).for_each(|node| cluster.start_node(node));
    cluster.drive(SECOND);
    cluster.connect(0, 1).unwrap();
    cluster
}

fn read_chain(cluster: &mut Cluster, since: Option<&Claim>) -> (ChainData, Vec<Vec<Claim>>) {
    let since = since.cloned();
    let id = cluster.request(
        0,
        Request::RequestChainData { target: cluster.id(1), since, limit: None, options: NO },
    );
    let Ok(Reply::RequestChainData(outcome)) = cluster.await_done(0, id) else { panic!() };
    let pages = cluster.events(0).iter().filter_map(|(_, event)| match event {
        Event::ChainData { id: of, claims } if *of == id => Some(claims.clone()),
        _ => None,
    });
    (outcome, pages.collect())
}

fn assert_no_state_left(cluster: &mut Cluster) {
    cluster.drive(20 * SECOND);
    for node in 0..2 {
        let metrics = cluster.node(node).metrics();
        assert_eq!(
            (metrics.streams, metrics.receive_bytes, metrics.send_bytes),
            (0, 0, 0),
            "node {node}"
        );
        assert_eq!(
            (metrics.stream_faults, metrics.requests_open, metrics.exchanges),
            (0, 0, 0),
            "node {node}"
        );
    }
}

#[test]
fn chain_in_one_answer_is_read_page_by_page() {
    for reference in [&[0][..], &[1], &[0, 1]] {
        let chain = links(150);
        let mut cluster = cluster(reference);
        cluster.host_mut(1).store.seed(chain.iter().map(claim_row));
        let calls = cluster.node(0).metrics().calls;
        let (outcome, pages) = read_chain(&mut cluster, None);
        assert_eq!((outcome.verified, outcome.fault), (150, None));
        assert_eq!(outcome.head.as_ref(), chain.last());
        assert!(pages.len() > 2, "{}", pages.len());
        assert_eq!(pages.concat(), chain);
        // One stream, however many pages.
        assert_eq!(cluster.node(0).metrics().calls - calls, 1);
        assert_eq!(cluster.node(1).metrics().claims_served, 150);
        for known in [0, 40, 148, 149] {
            let (outcome, pages) = read_chain(&mut cluster, Some(&chain[known]));
            assert_eq!((outcome.verified, outcome.fault), (149 - known as u64, None), "{known}");
            assert_eq!(pages.concat(), chain[known + 1..]);
        }
        assert_no_state_left(&mut cluster);
        cluster.stop_all();
    }
}

#[test]
fn empty_chain_is_an_answer_without_messages() {
    let mut cluster = cluster(&[0]);
    let (outcome, pages) = read_chain(&mut cluster, None);
    assert_eq!(
        (outcome, pages.len()),
        (ChainData { verified: 0, head: None, fault: None, more: false }, 0)
    );
    assert_no_state_left(&mut cluster);
    cluster.stop_all();
}

#[test]
fn fifty_claims_each_way_are_signed_and_verified() {
    for reference in [&[0][..], &[1], &[0, 1]] {
        let mut cluster = cluster(reference);
        for _ in 0..50 {
            for (from, to) in [(0, 1), (1, 0)] {
                let claim = Request::ClaimNode { target: cluster.id(to), options: NO };
                assert!(
                    matches!(cluster.ask(from, claim), Ok(Reply::ClaimNode(_))),
                    "{reference:?}"
                );
            }
        }
        let (outcome, _) = read_chain(&mut cluster, None);
        assert_eq!((outcome.verified, outcome.fault), (100, None));
        assert_no_state_left(&mut cluster);
        cluster.stop_all();
    }
}

#[test]
fn simultaneous_claims_of_both_sides_succeed() {
    for seed in 0..5 {
        let mut cluster = cluster(&[0, 1]);
        cluster.drive(SECOND + crate::common::ms(seed));
        for _ in 0..5 {
            let requests = [(0, 1), (1, 0)].map(|(from, to)| {
                let claim = Request::ClaimNode { target: cluster.id(to), options: NO };
                (from, cluster.request(from, claim))
            });
            for (from, request) in requests {
                let done = cluster.await_done(from, request);
                assert!(matches!(done, Ok(Reply::ClaimNode(_))), "{done:?}");
            }
        }
        let (outcome, _) = read_chain(&mut cluster, None);
        assert_eq!((outcome.verified, outcome.fault), (10, None));
        assert_no_state_left(&mut cluster);
        cluster.stop_all();
    }
}

#[test]
fn claim_disallowed_by_policy_fails_as_denied() {
    let mut cluster = Cluster::quiet().nodes(2).seed(SEED).build();
    cluster.host_mut(1).dialects = vec![Dialect::Polykey];
    (0..2).for_each(|node| cluster.start_node(node));
    cluster.drive(SECOND);
    cluster.connect(0, 1).unwrap();
    let claim = Request::ClaimNode { target: cluster.id(1), options: NO };
    assert_eq!(cluster.ask(0, claim), Err(Failure::Refused(Refusal::Denied)));
    assert_no_state_left(&mut cluster);
    cluster.stop_all();
}

// -- on the wire

/// A node whose store is answered at once by the test, with a chain in it.
fn store_reads(bare: &mut Bare, rows: &[StoreRow]) -> Vec<Output> {
    let mut outputs = Vec::new();
    loop {
        let new = bare.take();
        let load = new.iter().find_map(|output| match output {
            Output::Load { id, range, max_bytes } => Some((*id, range.clone(), *max_bytes)),
            _ => None,
        });
        outputs.extend(new);
        let Some((id, range, max_bytes)) = load else { return outputs };
        let inside = |(key, _): &&StoreRow| {
            *key >= range.from && range.to.as_ref().is_none_or(|to| key < to)
        };
        let (mut bytes, mut found, mut more) = (0, Vec::new(), false);
        for (key, value) in rows.iter().filter(inside) {
            bytes += (key.len() + value.len()) as u64;
            if bytes > max_bytes && !found.is_empty() {
                more = true;
                break;
            }
            found.push((key.clone(), value.clone()));
        }
        bare.input(Input::Loaded { id, result: Ok((found, more)) });
    }
}

fn rows(chain: &[Claim]) -> Vec<StoreRow> {
    let row = |claim| match claim_row(claim) {
        StoreOp::Put { key, value, .. } => (key, value),
        other => panic!("{other:?}"),
    };
    chain.iter().map(row).collect()
}

/// The reference reads a whole chain from one answer. It is loaded and sent a page at a time, the
/// next one when the previous one was written.
#[test]
fn whole_chain_is_sent_page_by_page_in_one_answer() {
    let (chain, mut bare) = (links(200), Bare::new(|_| {}));
    let rows = rows(&chain);
    let conn = bare.accept_polykey(Bare::peer(0));
    let stream = bare.opened(conn);
    bare.feed(stream, &write_request("nodesClaimsGet", "{\"claimIdEncoded\":\"\"}", None), true);
    let (mut bytes, mut pages, mut ended) = (Vec::new(), 0, false);
    while !ended {
        let outputs = store_reads(&mut bare, &rows);
        let (page, fin) = sent(&outputs, stream);
        assert!(page.len() < 128 * 1024 && (fin || !page.is_empty()), "{}", page.len());
        bare.input(Input::StreamWritten { stream, bytes: page.len() as u64 });
        bytes.extend(page);
        (pages, ended) = (pages + 1, fin);
    }
    assert!(pages > 2, "{pages}");
    let mut decoder = ObjectDecoder::new(1 << 20, 1 << 16);
    decoder.push(&bytes);
    for claim in &chain {
        let object = decoder.next().unwrap().unwrap();
        let Ok(Response::Result(result)) = parse_response(&object) else { panic!("{object:?}") };
        let token = claim.token().to_json();
        assert_eq!(
            result,
            format!("{{\"claimIdEncoded\":\"{}\",\"signedTokenEncoded\":{token}}}", claim.id())
        );
    }
    assert_eq!((decoder.next(), decoder.buffered()), (Ok(None), 0));
    let metrics = bare.node.metrics();
    assert_eq!((metrics.streams, metrics.send_bytes), (0, 0));
}

/// Between pages nothing is read, and a peer that stops reading ends it.
#[test]
fn peer_that_leaves_between_pages_leaves_no_state() {
    let rows = rows(&links(200));
    for end in ["stop", "reset and stop", "silence", "gone"] {
        let mut bare = Bare::new(|_| {});
        let conn = bare.accept_polykey(Bare::peer(0));
        let stream = bare.opened(conn);
        bare.feed(stream, &write_request("nodesClaimsGet", "{}", None), false);
        assert!(!sent(&store_reads(&mut bare, &rows), stream).1);
        match end {
            "stop" => bare.input(Input::StreamStopped { stream, code: 0 }),
            "reset and stop" => {
                bare.input(Input::StreamReset { stream, code: 0 });
                bare.input(Input::StreamStopped { stream, code: 0 });
            }
            "gone" => {
                bare.input(Input::Disconnected { conn, why: pk_proto::DisconnectReason::TimedOut });
            }
            _ => {}
        }
        bare.pass(16 * SECOND);
        let faults = bare
            .take()
            .iter()
            .filter(|output| matches!(output, Output::Event(Event::PeerMisbehaved { .. })))
            .count();
        assert_eq!(faults, usize::from(end == "silence"), "{end}");
        let metrics = bare.node.metrics();
        assert_eq!(
            (metrics.streams, metrics.send_bytes, metrics.receive_bytes),
            (0, 0, 0),
            "{end}"
        );
    }
}

/// A node that reads the chain of a peer, and its stream.
fn reading(since: Option<&Claim>) -> (Bare, RequestId, StreamId, Vec<u8>) {
    let mut bare = Bare::new(|_| {});
    let target = key(1).id();
    bare.accept_polykey(target);
    let since = since.cloned();
    let id = bare.request(Request::RequestChainData { target, since, limit: None, options: NO });
    let outputs = store_reads(&mut bare, &[]);
    let stream = outputs.iter().find_map(|output| match output {
        Output::OpenStream { stream, .. } => Some(*stream),
        _ => None,
    });
    let stream = stream.unwrap();
    (bare, id, stream, sent(&outputs, stream).0)
}

fn answer_with(chain: &[Claim]) -> Vec<u8> {
    let result = |claim: &Claim| {
        let token = claim.token().to_json();
        write_result(&format!(
            "{{\"claimIdEncoded\":\"{}\",\"signedTokenEncoded\":{token}}}",
            claim.id()
        ))
    };
    chain.iter().flat_map(result).collect()
}

/// Completes everything that the node waits for except the peer: its store, and the next call.
fn settle(bare: &mut Bare) {
    loop {
        let outputs = bare.take();
        let persist = outputs.iter().find_map(|output| match output {
            Output::Persist { id, .. } => Some(*id),
            _ => None,
        });
        let done = outputs.iter().any(|output| matches!(output, Output::Event(Event::Done { .. })));
        bare.outputs = outputs;
        if done {
            return;
        }
        let due =
            bare.node.poll_timeout().is_some_and(|due| due <= bare.now + crate::common::ms(1));
        match persist {
            Some(id) => {
                bare.outputs.retain(
                    |output| !matches!(output, Output::Persist { id: of, .. } if *of == id),
                );
                bare.input(Input::Persisted { id, result: Ok(()) });
            }
            None if due => bare.pass(crate::common::ms(1)),
            None => return,
        }
    }
}

/// The reference always sends its complete chain; known claims are skipped.
#[test]
fn whole_chain_of_a_peer_is_read_from_the_last_known_claim() {
    let chain = links(30);
    for since in [None, Some(0), Some(20), Some(29)] {
        let (mut bare, id, stream, asked) = reading(since.map(|known| &chain[known]));
        let after = since.map(|known| chain[known].id().to_string()).unwrap_or_default();
        assert!(
            String::from_utf8(asked)
                .unwrap()
                .contains(&format!("{{\"claimIdEncoded\":\"{after}\",\"metadata\""))
        );
        let bytes = answer_with(&chain);
        let mut left = &bytes[..];
        while !left.is_empty() {
            let before = left.len();
            left = bare.feed(stream, left, false);
            settle(&mut bare);
            assert!(left.len() < before || left.is_empty(), "{} bytes left", left.len());
        }
        bare.feed(stream, b"", true);
        settle(&mut bare);
        let Some(Ok(Reply::RequestChainData(outcome))) = bare.done(id) else {
            panic!("{:?}", bare.outputs)
        };
        let expected = 30 - since.map_or(0, |known| known + 1);
        assert_eq!((outcome.verified, outcome.fault), (expected as u64, None), "{since:?}");
    }
}

/// Nothing is read while a page is verified; if the peer resets the stream then, the request is
/// repeated.
#[test]
fn answer_reset_between_pages_is_requested_again() {
    let chain = links(150);
    let (mut bare, id, stream, _) = reading(None);
    let bytes = answer_with(&chain);
    // A page is full: its links are written before the next one is requested.
    let left = bare.feed(stream, &bytes, false).len();
    assert!(left > 0, "not all of it is read");
    bare.input(Input::StreamReset { stream, code: 0 });
    settle(&mut bare);
    let again = bare.outputs.iter().rev().find_map(|output| match output {
        Output::OpenStream { stream, .. } => Some(*stream),
        _ => None,
    });
    let mut stream = again.unwrap();
    let mut left: &[u8] = &bytes;
    while bare.done(id).is_none() {
        left = bare.feed(stream, left, true);
        settle(&mut bare);
        let newest = bare.outputs.iter().rev().find_map(|output| match output {
            Output::OpenStream { stream, .. } => Some(*stream),
            _ => None,
        });
        stream = newest.unwrap_or(stream);
    }
    let Some(Ok(Reply::RequestChainData(outcome))) = bare.done(id) else {
        panic!("{:?}", bare.done(id))
    };
    assert_eq!((outcome.verified, outcome.fault), (150, None));
    assert_eq!(bare.node.metrics().streams, 0);
}

#[test]
fn malformed_claim_fails_the_request() {
    let (mut bare, id, stream, _) = reading(None);
    bare.feed(
        stream,
        &write_result("{\"claimIdEncoded\":\"nonsense\",\"signedTokenEncoded\":{}}"),
        true,
    );
    let fault = PeerFault::Object(pk_proto::polykey::ObjectFault::NotAMessage);
    assert_eq!(bare.done(id), Some(Err(Failure::Peer(fault))));
}

//! Searches with peers that send false answers, in virtual time.

use std::collections::BTreeSet;

use pk_proto::{
    ActiveConnection, ActiveNode, ClosestNodes, Event, FindEnd, FindNodeOptions, FindOutcome,
    FindStepEnd, FrameFault, NodeContact, NodeId, PeerFault, Reply, Request, RpcRequest,
    RpcResponse, Scopes,
};
use pk_sim::Cluster;

use crate::common::*;

// -- false answers

/// A network of 0 to 5 with a scripted peer that 0, 1 and 2 have a contact for, and the outcome of
/// a search of 0 for 5.
fn search_beside_scripted_peer(
    script: impl FnMut(RpcRequest) -> Reaction + 'static,
) -> (Cluster, Peer, FindOutcome) {
    let mut cluster = Cluster::quiet().nodes(6).scripted_peers(1).seed(3).start();
    wire(&mut cluster, &[(0, 1), (1, 2), (2, 3), (3, 4), (4, 5)]);
    for node in [0, 1, 2] {
        add_contact(&mut cluster, node, 6);
    }
    let mut liar = Peer::new(6, script);
    let target = cluster.id(5);
    let request =
        cluster.request(0, Request::FindNode { target, find: FindNodeOptions::default() });
    liar.drive(&mut cluster, 5 * SECOND);
    let Some(Ok(Reply::FindNode(outcome))) = cluster.done(0, request).cloned() else {
        panic!("it hangs")
    };
    assert_consistent(&outcome);
    assert_eq!(outcome.ended, FindEnd::Connected);
    assert!(!liar.asked.is_empty(), "the liar is asked");
    (cluster, liar, outcome)
}

fn closest(local: Vec<(NodeId, NodeContact)>) -> Reaction {
    Reaction::answer(RpcResponse::Closest(ClosestNodes { known: local, connected: Vec::new() }))
}

#[test]
fn malformed_answers_change_nothing_and_end_the_connection() {
    let garbage = vec![9; 200];
    let node = [[7; 32].as_slice(), &[1, 0, 1, 2, 3, 4, 1, 0, 0]].concat();
    let too_many = [[0, 2, 1, 21].as_slice(), &node.repeat(21), &[0]].concat();
    let fault = |fault| PeerFault::Frame(fault);
    let cases = [
        (garbage.clone(), fault(FrameFault::TooLong(0x0909_0909))),
        (frame(200, &garbage), fault(FrameFault::Unknown)),
        (frame(too_many.len() as u32, &too_many), fault(FrameFault::Malformed)),
        (frame(0, &[]), fault(FrameFault::Malformed)),
        (frame(u32::MAX, &[]), fault(FrameFault::TooLong(u32::MAX))),
        (frame(200, &garbage[..100]), PeerFault::Truncated),
        (Vec::new(), PeerFault::Truncated),
    ];
    for (bytes, fault) in cases {
        let sent = bytes.clone();
        let (mut cluster, _, outcome) =
            search_beside_scripted_peer(move |_| Reaction::Send(sent.clone()));
        let liar = cluster.id(6);
        let step = outcome.trace.iter().find(|step| step.node == liar).unwrap();
        assert_eq!(step.end, FindStepEnd::NoAnswer, "{fault}");
        let told = count_events(
            &cluster,
            0,
            |event| matches!(event, Event::PeerMisbehaved { node, fault: of, .. } if *node == liar && *of == fault),
        );
        // A call that ended before the peer accepted the connection is repeated once.
        let most = if fault == PeerFault::Truncated { 2 } else { 1 };
        let faults = cluster.node(0).metrics().stream_faults;
        assert_eq!(told as u64, faults, "{fault}");
        assert!((1..=most).contains(&faults), "{fault}: {faults}");
        let lives = cluster.node(0).connections().iter().any(|info| info.node == liar);
        let fatal = matches!(fault, PeerFault::Frame(fault) if fault != FrameFault::Unknown);
        assert_eq!(lives, !fatal, "{fault}");
        cluster.stop_all();
    }
}

#[test]
fn answer_to_another_request_counts_as_no_answer() {
    let (mut cluster, _, outcome) =
        search_beside_scripted_peer(|_| Reaction::answer(RpcResponse::Pong { nonce: 1 }));
    let step = outcome.trace.iter().find(|step| step.node == cluster.id(6)).unwrap();
    assert_eq!(step.end, FindStepEnd::NoAnswer);
    cluster.stop_all();
}

#[test]
fn impossible_nodes_are_counted_and_ignored() {
    let (cluster, keys) = (Cluster::quiet().nodes(6).scripted_peers(1).seed(3).build(), [0, 6]);
    let [own, liar] = keys.map(|host| cluster.id(host));
    let lies = [
        (own, "203.0.113.1:1"),
        (absent(1), "0.0.0.0:1"),
        (absent(2), "255.255.255.255:1"),
        (absent(3), "224.0.0.1:1"),
        (absent(4), "[ff02::1]:1"),
        (absent(5), "[::]:1"),
        // This one is possible, as far as the node can determine: it is the scripted peer itself.
        (liar, "203.0.113.2:1"),
    ];
    let lies = contacts(&cluster, &lies);
    let (mut cluster, _, outcome) = search_beside_scripted_peer(move |_| closest(lies.clone()));
    let step = outcome.trace.iter().find(|step| step.node == liar).unwrap();
    assert_eq!(step.end, FindStepEnd::Answered { reported: 7, new: 0 });
    assert_eq!(outcome.stats.candidates, 6, "{outcome:?}");
    // The local id once, and five nodes for their only address and for having no other.
    assert_eq!(cluster.node(0).metrics().told_unusable, 1 + 2 * 5);
    let graph: BTreeSet<_> =
        cluster.node(0).graph().iter().map(|(node, _)| cluster.number(node)).collect();
    assert!(!graph.contains(&None), "what a peer tells enters no graph: {graph:?}");
    cluster.stop_all();
}

#[test]
fn wrong_address_of_the_target_costs_one_dial() {
    // The scripted peer is queried first, and reports a wrong address of the target.
    let cluster = Cluster::quiet().nodes(6).scripted_peers(1).seed(3).build();
    let target = cluster.id(5);
    for text in
        ["203.0.113.9:1".to_owned(), cluster.address(6).to_string(), cluster.address(1).to_string()]
    {
        let lie = contacts(&cluster, &[(target, &text)]);
        let (mut cluster, _, outcome) = search_beside_scripted_peer(move |_| closest(lie.clone()));
        assert_eq!(outcome.found.map(|(address, _)| address), Some(cluster.address(5)), "{text}");
        assert!(outcome.stats.elapsed < SECOND, "{text}: {:?}", outcome.stats);
        cluster.stop_all();
    }
}

#[test]
fn one_peer_cannot_use_up_the_addresses_of_the_target() {
    // As many as fit into one answer: eight in each list.
    let cluster = Cluster::builder().nodes(6).scripted_peers(1).seed(3).build();
    let known = data(&cluster, Scopes::GLOBAL);
    let target = cluster.id(5);
    let place = |i: u8| address(&format!("203.0.113.{i}:1"));
    let contact: NodeContact = (0..8).map(|i| (place(i), known)).collect();
    let connection = |i: u8| ActiveConnection {
        shared_id: vec![i].into(),
        address: place(i),
        primary: i == 8,
        idle_in_ms: None,
    };
    let active = vec![ActiveNode { node: target, connections: (8..16).map(connection).collect() }];
    let lie = ClosestNodes { known: vec![(target, contact)], connected: active };
    let (mut cluster, _, outcome) =
        search_beside_scripted_peer(move |_| Reaction::answer(RpcResponse::Closest(lie.clone())));
    assert_eq!(outcome.found.map(|(address, _)| address), Some(cluster.address(5)));
    // The false addresses are dialed first, and the true one after them.
    assert!(outcome.stats.elapsed < 4 * SECOND, "{:?}", outcome.stats);
    assert_eq!(cluster.node(0).metrics().told_unusable, 16 - 5, "half of what a race takes");
    cluster.stop_all();
}

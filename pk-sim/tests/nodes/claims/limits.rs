//! How many claims peers may request at a time, and the cost of disallowed ones.

use bytes::Bytes;
use pk_proto::claims::{Claim, ClaimContent, ClaimId, ClaimPolicy};
use pk_proto::native::{self, Message, V1};
use pk_proto::{
    ApprovalId, ConnectionId, DisconnectReason, Event, Input, NodeManager, Output, PeerFault,
    Refusal, RpcRequest, Snapshot, StreamId, Table, UnixMillis, WriteFailure,
};
use pk_sim::{Key, genesis};

use super::victim::*;
use crate::common::chains::{Draft, EPOCH};
use crate::common::{Bare, SECOND};

impl Victim {
    /// A peer requests a signature of a claim about a network.
    fn network(&mut self, conn: ConnectionId, token: &[u8]) -> StreamId {
        let stream = self.bare.opened(conn);
        let question = RpcRequest::SignClaim(Bytes::copy_from_slice(token));
        self.send(stream, V1::Call { deadline_ms: 15_000, request: question }, true);
        stream
    }

    fn disconnect(&mut self, conn: ConnectionId) {
        self.bare.input(Input::Disconnected { conn, why: DisconnectReason::Reset });
        self.settle();
    }

    /// Returns the approval requests since the last call.
    fn take_approval_requests(&mut self) -> Vec<ApprovalId> {
        let asked = |output: Output| match output {
            Output::Event(Event::ClaimApprovalRequested { approval, .. }) => Some(approval),
            _ => None,
        };
        std::mem::take(&mut self.said).into_iter().filter_map(asked).collect()
    }
}

fn network_claim(peer: &Key) -> Claim {
    let content = ClaimContent {
        typ: "ClaimNetworkAccess".into(),
        issuer: Some(peer.id().to_string()),
        subject: None,
        members: "{}".into(),
    };
    Draft::new(&peer.id(), content, None).signed(&[peer])
}

/// The first claim of the exchange of this number.
fn numbered(peer: &Key, number: u64) -> Claim {
    let mut draft = Draft::new(&peer.id(), linking(peer.id(), local_key().id()), None);
    draft.unix = UnixMillis(EPOCH.0 + 1000 * number);
    draft.id = ClaimId::next(&peer.id(), draft.unix, None).unwrap();
    draft.signed(&[peer])
}

// -- disallowed peers

/// No signature is verified (a forged one has the same result), nothing is read, and nothing is
/// stored.
#[test]
fn disallowed_claim_is_refused_without_verification() {
    for policy in [ClaimPolicy::Refuse, ClaimPolicy::AllowList] {
        let mut victim = Victim::with(policy);
        let conn = victim.connect(key(0).id());
        let (link, network) = (json(&first(&key(0))), json(&network_claim(&key(0))));
        let by_another = json(
            &Draft::new(&key(0).id(), linking(key(0).id(), local_key().id()), None)
                .signed(&[&key(1)]),
        );
        for token in [&link[..], &by_another, b"{}"] {
            let stream = victim.begin(conn, token);
            assert_eq!(victim.refusal(stream), Some(Refusal::Denied), "{policy:?}");
        }
        for token in [&network[..], &link, b"{}"] {
            let stream = victim.network(conn, token);
            assert_eq!(victim.refusal(stream), Some(Refusal::Denied), "{policy:?}");
        }
        let metrics = victim.bare.node.metrics();
        assert_eq!(
            (metrics.exchanges, metrics.exchanges_open, metrics.claim_faults),
            (0, 0, 0),
            "{policy:?}"
        );
        assert_eq!(
            (victim.store_reads, victim.signed.len(), metrics.signature_checks),
            (0, 0, 0),
            "{policy:?}"
        );
        assert_eq!(metrics.signatures_refused, 6, "{policy:?}");
        assert_eq!(victim.faults(), Vec::<PeerFault>::new(), "{policy:?}");
    }
}

/// After a restart under another policy: a peer that was answered gets the same answer.
#[test]
fn accepted_claim_is_answered_again_under_any_policy() {
    for finished in [false, true] {
        let mut before = Victim::new();
        let conn = before.connect(key(0).id());
        let stream = before.begin(conn, &json(&first(&key(0))));
        let [_, mine] = &before.received_tokens(stream)[..] else { panic!() };
        let mine = mine.clone();
        if finished {
            before.token(stream, &json(&counter_signed(&mine, &key(0))));
            assert_eq!(before.chain_len(), 1);
        }
        let loaded = |(table, _): &(pk_proto::Table, Bytes)| Snapshot::TABLES.contains(table);
        let rows = before.rows.iter().filter(|(row, _)| loaded(row));
        let rows = rows.map(|((table, key), value)| (*table, key.clone(), value.clone()));
        let snapshot = Snapshot::from_rows(rows).unwrap();
        let mut victim = Victim::with(ClaimPolicy::Refuse);
        let (config, identity) = (victim.bare.node.config().clone(), genesis(&local_key(), EPOCH));
        victim.bare.node =
            NodeManager::new(config, &identity, snapshot, [8; 32], victim.bare.now, EPOCH).unwrap();
        victim.bare.input(Input::Listening { addrs: vec!["192.0.2.1:1314".parse().unwrap()] });
        victim.rows = before.rows;
        victim.settle();
        let conn = victim.connect(key(0).id());
        let stream = victim.begin(conn, &json(&first(&key(0))));
        assert_eq!(victim.received_tokens(stream)[1], mine, "finished: {finished}");
        // Other peers are refused, and so is another claim of the same peer, which was never
        // accepted.
        let other = victim.connect(key(1).id());
        let stream = victim.begin(other, &json(&first(&key(1))));
        assert_eq!(victim.refusal(stream), Some(Refusal::Denied));
        let stream = victim.begin(conn, &json(&numbered(&key(0), 7)));
        assert_eq!(victim.refusal(stream), Some(Refusal::Denied));
    }
}

// -- limits

/// One network has a quarter of the exchanges, with any number of keys, and the others have room.
#[test]
fn one_network_cannot_use_all_exchanges() {
    let mut victim = Victim::with(ClaimPolicy::Ask);
    let mut conns = Vec::new();
    let mut asked = 0;
    for n in 0..40 {
        let conn = victim.connect_from(key(n).id(), &format!("66.6.6.6:{}", 1 + n));
        for number in 0..10 {
            victim.begin(conn, &json(&numbered(&key(n), number)));
        }
        asked += victim.take_approval_requests().len();
        conns.push(conn);
    }
    assert_eq!(
        (asked, victim.bare.node.metrics().exchanges),
        (64, 64),
        "eight of each node, until the network is full"
    );
    let honest = victim.connect_from(key(100).id(), "20.0.0.1:1");
    let stream = victim.begin(honest, &json(&first(&key(100))));
    let [approval] = victim.take_approval_requests()[..] else {
        panic!("the honest peer is refused")
    };
    victim.bare.node.resolve_claim_approval(approval, true, victim.bare.now);
    victim.settle();
    assert_eq!(victim.received_tokens(stream).len(), 2);
    // They end with their connections.
    conns.into_iter().for_each(|conn| victim.disconnect(conn));
    assert_eq!(victim.bare.node.metrics().exchanges, 1);
}

/// A peer that reconnects causes no more approval requests than one that stays connected.
#[test]
fn approval_requests_of_one_node_are_limited_over_many_connections() {
    type Begin = fn(&mut Victim, ConnectionId, u64);
    let kinds: [(&str, Begin); 2] = [
        ("links", |victim, conn, number| {
            victim.begin(conn, &json(&numbered(&key(0), number)));
        }),
        ("networks", |victim, conn, _| {
            victim.network(conn, &json(&network_claim(&key(0))));
        }),
    ];
    for (kind, begin) in kinds {
        let mut victim = Victim::with(ClaimPolicy::Ask);
        let mut asked = Vec::new();
        for round in 0..40 {
            let conn = victim.connect_from(key(0).id(), "66.6.6.6:1");
            (0..8).for_each(|number| begin(&mut victim, conn, 8 * round + number));
            asked.extend(victim.take_approval_requests());
            victim.disconnect(conn);
            assert_eq!(
                victim.bare.node.metrics().exchanges,
                0,
                "{kind}: nothing outlives its connection"
            );
        }
        assert_eq!(asked.len(), 8, "{kind}");
        let honest = victim.connect_from(key(1).id(), "20.0.0.1:1");
        victim.network(honest, &json(&network_claim(&key(1))));
        assert_eq!(victim.take_approval_requests().len(), 1, "{kind}");
        // Each approval request ends with its answer or its timeout.
        victim.bare.node.resolve_claim_approval(asked[0], false, victim.bare.now);
        let conn = victim.connect_from(key(0).id(), "66.6.6.6:1");
        (0..8).for_each(|number| begin(&mut victim, conn, 1000 + number));
        assert_eq!(victim.take_approval_requests().len(), 1, "{kind}");
        victim.disconnect(conn);
        victim.pass(31);
        let conn = victim.connect_from(key(0).id(), "66.6.6.6:1");
        (0..8).for_each(|number| begin(&mut victim, conn, 2000 + number));
        assert_eq!(victim.take_approval_requests().len(), 8, "{kind}");
    }
}

/// Many node ids displace accepted claims of their own network, not those of others.
#[test]
fn one_network_does_not_displace_stored_exchanges_of_others() {
    let mut victim = Victim::new();
    victim.bare = Bare::new(|config| {
        config.claim_policy = ClaimPolicy::All;
        config.open_exchange_limit = 20;
    });
    let agree = |victim: &mut Victim, n: u64, at: &str| {
        let conn = victim.connect_from(key(n).id(), at);
        let stream = victim.begin(conn, &json(&first(&key(n))));
        let answer = victim.received_tokens(stream);
        victim.disconnect(conn);
        answer.get(1).map(Claim::id)
    };
    let honest = agree(&mut victim, 0, "20.0.0.1:1");
    assert!(honest.is_some());
    for n in 1..100 {
        victim.bare.pass(SECOND);
        agree(&mut victim, n, "66.6.6.6:1");
    }
    let metrics = victim.bare.node.metrics();
    assert_eq!((metrics.exchanges_open, metrics.exchanges_forgotten), (20, 80));
    assert_eq!(agree(&mut victim, 0, "20.0.0.1:1"), honest, "the same answer as before");
}

/// The commitments in memory are those in the store, also if a write fails or if the exchange ends
/// before its write: otherwise an exchange could not be completed before the next restart.
#[test]
fn commitments_in_memory_match_the_store_after_any_write() {
    let mut victim = Victim::new();
    victim.bare = Bare::new(|config| {
        config.claim_policy = ClaimPolicy::All;
        config.open_exchange_limit = 2;
    });
    let stored = |victim: &Victim| {
        victim.rows.keys().filter(|(table, _)| *table == Table::Exchanges).count() as u64
    };
    let agree = |victim: &mut Victim, n: u64, result: Result<(), WriteFailure>, leaves: bool| {
        let conn = victim.connect_from(key(n).id(), &format!("20.0.{n}.1:1"));
        let message = V1::Exchange { deadline_ms: 60_000, token: json(&first(&key(n))).into() };
        let stream = victim.bare.opened(conn);
        victim.bare.feed(stream, &native::encode(&Message::V1(message)).unwrap(), false);
        let mut write = None;
        for _ in 0..20 {
            for output in victim.bare.take() {
                match output {
                    Output::Persist { id, ops, .. } => write = Some((id, ops)),
                    output => victim.perform(output),
                }
            }
        }
        let (id, ops) = write.unwrap();
        if leaves {
            victim.disconnect(conn);
        }
        match result {
            Ok(()) => victim.persist(id, ops),
            failed => victim.bare.input(Input::Persisted { id, result: failed }),
        }
        victim.settle();
        let open = victim.bare.node.metrics().exchanges_open;
        assert_eq!(open, stored(victim), "{n}");
        let answer: Vec<_> = victim
            .received(stream)
            .into_iter()
            .filter_map(|message| match message {
                V1::Token { token } => Some(token),
                _ => None,
            })
            .collect();
        if !leaves {
            victim.disconnect(conn);
        }
        answer.get(1).cloned()
    };
    let failed = || Err(WriteFailure::NotApplied("full".into()));
    let before: Vec<_> = (0..2).map(|n| agree(&mut victim, n, Ok(()), false)).collect();
    assert!(before.iter().all(Option::is_some));
    // The limit is two. The write that would have removed the first one fails.
    assert_eq!(agree(&mut victim, 2, failed(), false), None);
    assert_eq!(victim.bare.node.metrics().exchanges_forgotten, 0);
    victim.pass(16);
    assert_eq!(victim.bare.node.census().commitments, 0);
    // The peer of this one leaves before its commitment is written; its answer is the same later.
    agree(&mut victim, 3, Ok(()), true);
    assert_eq!(victim.bare.node.metrics().exchanges_forgotten, 1);
    let conn = victim.connect_from(key(3).id(), "20.0.3.1:2");
    let store_reads = victim.store_reads;
    let stream = victim.begin(conn, &json(&first(&key(3))));
    assert_eq!(victim.received_tokens(stream).len(), 2);
    assert_eq!(victim.store_reads, store_reads, "it is known without the store");
}

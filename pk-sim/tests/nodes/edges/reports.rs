//! Requests report their true outcome, also at a limit and once they can no longer be cancelled.
#![allow(unreachable_pub, reason = "a module of a test")]

use std::time::Duration;

use pk_proto::native::{self, Message, V1};
use pk_proto::{
    ClosestNodes, ClosestNodesQuery, ConnectionId, Input, NodeId, Output, Reply, Request,
    RequestError, RequestId, RequestOptions, RpcRequest, RpcResponse, Scopes, SetNodeOptions,
    SetNodeOutcome, SetNodeRejection,
};
use pk_sim::Cluster;

use crate::common::{Bare, address, by, data, ms, sent};

/// The closest nodes that a peer receives.
pub fn closest(bare: &mut Bare, conn: ConnectionId, target: NodeId) -> ClosestNodes {
    let query = ClosestNodesQuery { known: true, connected: true };
    let question = RpcRequest::Closest { target, query };
    let stream = bare.opened(conn);
    let call =
        native::encode(&Message::V1(V1::Call { deadline_ms: 10_000, request: question })).unwrap();
    bare.feed(stream, &call, true);
    let (bytes, _) = sent(&bare.take(), stream);
    match native::decode(&bytes[4..]) {
        Ok(Message::V1(V1::Answer(RpcResponse::Closest(closest)))) => closest,
        other => panic!("{other:?}"),
    }
}

fn allow(node: u64) -> Request {
    Request::AllowClaim {
        node: Bare::peer(node),
        allowed: true,
        options: RequestOptions::default(),
    }
}

fn persists(bare: &mut Bare) -> Vec<pk_proto::EffectId> {
    let ids = bare.take().into_iter().filter_map(|output| match output {
        Output::Persist { id, .. } => Some(id),
        _ => None,
    });
    ids.collect()
}

#[test]
fn allow_list_limit_applies_to_consecutive_requests() {
    let mut bare = Bare::new(|config| config.allow_list_limit = 1);
    let first = bare.request(allow(60));
    let again = bare.request(allow(60));
    for other in 61..65 {
        let refused = bare.node.request(allow(other), bare.now);
        assert_eq!(refused, Err(RequestError::AllowListFull(1)));
    }
    for id in persists(&mut bare) {
        bare.input(Input::Persisted { id, result: Ok(()) });
    }
    for request in [first, again] {
        assert_eq!(bare.done(request), Some(Ok(Reply::AllowClaim)), "twice the same is one");
    }
    assert_eq!(bare.node.request(allow(61), bare.now), Err(RequestError::AllowListFull(1)));
    assert!(bare.node.request(allow(60), bare.now).is_ok(), "it is there already");
}

#[test]
fn interrupted_allow_reports_the_outcome_of_its_write() {
    type Disturb = fn(&mut Bare, RequestId);
    let disturb: [Disturb; 3] = [
        |bare, id| bare.node.cancel(id, bare.now),
        |bare, _| bare.pass(Duration::from_secs(60)),
        |bare, _| bare.node.stop(bare.now),
    ];
    for disturb in disturb {
        let mut bare = Bare::new(|config| config.stop_timeout = Duration::from_secs(60));
        let options = by(ms(100));
        let request =
            bare.request(Request::AllowClaim { node: Bare::peer(1), allowed: true, options });
        let writes = persists(&mut bare);
        disturb(&mut bare, request);
        bare.drain();
        assert_eq!(bare.done(request), None, "it is being written");
        for id in writes {
            bare.input(Input::Persisted { id, result: Ok(()) });
        }
        assert_eq!(bare.done(request), Some(Ok(Reply::AllowClaim)));
    }
}

#[test]
fn limit_of_waiting_claims_applies_to_consecutive_requests() {
    let mut cluster =
        Cluster::quiet().nodes(3).seed(3).config(|config| config.open_exchange_limit = 1).start();
    cluster.join_all();
    let claim = |cluster: &Cluster, with| Request::ClaimNode {
        target: cluster.id(with),
        options: RequestOptions::default(),
    };
    let (one, two) = (claim(&cluster, 1), claim(&cluster, 2));
    let first = cluster.request(0, one);
    assert_eq!(cluster.try_request(0, two.clone()), Err(RequestError::TooManyExchanges(1)));
    // The peer refuses, so that there is room again.
    assert!(cluster.await_done(0, first).is_err());
    assert!(cluster.try_request(0, two).is_ok());
    cluster.stop_all();
}

/// A node whose bucket 255 has room for one contact and is full, and other nodes for it.
fn full(connected: bool) -> (Cluster, NodeId, Vec<NodeId>) {
    let config = |config: &mut pk_proto::Config| {
        config.bucket_limit = 1;
        config.pending_limit = 1;
        config.find_candidate_limit = 16;
    };
    let mut cluster = Cluster::quiet().nodes(2).seed(3).config(config).start();
    assert!(matches!(cluster.connect(0, 1), Ok(Reply::Connect(_))));
    let (own, known) = (cluster.id(0), cluster.id(1));
    if !connected {
        cluster.call(0, |node, now| node.disconnect(known, now));
        cluster.kill(1);
        cluster.drive(Duration::from_secs(40));
    }
    let bucket = own.bucket_index(&known);
    let others = (0..).map(crate::common::absent).filter(|other| own.bucket_index(other) == bucket);
    let others = others.take(3).collect();
    (cluster, known, others)
}

fn set(cluster: &Cluster, node: NodeId) -> Request {
    let address = address("192.0.2.9:1");
    Request::SetNode {
        node,
        address,
        data: data(cluster, Scopes::GLOBAL),
        how: SetNodeOptions::default(),
    }
}

#[test]
fn rejected_node_is_not_reported_as_pending() {
    // The contact is connected, so the round ends before the request.
    let (mut cluster, known, others) = full(true);
    let rejected = SetNodeOutcome::Rejected(SetNodeRejection::BucketFull);
    let request = set(&cluster, others[0]);
    assert_eq!(cluster.ask(0, request), Ok(Reply::SetNode(rejected)));
    assert!(cluster.node(0).contact(known).is_some());
    cluster.stop_all();
    // The contact may be dead: the next node is pending until that is known.
    let (mut cluster, _, others) = full(false);
    let request = set(&cluster, others[0]);
    assert_eq!(cluster.ask(0, request), Ok(Reply::SetNode(SetNodeOutcome::Pending)));
    cluster.drive(Duration::from_secs(60));
    assert!(cluster.node(0).contact(others[0]).is_some());
    cluster.stop_all();
}

#[test]
fn mdns_query_reports_its_results_by_its_deadline() {
    let mut bare = Bare::starting(|config| {
        config.mdns = true;
        config.request_deadline = Duration::from_secs(1);
    });
    bare.input(Input::Listening { addrs: vec!["192.0.2.1:1314".parse().unwrap()] });
    let request =
        bare.request(Request::QueryMdns { target: Bare::peer(1), timeout: Some(ms(500)) });
    let browse = bare.take().into_iter().find_map(|output| match output {
        Output::Browse { id, .. } => Some(id),
        _ => None,
    });
    let addrs = vec!["192.0.2.7:7".parse().unwrap()];
    bare.input(Input::Discovered { id: browse.unwrap(), addrs, done: false });
    // The driver never reports the end of the browse.
    bare.pass(Duration::from_secs(2));
    assert_eq!(bare.done(request), Some(Ok(Reply::QueryMdns(vec![address("192.0.2.7:7")]))));
}

#[test]
fn each_limit_is_named_by_its_error() {
    let mut bare = Bare::new(|config| {
        config.protocol_limit = 1;
        config.request_limit = 1;
    });
    bare.node.accept_protocol("a".into(), bare.now).unwrap();
    let refused = bare.node.accept_protocol("b".into(), bare.now).unwrap_err();
    assert!(refused.to_string().contains("protocol"), "{refused}");
    bare.request(Request::QueryMdns { target: Bare::peer(1), timeout: None });
    let refused = bare.node.request(allow(1), bare.now).unwrap_err();
    assert!(refused.to_string().contains("requests"), "{refused}");
}

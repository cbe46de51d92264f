//! Generations of keys: any number of them, connections of the previous one, and old ids.

use std::time::Duration;

use pk_proto::cert::MAX_CHAIN_LEN;
use pk_proto::{
    ConnectionId, Event, FindEnd, FindNodeOptions, Identity, Input, Output, Reply, Request,
    RequestError, RequestOptions, Scopes, SetNodeOptions, SetNodeOutcome, SetNodeRejection, Side,
    StreamId, UnixMillis,
};
use pk_sim::{Cluster, Key, genesis, renew};

use crate::common::{Bare, SECOND, address, data, hello};

const UNIX: UnixMillis = UnixMillis(1_767_225_600_000);

/// Completes the effects of a renewal. Returns the other outputs.
fn execute_renewal(bare: &mut Bare) -> Vec<Output> {
    let mut rest = Vec::new();
    loop {
        let outputs = bare.take();
        if outputs.is_empty() {
            return rest;
        }
        for output in outputs {
            match output {
                Output::Persist { id, .. } => bare.input(Input::Persisted { id, result: Ok(()) }),
                Output::ReplaceIdentity { id, .. } => {
                    bare.input(Input::IdentityReplaced { id, result: Ok(()) });
                }
                other => rest.push(other),
            }
        }
    }
}

#[test]
fn key_can_be_renewed_any_number_of_times() {
    let mut bare = Bare::new(|_| {});
    let mut key = Key::numbered(77, 0);
    // Every former certificate: those that peers would not read are removed.
    let mut all = genesis(&key, UNIX);
    let mut ids = vec![key.id()];
    for generation in 1..=40 {
        let next = Key::numbered(78, generation);
        all = renew(&all, &key, &next, UNIX);
        bare.request(Request::Renew { identity: all.clone() });
        let shown = bare.outputs.len();
        let told = execute_renewal(&mut bare);
        assert_eq!(bare.node.own_id(), next.id(), "{generation}: {shown}");
        let gone: Vec<_> = told
            .iter()
            .filter_map(|output| match output {
                Output::Event(Event::FormerIdsDropped { ids }) => Some(ids.clone()),
                _ => None,
            })
            .collect();
        let expected = ids
            .len()
            .checked_sub(MAX_CHAIN_LEN - 1)
            .filter(|over| *over > 0)
            .map(|over| vec![ids[over - 1]]);
        assert_eq!(gone, expected.into_iter().collect::<Vec<_>>(), "{generation}");
        ids.push(next.id());
        key = next;
    }
    // The same for another certificate of the same key.
    all = renew(&all, &key, &key, UNIX);
    bare.request(Request::Renew { identity: all.clone() });
    let told = execute_renewal(&mut bare);
    let done = |output: &Output| {
        matches!(output, Output::Event(Event::Done { result: Ok(Reply::Renew { .. }), .. }))
    };
    assert!(told.iter().any(done), "{told:?}");
    // A chain that is shorter than necessary is refused.
    let other = Key::numbered(79, 0);
    let mut short = renew(&all, &key, &other, UNIX);
    short.chain.truncate(5);
    let refused = bare.node.request(Request::Renew { identity: short }, bare.now);
    assert!(matches!(refused, Err(RequestError::Identity(_))), "{refused:?}");
}

#[test]
fn chain_after_many_renewals_is_accepted_by_peers() {
    let mut cluster = Cluster::quiet().nodes(3).seed(3).start();
    let first = cluster.id(0);
    let mut ids = vec![first];
    for _ in 0..40 {
        assert!(matches!(cluster.renew(0), Ok(Reply::Renew { .. })));
        ids.push(cluster.id(0));
    }
    cluster.drive(60 * SECOND);
    assert!(matches!(cluster.connect(1, 0), Ok(Reply::Connect(_))), "by its newest id");
    let (target, address) = (ids[ids.len() - MAX_CHAIN_LEN], cluster.address(0));
    let connect = |target| Request::Connect {
        target,
        address: address.clone(),
        options: RequestOptions::default(),
    };
    assert!(
        matches!(cluster.ask(2, connect(target)), Ok(Reply::Connect(_))),
        "by the oldest that is left"
    );
    cluster.call(2, |node, now| node.disconnect(target, now));
    cluster.drive(SECOND);
    assert!(cluster.ask(2, connect(first)).is_err(), "its first id has left the chain");
    cluster.restart(0);
    cluster.drive(SECOND);
    assert_eq!(cluster.id(0), ids[40]);
    cluster.stop_all();
}

#[test]
fn connection_from_before_a_renewal_does_not_become_live_after_it() {
    for at in 0..2 {
        let mut bare = Bare::new(|_| {});
        let conn = ConnectionId(bare.next_id());
        let remote = "198.51.100.1:1314".parse().unwrap();
        bare.connected(conn, Side::Acceptor, Bare::peer(1), remote, 9);
        let stream: Option<StreamId> = (at == 0).then(|| bare.opened(conn));
        let key = Key::numbered(77, 0);
        let identity = renew(&genesis(&key, UNIX), &key, &Key::numbered(78, 1), UNIX);
        bare.request(Request::Renew { identity });
        let told = execute_renewal(&mut bare);
        let closed = |output: &Output| matches!(output, Output::CloseConnection { conn: closed, .. } if *closed == conn);
        assert!(told.iter().any(closed), "{told:?}");
        // Its Hello was in progress.
        let stream = stream.unwrap_or_else(|| bare.opened(conn));
        bare.data(stream, &hello(), false);
        bare.request(Request::PingNode {
            target: Bare::peer(1),
            options: RequestOptions::default(),
        });
        let opened = |output: &Output| {
            matches!(
                output,
                Output::OpenStream { .. } | Output::Event(Event::ConnectionOpened { .. })
            )
        };
        let outputs = bare.take();
        assert!(!outputs.iter().any(opened), "{outputs:?}");
    }
}

#[test]
fn new_connections_replace_those_of_the_old_key() {
    let mut cluster =
        Cluster::quiet().nodes(2).seed(3).config(|config| config.connections_per_node = 1).start();
    assert!(matches!(cluster.connect(0, 1), Ok(Reply::Connect(_))));
    let lease =
        Request::AcquireConnection { target: cluster.id(1), options: RequestOptions::default() };
    assert!(matches!(cluster.ask(0, lease), Ok(Reply::AcquireConnection { .. })));
    assert!(matches!(cluster.renew(0), Ok(Reply::Renew { .. })));
    // The leased connection has half a minute to finish its streams.
    let begun = cluster.now();
    let ping = Request::PingNode { target: cluster.id(1), options: RequestOptions::default() };
    assert!(matches!(cluster.ask(0, ping), Ok(Reply::PingNode(_))));
    assert!(cluster.now().since(begun) < 5 * SECOND);
    cluster.stop_all();
}

#[test]
fn former_id_is_treated_as_the_local_node() {
    let mut cluster = Cluster::quiet().nodes(3).seed(3).start();
    cluster.join_all();
    let former = cluster.id(0);
    assert!(matches!(cluster.renew(0), Ok(Reply::Renew { .. })));
    cluster.drive(SECOND);
    let options = RequestOptions::default();
    let address = address("192.0.2.9:1");
    let set = Request::SetNode {
        node: former,
        address: address.clone(),
        data: data(&cluster, Scopes::GLOBAL),
        how: SetNodeOptions { force: true, ..SetNodeOptions::default() },
    };
    let rejected = SetNodeOutcome::Rejected(SetNodeRejection::OwnNode);
    assert_eq!(cluster.ask(0, set), Ok(Reply::SetNode(rejected)));
    for request in [
        Request::PingNode { target: former, options },
        Request::Connect { target: former, address, options },
        Request::ClaimNode { target: former, options },
        Request::AllowClaim { node: former, allowed: true, options },
        Request::RequestChainData { target: former, since: None, limit: None, options },
        Request::ConnectThrough { target: cluster.id(1), relay: former, options },
    ] {
        assert_eq!(
            cluster.try_request(0, request.clone()),
            Err(RequestError::OwnNode),
            "{request:?}"
        );
    }
    // As for the present id: the search populates the nearby buckets, and dials no other node in
    // place of the local node.
    let find = Request::FindNode { target: former, find: FindNodeOptions::default() };
    let Ok(Reply::FindNode(outcome)) = cluster.ask(0, find) else {
        panic!("the search did not end")
    };
    assert_eq!((outcome.found, outcome.ended), (None, FindEnd::Exhausted));
    assert!(
        outcome.stats.calls > 0 && outcome.trace.iter().all(|step| step.node != former),
        "{:?}",
        outcome.trace
    );
    cluster.drive(Duration::from_secs(120));
    assert!(cluster.node(0).contact(former).is_none());
    cluster.stop_all();
}

#[test]
fn identity_with_too_many_certificates_starts_with_the_newest() {
    let mut key = Key::numbered(77, 0);
    let mut identity: Identity = genesis(&key, UNIX);
    for generation in 1..=40 {
        let next = Key::numbered(78, generation);
        identity = renew(&identity, &key, &next, UNIX);
        key = next;
    }
    let node = pk_proto::NodeManager::new(
        pk_proto::Config::default(),
        &identity,
        pk_proto::Snapshot::default(),
        [1; 32],
        pk_proto::Instant::ORIGIN,
        UNIX,
    );
    assert_eq!(node.unwrap().own_id(), key.id());
}

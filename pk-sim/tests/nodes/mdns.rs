//! The local network, in virtual time: advertising, queries, searches (specification: queryMDNS,
//! findNodeByMDNS).

use std::time::Duration;

use pk_proto::{
    ContactMode, Failure, FindEnd, FindNodeOptions, FindStepEnd, NodeAddress, NodeId, Reply,
    Request, RequestError, Scopes, Strategies,
};
use pk_sim::{Cluster, HostId};

use crate::common::*;

/// Nodes on these local networks; a node without one is on none of them. No node has contacts.
fn lans(lans: &[Option<u32>], mdns: bool) -> Cluster {
    let mut cluster =
        Cluster::quiet().nodes(lans.len()).seed(4).config(|config| config.mdns = mdns).build();
    for (node, lan) in lans.iter().enumerate() {
        cluster.host_mut(node).lan = *lan;
        cluster.start_node(node);
    }
    cluster.drive(SECOND);
    cluster
}

fn query(
    cluster: &mut Cluster,
    node: HostId,
    target: NodeId,
    timeout: Option<Duration>,
) -> Vec<NodeAddress> {
    match cluster.ask(node, Request::QueryMdns { target, timeout }) {
        Ok(Reply::QueryMdns(found)) => found,
        other => panic!("{other:?}"),
    }
}

#[test]
fn node_without_contacts_finds_a_node_on_the_local_network() {
    let mut cluster = lans(&[Some(1), Some(1)], true);
    let target = cluster.id(1);
    let outcome = find(&mut cluster, 0, target);
    assert_consistent(&outcome);
    let (address, data) = outcome.found.unwrap();
    assert_eq!(
        (address, data.mode, data.scopes),
        (cluster.address(1), ContactMode::Direct, Scopes::LOCAL)
    );
    // Two ms for the query and the answer, a handshake, the Hello.
    assert!(outcome.stats.elapsed < ms(100), "{:?}", outcome.stats);
    cluster.drive(SECOND);
    let contact = cluster.node(0).contact(target).unwrap();
    assert!(contact.iter().all(|(_, data)| data.scopes == Scopes::LOCAL), "{contact:?}");
    cluster.stop_all();
}

#[test]
fn nodes_on_other_networks_and_nodes_without_mdns_are_not_found() {
    for (networks, mdns) in
        [([Some(1), Some(2)], true), ([Some(1), None], true), ([Some(1), Some(1)], false)]
    {
        let mut cluster = lans(&networks, mdns);
        let target = cluster.id(1);
        let outcome = find(&mut cluster, 0, target);
        assert_eq!((outcome.ended, &outcome.found), (FindEnd::Exhausted, &None));
        // The query has its own timeout, shorter than that of a search.
        let waited = if mdns { ms(1500) } else { Duration::ZERO };
        assert_eq!(outcome.stats.elapsed, waited, "{networks:?}");
        let asked = cluster.coverage().count("Output::Browse")
            + cluster.coverage().count("Output::Advertise");
        assert_eq!(asked > 0, mdns, "it is opt-in");
        cluster.stop_all();
    }
}

#[test]
fn search_has_its_own_mdns_timeout() {
    let mut cluster = lans(&[Some(1)], true);
    for timeout in [ms(1), ms(300), 4 * SECOND] {
        let find = FindNodeOptions { mdns_timeout: Some(timeout), ..FindNodeOptions::default() };
        let outcome = find_with(&mut cluster, 0, absent(1), find);
        assert_eq!((outcome.ended, outcome.stats.elapsed), (FindEnd::Exhausted, timeout));
    }
    let strategies = Some(Strategies { mdns: false, ..Strategies::default() });
    let outcome = find_with(
        &mut cluster,
        0,
        absent(1),
        FindNodeOptions { strategies, ..FindNodeOptions::default() },
    );
    assert_eq!(outcome.stats.elapsed, Duration::ZERO, "it is not asked at all");
    cluster.stop_all();
}

#[test]
fn node_that_starts_during_the_search_is_found() {
    let mut cluster = lans(&[Some(1), Some(1)], true);
    cluster.kill(1);
    let target = cluster.id(1);
    let request =
        cluster.request(0, Request::FindNode { target, find: FindNodeOptions::default() });
    cluster.drive(SECOND);
    assert!(cluster.done(0, request).is_none());
    cluster.start_node(1);
    let Ok(Reply::FindNode(outcome)) = cluster.await_done(0, request) else {
        panic!("not a search")
    };
    assert_eq!(outcome.ended, FindEnd::Connected);
    cluster.stop_all();
}

#[test]
fn node_at_an_unreachable_local_address_is_not_found_and_the_failure_is_reported() {
    let mut cluster = lans(&[Some(1), Some(1)], true);
    let target = cluster.id(1);
    // It still advertises, and no packet gets through.
    let ip = cluster.host(1).addrs()[0].ip();
    cluster.network_mut().set_unreachable(ip);
    let outcome = find(&mut cluster, 0, target);
    let step = outcome.trace.iter().find(|step| step.node == target).unwrap();
    assert!(
        matches!(&step.end, FindStepEnd::Unreachable(failures) if failures.len() == 1),
        "{step:?}"
    );
    assert_eq!((outcome.ended, outcome.stats.attempts), (FindEnd::Exhausted, 1));
    cluster.stop_all();
}

#[test]
fn query_returns_addresses_without_connecting() {
    let mut cluster = lans(&[Some(1), Some(1)], true);
    let target = cluster.id(1);
    let begun = cluster.now();
    assert_eq!(query(&mut cluster, 0, target, None), [cluster.address(1)]);
    assert_eq!(cluster.now().since(begun), ms(1500), "all its time, since others may answer");
    assert_eq!(query(&mut cluster, 0, absent(3), Some(ms(200))), []);
    assert_eq!((cluster.node(0).metrics().dials, cluster.node(0).connections().len()), (0, 0));
    let refused =
        cluster.try_request(0, Request::QueryMdns { target, timeout: Some(Duration::ZERO) });
    assert!(
        matches!(refused, Err(RequestError::Option { name: "mdns_timeout", .. })),
        "{refused:?}"
    );
    cluster.stop_all();
}

#[test]
fn browse_ends_with_its_request() {
    let mut cluster = lans(&[Some(1), Some(1)], true);
    let target = absent(1);
    for request in [
        Request::QueryMdns { target, timeout: Some(60 * SECOND) },
        Request::FindNode {
            target,
            find: FindNodeOptions { mdns_timeout: Some(60 * SECOND), ..FindNodeOptions::default() },
        },
    ] {
        let before = cluster.coverage().count("Output::CancelBrowse");
        let id = cluster.request(0, request);
        cluster.drive(SECOND);
        cluster.cancel(0, id);
        assert_eq!(cluster.await_done(0, id), Err(Failure::Cancelled));
        assert_eq!(cluster.coverage().count("Output::CancelBrowse"), before + 1);
        assert_quiet(&mut cluster, 0, "after a question");
    }
    // A node that is found otherwise leaves no browse in progress.
    add_contact(&mut cluster, 0, 1);
    let target = cluster.id(1);
    find(&mut cluster, 0, target);
    assert_eq!(
        cluster.coverage().count("Output::CancelBrowse"),
        cluster.coverage().count("Output::Browse")
    );
    cluster.stop_all();
}

#[test]
fn node_is_advertised_from_its_start_to_its_stop_and_under_its_new_id_after_a_renewal() {
    let mut cluster = lans(&[Some(1), Some(1)], true);
    let (old, port) = (cluster.id(1), cluster.address(1).port);
    assert_eq!(cluster.host(1).adverts().iter().collect::<Vec<_>>(), [(&old, &port)]);
    let Ok(Reply::Renew { new, .. }) = cluster.renew(1) else { panic!("not renewed") };
    assert_eq!(cluster.host(1).adverts().iter().collect::<Vec<_>>(), [(&new, &port)]);
    assert_eq!(find(&mut cluster, 0, new).ended, FindEnd::Connected);
    cluster.stop(1);
    assert!(cluster.host(1).adverts().is_empty());
    cluster.stop_all();
}

#[test]
fn background_searches_do_not_ask_the_local_network() {
    let mut cluster =
        Cluster::builder().nodes(4).seed(4).config(|config| config.mdns = true).start();
    cluster.join_all();
    cluster.drive(Duration::from_secs(3 * 3600));
    assert!(cluster.node(0).metrics().refreshes > 3);
    assert_eq!(cluster.coverage().count("Output::Browse"), 0);
    cluster.stop_all();
}

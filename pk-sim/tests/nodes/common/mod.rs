//! Helpers of the tests. Each file uses a part of them.
#![allow(
    dead_code,
    unreachable_pub,
    unused_imports,
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests, of which no file uses all"
)]

mod bare;

pub mod chains;
mod links;
mod peer;
pub mod relays;
pub mod signals;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

pub use bare::{Bare, faults, hello, messages, sent};
pub use links::*;
pub use peer::{Peer, Reaction, contacts, frame};
use pk_proto::{
    ClosestNodesQuery, ContactMode, Event, FindEnd, FindNodeOptions, FindOutcome, FindStep,
    FindStepEnd, Host, NodeAddress, NodeContactAddressData, NodeId, Reply, Request, RequestOptions,
    Scopes, SeedNode, SetNodeOptions,
};
use pk_sim::{Cluster, HostId, Key};

pub const SECOND: Duration = Duration::from_secs(1);
/// Suffix of the names of [`named`].
const DOMAIN: &str = "example.org";

pub fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// Options with this deadline.
pub fn by(deadline: Duration) -> RequestOptions {
    RequestOptions { deadline: Some(deadline), ..RequestOptions::default() }
}

pub fn address(text: &str) -> NodeAddress {
    text.parse().unwrap()
}

/// An id that no node has.
pub fn absent(number: u64) -> NodeId {
    Key::numbered(u64::MAX, number).id()
}

pub fn data(cluster: &Cluster, scopes: Scopes) -> NodeContactAddressData {
    NodeContactAddressData { mode: ContactMode::Direct, connected_time: cluster.unix(0), scopes }
}

// -- contacts

/// Connects along every edge, then ends all connections, so that the first node of each edge has a
/// contact for the second, and no node has any other.
pub fn wire(cluster: &mut Cluster, edges: &[(HostId, HostId)]) {
    for (from, to) in edges {
        let connected = cluster.connect(*from, *to);
        assert!(matches!(connected, Ok(Reply::Connect(_))), "{from} → {to}: {connected:?}");
    }
    cluster.drive(SECOND);
    let wanted: BTreeSet<_> = edges.iter().copied().collect();
    for (from, to) in edges {
        let peer = cluster.id(*to);
        cluster.call(*from, |node, now| node.disconnect(peer, now));
        if !wanted.contains(&(*to, *from)) {
            let peer = cluster.id(*from);
            assert!(cluster.call(*to, |node, now| node.unset_node(peer, now).unwrap()));
        }
    }
    cluster.drive(SECOND);
}

/// The embedder of a node adds a contact for another one.
pub fn add_contact(cluster: &mut Cluster, node: HostId, of: HostId) {
    let (id, address) = (cluster.id(of), cluster.address(of));
    add_contact_at(cluster, node, id, address);
}

/// The embedder of a node adds a contact.
pub fn add_contact_at(cluster: &mut Cluster, node: HostId, id: NodeId, address: NodeAddress) {
    let request = Request::SetNode {
        node: id,
        address,
        data: data(cluster, Scopes::GLOBAL),
        how: SetNodeOptions::default(),
    };
    assert!(matches!(cluster.ask(node, request), Ok(Reply::SetNode(_))));
}

/// A name for the address of a node.
pub fn named(cluster: &mut Cluster, of: HostId) -> NodeAddress {
    let NodeAddress { host, port } = cluster.address(of);
    let name = format!("host-{of}.{DOMAIN}");
    let ips: Vec<IpAddr> = match host {
        Host::Ip(ip) => vec![ip],
        other => panic!("{other}"),
    };
    cluster.network_mut().set_name(&name, Ok(ips));
    NodeAddress { host: name.parse().unwrap(), port }
}

// -- requests

pub fn find(cluster: &mut Cluster, from: HostId, target: NodeId) -> FindOutcome {
    find_with(cluster, from, target, FindNodeOptions::default())
}

pub fn find_with(
    cluster: &mut Cluster,
    from: HostId,
    target: NodeId,
    find: FindNodeOptions,
) -> FindOutcome {
    match cluster.ask(from, Request::FindNode { target, find }) {
        Ok(Reply::FindNode(outcome)) => outcome,
        other => panic!("{other:?}"),
    }
}

/// One request of every kind that takes time, for `target`, with its name.
pub fn every_request(
    cluster: &mut Cluster,
    target: HostId,
    options: RequestOptions,
) -> Vec<(&'static str, Request)> {
    let (address, name) = (cluster.address(target), named(cluster, target));
    let seed = SeedNode { node: cluster.id(target), address: name.clone() };
    let target = cluster.id(target);
    let query = ClosestNodesQuery { known: true, connected: true };
    let find = FindNodeOptions { options, ..FindNodeOptions::default() };
    let sync = |blocking| Request::SyncNodeGraph { seeds: vec![seed.clone()], blocking, options };
    vec![
        ("find", Request::FindNode { target, find }),
        ("ping", Request::PingNode { target, options }),
        ("ping address", Request::PingNodeAddress { target, address: name, options }),
        ("connect", Request::Connect { target, address, options }),
        ("acquire", Request::AcquireConnection { target, options }),
        ("open", Request::OpenStream { target, protocol: "echo".into(), options }),
        ("ask", Request::QueryClosestNodes { via: target, target, query, options }),
        ("sync", sync(true)),
        ("sync in the background", sync(false)),
    ]
}

// -- remaining state

/// Checks that nothing is in progress at a node: no request, no dial, no stream except those of the
/// Hellos, no timer except those of idle connections.
pub fn assert_quiet(cluster: &mut Cluster, node: HostId, what: &str) {
    // Changes of the graph are written at once, by a timer as well.
    cluster.drive(Duration::ZERO);
    let metrics = cluster.node(node).metrics();
    let left = [
        ("requests", metrics.requests_open, 0),
        ("dials and handshakes", metrics.connections_pending, 0),
        ("connections below", cluster.connections_of(node) as u64, metrics.connections),
        ("streams", metrics.streams, metrics.connections),
        ("timers", metrics.timers, metrics.connections),
        ("bytes to send", metrics.send_bytes, 0),
    ];
    for (name, is, should) in left {
        assert_eq!(is, should, "{what}: {name} of node {node} are left: {metrics:?}");
    }
}

// -- traces

/// The nodes of a trace, and the node that reported each, by number.
pub fn steps(cluster: &Cluster, outcome: &FindOutcome) -> Vec<(HostId, Option<HostId>)> {
    let number = |id: NodeId| cluster.number(id).unwrap();
    outcome.trace.iter().map(|step| (number(step.node), step.reported_by.map(number))).collect()
}

/// The most contacts of a search that were in progress at one time, and the most of them that were
/// not stalled.
pub fn overlap(trace: &[FindStep], stall: Duration) -> (usize, usize) {
    let starts: Vec<_> = trace.iter().map(|step| step.begun).collect();
    let at = |moment: &Duration| {
        let running =
            trace.iter().filter(|step| step.begun <= *moment && *moment < step.begun + step.took);
        let fresh = running.clone().filter(|step| *moment < step.begun + stall).count();
        (running.count(), fresh)
    };
    let counts: Vec<_> = starts.iter().map(at).collect();
    let most = |count: fn(&(usize, usize)) -> usize| counts.iter().map(count).max().unwrap_or(0);
    (most(|count| count.0), most(|count| count.1))
}

/// The first contact with each node, which needs a dial if the node was not connected.
pub fn dials(trace: &[FindStep]) -> Vec<FindStep> {
    let first = |(i, step): &(usize, &FindStep)| trace[..*i].iter().all(|of| of.node != step.node);
    trace.iter().enumerate().filter(first).map(|(_, step)| step.clone()).collect()
}

/// Checks that the statistics and the trace of a search agree.
pub fn assert_consistent(outcome: &FindOutcome) {
    let FindOutcome { found, ended, stats, trace } = outcome;
    assert_eq!(found.is_some(), *ended == FindEnd::Connected, "{outcome:?}");
    let count = |wanted: fn(&FindStepEnd) -> bool| {
        trace.iter().filter(|step| wanted(&step.end)).count() as u32
    };
    assert_eq!(
        stats.failures,
        count(|end| matches!(end, FindStepEnd::Unreachable(_))),
        "{outcome:?}"
    );
    let asked = count(|end| matches!(end, FindStepEnd::Answered { .. } | FindStepEnd::NoAnswer));
    let pending = count(|end| matches!(end, FindStepEnd::Pending));
    // A contact whose call ended before it accepted the connection is called again.
    assert!((asked..=asked + pending + stats.attempts).contains(&stats.calls), "{outcome:?}");
    assert!(stats.attempts as usize <= trace.len(), "{outcome:?}");
    assert!(trace.is_sorted_by_key(|step| step.begun), "{outcome:?}");
    assert!(trace.iter().all(|step| step.begun + step.took <= stats.elapsed), "{outcome:?}");
    // A node was contacted before it reported another one.
    for (i, step) in trace.iter().enumerate() {
        let before = &trace[..i];
        assert!(
            step.reported_by.is_none_or(|by| before.iter().any(|step| step.node == by)),
            "{outcome:?}"
        );
    }
}

/// The number of events of a kind.
pub fn count_events(cluster: &Cluster, node: HostId, wanted: impl Fn(&Event) -> bool) -> usize {
    cluster.events(node).iter().filter(|(_, event)| wanted(event)).count()
}

//! Helpers for connections.

use std::time::Duration;

use pk_proto::{
    ConnectionId, ConnectionInfo, DisconnectReason, Event, Instant, LeaseId, Reply, Request,
    RequestOptions,
};
use pk_sim::{Cluster, HostId, Key};

use super::{Peer, SECOND};

pub const NO: RequestOptions = RequestOptions { deadline: None, connect_timeout: None };

pub fn connect(cluster: &mut Cluster, node: HostId, to: HostId) -> ConnectionInfo {
    match cluster.connect(node, to) {
        Ok(Reply::Connect(info)) => info,
        other => panic!("{other:?}"),
    }
}

pub fn connect_request(cluster: &Cluster, to: HostId) -> Request {
    Request::Connect { target: cluster.id(to), address: cluster.address(to), options: NO }
}

pub fn acquire(cluster: &mut Cluster, node: HostId, to: HostId) -> (LeaseId, ConnectionInfo) {
    let target = cluster.id(to);
    match cluster.ask(node, Request::AcquireConnection { target, options: NO }) {
        Ok(Reply::AcquireConnection { lease, connection }) => (lease, connection),
        other => panic!("{other:?}"),
    }
}

pub fn ping(cluster: &Cluster, to: HostId) -> Request {
    Request::PingNode { target: cluster.id(to), options: NO }
}

/// Every reported end of a connection, with its time.
pub fn closed(cluster: &Cluster, node: HostId) -> Vec<(Instant, ConnectionId, DisconnectReason)> {
    let end = |(at, event): &(Instant, Event)| match event {
        Event::ConnectionClosed { conn, why, .. } => Some((*at, *conn, why.clone())),
        _ => None,
    };
    cluster.events(node).iter().filter_map(end).collect()
}

pub fn lost(cluster: &Cluster, node: HostId) -> Vec<LeaseId> {
    let lost = |(_, event): &(Instant, Event)| match event {
        Event::LeaseLost { lease, .. } => Some(*lease),
        _ => None,
    };
    cluster.events(node).iter().filter_map(lost).collect()
}

/// Idle timeout of a primary connection between two nodes, by the rule of the specification.
pub fn primary_timeout(cluster: &Cluster, a: HostId, b: HostId) -> Duration {
    let bucket = cluster.id(a).bucket_index(&cluster.id(b)).unwrap();
    Duration::from_micros(60_000_000 + 7_200_000_000 * u64::from(255 - bucket.0) / 255)
}

pub fn peer(code: u64, reason: &str) -> DisconnectReason {
    DisconnectReason::Peer { code, reason: reason.into() }
}

/// A node with two connections from a scripted peer, which are distinguished by their shared ids.
pub fn two_connections(seed: u64) -> (Cluster, Peer, [ConnectionId; 2], [Instant; 2]) {
    let near = |seed: &u64| {
        Key::numbered(*seed, 0).id().bucket_index(&Key::numbered(*seed, 1).id()).unwrap().0 < 255
    };
    let seed = (0..).filter(near).nth(seed as usize).unwrap();
    let mut cluster = Cluster::quiet().nodes(1).scripted_peers(1).seed(seed).start();
    let mut peer = Peer::honest(1);
    let conns = [peer.connect(&mut cluster, 0), {
        peer.drive(&mut cluster, 9 * SECOND);
        peer.connect(&mut cluster, 0)
    }];
    let opened: Vec<_> = cluster
        .events(0)
        .iter()
        .filter(|(_, event)| matches!(event, Event::ConnectionOpened { .. }))
        .collect();
    let opened = [opened[0].0, opened[1].0];
    (cluster, peer, conns, opened)
}

//! The simulator: its network, drivers and checkers, tested with scripted peers, and real nodes in
//! it.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]
#![allow(unreachable_pub, reason = "one crate of several files")]

mod checks;
mod effects;
mod fuzz;
mod handshakes;
mod nats;
mod nodes;
mod scenarios;
mod streams;
mod toy;

use std::time::Duration;

use pk_proto::{ConnectionId, Instant, NodeId, UnixMillis};
use pk_sim::{Host, HostId, Key, Link, ScriptedPeer, World, genesis};

const SECOND: Duration = Duration::from_secs(1);

/// Running scripted peers on hosts with links of 10 ms.
fn scripted_peers(count: usize, seed: u64) -> World<ScriptedPeer> {
    let mut world = World::new(seed);
    world.network_mut().set_default_link(Link::ms(10));
    for index in 0..count {
        world.add_host(host(index));
        world.start(index, |_| ScriptedPeer::default());
    }
    world.drive(Duration::ZERO);
    world
}

fn host(index: usize) -> Host {
    let key = Key::numbered(9, index as u64);
    let identity = genesis(&key, UnixMillis(1_767_000_000_000));
    Host::new(vec![format!("10.0.{index}.1:1314").parse().unwrap()], key, identity)
}

fn id(index: usize) -> NodeId {
    Key::numbered(9, index as u64).id()
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn dial(world: &mut World<ScriptedPeer>, from: HostId, to: HostId) -> ConnectionId {
    dial_for(world, from, to, 15 * SECOND)
}

fn dial_for(
    world: &mut World<ScriptedPeer>,
    from: HostId,
    to: HostId,
    patience: Duration,
) -> ConnectionId {
    let (addr, deadline) = (world.host(to).addrs()[0], world.now() + patience);
    world.call(from, |scripted_peer, _| scripted_peer.dial(addr, id(to), deadline))
}

/// Connects two hosts. Returns the ids of the connection at both.
fn connect(
    world: &mut World<ScriptedPeer>,
    from: HostId,
    to: HostId,
) -> (ConnectionId, ConnectionId) {
    let conn = dial_for(world, from, to, 60 * SECOND);
    world.drive(SECOND);
    world.drive_until(
        |world| [from, to].iter().all(|host| scripted_peer(world, *host).connected().is_some()),
        60 * SECOND,
    );
    let there = scripted_peer(world, to).connected().unwrap().conn;
    assert_eq!(scripted_peer(world, from).connected().unwrap().conn, conn);
    (conn, there)
}

fn scripted_peer(world: &World<ScriptedPeer>, host: HostId) -> &ScriptedPeer {
    world.machine(host).unwrap()
}

/// What a scripted peer has received since the first `from` items.
fn received(
    world: &World<ScriptedPeer>,
    host: HostId,
    from: usize,
) -> Vec<(Instant, pk_proto::Input)> {
    scripted_peer(world, host).heard[from..].to_vec()
}

/// The same without the inputs about the liveness of connections.
fn received_without_liveness(
    world: &World<ScriptedPeer>,
    host: HostId,
    from: usize,
) -> Vec<(Instant, pk_proto::Input)> {
    let mut heard = received(world, host, from);
    heard.retain(|(_, input)| {
        !matches!(input, pk_proto::Input::Suspected { .. } | pk_proto::Input::Heard { .. })
    });
    heard
}

//! The simulator itself: what its network, drivers and checkers do, shown with puppets, and that real nodes live in it.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

mod checks;
mod effects;
mod handshakes;
mod nats;
mod nodes;
mod streams;

use std::time::Duration;

use pk_proto::{ConnectionId, Instant, NodeId, UnixMillis};
use pk_sim::{Host, HostId, Key, Link, Puppet, World, genesis};

const SECOND: Duration = Duration::from_secs(1);

/// Puppets on hosts with links of 10 ms, running.
fn puppets(count: usize, seed: u64) -> World<Puppet> {
    let mut world = World::new(seed);
    world.network_mut().set_default_link(Link::ms(10));
    for index in 0..count {
        world.add_host(host(index));
        world.start(index, |_| Puppet::default());
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

fn dial(world: &mut World<Puppet>, from: HostId, to: HostId) -> ConnectionId {
    dial_for(world, from, to, 15 * SECOND)
}

fn dial_for(world: &mut World<Puppet>, from: HostId, to: HostId, patience: Duration) -> ConnectionId {
    let (addr, deadline) = (world.host(to).addrs()[0], world.now() + patience);
    world.call(from, |puppet, _| puppet.dial(addr, id(to), deadline))
}

/// Connects two hosts, and says the connection's numbers there.
fn connect(world: &mut World<Puppet>, from: HostId, to: HostId) -> (ConnectionId, ConnectionId) {
    let conn = dial_for(world, from, to, 60 * SECOND);
    world.drive(SECOND);
    world.drive_until(|world| [from, to].iter().all(|host| puppet(world, *host).connected().is_some()), 60 * SECOND);
    let there = puppet(world, to).connected().unwrap().conn;
    assert_eq!(puppet(world, from).connected().unwrap().conn, conn);
    (conn, there)
}

fn puppet(world: &World<Puppet>, host: HostId) -> &Puppet {
    world.machine(host).unwrap()
}

/// What a puppet has heard since the first `from` things.
fn heard(world: &World<Puppet>, host: HostId, from: usize) -> Vec<(Instant, pk_proto::Input)> {
    puppet(world, host).heard[from..].to_vec()
}

//! Relayed paths over virtual datagrams: the connection inside, its change to a direct path, the
//! loss of its relay, and what many circuits cost.

use std::time::Duration;

use pk_proto::{ContactMode, RelayPolicy};
use pk_quic::TransportSettings;
use pk_sim::{Dependence, HostId, Link, NatConfig, PacketWorld};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const RELAY: HostId = 0;
const SOURCE: HostId = 1;
const TARGET: HostId = 2;

const SYMMETRIC: NatConfig = NatConfig::new(Dependence::AddressAndPort, Dependence::AddressAndPort);

/// A relay without limits of rate, and two nodes connected to it that cannot reach each other.
fn apart(seed: u64) -> PacketWorld {
    let mut world = PacketWorld::with_hosts_of(seed, 3, |host| {
        host.config.relay.policy = RelayPolicy::All;
        host.config.relay.rate_per_node = 1 << 30;
        host.config.relay.rate = 1 << 30;
    });
    world.set_cut(SOURCE, TARGET, true);
    for node in [SOURCE, TARGET] {
        world.connect(node, RELAY);
    }
    world
}

fn mode(world: &PacketWorld, node: HostId, with: HostId) -> Option<ContactMode> {
    let connections = world.node(node).manager().connections();
    let peer = world.id(with);
    connections.iter().find(|info| info.node == peer && info.primary).map(|info| info.data.mode)
}

fn modes(world: &PacketWorld) -> [Option<ContactMode>; 2] {
    [mode(world, SOURCE, TARGET), mode(world, TARGET, SOURCE)]
}

#[test]
fn nodes_behind_symmetric_nats_find_each_other_by_relay_and_exchange_streams() {
    let mut world = PacketWorld::new(1);
    world.add(TransportSettings::default());
    for _ in [SOURCE, TARGET] {
        let nat = world.add_nat(SYMMETRIC);
        world.add_behind(nat, TransportSettings::default());
    }
    for node in [SOURCE, TARGET] {
        world.connect(node, RELAY);
    }
    let took = world.find(SOURCE, TARGET).unwrap();
    assert!(took < 5 * SECOND, "{took:?}");
    assert_eq!(modes(&world), [Some(ContactMode::Relay); 2]);
    let stream = world.open(SOURCE, TARGET);
    world.write(SOURCE, stream, 2_000_000);
    assert!(world.until(30 * SECOND, |world| world.host(TARGET).total_received() == 2_000_000));
    let asked = world.ask(TARGET, SOURCE).unwrap();
    assert!(asked <= 250 * MS, "{asked:?}");
    world.stop_all();
}

#[test]
fn relayed_connection_migrates_to_a_direct_path_without_losing_its_streams() {
    let mut world = apart(2);
    world.find(SOURCE, TARGET).unwrap();
    let stream = world.open(SOURCE, TARGET);
    world.write(SOURCE, stream, 40_000_000);
    world.pass(8 * SECOND);
    assert_eq!(modes(&world), [Some(ContactMode::Relay); 2]);
    world.set_cut(SOURCE, TARGET, false);
    world.pass(30 * SECOND);
    assert_eq!(modes(&world), [Some(ContactMode::Signal); 2]);
    assert!(world.until(60 * SECOND, |world| world.host(TARGET).total_received() == 40_000_000));
    assert!(world.host(SOURCE).failed().is_empty());
    world.pass(15 * SECOND);
    let open = [RELAY, SOURCE, TARGET].map(|node| world.metrics(node));
    assert_eq!(open.map(|metrics| (metrics.circuits, metrics.paths)), [(0, 0); 3]);
    assert!(world.ask(SOURCE, TARGET).unwrap() <= 110 * MS);
    world.stop_all();
}

#[test]
fn path_that_is_open_in_one_direction_only_changes_nothing() {
    let mut world = apart(3);
    world.find(SOURCE, TARGET).unwrap();
    let stream = world.open(SOURCE, TARGET);
    world.write(SOURCE, stream, 30_000_000);
    world.set_one_way(SOURCE, TARGET);
    world.pass(60 * SECOND);
    assert!(world.metrics(SOURCE).paths_probed > 1);
    assert_eq!(modes(&world), [Some(ContactMode::Relay); 2]);
    assert!(world.until(60 * SECOND, |world| world.host(TARGET).total_received() == 30_000_000));
    world.stop_all();
}

#[test]
fn loss_on_both_legs_is_survived_and_delays_little() {
    for seed in 4..8 {
        let mut world = apart(seed);
        world.network_mut().set_default_link(Link::ms(25).loss(10));
        world.find(SOURCE, TARGET).unwrap();
        let stream = world.open(SOURCE, TARGET);
        world.write(SOURCE, stream, 3_000_000);
        world.pass(SECOND);
        let mut asked: Vec<_> = (0..20).map(|_| world.ask(SOURCE, TARGET).unwrap()).collect();
        asked.sort();
        // A reliable stream delays what follows a lost packet; the queue in front of it is short.
        assert!(asked[10] <= 500 * MS && asked[19] <= 3 * SECOND, "seed {seed}: {asked:?}");
        world.stop_all();
    }
}

#[test]
fn relayed_connection_survives_the_restart_of_the_nats_of_both_ends() {
    let mut world = PacketWorld::new(9);
    world.add(TransportSettings::default());
    let nats = [SOURCE, TARGET].map(|_| world.add_nat(SYMMETRIC));
    for nat in nats {
        world.add_behind(nat, TransportSettings::default());
    }
    for node in [SOURCE, TARGET] {
        world.connect(node, RELAY);
    }
    world.find(SOURCE, TARGET).unwrap();
    let stream = world.open(SOURCE, TARGET);
    world.write(SOURCE, stream, 10_000_000);
    world.pass(SECOND);
    for nat in nats {
        world.network_mut().reboot_nat(nat);
        world.pass(2 * SECOND);
    }
    assert!(world.until(60 * SECOND, |world| world.host(TARGET).total_received() == 10_000_000));
    assert_eq!(modes(&world), [Some(ContactMode::Relay); 2]);
    for (from, to) in [(SOURCE, TARGET), (TARGET, SOURCE)] {
        assert!(world.ask(from, to).unwrap() <= 250 * MS);
    }
    world.stop_all();
}

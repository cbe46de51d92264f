//! Nodes join and find each other, also behind NATs.

use std::time::Duration;

use pk_proto::RelayPolicy;
use pk_quic::TransportSettings;
use pk_sim::{Dependence, Link, NatConfig, PacketWorld, PathLimits};

const MS: Duration = Duration::from_millis(1);

#[test]
fn two_nodes_connect_and_query_in_few_round_trips() {
    let mut world = PacketWorld::with_hosts(1, 2);
    let connected = world.connect(0, 1);
    assert!(connected <= 350 * MS, "{connected:?}");
    for (from, to) in [(0, 1), (1, 0)] {
        let took = world.ask(from, to).unwrap();
        assert!(took <= 110 * MS, "{took:?}");
    }
    // An idle connection costs keep-alives, and the node protocol still works.
    let before = world.counters().sent;
    world.pass(Duration::from_secs(60 * 20));
    let quiet = world.counters().sent - before;
    assert!((240..2000).contains(&quiet), "{quiet} datagrams in 20 minutes");
    assert!(world.ask(0, 1).is_ok());
    world.stop_all();
    let checks = world.check_counters();
    assert!(checks.outputs > 50 && checks.inputs > 50 && checks.datagrams > 200, "{checks:?}");
    assert!(checks.requests >= 4 && checks.nodes > 0 && checks.timers > 10, "{checks:?}");
    assert!(checks.gauges > 0 && checks.sends > 0 && checks.grants > 0, "{checks:?}");
}

#[test]
fn network_converges_over_loss_and_reordering_and_a_small_mtu() {
    let mut world = PacketWorld::with_hosts(30, 8);
    let link = Link::ms(50).jitter(60 * MS).loss(50).disorder(100);
    world.network_mut().set_default_link(link);
    world.set_paths(PathLimits { mtu: 1200, ..PathLimits::default() });
    for n in 1..8 {
        world.join(n, 0);
    }
    world.network_mut().set_default_link(Link::ms(50));
    world.pass(Duration::from_secs(180));
    assert!(world.assert_converged() >= 56);
    world.stop_all();
}

/// Behind every kind of NAT, as the rules of `Network::direct_path_possible` say.
#[test]
fn nodes_behind_nats_find_each_other_where_that_is_possible() {
    use Dependence::{AddressAndPort, Nothing};
    let kinds = [(Nothing, Nothing), (Nothing, AddressAndPort), (AddressAndPort, AddressAndPort)];
    let (mut possible, mut impossible) = (0, 0);
    for (seed, (a, b)) in kinds.iter().flat_map(|a| kinds.iter().map(move |b| (a, b))).enumerate() {
        // `relay.rs` has relayed connections.
        let mut world = PacketWorld::with_hosts_of(100 + seed as u64, 1, |host| {
            host.config.relay.policy = RelayPolicy::Off;
        });
        for (mapping, filtering) in [a, b] {
            let nat = world.add_nat(NatConfig::new(*mapping, *filtering));
            let id = world.add_behind(nat, TransportSettings::default());
            world.join(id, 0);
        }
        let expected = world.network().direct_path_possible(1, 2);
        let found = world.find(1, 2).is_some();
        assert_eq!(found, expected, "{a:?} {b:?}");
        if found {
            world.ask(2, 1).unwrap();
            possible += 1;
        } else {
            impossible += 1;
        }
    }
    assert!(possible >= 5 && impossible >= 1, "{possible} {impossible}");
}

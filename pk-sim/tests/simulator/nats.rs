//! NATs between transports.

use std::net::SocketAddr;

use bytes::Bytes;
use pk_proto::{DialFailure, DisconnectReason, Input, Output};
use pk_sim::{Dependence, HostId, Link, NatConfig, NatId, ScriptedPeer, World};

use super::{SECOND, connect, dial, host, ms, received, received_without_liveness, scripted_peer};

const CONE: NatConfig = NatConfig::new(Dependence::Nothing, Dependence::AddressAndPort);

/// Scripted peers, of which the first is behind a NAT.
fn behind(count: usize, config: NatConfig) -> (World<ScriptedPeer>, NatId) {
    let mut world = World::new(1);
    world.network_mut().set_default_link(Link::ms(10));
    for index in 0..count {
        world.add_host(host(index));
    }
    let nat = world.add_nat(config);
    world.put_behind(0, nat);
    (0..count).for_each(|index| world.start(index, |_| ScriptedPeer::default()));
    world.drive(SECOND);
    (world, nat)
}

fn dial_at(
    world: &mut World<ScriptedPeer>,
    from: HostId,
    to: HostId,
    addr: SocketAddr,
) -> pk_proto::ConnectionId {
    let deadline = world.now() + 15 * SECOND;
    world.call(from, |scripted_peer, _| scripted_peer.dial(addr, super::id(to), deadline))
}

fn punch(world: &mut World<ScriptedPeer>, from: HostId, addr: SocketAddr) {
    world.call(from, |scripted_peer, _| {
        scripted_peer.say(Output::Punch { addr, bytes: Bytes::from_static(&[0; 32]) });
    });
}

/// The address of the first host that the second one observes.
fn remote_of_first(world: &World<ScriptedPeer>) -> SocketAddr {
    scripted_peer(world, 1).connected().unwrap().remote
}

#[test]
fn host_behind_a_nat_is_seen_at_the_address_of_the_nat() {
    for config in NatConfig::all() {
        let (mut world, nat) = behind(2, config);
        connect(&mut world, 0, 1);
        assert_eq!(remote_of_first(&world).ip(), world.network().nat_ip(nat));
        assert_eq!(remote_of_first(&world).port() == 1314, config.preserve_ports);
        let here = scripted_peer(&world, 0).connected().unwrap();
        assert_eq!((here.local, here.remote), (world.host(0).addrs()[0], world.host(1).addrs()[0]));
        assert_eq!(world.network().nat_counters(nat).mapped, 1);
    }
}

#[test]
fn filtered_first_packets_are_retransmitted_until_the_nat_admits_them() {
    let (mut world, nat) = behind(3, CONE);
    connect(&mut world, 0, 1);
    let (inside, begun) = (remote_of_first(&world), world.now());
    dial_at(&mut world, 2, 0, inside);
    // Sent after 0, 1, 3 and 7 seconds.
    world.drive(ms(2900));
    assert_eq!(world.network().nat_counters(nat).filtered, 2);
    assert!(scripted_peer(&world, 2).connected().is_none());
    let outside = world.host(2).addrs()[0];
    punch(&mut world, 0, outside);
    world.drive(2 * SECOND);
    let connected =
        received(&world, 2, 0).into_iter().find(|(_, input)| matches!(input, Input::Connected(_)));
    assert_eq!(connected.unwrap().0.since(begun), ms(3020));
    assert_eq!(world.network().nat_counters(nat).filtered, 2);
    assert_eq!(scripted_peer(&world, 0).connected().unwrap().remote, outside);

    // Without punching, the deadline ends it.
    let (mut world, nat) = behind(3, CONE);
    connect(&mut world, 0, 1);
    let inside = remote_of_first(&world);
    let conn = dial_at(&mut world, 2, 0, inside);
    world.drive(20 * SECOND);
    let failed = Input::DialFailed { conn, why: DialFailure::TimedOut };
    assert_eq!(received(&world, 2, 0).last().map(|(_, input)| input), Some(&failed));
    assert_eq!(world.network().nat_counters(nat).filtered, 4);
}

#[test]
fn inner_addresses_reach_neighbours_and_outer_ones_only_with_hairpinning() {
    for hairpinning in [false, true] {
        let mut world = World::new(1);
        for index in 0..3 {
            world.add_host(host(index));
        }
        let nat = world.add_nat(NatConfig { hairpinning, filtering: Dependence::Nothing, ..CONE });
        world.put_behind(0, nat);
        world.put_behind(1, nat);
        (0..3).for_each(|index| world.start(index, |_| ScriptedPeer::default()));
        world.drive(SECOND);
        dial(&mut world, 2, 0);
        world.drive(20 * SECOND);
        assert!(scripted_peer(&world, 2).connected().is_none(), "from outside");
        connect(&mut world, 0, 1);
        assert_eq!(remote_of_first(&world), world.host(0).addrs()[0]);
        assert_eq!(world.network().nat_counters(nat).mapped, 0);

        let (to, before) = (world.host(2).addrs()[0], scripted_peer(&world, 1).heard.len());
        dial_at(&mut world, 0, 2, to);
        world.drive(SECOND);
        let outer = scripted_peer(&world, 2).connected().unwrap().remote;
        dial_at(&mut world, 1, 0, outer);
        world.drive(20 * SECOND);
        let connected = received(&world, 1, before)
            .iter()
            .any(|(_, input)| matches!(input, Input::Connected(_)));
        assert_eq!(connected, hairpinning);
    }
}

#[test]
fn rebooted_nat_assigns_a_new_port_and_the_connection_moves() {
    let (mut world, nat) = behind(2, CONE);
    let (_, there) = connect(&mut world, 0, 1);
    let before = remote_of_first(&world);
    world.network_mut().reboot_nat(nat);
    let told = scripted_peer(&world, 1).heard.len();
    world.drive(60 * SECOND);
    // The keep-alives of the inner host move the connection.
    let (inputs, here) = (received_without_liveness(&world, 1, told), received(&world, 0, 0));
    assert!(
        matches!(inputs[..], [(_, Input::RemoteAddressChanged { conn, addr })] if conn == there && addr != before),
        "{inputs:?}"
    );
    assert!(!here.iter().any(|(_, input)| matches!(
        input,
        Input::Disconnected { .. } | Input::RemoteAddressChanged { .. }
    )));
    world.call(1, |scripted_peer, _| {
        scripted_peer.say(Output::CloseConnection { conn: there, code: 7, reason: "x".into() });
    });
    world.drive(SECOND);
    let last = received(&world, 0, 0).pop().unwrap().1;
    assert!(
        matches!(last, Input::Disconnected { why: DisconnectReason::Peer { code: 7, .. }, .. }),
        "{last:?}"
    );
}

#[test]
fn keep_alives_hold_only_mappings_that_expire_later() {
    for (seconds, changes) in [(30, 0), (5, 5)] {
        let (mut world, nat) = behind(2, NatConfig { expiry: seconds * SECOND, ..CONE });
        connect(&mut world, 0, 1);
        let told = scripted_peer(&world, 1).heard.len();
        world.drive(55 * SECOND);
        assert_eq!(received_without_liveness(&world, 1, told).len(), changes, "{seconds}");
        assert_eq!(world.network().nat_counters(nat).expired > 0, changes > 0);
    }
}

/// The acceptor is behind the NAT: when its port changes, its dialer receives nothing more, and
/// both time out.
#[test]
fn dialer_ignores_packets_from_other_addresses() {
    let (mut world, nat) = behind(2, NatConfig { filtering: Dependence::Nothing, ..CONE });
    punch(&mut world, 0, "20.9.9.9:1".parse().unwrap());
    let inside = SocketAddr::new(world.network().nat_ip(nat), 40_000);
    dial_at(&mut world, 1, 0, inside);
    world.drive(SECOND);
    assert!(scripted_peer(&world, 0).connected().is_some());
    world.network_mut().reboot_nat(nat);
    world.drive(90 * SECOND);
    for host in [0, 1] {
        let last = received(&world, host, 0).pop().unwrap().1;
        assert!(
            matches!(last, Input::Disconnected { why: DisconnectReason::TimedOut, .. }),
            "{host}: {last:?}"
        );
    }
    assert_eq!(world.transport_counters().idle_timeouts, 2);
}

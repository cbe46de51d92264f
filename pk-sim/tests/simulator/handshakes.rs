//! How connections begin and end.

use pk_proto::{
    Connected, ConnectionId, DialFailure, Dialect, DisconnectReason, Input, Instant, Output, Side,
    UnixMillis,
};
use pk_sim::{Key, Link, ScriptedPeer, World, renew};

use crate::{SECOND, connect, dial, dial_for, id, ms, received, scripted_peer, scripted_peers};

fn only_input(world: &World<ScriptedPeer>, host: usize, from: usize) -> (Instant, Input) {
    let heard = received(world, host, from);
    assert_eq!(heard.len(), 1, "{heard:?}");
    heard.into_iter().next().unwrap()
}

fn failure(world: &World<ScriptedPeer>, host: usize) -> (Instant, ConnectionId, DialFailure) {
    match scripted_peer(world, host).heard.last() {
        Some((at, Input::DialFailed { conn, why })) => (*at, *conn, why.clone()),
        other => panic!("{other:?}"),
    }
}

fn close(
    world: &mut World<ScriptedPeer>,
    host: usize,
    conn: ConnectionId,
    code: u64,
    reason: &str,
) {
    let reason = reason.to_owned();
    world.call(host, |scripted_peer, _| {
        scripted_peer.say(Output::CloseConnection { conn, code, reason });
    });
}

#[test]
fn both_ends_agree_and_the_dialer_is_half_a_round_trip_ahead() {
    for (dialect, dialer_after) in [(Dialect::Native, 20), (Dialect::Polykey, 40)] {
        let mut world = scripted_peers(2, 1);
        world.host_mut(1).dialects = vec![dialect];
        let begin = world.now();
        let conn = dial(&mut world, 0, 1);
        world.drive(SECOND);
        let (at, Input::Connected(here)) = only_input(&world, 0, 1) else { panic!() };
        let (then, Input::Connected(there)) = only_input(&world, 1, 1) else { panic!() };
        assert_eq!((at.since(begin), then.since(begin)), (ms(dialer_after), ms(30)));
        let shared_id = here.shared_id.clone();
        let [local, remote] = [0, 1].map(|host| world.host(host).addrs()[0]);
        let (leaf, chain, matched_id, side) = (id(1), vec![id(1)], Some(id(1)), Side::Dialer);
        let expected =
            Connected { conn, side, dialect, leaf, chain, matched_id, remote, local, shared_id };
        assert_eq!(here, expected);
        let (leaf, chain, matched_id, side) = (id(0), vec![id(0)], None, Side::Acceptor);
        let (conn, shared_id) = (ConnectionId(1), expected.shared_id);
        assert_eq!(
            there,
            Connected {
                conn,
                side,
                dialect,
                leaf,
                chain,
                matched_id,
                remote: local,
                local: remote,
                shared_id
            }
        );
        assert_eq!(there.shared_id.len(), if dialect == Dialect::Native { 32 } else { 38 });
    }
}

#[test]
fn shared_ids_are_unique_and_a_node_can_dial_itself() {
    let mut world = scripted_peers(2, 1);
    connect(&mut world, 0, 1);
    let first = scripted_peer(&world, 1).connected().unwrap().clone();
    connect(&mut world, 1, 0);
    let second = scripted_peer(&world, 1).connected().unwrap().clone();
    assert_ne!(first.shared_id, second.shared_id);

    let conn = dial(&mut world, 0, 0);
    world.drive(SECOND);
    let ends: Vec<_> = scripted_peer(&world, 0)
        .inputs()
        .filter_map(|input| match input {
            Input::Connected(connected) if connected.leaf == id(0) => {
                Some((connected.conn, connected.side))
            }
            _ => None,
        })
        .collect();
    assert_eq!(ends, [(conn, Side::Dialer), (ConnectionId(3), Side::Acceptor)]);
}

#[test]
fn peer_with_another_key_is_refused_and_receives_nothing() {
    let mut world = scripted_peers(3, 1);
    let (addr, deadline) = (world.host(1).addrs()[0], world.now() + SECOND);
    world.call(0, |scripted_peer, _| scripted_peer.dial(addr, id(2), deadline));
    world.drive(SECOND);
    assert!(matches!(failure(&world, 0).2, DialFailure::Certificate(_)));
    assert_eq!(scripted_peer(&world, 1).heard.len(), 1);
    assert_eq!((world.connections_of(0), world.connections_of(1)), (0, 0));
}

#[test]
fn dialer_with_a_bad_certificate_is_connected_and_then_disconnected() {
    let mut world = scripted_peers(2, 1);
    let day = 86_400_000;
    let identity = pk_sim::genesis(&Key::numbered(9, 0), UnixMillis(world.unix(0).0 + day));
    world.host_mut(0).identity = identity;
    dial(&mut world, 0, 1);
    world.drive(SECOND);
    let heard = received(&world, 0, 1);
    let [
        (_, Input::Connected(_)),
        (at, Input::Disconnected { why: DisconnectReason::Transport(why), .. }),
    ] = &heard[..]
    else {
        panic!("{heard:?}")
    };
    assert_eq!((at.since(Instant::ORIGIN), why.starts_with("certificate")), (ms(40), true));
    assert_eq!(scripted_peer(&world, 1).heard.len(), 1);

    // On dialect `quic` it was never connected.
    world.host_mut(1).dialects = vec![Dialect::Polykey];
    dial(&mut world, 0, 1);
    world.drive(SECOND);
    assert!(matches!(failure(&world, 0).2, DialFailure::Transport(_)));
}

#[test]
fn every_kind_of_failed_dial_has_its_reason_and_its_time() {
    let mut world = scripted_peers(2, 1);
    let dead = |world: &mut World<ScriptedPeer>, addr: &str| {
        let (addr, deadline) = (addr.parse().unwrap(), world.now() + 5 * SECOND);
        let begin = world.now();
        world.call(0, |scripted_peer, _| scripted_peer.dial(addr, id(1), deadline));
        world.drive(10 * SECOND);
        let (at, _, why) = failure(world, 0);
        (at.since(begin), why)
    };
    let timed_out = (5 * SECOND, DialFailure::TimedOut);
    assert_eq!(dead(&mut world, "10.9.9.9:1"), timed_out, "no host has the address");
    assert_eq!(dead(&mut world, "[::1]:1"), timed_out, "no address of that family");
    assert_eq!(dead(&mut world, "10.0.1.1:9"), timed_out, "another port");
    world.partition(&[&[0], &[1]]);
    assert_eq!(dead(&mut world, "10.0.1.1:1314"), timed_out, "partition");
    world.heal();
    world.kill(1);
    assert_eq!(dead(&mut world, "10.0.1.1:1314"), timed_out, "killed");
    world.start(1, |_| ScriptedPeer::default());

    world.network_mut().set_unreachable("10.8.8.8".parse().unwrap());
    let (after, why) = dead(&mut world, "10.8.8.8:1");
    assert_eq!((after, matches!(why, DialFailure::Transport(_))), (ms(0), true));
    world.host_mut(1).refuse = Some((17, "full".to_owned()));
    let refused = DialFailure::Rejected { code: 17, reason: "full".to_owned() };
    assert_eq!(dead(&mut world, "10.0.1.1:1314"), (ms(20), refused));
    world.host_mut(1).refuse = None;
    world.host_mut(1).dialects = vec![Dialect::Polykey];
    world.host_mut(0).dialects = vec![Dialect::Native];
    let (after, why) = dead(&mut world, "10.0.1.1:1314");
    assert_eq!((after, matches!(why, DialFailure::Transport(_))), (ms(20), true));
    assert_eq!(world.connections_of(0), 0);
}

#[test]
fn dial_succeeds_when_a_partition_heals_or_the_host_starts() {
    let mut world = scripted_peers(2, 1);
    world.partition(&[&[0], &[1]]);
    dial(&mut world, 0, 1);
    world.drive(2 * SECOND);
    world.heal();
    world.drive(3 * SECOND);
    assert!(
        scripted_peer(&world, 0).connected().is_some()
            && scripted_peer(&world, 1).connected().is_some()
    );

    world.kill(1);
    dial(&mut world, 0, 1);
    world.drive(2 * SECOND);
    world.start(1, |_| ScriptedPeer::default());
    world.drive(4 * SECOND);
    assert!(scripted_peer(&world, 1).connected().is_some());
}

#[test]
fn cancelled_dial_ends_once() {
    let cancel = |after: std::time::Duration, dialect| {
        let mut world = scripted_peers(2, 1);
        world.host_mut(1).dialects = vec![dialect];
        // The driver is slow, so that a `Connected` can be in progress.
        world.host_mut(0).input_delay = ms(5);
        let conn = dial(&mut world, 0, 1);
        world.drive(after);
        world.call(0, |scripted_peer, _| scripted_peer.say(Output::CancelDial { conn }));
        world.drive(SECOND);
        let what = |host: usize| -> Vec<String> {
            let heard = received(&world, host, 1);
            heard
                .iter()
                .map(|(_, input)| format!("{input:?}").split([' ', '(']).next().unwrap().to_owned())
                .collect()
        };
        (what(0), what(1))
    };
    let failed = (vec!["DialFailed".to_owned()], vec![]);
    assert_eq!(cancel(ms(0), Dialect::Native), failed);
    assert_eq!(cancel(ms(15), Dialect::Native), failed);
    let under_way = (vec!["Connected".to_owned()], vec!["Connected".to_owned()]);
    assert_eq!(cancel(ms(22), Dialect::Native), under_way);
    assert_eq!(cancel(ms(42), Dialect::Polykey), under_way);
    // On `quic` the acceptor may have accepted a dial that the dialer cancels.
    let fleeting =
        (vec!["DialFailed".to_owned()], vec!["Connected".to_owned(), "Disconnected".to_owned()]);
    assert_eq!(cancel(ms(35), Dialect::Polykey), fleeting);
}

#[test]
fn both_ends_report_which_one_closed() {
    let mut world = scripted_peers(2, 1);
    let (here, there) = connect(&mut world, 0, 1);
    let begin = world.now();
    close(&mut world, 1, there, 18, "enough");
    world.drive(SECOND);
    let (at, end) = only_input(&world, 1, 2);
    assert_eq!(end, Input::Disconnected { conn: there, why: DisconnectReason::Local });
    assert_eq!(at, begin);
    let (at, end) = only_input(&world, 0, 2);
    let why = DisconnectReason::Peer { code: 18, reason: "enough".to_owned() };
    assert_eq!((at.since(begin), end), (ms(10), Input::Disconnected { conn: here, why }));
    assert_eq!((world.connections_of(0), world.connections_of(1)), (0, 0));
}

#[test]
fn acceptor_that_closes_at_once_fails_a_dial_on_quic_only() {
    for dialect in [Dialect::Native, Dialect::Polykey] {
        let mut world = scripted_peers(2, 3);
        world.host_mut(1).dialects = vec![dialect];
        // The close overtakes HANDSHAKE_DONE: jitter on one link, with seeds until it happens.
        world.network_mut().set_default_link(Link::ms(10).jitter(ms(50)));
        let mut rejected = 0;
        for _ in 0..20 {
            dial(&mut world, 0, 1);
            let before = scripted_peer(&world, 1).heard.len();
            world.drive_until(|world| scripted_peer(world, 1).heard.len() > before, SECOND);
            let conn = scripted_peer(&world, 1).connected().unwrap().conn;
            close(&mut world, 1, conn, 17, "full");
            world.drive(SECOND);
            let heard = received(&world, 0, 1);
            rejected += usize::from(matches!(
                heard.last(),
                Some((_, Input::DialFailed { why: DialFailure::Rejected { code: 17, .. }, .. }))
            ));
        }
        assert_eq!(rejected > 0, dialect == Dialect::Polykey, "{dialect:?}: {rejected}");
    }
}

#[test]
fn killed_peer_is_detected_after_the_idle_timeout() {
    let mut world = scripted_peers(2, 1);
    let (conn, _) = connect(&mut world, 0, 1);
    world.drive(33 * SECOND);
    world.kill(1);
    let killed = world.now();
    world.drive(60 * SECOND);
    let (at, end) = only_input(&world, 0, 2);
    assert_eq!(end, Input::Disconnected { conn, why: DisconnectReason::TimedOut });
    let after = at.since(killed);
    assert!((20 * SECOND..=30 * SECOND).contains(&after), "{after:?}");
    assert_eq!(world.transport_counters().idle_timeouts, 1);
}

#[test]
fn connection_survives_a_short_partition_and_not_a_long_one() {
    let mut world = scripted_peers(2, 1);
    connect(&mut world, 0, 1);
    world.partition(&[&[0], &[1]]);
    world.drive(15 * SECOND);
    world.heal();
    world.drive(60 * SECOND);
    assert_eq!(world.connections_of(0), 1);
    world.partition(&[&[0], &[1]]);
    world.drive(31 * SECOND);
    for host in [0, 1] {
        let (_, end) = only_input(&world, host, 2);
        assert!(matches!(end, Input::Disconnected { why: DisconnectReason::TimedOut, .. }));
    }
}

#[test]
fn end_that_receives_nothing_times_out_and_resets_the_other() {
    let mut world = scripted_peers(2, 1);
    connect(&mut world, 0, 1);
    world.cut(1, 0);
    world.drive(31 * SECOND);
    assert!(matches!(
        only_input(&world, 0, 2).1,
        Input::Disconnected { why: DisconnectReason::TimedOut, .. }
    ));
    assert_eq!(
        scripted_peer(&world, 1).heard.len(),
        2,
        "it still hears the other end's keep-alives until then"
    );
    world.heal();
    world.drive(31 * SECOND);
    assert!(matches!(
        only_input(&world, 1, 2).1,
        Input::Disconnected { why: DisconnectReason::Reset, .. }
    ));
}

#[test]
fn connection_with_a_restarted_peer_without_resets_times_out() {
    let mut world = scripted_peers(2, 1);
    world.host_mut(1).transport.stateless_reset = false;
    connect(&mut world, 0, 1);
    world.kill(1);
    world.start(1, |_| ScriptedPeer::default());
    world.drive(40 * SECOND);
    let (_, end) = only_input(&world, 0, 2);
    assert!(matches!(end, Input::Disconnected { why: DisconnectReason::TimedOut, .. }));
}

#[test]
fn old_id_is_answered_by_the_new_key() {
    let mut world = scripted_peers(2, 1);
    let (old, new) = (Key::numbered(9, 1), Key::numbered(9, 100));
    let identity = renew(&world.host(1).identity, &old, &new, UnixMillis(1_767_000_000_001));
    world.host_mut(1).identity = identity;
    dial(&mut world, 0, 1);
    world.drive(SECOND);
    let connected = scripted_peer(&world, 0).connected().unwrap();
    assert_eq!((connected.leaf, connected.matched_id), (new.id(), Some(old.id())));
    assert_eq!(connected.chain, [new.id(), old.id()]);
}

#[test]
fn moved_host_is_seen_at_its_new_address() {
    let mut world = scripted_peers(2, 1);
    let (conn, _) = connect(&mut world, 0, 1);
    let addr = "10.0.1.99:7".parse().unwrap();
    world.rehome(1, vec![addr]);
    world.drive(SECOND);
    assert_eq!(only_input(&world, 0, 2).1, Input::RemoteAddressChanged { conn, addr });
    assert_eq!(only_input(&world, 1, 2).1, Input::Listening { addrs: vec![addr] });
    connect(&mut world, 0, 1);
}

#[test]
fn loss_delays_handshakes_and_fails_none() {
    let mut world = scripted_peers(2, 5);
    world.network_mut().set_default_link(Link::ms(10).loss(300).jitter(ms(3)));
    let mut late = 0;
    for _ in 0..50 {
        let begin = world.now();
        dial_for(&mut world, 0, 1, 60 * SECOND);
        world.drive(60 * SECOND);
        let connects = scripted_peer(&world, 0)
            .heard
            .iter()
            .rev()
            .find(|(_, input)| matches!(input, Input::Connected(_)));
        late += u32::from(connects.unwrap().0.since(begin) > SECOND);
    }
    assert_eq!(world.transport_counters().handshakes, 50);
    assert!((15..40).contains(&late), "{late}");
}

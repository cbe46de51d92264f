//! Effects: keys, stores, names, the local network, punching, clocks.

use std::net::SocketAddr;

use bytes::Bytes;
use pk_proto::{EffectId, Input, NodeId, Output, StoreOp, StoreRange, Table};
use pk_sim::{CrashPolicy, HostId, Key, Link, ScriptedPeer, World, renew};

use crate::{SECOND, id, ms, scripted_peer, scripted_peers};

/// Makes a scripted peer emit an output, and returns the inputs that it has received after
/// `patience`, with their delays.
fn ask(
    world: &mut World<ScriptedPeer>,
    host: HostId,
    patience: std::time::Duration,
    output: impl FnOnce(EffectId) -> Output,
) -> Vec<(std::time::Duration, Input)> {
    let (from, begin) = (scripted_peer(world, host).heard.len(), world.now());
    world.call(host, |scripted_peer, _| {
        let id = scripted_peer.effect();
        scripted_peer.say(output(id));
    });
    world.drive(patience);
    let heard = crate::received(world, host, from);
    heard.into_iter().map(|(at, input)| (at.since(begin), input)).collect()
}

fn put(key: u8) -> StoreOp {
    StoreOp::Put {
        table: Table::Claims,
        key: vec![key].into(),
        value: Bytes::from_static(b"value"),
    }
}

#[test]
fn signatures_come_in_the_same_drain_or_after_a_delay() {
    let mut world = scripted_peers(1, 1);
    let sign =
        |key: NodeId| move |id| Output::Sign { id, key, bytes: Bytes::from_static(b"message") };
    let expected = Key::numbered(9, 0).sign(b"message");
    let heard = ask(&mut world, 0, ms(0), sign(id(0)));
    assert_eq!(heard, [(ms(0), Input::Signed { id: EffectId(0), result: Ok(expected) })]);

    world.host_mut(0).sign_delay = Some(ms(300));
    let heard = ask(&mut world, 0, SECOND, sign(id(0)));
    assert_eq!(heard, [(ms(300), Input::Signed { id: EffectId(1), result: Ok(expected) })]);
    let heard = ask(&mut world, 0, SECOND, sign(id(1)));
    assert!(matches!(heard[..], [(_, Input::Signed { result: Err(_), .. })]));
}

#[test]
fn writes_are_answered_in_order_fail_on_demand_and_may_be_lost_by_a_crash() {
    let mut world = scripted_peers(1, 1);
    world.host_mut(0).store.delay = ms(4);
    let persist = |key, durable| move |id| Output::Persist { id, ops: vec![put(key)], durable };
    let heard = ask(&mut world, 0, SECOND, persist(1, true));
    assert_eq!(heard, [(ms(4), Input::Persisted { id: EffectId(0), result: Ok(()) })]);
    world.host_mut(0).store.fail_next = 1;
    let heard = ask(&mut world, 0, SECOND, persist(2, true));
    assert!(matches!(heard[..], [(_, Input::Persisted { result: Err(_), .. })]));

    let range =
        StoreRange { table: Table::Claims, from: Bytes::new(), to: None, descending: false };
    let heard = ask(&mut world, 0, SECOND, |id| Output::Load { id, range, max_bytes: 100 });
    let rows = vec![(Bytes::from_static(&[1]), Bytes::from_static(b"value"))];
    assert_eq!(heard, [(ms(4), Input::Loaded { id: EffectId(2), result: Ok((rows, false)) })]);

    // Two that are in progress when the process is killed.
    world.host_mut(0).store.crash = CrashPolicy::Lose;
    ask(&mut world, 0, SECOND, persist(3, false));
    ask(&mut world, 0, ms(0), persist(4, true));
    world.kill(0);
    world.start(0, |boot| {
        assert_eq!(boot.host.store.rows().count(), 1);
        ScriptedPeer::default()
    });
    world.drive(SECOND);
    assert_eq!(
        scripted_peer(&world, 0).heard.len(),
        1,
        "nothing but Listening: the answers were meant for another life"
    );
    assert_eq!(world.host(0).store.get(Table::Claims, &[1]), Some(&Bytes::from_static(b"value")));
}

#[test]
fn names_resolve_by_the_table() {
    let mut world = scripted_peers(1, 1);
    world
        .network_mut()
        .set_name("a.example", Ok(vec!["10.0.1.1".parse().unwrap(), "::1".parse().unwrap()]));
    world.network_mut().set_name("b.example", Ok(vec![]));
    world.network_mut().set_name("c.example", Err("timeout".to_owned()));
    let mut resolve = |name: &str| {
        let name = name.parse().unwrap();
        let heard = ask(&mut world, 0, SECOND, |id| Output::Resolve { id, name, port: 5 });
        match heard.into_iter().next() {
            Some((after, Input::Resolved { result, .. })) => (after, result),
            other => panic!("{other:?}"),
        }
    };
    let addrs: Vec<SocketAddr> = vec!["10.0.1.1:5".parse().unwrap(), "[::1]:5".parse().unwrap()];
    assert_eq!(resolve("a.example"), (ms(20), Ok(addrs)));
    assert_eq!(resolve("b.example").1, Ok(vec![]));
    assert_eq!(resolve("c.example").1, Err("timeout".to_owned()));
    assert!(resolve("d.example").1.is_err());
}

#[test]
fn browse_finds_advertised_nodes() {
    let mut world = scripted_peers(3, 1);
    (0..2).for_each(|host| world.host_mut(host).lan = Some(7));
    let advertise = |world: &mut World<ScriptedPeer>, host: HostId, port| {
        world.call(host, |scripted_peer, _| {
            scripted_peer.say(Output::Advertise { node: id(host), port });
        });
    };
    advertise(&mut world, 1, Some(99));
    advertise(&mut world, 2, Some(99));
    let deadline = world.now() + 3 * SECOND;
    let browse = |node| move |id| Output::Browse { id, node, deadline };
    let addrs = vec!["10.0.1.1:99".parse().unwrap()];
    let found = |id, addrs, done| Input::Discovered { id: EffectId(id), addrs, done };
    let heard = ask(&mut world, 0, 4 * SECOND, browse(id(1)));
    assert_eq!(
        heard,
        [(ms(2), found(0, addrs.clone(), false)), (3 * SECOND, found(0, vec![], true))]
    );

    // Not on the same network; reported later; cancelled.
    let deadline = world.now() + 30 * SECOND;
    let browse = |node| move |id| Output::Browse { id, node, deadline };
    assert_eq!(ask(&mut world, 0, SECOND, browse(id(2))), []);
    advertise(&mut world, 1, None);
    assert_eq!(ask(&mut world, 0, SECOND, browse(id(1))), []);
    advertise(&mut world, 1, Some(98));
    world.drive(SECOND);
    let addrs = vec!["10.0.1.1:98".parse().unwrap()];
    assert_eq!(scripted_peer(&world, 0).inputs().last(), Some(&found(2, addrs, false)));
    world.call(0, |scripted_peer, _| scripted_peer.say(Output::CancelBrowse { id: EffectId(2) }));
    world.drive(60 * SECOND);
    let ends: Vec<_> = scripted_peer(&world, 0).inputs().rev().take(2).cloned().collect();
    assert_eq!(
        ends,
        [found(1, vec![], true), found(2, vec![], true)],
        "each ends once, at its cancel or its deadline"
    );
}

#[test]
fn identity_is_replaced_only_if_its_key_is_present() {
    let mut world = scripted_peers(1, 1);
    let (old, new) = (Key::numbered(9, 0), Key::numbered(9, 50));
    let identity = renew(&world.host(0).identity, &old, &new, world.unix(0));
    let replace = |identity| move |id| Output::ReplaceIdentity { id, identity };
    let heard = ask(&mut world, 0, SECOND, replace(identity.clone()));
    assert!(matches!(heard[..], [(_, Input::IdentityReplaced { result: Err(_), .. })]));
    world.host_mut(0).keys.insert(new.id(), new);
    let heard = ask(&mut world, 0, SECOND, replace(identity.clone()));
    assert!(matches!(heard[..], [(_, Input::IdentityReplaced { result: Ok(()), .. })]));
    assert_eq!(world.host(0).identity, identity);
}

#[test]
fn punches_are_counted_lost_and_doubled() {
    let mut world = scripted_peers(2, 1);
    let source = world.host(0).addrs()[0];
    let punch = |world: &mut World<ScriptedPeer>, addr: &str, count: usize| {
        let addr = addr.parse().unwrap();
        world.call(0, |scripted_peer, _| {
            (0..count).for_each(|_| {
                scripted_peer.say(Output::Punch { addr, bytes: Bytes::from_static(&[0; 32]) });
            });
        });
        world.drive(SECOND);
        world.host(1).punches().get(&source).copied().unwrap_or(0)
    };
    assert_eq!(punch(&mut world, "10.0.1.1:1314", 3), 3);
    assert_eq!(punch(&mut world, "10.7.7.7:1314", 3), 3, "no host there");
    world.cut(0, 1);
    assert_eq!(punch(&mut world, "10.0.1.1:1314", 3), 3, "partition");
    world.heal();
    world.network_mut().set_link(0, 1, Link::ms(10).loss(500));
    let arrived = punch(&mut world, "10.0.1.1:1314", 100) - 3;
    assert!((30..70).contains(&arrived), "{arrived}");
    world.network_mut().set_link(0, 1, Link::ms(10).disorder(500));
    let doubled = punch(&mut world, "10.0.1.1:1314", 100) - 3 - arrived;
    assert!((130..170).contains(&doubled), "{doubled}");
    assert_eq!(world.transport_counters().punches_sent, 209);
    assert_eq!(world.transport_counters().punches_arrived, 3 + arrived + doubled);
}

#[test]
fn clocks_may_differ() {
    let mut world = scripted_peers(2, 1);
    world.set_clock(1, -5000);
    world.drive(SECOND);
    assert_eq!(world.unix(0).0, world.unix(1).0 + 5000);
    assert!(
        matches!(scripted_peer(&world, 1).inputs().last(), Some(Input::WallClock(unix)) if unix.0 + 1000 == world.unix(1).0)
    );
}

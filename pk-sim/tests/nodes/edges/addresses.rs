//! One form of every address: mapped, scoped, and addresses that no node can have.

use std::net::{SocketAddr, SocketAddrV6};

use pk_proto::{
    Config, DialFailure, Event, Failure, Input, Instant, NodeAddress, NodeManager, Output, Replay,
    Request, RequestOptions, Side, Snapshot, StartParams, UnixMillis,
};
use pk_sim::{Key, genesis};

use crate::common::{Bare, SECOND, address};

const UNIX: UnixMillis = UnixMillis(1_767_225_600_000);

fn scoped(scope: u32) -> SocketAddr {
    SocketAddrV6::new("fe80::1".parse().unwrap(), 9, 0, scope).into()
}

fn connect(name: &str) -> Request {
    Request::Connect {
        target: Bare::peer(2),
        address: address(name),
        options: RequestOptions::default(),
    }
}

/// The addresses that a node dials within a second if a name has these addresses, and the result of
/// the request if every dial fails.
fn dialed(resolved: Vec<SocketAddr>) -> (Vec<SocketAddr>, Option<Vec<(NodeAddress, DialFailure)>>) {
    let mut bare = Bare::new(|_| {});
    let request = bare.request(connect("name.example:9"));
    let resolve = bare.take().iter().find_map(|output| match output {
        Output::Resolve { id, .. } => Some(*id),
        _ => None,
    });
    bare.input(Input::Resolved { id: resolve.unwrap(), result: Ok(resolved) });
    let mut dials = Vec::new();
    for _ in 0..20 {
        for output in bare.take() {
            if let Output::Dial { conn, addr, .. } = output {
                dials.push(addr);
                bare.input(Input::DialFailed { conn, why: DialFailure::TimedOut });
            } else if let Output::Event(Event::Done { id, result: Err(Failure::Dial(why)) }) =
                output
                && id == request
            {
                return (dials, Some(why));
            }
        }
    }
    (dials, None)
}

#[test]
fn invalid_mapped_address_is_not_dialed() {
    let mapped =
        ["[::ffff:255.255.255.255]:9", "[::ffff:224.0.0.1]:9", "[::ffff:0.0.0.0]:9", "10.0.0.1:0"];
    let (dials, failures) = dialed(mapped.map(|text| text.parse().unwrap()).to_vec());
    assert_eq!(dials, []);
    assert_eq!(
        failures.unwrap().len(),
        1 + mapped.len(),
        "what the name leads to, and why each was left out"
    );
}

#[test]
fn mapped_address_is_its_ipv4_address() {
    let (dials, _) =
        dialed(vec!["[::ffff:192.0.2.1]:9".parse().unwrap(), "192.0.2.1:9".parse().unwrap()]);
    assert_eq!(dials, ["192.0.2.1:9".parse().unwrap()], "once");

    let mut bare = Bare::new(|_| {});
    let conn = pk_proto::ConnectionId(bare.next_id());
    let remote = "[::ffff:198.51.100.1]:1314".parse().unwrap();
    bare.connected(conn, Side::Acceptor, Bare::peer(1), remote, 9);
    let control = bare.opened(conn);
    bare.feed(control, &crate::common::hello(), false);
    assert_eq!(bare.node.connections()[0].address, address("198.51.100.1:1314"));
}

#[test]
fn link_local_address_keeps_its_scope_and_is_not_dialed_without_one() {
    let (dials, failures) = dialed(vec![scoped(2), scoped(3), scoped(0)]);
    assert_eq!(dials, [scoped(2), scoped(3)]);
    let failures = failures.unwrap();
    let why = failures.iter().find(|(address, _)| *address == NodeAddress::from_socket(scoped(0)));
    assert!(why.unwrap().1.to_string().contains("interface"), "{failures:?}");
    assert!(
        failures.iter().any(|(address, _)| address.to_string() == "[fe80::1%3]:9"),
        "{failures:?}"
    );
}

#[test]
fn ten_dead_addresses_of_one_family_do_not_prevent_a_dial_of_the_other() {
    let six = (1..=30).map(|n| format!("[2001:db8::{n}]:9").parse().unwrap());
    let good: SocketAddr = "192.0.2.1:9".parse().unwrap();
    let (dials, failures) = dialed(six.chain([good]).collect());
    assert_eq!((dials.len(), dials[1]), (10, good));
    let left_out =
        failures.unwrap().into_iter().filter(|(_, why)| *why == DialFailure::NotTried).count();
    assert_eq!(left_out, 21, "what is left out is named");
}

#[test]
fn recording_with_link_local_addresses_replays() {
    let start = StartParams {
        config: Config::default(),
        identity: genesis(&Key::numbered(77, 0), UNIX),
        snapshot: Snapshot::default(),
        seed: [1; 32],
        now: Instant::ORIGIN,
        unix: UNIX,
    };
    let mut node = NodeManager::start_recorded(start, 1 << 20).unwrap();
    let mut now = Instant::ORIGIN;
    node.handle_input(Input::Listening { addrs: vec!["192.0.2.1:1314".parse().unwrap()] }, now);
    node.request(connect("printer.example:9"), now).unwrap();
    let outputs: Vec<_> = std::iter::from_fn(|| node.poll_output()).collect();
    let resolve = outputs.into_iter().find_map(|output| match output {
        Output::Resolve { id, .. } => Some(id),
        _ => None,
    });
    node.handle_input(
        Input::Resolved { id: resolve.unwrap(), result: Ok(vec![scoped(2), scoped(3)]) },
        now,
    );
    while let Some(due) = node.poll_timeout().filter(|due| *due <= Instant::ORIGIN + SECOND) {
        now = now.max(due);
        node.handle_timeout(now);
        while node.poll_output().is_some() {}
    }
    node.handle_input(Input::WallClock(UNIX), now);
    let recording = node.take_recording().unwrap();
    let mut replay = Replay::new(&recording).unwrap();
    let mut dials = Vec::new();
    while let Some(step) = replay.step().unwrap() {
        dials.extend(step.outputs.into_iter().filter_map(|output| match output {
            Output::Dial { addr, .. } => Some(addr),
            _ => None,
        }));
    }
    assert_eq!(dials, [scoped(2), scoped(3)]);
}

#[test]
fn link_local_peer_is_not_sent_to_others() {
    let mut bare = Bare::new(|_| {});
    let conn = pk_proto::ConnectionId(bare.next_id());
    bare.connected(conn, Side::Acceptor, Bare::peer(1), scoped(2), 9);
    let control = bare.opened(conn);
    bare.feed(control, &crate::common::hello(), false);
    assert_eq!(bare.node.connections()[0].address.to_string(), "[fe80::1%2]:9");
    let asker = bare.accept(Bare::peer(3));
    let told = super::reports::closest(&mut bare, asker, Bare::peer(1));
    assert!(told.known.is_empty() && told.connected.is_empty(), "{told:?}");
}

//! Handshakes that do not become connections.

use std::time::Duration;

use pk_proto::{DialFailure, DisconnectReason, Input, Output};

use pk_quic::Datagram;

use crate::rig::{Rig, Setup, now, stray};

/// Starts handshakes and never continues them.
fn flood(acceptor: &Rig, count: usize) -> Rig {
    let mut flood = Rig::start(200);
    flood.drop_received(true);
    for _ in 0..count {
        flood.dial(acceptor.addr, &[acceptor.id]);
    }
    flood
}

#[test]
fn flood_of_forged_handshakes_is_bounded_and_an_honest_peer_connects() {
    let mut setup = Setup::new(1);
    setup.settings.handshake_limit = 16;
    setup.settings.handshake_network_limit = 8;
    setup.settings.handshake_timeout = Duration::from_secs(1);
    let acceptor = setup.start();
    flood(&acceptor, 60);
    let metrics = acceptor.metrics(|metrics| metrics.handshakes + metrics.handshakes_retried >= 60);
    assert_eq!(
        (metrics.handshakes_pending, metrics.handshakes),
        (4, 4),
        "half of what one network gets: {metrics:?}"
    );

    // A peer that validates its address is accepted, after a Retry.
    let mut honest = Rig::start(2);
    honest.connect(&acceptor);
    let metrics = acceptor.metrics(|metrics| metrics.handshakes == 5);
    assert_eq!(metrics.handshakes_refused + metrics.handshakes_refused_network, 0);

    let metrics = acceptor.metrics(|metrics| metrics.handshakes_timed_out >= 4);
    println!("{metrics:?}");
}

#[test]
fn dial_without_an_answer_ends_at_its_deadline() {
    let mut dialer = Rig::start(1);
    let (own, addr) = (dialer.id, "10.9.9.9:9".parse().unwrap());
    let begun = now();
    dialer.dial_until(addr, &[own], Duration::from_millis(300));
    assert_eq!(dialer.dial_failed(), DialFailure::TimedOut);
    assert_eq!(now().since(begun), Duration::from_millis(300));
    dialer.silence();
    dialer.metrics(|metrics| metrics.dials_pending == 0);
}

#[test]
fn cancelled_dial_and_an_impossible_one_fail_once() {
    let mut dialer = Rig::start(1);
    let (own, addr) = (dialer.id, "10.9.9.9:9".parse().unwrap());
    let conn = dialer.dial(addr, &[own]);
    dialer.output(Output::CancelDial { conn });
    assert_eq!(dialer.dial_failed(), DialFailure::Cancelled);
    dialer.output(Output::CancelDial { conn });
    dialer.dial("[::1]:9".parse().unwrap(), &[own]);
    assert!(matches!(dialer.dial_failed(), DialFailure::Transport(_)), "IPv6 from an IPv4 socket");
    dialer.dial("10.9.9.9:0".parse().unwrap(), &[own]);
    assert!(matches!(dialer.dial_failed(), DialFailure::Transport(_)), "port 0");
    dialer.silence();
}

#[test]
fn refused_handshake_is_reported() {
    let mut setup = Setup::new(1);
    setup.settings.handshake_limit = 2;
    setup.settings.handshake_network_limit = 2;
    let acceptor = setup.start();
    flood(&acceptor, 10);
    acceptor.metrics(|metrics| metrics.handshakes_pending == 1 && metrics.handshakes_retried >= 9);
    // The only slot for validated peers: for a peer whose core never sends, it is in use only until
    // TLS completes.
    let mut honest = Rig::start(2);
    honest.dial(acceptor.addr, &[acceptor.id]);
    honest.connected();
    acceptor.metrics(|metrics| metrics.connections == 1 && metrics.handshakes_pending == 1);
}

#[test]
fn close_carries_its_code_and_reason() {
    let (mut a, b) = (Rig::start(1), Rig::start(2));
    let (ours, theirs) = a.connect(&b);
    a.output(Output::CloseConnection { conn: ours, code: 17, reason: "full\u{7}".to_owned() });
    assert_eq!(a.input(), Input::Disconnected { conn: ours, why: DisconnectReason::Local });
    let why = DisconnectReason::Peer { code: 17, reason: "full".to_owned() };
    assert_eq!(b.input(), Input::Disconnected { conn: theirs, why });
    a.output(Output::CloseConnection { conn: ours, code: 0, reason: String::new() });
    a.silence();
}

#[test]
fn only_a_dial_whose_first_datagram_was_not_sent_fails_at_once() {
    let mut dialer = Rig::start(1);
    let (own, addr) = (dialer.id, "10.9.9.9:9".parse().unwrap());
    dialer.dial(addr, &[own]);
    dialer.call(|transport, now| transport.unreachable(now, addr, "no route"));
    let why = dialer.dial_failed();
    assert_eq!(why, DialFailure::Transport("the system cannot send there: no route".to_owned()));
    // Later ones may fail: the network may have recovered by then.
    dialer.dial(addr, &[own]);
    crate::rig::pass(Duration::from_secs(3));
    dialer.call(|transport, now| transport.unreachable(now, addr, "no route"));
    assert_eq!(dialer.dial_failed(), DialFailure::TimedOut);
}

#[test]
fn punches_leave_from_the_port_that_peers_know() {
    let a = Rig::start(1);
    let (target, bytes) = ("10.9.9.9:9".parse().unwrap(), bytes::Bytes::from_static(&[7; 32]));
    a.output(Output::Punch { addr: target, bytes: bytes.clone() });
    a.silence();
    assert_eq!(stray(target), Some((a.addr, bytes.to_vec())));
    a.output(Output::Punch { addr: "[::1]:9".parse().unwrap(), bytes });
    let metrics = a.metrics(|metrics| metrics.punches_dropped == 1);
    assert_eq!(metrics.punches, 1);
}

#[test]
fn answers_that_the_socket_does_not_accept_are_bounded() {
    const LIMIT: usize = 256;
    let node = Rig::start(1);
    // Of a QUIC version that does not exist: each is answered by Version Negotiation.
    let mut bytes = vec![0; 1200];
    bytes[..6].copy_from_slice(&[0xc0, 0x1a, 0x2a, 0x3a, 0x4a, 8]);
    bytes[14] = 8;
    let from = "10.9.9.9:9".parse().unwrap();
    node.call(|transport, now| {
        for _ in 0..10 * LIMIT {
            transport.handle_datagram(now, Datagram { from, to: None, ecn: 0, bytes: &bytes });
        }
    });
    let metrics = node.metrics(|metrics| metrics.unsent_dropped > 0);
    assert_eq!(metrics.unsent_dropped, 9 * LIMIT as u64);
    node.silence();
    assert_eq!(std::iter::from_fn(|| stray(from)).count(), LIMIT);
}

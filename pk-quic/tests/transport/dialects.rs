//! Selection of the dialect, and when a dialer on `quic` counts as accepted.

use std::time::Duration;

use data_encoding::BASE64URL_NOPAD;
use pk_proto::{DialFailure, Dialect, Side};
use pk_proto::{Input, Output};

use crate::rig::{Rig, Setup, pass};
use crate::tls::presenting;

fn with_dialects(mut setup: Setup, dialects: &[Dialect]) -> Setup {
    setup.settings.dialects = dialects.to_vec();
    setup
}

const NATIVE: &[Dialect] = &[Dialect::Native];
const POLYKEY: &[Dialect] = &[Dialect::Polykey];

#[test]
fn preference_of_the_acceptor_decides_the_dialect() {
    let both = [Dialect::Native, Dialect::Polykey];
    let other = [Dialect::Polykey, Dialect::Native];
    for (dialer, acceptor, spoken) in [
        (&both[..], &both[..], Dialect::Native),
        (&other, &both, Dialect::Native),
        (&both, &other, Dialect::Polykey),
        (POLYKEY, &both, Dialect::Polykey),
        (&both, POLYKEY, Dialect::Polykey),
        (&both, NATIVE, Dialect::Native),
    ] {
        let mut dialer = with_dialects(Setup::new(1), dialer).start();
        let acceptor = with_dialects(Setup::new(2), acceptor).start();
        dialer.dial(acceptor.addr, &[acceptor.id]);
        let (ours, theirs) = (dialer.connected(), acceptor.connected());
        assert_eq!((ours.dialect, theirs.dialect), (spoken, spoken));
        assert_eq!((ours.side, theirs.side), (Side::Dialer, Side::Acceptor));
    }
    assert_eq!(Setup::new(1).settings.dialects, both, "the default");
}

#[test]
fn dial_without_a_common_dialect_fails() {
    for (ours, theirs) in [(NATIVE, POLYKEY), (POLYKEY, NATIVE)] {
        let mut dialer = with_dialects(Setup::new(1), ours).start();
        let acceptor = with_dialects(Setup::new(2), theirs).start();
        dialer.dial(acceptor.addr, &[acceptor.id]);
        let why = dialer.dial_failed();
        assert!(
            matches!(why, DialFailure::Rejected { code: 0x178, .. }),
            "no_application_protocol: {why}"
        );
        acceptor.silence();
    }
}

#[test]
fn both_ends_derive_the_same_shared_id_from_connection_ids() {
    let mut names = Vec::new();
    let a = with_dialects(Setup::new(1), POLYKEY).start();
    let mut b = with_dialects(Setup::new(2), POLYKEY).start();
    for _ in 0..20 {
        b.dial(a.addr, &[a.id]);
        let (ours, theirs) = (b.connected(), a.connected());
        assert_eq!(ours.shared_id, theirs.shared_id);
        let ids = BASE64URL_NOPAD.decode(&ours.shared_id).unwrap();
        // Local ids have 12 bytes.
        assert!(ids.len() == 24 && ids[..12] < ids[12..], "{ids:?}");
        names.push(ours.shared_id);
    }
    names.sort();
    names.dedup();
    assert_eq!(names.len(), 20);
}

#[test]
fn shared_id_is_equal_after_a_retry() {
    let mut setup = with_dialects(Setup::new(1), POLYKEY);
    // Half of it is for validated peers.
    setup.settings.handshake_limit = 2;
    setup.settings.handshake_network_limit = 2;
    let a = setup.start();
    let mut deaf = Rig::start(3);
    deaf.drop_received(true);
    deaf.dial(a.addr, &[a.id]);
    a.metrics(|metrics| metrics.handshakes_pending == 1);
    let mut b = with_dialects(Setup::new(2), POLYKEY).start();
    b.dial(a.addr, &[a.id]);
    let (ours, theirs) = (b.connected(), a.connected());
    assert_eq!(ours.shared_id, theirs.shared_id);
    a.metrics(|metrics| metrics.handshakes_retried == 1);
}

/// The codes of docs/WIRE.md section 3.4, which the reference sends and expects.
#[test]
fn dialer_on_quic_receives_the_refusal_before_it_counts_as_connected() {
    for (setup, code) in [
        (presenting(8, &["foreignCN"]), 0x12a),
        (presenting(4, &["expired_self"]), 0x12d),
        (presenting(6, &["noNodeSignature"]), 0x12a),
        (presenting(3, &["c3_issuedBy2", "c1_self"]), 0x12a),
    ] {
        let acceptor = with_dialects(Setup::new(100), POLYKEY).start();
        let mut dialer = with_dialects(setup, POLYKEY).start();
        dialer.dial(acceptor.addr, &[acceptor.id]);
        let why = dialer.dial_failed();
        assert!(
            matches!(why, DialFailure::Rejected { code: c, .. } if c == code),
            "{code:#x}: {why:?}"
        );
        dialer.silence();
        acceptor.silence();
    }
}

/// A close right after the handshake arrives with or after its confirmation; in both cases the dial
/// has one result.
#[test]
fn cancelled_dial_on_quic_fails_once() {
    let acceptor = with_dialects(Setup::new(1), POLYKEY).start();
    let mut dialer = with_dialects(Setup::new(2), POLYKEY).start();
    for delay in 0..20 {
        let conn = dialer.dial(acceptor.addr, &[acceptor.id]);
        pass(Duration::from_micros(200 * delay));
        dialer.output(Output::CancelDial { conn });
        match dialer.input() {
            Input::DialFailed { conn: failed, why: DialFailure::Cancelled } => {
                assert_eq!(failed, conn);
            }
            Input::Connected(connected) => {
                assert_eq!(connected.conn, conn);
                dialer.output(Output::CloseConnection { conn, code: 0, reason: String::new() });
                assert!(matches!(dialer.input(), Input::Disconnected { .. }));
            }
            other => panic!("{other:?}"),
        }
    }
    dialer.silence();
    dialer.metrics(|metrics| metrics.dials_pending + metrics.connections == 0);
    drop(acceptor.input());
}

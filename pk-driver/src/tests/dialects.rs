//! Which dialect is spoken, and when a dialler on `quic` may believe that it is accepted.

use std::time::Duration;

use data_encoding::BASE64URL_NOPAD;
use pk_proto::{DialFailure, Dialect, Role};
use pk_proto::{Input, Output};

use super::Setup;
use super::tls::presenting;

fn speaking(mut setup: Setup, dialects: &[Dialect]) -> Setup {
    setup.driver.dialects = dialects.to_vec();
    setup
}

const NATIVE: &[Dialect] = &[Dialect::Native];
const POLYKEY: &[Dialect] = &[Dialect::Polykey];

#[tokio::test]
async fn the_preference_of_the_acceptor_decides() {
    let both = [Dialect::Native, Dialect::Polykey];
    let other = [Dialect::Polykey, Dialect::Native];
    for (dialler, acceptor, spoken) in [
        (&both[..], &both[..], Dialect::Native),
        (&other, &both, Dialect::Native),
        (&both, &other, Dialect::Polykey),
        (POLYKEY, &both, Dialect::Polykey),
        (&both, POLYKEY, Dialect::Polykey),
        (&both, NATIVE, Dialect::Native),
    ] {
        let mut dialler = speaking(Setup::new(1), dialler).start().await;
        let mut acceptor = speaking(Setup::new(2), acceptor).start().await;
        dialler.dial(acceptor.addr, &[acceptor.id]).await;
        let (ours, theirs) = tokio::join!(dialler.connected(), acceptor.connected());
        assert_eq!((ours.dialect, theirs.dialect), (spoken, spoken));
        assert_eq!((ours.role, theirs.role), (Role::Dialler, Role::Acceptor));
    }
    assert_eq!(Setup::new(1).driver.dialects, both, "the default");
}

#[tokio::test]
async fn without_a_common_dialect_nobody_is_connected() {
    for (ours, theirs) in [(NATIVE, POLYKEY), (POLYKEY, NATIVE)] {
        let mut dialler = speaking(Setup::new(1), ours).start().await;
        let mut acceptor = speaking(Setup::new(2), theirs).start().await;
        dialler.dial(acceptor.addr, &[acceptor.id]).await;
        let why = dialler.dial_failed().await;
        assert!(matches!(why, DialFailure::Rejected { code: 0x178, .. }), "no_application_protocol: {why}");
        acceptor.silence().await;
    }
}

#[tokio::test]
async fn both_ends_give_a_connection_the_same_name_made_of_its_ids() {
    let mut names = Vec::new();
    let mut a = speaking(Setup::new(1), POLYKEY).start().await;
    let mut b = speaking(Setup::new(2), POLYKEY).start().await;
    for _ in 0..20 {
        b.dial(a.addr, &[a.id]).await;
        let (ours, theirs) = tokio::join!(b.connected(), a.connected());
        assert_eq!(ours.shared_id, theirs.shared_id);
        let ids = BASE64URL_NOPAD.decode(&ours.shared_id).unwrap();
        // Ours have 8 bytes.
        assert!(ids.len() == 16 && ids[..8] < ids[8..], "{ids:?}");
        names.push(ours.shared_id);
    }
    names.sort();
    names.dedup();
    assert_eq!(names.len(), 20);
}

#[tokio::test]
async fn the_name_is_right_also_after_a_retry() {
    let mut setup = speaking(Setup::new(1), POLYKEY);
    // Half of it is for those that have shown that they receive at their address.
    setup.driver.handshake_limit = 2;
    setup.driver.handshake_network_limit = 2;
    let mut a = setup.start().await;
    let mut deaf = super::handshakes::Flood::new();
    deaf.begin(a.addr, 1);
    a.metrics(|metrics| metrics.handshakes_pending == 1).await;
    let mut b = speaking(Setup::new(2), POLYKEY).start().await;
    b.dial(a.addr, &[a.id]).await;
    let (ours, theirs) = tokio::join!(b.connected(), a.connected());
    assert_eq!(ours.shared_id, theirs.shared_id);
    a.metrics(|metrics| metrics.handshakes_retried == 1).await;
}

/// The codes of WIRE.md section 3.4, which the reference sends and expects.
#[tokio::test]
async fn a_dialler_on_quic_hears_why_it_is_refused_before_it_believes_anything() {
    for (setup, code) in [
        (presenting(8, &["foreignCN"]), 0x12a),
        (presenting(4, &["expired_self"]), 0x12d),
        (presenting(6, &["noNodeSignature"]), 0x12a),
        (presenting(3, &["c3_issuedBy2", "c1_self"]), 0x12a),
    ] {
        let mut acceptor = speaking(Setup::new(100), POLYKEY).start().await;
        let mut dialler = speaking(setup, POLYKEY).start().await;
        dialler.dial(acceptor.addr, &[acceptor.id]).await;
        let why = dialler.dial_failed().await;
        assert!(matches!(why, DialFailure::Rejected { code: c, .. } if c == code), "{code:#x}: {why:?}");
        dialler.silence().await;
        acceptor.silence().await;
    }
}

/// A close right after the handshake comes with or after its confirmation; either way there is one answer to the dial.
#[tokio::test]
async fn a_cancelled_dial_on_quic_fails_once() {
    let mut acceptor = speaking(Setup::new(1), POLYKEY).start().await;
    let mut dialler = speaking(Setup::new(2), POLYKEY).start().await;
    for delay in 0..20 {
        let conn = dialler.dial(acceptor.addr, &[acceptor.id]).await;
        tokio::time::sleep(Duration::from_micros(200 * delay)).await;
        dialler.output(Output::CancelDial { conn }).await;
        match dialler.input().await {
            Input::DialFailed { conn: failed, why: DialFailure::Cancelled } => assert_eq!(failed, conn),
            Input::Connected(connected) => {
                assert_eq!(connected.conn, conn);
                dialler.output(Output::CloseConnection { conn, code: 0, reason: String::new() }).await;
                assert!(matches!(dialler.input().await, Input::Disconnected { .. }));
            }
            other => panic!("{other:?}"),
        }
    }
    dialler.silence().await;
    dialler.metrics(|metrics| metrics.dials_pending + metrics.connections == 0).await;
    drop(acceptor.told().await);
}

//! Selection of the dialect, and when a dialer on `quic` counts as accepted.

use std::time::Duration;

use data_encoding::BASE64URL_NOPAD;
use pk_proto::{DialFailure, Dialect, Side};
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
    for (dialer, acceptor, spoken) in [
        (&both[..], &both[..], Dialect::Native),
        (&other, &both, Dialect::Native),
        (&both, &other, Dialect::Polykey),
        (POLYKEY, &both, Dialect::Polykey),
        (&both, POLYKEY, Dialect::Polykey),
        (&both, NATIVE, Dialect::Native),
    ] {
        let mut dialer = speaking(Setup::new(1), dialer).start().await;
        let mut acceptor = speaking(Setup::new(2), acceptor).start().await;
        dialer.dial(acceptor.addr, &[acceptor.id]).await;
        let (ours, theirs) = tokio::join!(dialer.connected(), acceptor.connected());
        assert_eq!((ours.dialect, theirs.dialect), (spoken, spoken));
        assert_eq!((ours.side, theirs.side), (Side::Dialer, Side::Acceptor));
    }
    assert_eq!(Setup::new(1).driver.dialects, both, "the default");
}

#[tokio::test]
async fn without_a_common_dialect_nobody_is_connected() {
    for (ours, theirs) in [(NATIVE, POLYKEY), (POLYKEY, NATIVE)] {
        let mut dialer = speaking(Setup::new(1), ours).start().await;
        let mut acceptor = speaking(Setup::new(2), theirs).start().await;
        dialer.dial(acceptor.addr, &[acceptor.id]).await;
        let why = dialer.dial_failed().await;
        assert!(
            matches!(why, DialFailure::Rejected { code: 0x178, .. }),
            "no_application_protocol: {why}"
        );
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
        // Local ids have 12 bytes.
        assert!(ids.len() == 24 && ids[..12] < ids[12..], "{ids:?}");
        names.push(ours.shared_id);
    }
    names.sort();
    names.dedup();
    assert_eq!(names.len(), 20);
}

#[tokio::test]
async fn the_name_is_right_also_after_a_retry() {
    let mut setup = speaking(Setup::new(1), POLYKEY);
    // Half of it is for validated peers.
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

/// The codes of docs/WIRE.md section 3.4, which the reference sends and expects.
#[tokio::test]
async fn dialer_on_quic_receives_the_refusal_before_it_counts_as_connected() {
    for (setup, code) in [
        (presenting(8, &["foreignCN"]), 0x12a),
        (presenting(4, &["expired_self"]), 0x12d),
        (presenting(6, &["noNodeSignature"]), 0x12a),
        (presenting(3, &["c3_issuedBy2", "c1_self"]), 0x12a),
    ] {
        let mut acceptor = speaking(Setup::new(100), POLYKEY).start().await;
        let mut dialer = speaking(setup, POLYKEY).start().await;
        dialer.dial(acceptor.addr, &[acceptor.id]).await;
        let why = dialer.dial_failed().await;
        assert!(
            matches!(why, DialFailure::Rejected { code: c, .. } if c == code),
            "{code:#x}: {why:?}"
        );
        dialer.silence().await;
        acceptor.silence().await;
    }
}

/// A close right after the handshake arrives with or after its confirmation; in both cases the dial
/// has one result.
#[tokio::test]
async fn a_cancelled_dial_on_quic_fails_once() {
    let mut acceptor = speaking(Setup::new(1), POLYKEY).start().await;
    let mut dialer = speaking(Setup::new(2), POLYKEY).start().await;
    for delay in 0..20 {
        let conn = dialer.dial(acceptor.addr, &[acceptor.id]).await;
        tokio::time::sleep(Duration::from_micros(200 * delay)).await;
        dialer.output(Output::CancelDial { conn }).await;
        match dialer.input().await {
            Input::DialFailed { conn: failed, why: DialFailure::Cancelled } => {
                assert_eq!(failed, conn);
            }
            Input::Connected(connected) => {
                assert_eq!(connected.conn, conn);
                dialer
                    .output(Output::CloseConnection { conn, code: 0, reason: String::new() })
                    .await;
                assert!(matches!(dialer.input().await, Input::Disconnected { .. }));
            }
            other => panic!("{other:?}"),
        }
    }
    dialer.silence().await;
    dialer.metrics(|metrics| metrics.dials_pending + metrics.connections == 0).await;
    drop(acceptor.told().await);
}

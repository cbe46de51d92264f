//! Peers that do not prove their id are refused in both directions.

use pk_driver::NodeError;
use pk_proto::{DialFailure, Failure, NodeAddress, NodeId, RequestOptions};
use pk_tests::Rt;
use pk_tests::certs::Presented;
use pk_tests::node::{key, shutdown, socket, start};
use pk_tests::raw::{self, NATIVE};
use pk_tests::wait::{soon, spawn, until};

pk_tests::cases!(
    acceptor_refuses_certificates_that_do_not_prove_the_peer,
    dialer_refuses_certificates_that_do_not_prove_the_peer
);

/// TLS alerts (RFC 8446 section 6).
const BAD_CERTIFICATE: u64 = 42;
const CERTIFICATE_EXPIRED: u64 = 45;
const CERTIFICATE_REQUIRED: u64 = 116;
const NO_APPLICATION_PROTOCOL: u64 = 120;

async fn acceptor_refuses_certificates_that_do_not_prove_the_peer<R: Rt>(runtime: R) {
    let node = start(&runtime, 1).await;
    let endpoint = raw::endpoint(&runtime, None);
    let (peer, victim) = (key(2), key(3));
    let native: &[&[u8]] = &[NATIVE];
    let other: &[&[u8]] = &[b"h3"];
    let valid = Presented::valid(&peer);
    let bad = [
        (
            "a name that is not the key's",
            Some(Presented::naming(&peer, victim.node_id())),
            native,
            Some(BAD_CERTIFICATE),
        ),
        (
            "our own name",
            Some(Presented::naming(&peer, node.own_id())),
            native,
            Some(BAD_CERTIFICATE),
        ),
        ("a stolen certificate", Some(Presented::stolen(&peer, &victim)), native, None),
        ("an expired one", Some(Presented::expired(&peer)), native, Some(CERTIFICATE_EXPIRED)),
        (
            "one from the future",
            Some(Presented::not_yet_valid(&peer)),
            native,
            Some(CERTIFICATE_EXPIRED),
        ),
        ("garbage", Some(Presented::garbage(&peer)), native, Some(BAD_CERTIFICATE)),
        (
            "a chain without end",
            Some(Presented::repeated(&peer, 33)),
            native,
            Some(BAD_CERTIFICATE),
        ),
        ("no certificate", None, native, Some(CERTIFICATE_REQUIRED)),
        ("another protocol", Some(valid.clone()), other, Some(NO_APPLICATION_PROTOCOL)),
        ("no protocol", Some(valid.clone()), &[], Some(NO_APPLICATION_PROTOCOL)),
    ];
    for (n, (what, presented, alpn, alert)) in (1..).zip(bad) {
        let config = raw::client(presented.as_ref(), alpn, raw::transport());
        let dialed = soon(&runtime, what, raw::dial(&endpoint, config, socket(&node))).await;
        // In TLS 1.3 the handshake completes for the dialer before the acceptor verifies its
        // certificate.
        let error = match dialed {
            Err(error) => error,
            Ok(connection) => soon(&runtime, what, connection.closed()).await,
        };
        match alert {
            Some(alert) => assert_eq!(raw::alert(&error), Some(alert), "{what}: {error}"),
            None => assert!(raw::alert(&error).is_some(), "{what}: {error}"),
        }
        until(&runtime, what, async || node.driver_metrics().transport.handshakes_failed == n)
            .await;
        println!("{}: {what}: {error}", R::NAME);
    }
    let metrics = node.metrics().await.unwrap();
    assert_eq!(
        (metrics.connections_accepted, metrics.connections_pending, metrics.nodes),
        (0, 0, 0),
        "{metrics:?}"
    );
    until(&runtime, "nothing in progress", async || {
        node.driver_metrics().transport.handshakes_pending == 0
    })
    .await;
    // The same peer with its own certificate, and the same construction with its own name.
    for presented in [valid, Presented::naming(&peer, peer.node_id())] {
        let config = raw::valid_client(&presented);
        let connection =
            soon(&runtime, "a valid peer", raw::dial(&endpoint, config, socket(&node)))
                .await
                .unwrap();
        drop(soon(&runtime, "greet", raw::greet(&connection)).await.unwrap());
    }
    shutdown(&runtime, &[&node]).await;
}

/// A scripted acceptor that presents these certificates. Returns its address.
fn acceptor<R: Rt>(runtime: &R, presented: &Presented, alpn: &[&[u8]]) -> NodeAddress {
    let endpoint = raw::endpoint(runtime, Some(raw::server(presented, alpn, false)));
    let address = NodeAddress::from_socket(endpoint.local_addr().unwrap());
    drop(spawn(runtime, async move {
        while let Some(incoming) = endpoint.accept().await {
            if let Ok(connection) = incoming.await {
                // An accepted peer receives a Hello, which would be a success.
                if let Ok((mut send, _recv)) = connection.accept_bi().await {
                    let _ = send.write_all(&raw::hello()).await;
                    connection.closed().await;
                }
            }
        }
    }));
    address
}

async fn dialer_refuses_certificates_that_do_not_prove_the_peer<R: Rt>(runtime: R) {
    let node = start(&runtime, 1).await;
    let (peer, victim) = (key(2), key(3));
    let dial = async |presented: &Presented, alpn: &[&[u8]], target: NodeId| {
        let address = acceptor(&runtime, presented, alpn);
        let options =
            RequestOptions { deadline: None, connect_timeout: Some(pk_tests::wait::SOON / 3) };
        let connected =
            soon(&runtime, "connect", node.connect(target, address.clone(), options)).await;
        let there =
            soon(&runtime, "ping", node.ping_node_address(target, address, options)).await.unwrap();
        assert_eq!(there, connected.is_ok());
        match connected {
            Ok(_) => Ok(()),
            Err(NodeError::Failure(Failure::Dial(failures))) => {
                match <[_; 1]>::try_from(failures) {
                    Ok([(_, why)]) => Err(why),
                    Err(other) => panic!("one dial: {other:?}"),
                }
            }
            Err(other) => panic!("{other:?}"),
        }
    };
    let native: &[&[u8]] = &[NATIVE];
    for (what, presented, target, says) in [
        (
            "the victim's name, asked for the victim",
            Presented::naming(&peer, victim.node_id()),
            &victim,
            "has the subject name",
        ),
        (
            "the victim's name, asked for the key",
            Presented::naming(&peer, victim.node_id()),
            &peer,
            "has the subject name",
        ),
        (
            "a valid one of another node",
            Presented::valid(&peer),
            &victim,
            "none of the expected nodes",
        ),
        ("an expired one", Presented::expired(&peer), &peer, "expired"),
        ("one from the future", Presented::not_yet_valid(&peer), &peer, "not valid before"),
        ("garbage", Presented::garbage(&peer), &peer, "not DER"),
        ("a chain without end", Presented::repeated(&peer, 33), &peer, "33 certificates"),
    ] {
        let why = dial(&presented, native, target.node_id()).await;
        println!("{}: {what}: {why:?}", R::NAME);
        assert!(
            matches!(&why, Err(DialFailure::Certificate(text)) if text.contains(says)),
            "{what}: {why:?}"
        );
    }
    let why = dial(&Presented::stolen(&peer, &victim), native, victim.node_id()).await;
    assert!(
        matches!(why, Err(DialFailure::Transport(_) | DialFailure::Certificate(_))),
        "stolen: {why:?}"
    );
    let why = dial(&Presented::valid(&peer), &[b"h3"], peer.node_id()).await;
    assert!(
        matches!(why, Err(DialFailure::Rejected { code: 0x178, .. })),
        "another protocol: {why:?}"
    );
    let metrics = node.metrics().await.unwrap();
    assert_eq!((metrics.connections_accepted, metrics.nodes), (0, 0), "{metrics:?}");
    // The same acceptor with its own certificate.
    assert_eq!(dial(&Presented::valid(&peer), native, peer.node_id()).await, Ok(()));
    shutdown(&runtime, &[&node]).await;
}

//! Which peers are accepted: verification of certificates, at both ends.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use data_encoding::HEXLOWER;
use pk_proto::{DialFailure, Dialect, DisconnectReason, Identity, Input, NodeId, Side};

use quinn_proto::{ConnectionError, DatagramEvent, Endpoint, EndpointConfig, Event};

use crate::rig::{Rig, Setup, pass, send, std_now, stray};
use pk_host::KeyPair;
use pk_host::create_identity;

/// A node with certificates from the vectors of the reference, and the key of a seed.
pub(super) fn presenting(seed: u8, names: &[&str]) -> Setup {
    let vectors = include_str!("../../../pk-proto/tests/vectors/certificates.json");
    let chain = names.iter().map(|name| {
        // The vectors are listed one after the other, so that no JSON parser is needed.
        let (_, rest) = vectors.split_once(&format!("\"{name}\": {{")).unwrap();
        let (_, rest) = rest.split_once("\"derHex\": \"").unwrap();
        let (hex, _) = rest.split_once('"').unwrap();
        Bytes::from(HEXLOWER.decode(hex.as_bytes()).unwrap())
    });
    let chain = chain.collect();
    Setup { key: KeyPair::from_seed(&[seed; 32]), identity: Identity { chain }, ..Setup::new(seed) }
}

fn id(seed: u8) -> NodeId {
    KeyPair::from_seed(&[seed; 32]).node_id()
}

/// The result of a dialer if the acceptor refuses its certificates.
fn refused(setup: Setup) -> String {
    let acceptor = Rig::start(100);
    let mut dialer = setup.start();
    dialer.dial(acceptor.addr, &[acceptor.id]);
    // TLS 1.3: the dialer completes before the acceptor has verified it.
    let why = match dialer.input() {
        Input::DialFailed { why, .. } => why.to_string(),
        Input::Connected(_) => match dialer.input() {
            Input::Disconnected { why: DisconnectReason::Transport(why), .. } => why,
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    };
    acceptor.silence();
    acceptor.metrics(|metrics| metrics.handshakes_failed == 1 && metrics.handshakes_pending == 0);
    why
}

/// The result of a dialer's verification of an acceptor's certificates.
fn verification_failure(setup: Setup, expect: NodeId) -> DialFailure {
    let acceptor = setup.start();
    let mut dialer = Rig::start(100);
    dialer.dial(acceptor.addr, &[expect]);
    let why = dialer.dial_failed();
    acceptor.silence();
    acceptor.metrics(|metrics| metrics.handshakes_failed == 1);
    why
}

#[test]
fn both_ends_prove_their_ids_and_agree_on_the_shared_id() {
    let (mut a, b) = (Rig::start(1), Rig::start(2));
    let conn = a.dial(b.addr, &[id(50), b.id]);
    let (ours, theirs) = (a.connected(), b.connected());
    assert_eq!((ours.conn, ours.side, ours.dialect), (conn, Side::Dialer, Dialect::Native));
    assert_eq!((ours.leaf, ours.matched_id, &ours.chain[..]), (b.id, Some(b.id), &[b.id][..]));
    assert_eq!((theirs.side, theirs.leaf, theirs.matched_id), (Side::Acceptor, a.id, None));
    assert!(ours.conn.is_ours() && !theirs.conn.is_ours());
    assert_eq!((ours.shared_id.len(), &ours.shared_id), (32, &theirs.shared_id));
    assert_eq!((ours.remote, theirs.remote), (b.addr, a.addr));
    assert_eq!((ours.local, theirs.local), (a.addr, b.addr));
}

#[test]
fn dialer_refuses_another_node() {
    let acceptor = Rig::start(2);
    let mut dialer = Rig::start(1);
    dialer.dial(acceptor.addr, &[id(3)]);
    let why = dialer.dial_failed();
    assert_eq!(why.to_string(), "certificate: the peer is none of the expected nodes");
    acceptor.silence();
}

#[test]
fn renewed_node_is_found_under_its_old_ids() {
    let chain = ["c3_issuedBy2", "c2_issuedBy1", "c1_self"];
    for (expect, who) in [(id(1), 1), (id(2), 2), (id(3), 3)] {
        let acceptor = presenting(3, &chain).start();
        let mut dialer = Rig::start(100);
        dialer.dial(acceptor.addr, &[expect]);
        let connected = dialer.connected();
        assert_eq!(
            (connected.leaf, connected.matched_id),
            (id(3), Some(expect)),
            "asked for {who}"
        );
        assert_eq!(connected.chain, [id(3), id(2), id(1)]);
    }
    let acceptor = Rig::start(100);
    let mut dialer = presenting(3, &chain).start();
    dialer.dial(acceptor.addr, &[acceptor.id]);
    assert_eq!(acceptor.connected().chain, [id(3), id(2), id(1)]);
}

#[test]
fn name_of_another_node_is_refused_in_both_directions() {
    // The reference accepts this one: key 8 with the name of node 7 (docs/WIRE.md section 3.4).
    let why = verification_failure(presenting(8, &["foreignCN"]), id(7));
    assert!(
        matches!(&why, DialFailure::Certificate(why) if why.contains("has the subject name")),
        "{why}"
    );
    let why = refused(presenting(8, &["foreignCN"]));
    assert!(why.contains("42"), "bad_certificate: {why}");
}

#[test]
fn certificate_of_another_node_is_refused_in_both_directions() {
    // A valid certificate of node 1, presented by a peer with another key.
    let stolen = || Setup { identity: Setup::new(1).identity, ..Setup::new(9) };
    let why = verification_failure(stolen(), id(1));
    assert!(matches!(&why, DialFailure::Transport(_)), "{why}");
    let why = refused(stolen());
    assert!(why.contains("51"), "decrypt_error: {why}");
}

#[test]
fn expired_and_unsigned_certificates_are_refused_in_both_directions() {
    let why = verification_failure(presenting(4, &["expired_self"]), id(4));
    assert!(matches!(&why, DialFailure::Certificate(why) if why.contains("expired")), "{why}");
    let why = refused(presenting(4, &["expired_self"]));
    assert!(why.contains("45"), "certificate_expired: {why}");
    let why = verification_failure(presenting(6, &["noNodeSignature"]), id(6));
    assert!(
        matches!(&why, DialFailure::Certificate(why) if why.contains("no node signature")),
        "{why}"
    );
    let why = refused(presenting(6, &["noNodeSignature"]));
    assert!(why.contains("42"), "bad_certificate: {why}");
}

#[test]
fn replaced_identity_is_presented_to_new_peers_and_connections_stay() {
    let (mut a, b) = (Rig::start(1), Rig::start(2));
    let (old, _) = a.connect(&b);
    let next = KeyPair::from_seed(&[3; 32]);
    let identity = create_identity(&next, pk_host::unix()).unwrap();
    b.call(|transport, _| transport.replace_identity(&identity, &next));
    a.dial(b.addr, &[id(3)]);
    assert_eq!(a.connected().leaf, id(3));
    a.output(pk_proto::Output::CloseConnection { conn: old, code: 0, reason: String::new() });
    assert_eq!(a.input(), Input::Disconnected { conn: old, why: DisconnectReason::Local });
}

#[test]
fn certificates_are_verified_by_the_clock_at_the_time_of_the_handshake() {
    let day = Duration::from_secs(24 * 60 * 60);
    let later = pk_proto::UnixMillis(pk_host::unix().0 + 2 * day.as_millis() as u64);
    let issued_later = || {
        let key = KeyPair::from_seed(&[2; 32]);
        Setup { identity: create_identity(&key, later).unwrap(), ..Setup::new(2) }
    };
    let (mut a, b) = (Rig::start(1), issued_later().start());
    a.dial(b.addr, &[b.id]);
    let why = a.dial_failed();
    assert!(matches!(&why, DialFailure::Certificate(why) if why.contains("not valid")), "{why}");
    pass(3 * day);
    a.connect(&b);
}

/// A QUIC client that is not a node. Returns how its connection ends.
fn dial_without_node(tls: rustls::ClientConfig, to: std::net::SocketAddr) -> ConnectionError {
    let own = "10.8.8.8:8".parse().unwrap();
    let tls = quinn_proto::crypto::rustls::QuicClientConfig::try_from(tls).unwrap();
    let config = quinn_proto::ClientConfig::new(Arc::new(tls));
    let mut endpoint = Endpoint::new(Arc::new(EndpointConfig::default()), None, true, None);
    let (handle, mut connection) = endpoint.connect(std_now(), config, to, "polykey").unwrap();
    for _ in 0..1000 {
        while let Some(event) = connection.poll_endpoint_events() {
            if let Some(event) = endpoint.handle_event(handle, event) {
                connection.handle_event(event);
            }
        }
        while let Some(event) = connection.poll() {
            if let Event::ConnectionLost { reason } = event {
                return reason;
            }
        }
        let mut buf = Vec::new();
        while let Some(transmit) = connection.poll_transmit(std_now(), 1, &mut buf) {
            send(own, to, buf[..transmit.size].to_vec());
            buf.clear();
        }
        pass(Duration::from_millis(1));
        while let Some((from, bytes)) = stray(own) {
            let bytes = BytesMut::from(&bytes[..]);
            let event = endpoint.handle(std_now(), from, None, None, bytes, &mut Vec::new());
            if let Some(DatagramEvent::ConnectionEvent(_, event)) = event {
                connection.handle_event(event);
            }
        }
        if connection.poll_timeout().is_some_and(|at| at <= std_now()) {
            connection.handle_timeout(std_now());
        }
    }
    panic!("the connection does not end");
}

fn code(error: &ConnectionError) -> u64 {
    match error {
        ConnectionError::ConnectionClosed(close) => close.error_code.into(),
        other => panic!("{other:?}"),
    }
}

mod anything {
    //! A verifier that accepts any server.

    use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
    use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
    use rustls::{DigitallySignedStruct, Error, SignatureScheme};

    #[derive(Debug)]
    pub(super) struct Goes;

    impl ServerCertVerifier for Goes {
        fn verify_server_cert(
            &self,
            _: &CertificateDer<'_>,
            _: &[CertificateDer<'_>],
            _: &ServerName<'_>,
            _: &[u8],
            _: UnixTime,
        ) -> Result<ServerCertVerified, Error> {
            Ok(ServerCertVerified::assertion())
        }

        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Ok(HandshakeSignatureValid::assertion())
        }

        fn verify_tls13_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Ok(HandshakeSignatureValid::assertion())
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            vec![SignatureScheme::ED25519, SignatureScheme::ECDSA_NISTP256_SHA256]
        }
    }
}

fn client(alpn: &[u8]) -> rustls::ClientConfig {
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(std::sync::Arc::new(anything::Goes))
        .with_no_client_auth();
    config.alpn_protocols = vec![alpn.to_vec()];
    config
}

#[test]
fn peer_without_certificates_or_protocol_receives_the_matching_alert() {
    let acceptor = Rig::start(1);
    let error = dial_without_node(client(b"pk/1"), acceptor.addr);
    assert_eq!(code(&error), 0x100 + 116, "certificate_required: {error}");
    let error = dial_without_node(client(b"h3"), acceptor.addr);
    assert_eq!(code(&error), 0x100 + 120, "no_application_protocol: {error}");
    acceptor.silence();
}

//! Which peers are accepted: verification of certificates, at both ends.

use bytes::Bytes;
use data_encoding::HEXLOWER;
use pk_proto::{DialFailure, Dialect, DisconnectReason, Identity, Input, NodeId, Side};
use tokio::time::timeout;

use super::{PATIENCE, Rig, Setup};
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

/// What a dialer sees when the acceptor refuses its certificates.
async fn refused(setup: Setup) -> String {
    let mut acceptor = Rig::start(100).await;
    let mut dialer = setup.start().await;
    dialer.dial(acceptor.addr, &[acceptor.id]).await;
    // TLS 1.3: the dialer completes before the acceptor has verified it.
    let why = match dialer.input().await {
        Input::DialFailed { why, .. } => why.to_string(),
        Input::Connected(_) => match dialer.input().await {
            Input::Disconnected { why: DisconnectReason::Transport(why), .. } => why,
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    };
    acceptor.silence().await;
    acceptor
        .metrics(|metrics| metrics.handshakes_failed == 1 && metrics.handshakes_pending == 0)
        .await;
    why
}

/// The result of a dialer's verification of an acceptor's certificates.
async fn judged(setup: Setup, expect: NodeId) -> DialFailure {
    let mut acceptor = setup.start().await;
    let mut dialer = Rig::start(100).await;
    dialer.dial(acceptor.addr, &[expect]).await;
    let why = dialer.dial_failed().await;
    acceptor.silence().await;
    acceptor.metrics(|metrics| metrics.handshakes_failed == 1).await;
    why
}

#[tokio::test]
async fn both_ends_know_each_other_and_name_the_connection_equally() {
    let (mut a, mut b) = (Rig::start(1).await, Rig::start(2).await);
    let conn = a.dial(b.addr, &[id(50), b.id]).await;
    let (ours, theirs) = tokio::join!(a.connected(), b.connected());
    assert_eq!((ours.conn, ours.side, ours.dialect), (conn, Side::Dialer, Dialect::Native));
    assert_eq!((ours.leaf, ours.matched_id, &ours.chain[..]), (b.id, Some(b.id), &[b.id][..]));
    assert_eq!((theirs.side, theirs.leaf, theirs.matched_id), (Side::Acceptor, a.id, None));
    assert!(ours.conn.is_ours() && !theirs.conn.is_ours());
    assert_eq!((ours.shared_id.len(), &ours.shared_id), (32, &theirs.shared_id));
    assert_eq!((ours.remote, theirs.remote), (b.addr, a.addr));
    assert_eq!((ours.local, theirs.local), (a.addr, b.addr));
}

#[tokio::test]
async fn a_dialer_takes_nobody_else() {
    let mut acceptor = Rig::start(2).await;
    let mut dialer = Rig::start(1).await;
    dialer.dial(acceptor.addr, &[id(3)]).await;
    let why = dialer.dial_failed().await;
    assert_eq!(why.to_string(), "certificate: the peer is none of the expected nodes");
    acceptor.silence().await;
}

#[tokio::test]
async fn a_renewed_node_is_found_under_its_old_ids() {
    let chain = ["c3_issuedBy2", "c2_issuedBy1", "c1_self"];
    for (expect, who) in [(id(1), 1), (id(2), 2), (id(3), 3)] {
        let acceptor = presenting(3, &chain).start().await;
        let mut dialer = Rig::start(100).await;
        dialer.dial(acceptor.addr, &[expect]).await;
        let connected = dialer.connected().await;
        assert_eq!(
            (connected.leaf, connected.matched_id),
            (id(3), Some(expect)),
            "asked for {who}"
        );
        assert_eq!(connected.chain, [id(3), id(2), id(1)]);
    }
    let mut acceptor = Rig::start(100).await;
    let mut dialer = presenting(3, &chain).start().await;
    dialer.dial(acceptor.addr, &[acceptor.id]).await;
    assert_eq!(acceptor.connected().await.chain, [id(3), id(2), id(1)]);
}

#[tokio::test]
async fn the_name_of_somebody_else_is_refused_in_both_directions() {
    // The reference accepts this one: key 8 with the name of node 7 (docs/WIRE.md section 3.4).
    let why = judged(presenting(8, &["foreignCN"]), id(7)).await;
    assert!(
        matches!(&why, DialFailure::Certificate(why) if why.contains("has the subject name")),
        "{why}"
    );
    let why = refused(presenting(8, &["foreignCN"])).await;
    assert!(why.contains("42"), "bad_certificate: {why}");
}

#[tokio::test]
async fn the_certificate_of_somebody_else_is_refused_in_both_directions() {
    // A valid certificate of node 1, presented by a peer with another key.
    let stolen = || Setup { identity: Setup::new(1).identity, ..Setup::new(9) };
    let why = judged(stolen(), id(1)).await;
    assert!(matches!(&why, DialFailure::Transport(_)), "{why}");
    let why = refused(stolen()).await;
    assert!(why.contains("51"), "decrypt_error: {why}");
}

#[tokio::test]
async fn expired_and_unsigned_certificates_are_refused_in_both_directions() {
    let why = judged(presenting(4, &["expired_self"]), id(4)).await;
    assert!(matches!(&why, DialFailure::Certificate(why) if why.contains("expired")), "{why}");
    let why = refused(presenting(4, &["expired_self"])).await;
    assert!(why.contains("45"), "certificate_expired: {why}");
    let why = judged(presenting(6, &["noNodeSignature"]), id(6)).await;
    assert!(
        matches!(&why, DialFailure::Certificate(why) if why.contains("no node signature")),
        "{why}"
    );
    let why = refused(presenting(6, &["noNodeSignature"])).await;
    assert!(why.contains("42"), "bad_certificate: {why}");
}

#[tokio::test]
async fn a_replaced_identity_is_presented_from_then_on_and_connections_stay() {
    let (mut a, mut b) = (Rig::start(1).await, Rig::start(2).await);
    let (old, _) = a.connect(&mut b).await;
    let next = KeyPair::from_seed(&[3; 32]);
    let identity = create_identity(&next, pk_host::unix()).unwrap();
    let replace = pk_proto::Output::ReplaceIdentity { id: pk_proto::EffectId(0), identity };
    b.output(replace.clone()).await;
    let Input::IdentityReplaced { result: Err(error), .. } = b.input().await else {
        panic!("there is no key yet")
    };
    assert!(error.contains(&next.node_id().to_string()), "{error}");

    b.handle.call(move |_, cx, _| cx.keys.add(next)).await.unwrap();
    b.output(replace).await;
    assert_eq!(
        b.input().await,
        Input::IdentityReplaced { id: pk_proto::EffectId(0), result: Ok(()) }
    );
    a.dial(b.addr, &[id(3)]).await;
    assert_eq!(a.connected().await.leaf, id(3));
    a.output(pk_proto::Output::CloseConnection { conn: old, code: 0, reason: String::new() }).await;
    assert_eq!(a.input().await, Input::Disconnected { conn: old, why: DisconnectReason::Local });
}

/// A QUIC client that is not a node.
async fn stranger(tls: rustls::ClientConfig, addr: std::net::SocketAddr) -> quinn::ConnectionError {
    let mut endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    let tls = quinn::crypto::rustls::QuicClientConfig::try_from(tls).unwrap();
    endpoint.set_default_client_config(quinn::ClientConfig::new(std::sync::Arc::new(tls)));
    let connecting = endpoint.connect(addr, "polykey").unwrap();
    match timeout(PATIENCE, connecting).await.unwrap() {
        Ok(connection) => timeout(PATIENCE, connection.closed()).await.unwrap(),
        Err(error) => error,
    }
}

fn code(error: &quinn::ConnectionError) -> u64 {
    match error {
        quinn::ConnectionError::ConnectionClosed(close) => close.error_code.into(),
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

#[tokio::test]
async fn a_peer_without_certificates_or_protocol_is_told_so() {
    let mut acceptor = Rig::start(1).await;
    let error = stranger(client(b"pk/1"), acceptor.addr).await;
    assert_eq!(code(&error), 0x100 + 116, "certificate_required: {error}");
    let error = stranger(client(b"h3"), acceptor.addr).await;
    assert_eq!(code(&error), 0x100 + 120, "no_application_protocol: {error}");
    acceptor.silence().await;
}

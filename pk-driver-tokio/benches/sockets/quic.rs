//! The same work over bare quinn: mutual authentication with Ed25519 certificates, which are only
//! checked for their signature, and one stream for each request.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use pk_driver_tokio::{KeyPair, create_identity, unix_now};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{ClientConfig, Connection, Endpoint, ServerConfig, TransportConfig, VarInt};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, Error, SignatureScheme, version::TLS13};

/// RFC 8410: an Ed25519 key without its seed.
const PKCS8: [u8; 16] = [48, 46, 2, 1, 0, 48, 5, 6, 3, 43, 101, 112, 4, 34, 4, 32];

pub(crate) struct Quic {
    client: Endpoint,
    addr: SocketAddr,
    connection: Connection,
}

impl Quic {
    pub(crate) async fn start() -> Self {
        let addr = serve();
        let client = endpoint(2, None);
        let connection = client.connect(addr, "polykey").unwrap().await.unwrap();
        Self { client, addr, connection }
    }

    /// Requests of 32 bytes whose answers have `answer` bytes.
    pub(crate) async fn echoes(&self, count: usize, answer: usize) {
        for _ in 0..count {
            request(&self.connection, answer).await;
        }
    }

    pub(crate) async fn parallel(&self, tasks: usize, each: usize) {
        let tasks: Vec<_> = (0..tasks)
            .map(|_| {
                let connection = self.connection.clone();
                tokio::spawn(async move {
                    for _ in 0..each {
                        request(&connection, 32).await;
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
    }

    pub(crate) async fn connects(&self, count: usize) {
        for _ in 0..count {
            let connection = self.client.connect(self.addr, "polykey").unwrap().await.unwrap();
            request(&connection, 32).await;
            connection.close(VarInt::from_u32(0), b"");
        }
    }

    pub(crate) async fn bulk(&self, bytes: usize) {
        let (mut send, mut recv) = self.connection.open_bi().await.unwrap();
        let chunk = vec![7; 64 * 1024];
        send.write_all(&u64::MAX.to_le_bytes()).await.unwrap();
        for _ in 0..bytes / chunk.len() {
            send.write_all(&chunk).await.unwrap();
        }
        send.finish().unwrap();
        let answer = recv.read_to_end(8).await.unwrap();
        assert_eq!(answer, (bytes as u64).to_le_bytes());
    }
}

async fn request(connection: &Connection, answer: usize) {
    let (mut send, mut recv) = connection.open_bi().await.unwrap();
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&(answer as u64).to_le_bytes());
    send.write_all(&bytes).await.unwrap();
    send.finish().unwrap();
    assert_eq!(recv.read_to_end(1 << 20).await.unwrap().len(), answer);
}

/// Starts a server that answers each stream, and returns its address.
pub(crate) fn serve() -> SocketAddr {
    let identity = tls(1);
    let mut server = rustls::ServerConfig::builder_with_provider(identity.provider.clone())
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .with_client_cert_verifier(Arc::new(AnyPeer(identity.provider.clone())))
        .with_single_cert(identity.chain, identity.key)
        .unwrap();
    server.send_tls13_tickets = 0;
    let tls = Arc::new(QuicServerConfig::try_from(server).unwrap());
    let mut server = ServerConfig::with_crypto(tls);
    server.transport_config(transport());
    let endpoint = endpoint(1, Some(server));
    let addr = endpoint.local_addr().unwrap();
    tokio::spawn(async move {
        while let Some(incoming) = endpoint.accept().await {
            tokio::spawn(async move {
                let connection = incoming.await.unwrap();
                while let Ok((send, recv)) = connection.accept_bi().await {
                    tokio::spawn(answer(send, recv));
                }
            });
        }
    });
    addr
}

async fn answer(mut send: quinn::SendStream, mut recv: quinn::RecvStream) {
    let mut wanted = [0; 8];
    recv.read_exact(&mut wanted).await.unwrap();
    let wanted = u64::from_le_bytes(wanted);
    let mut all = 0;
    while let Some(chunk) = recv.read_chunk(1 << 20, true).await.unwrap() {
        all += chunk.bytes.len() as u64;
    }
    let bytes = match wanted {
        u64::MAX => all.to_le_bytes().to_vec(),
        _ => vec![0; usize::try_from(wanted).unwrap()],
    };
    send.write_all(&bytes).await.unwrap();
    let _ = send.finish();
}

/// Returns an endpoint that dials, and accepts if it is a server.
pub(crate) fn endpoint(seed: u8, server: Option<ServerConfig>) -> Endpoint {
    let any = "127.0.0.1:0".parse().unwrap();
    let mut endpoint = match server {
        Some(server) => Endpoint::server(server, any).unwrap(),
        None => Endpoint::client(any).unwrap(),
    };
    let identity = tls(seed);
    let client = rustls::ClientConfig::builder_with_provider(identity.provider.clone())
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyPeer(identity.provider.clone())))
        .with_client_auth_cert(identity.chain, identity.key)
        .unwrap();
    let mut client = ClientConfig::new(Arc::new(QuicClientConfig::try_from(client).unwrap()));
    client.transport_config(transport());
    endpoint.set_default_client_config(client);
    endpoint
}

/// The windows, intervals and limits of a node.
fn transport() -> Arc<TransportConfig> {
    let mut config = TransportConfig::default();
    config
        .max_concurrent_bidi_streams(VarInt::from_u32(100))
        .stream_receive_window(VarInt::from_u32(3 * 512 * 1024))
        .receive_window(VarInt::from_u32(4 * 1024 * 1024))
        .send_window(8 * 1024 * 1024)
        .keep_alive_interval(Some(Duration::from_secs(10)));
    Arc::new(config)
}

struct Identity {
    provider: Arc<CryptoProvider>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

fn tls(seed: u8) -> Identity {
    let key = KeyPair::from_seed(&[seed; 32]);
    let identity = create_identity(&key, unix_now()).unwrap();
    let chain = identity.chain.iter().map(|cert| cert.to_vec().into()).collect();
    let key = PrivatePkcs8KeyDer::from([&PKCS8[..], &*key.seed()].concat()).into();
    Identity { provider: Arc::new(ring::default_provider()), chain, key }
}

/// Accepts every peer that has the key of its certificate.
#[derive(Debug)]
struct AnyPeer(Arc<CryptoProvider>);

impl AnyPeer {
    fn verify(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, signed, &self.0.signature_verification_algorithms)
    }
}

impl ServerCertVerifier for AnyPeer {
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
        Err(Error::General("TLS 1.2".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verify(message, cert, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

impl ClientCertVerifier for AnyPeer {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verify(message, cert, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

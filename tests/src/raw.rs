//! Peers built directly on quinn and rustls, which verify nothing and follow no protocol.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use pk_driver::Runtime;
use pk_proto::Dialect;
use pk_proto::native::{Hello, Message, V1, encode};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{
    Connection, ConnectionError, Endpoint, EndpointConfig, RecvStream, SendStream, TransportConfig,
};
use rustls::client::ResolvesClientCert;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::ring::{default_provider, sign::any_eddsa_type};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};

use crate::certs::Presented;
use crate::socket::{Deaf, loopback};

/// The PKCS#8 prefix of a 32-byte seed.
const PKCS8_PREFIX: [u8; 16] =
    [0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];

/// The ALPN of `pk/1`.
pub const NATIVE: &[u8] = Dialect::Native.alpn();

/// QUIC parameters that do not limit a hostile peer.
pub fn transport() -> TransportConfig {
    let mut transport = TransportConfig::default();
    transport.keep_alive_interval(Some(Duration::from_millis(200)));
    transport
}

/// A dialer that accepts any server. `presented`: its certificates, if any.
pub fn client(
    presented: Option<&Presented>,
    alpn: &[&[u8]],
    transport: TransportConfig,
) -> quinn::ClientConfig {
    let builder = rustls::ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("ring has TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AcceptAll { refuse: false }));
    let mut tls = match presented {
        Some(presented) => builder.with_client_cert_resolver(Arc::new(Resolver::new(presented))),
        None => builder.with_no_client_auth(),
    };
    tls.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    let mut config =
        quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).expect("TLS 1.3 it is")));
    config.transport_config(Arc::new(transport));
    config
}

/// A dialer with a valid certificate.
pub fn valid_client(presented: &Presented) -> quinn::ClientConfig {
    client(Some(presented), &[NATIVE], transport())
}

/// An acceptor. `refuse`: whether it refuses every certificate, after the handshake has completed
/// for the dialer.
pub fn server(presented: &Presented, alpn: &[&[u8]], refuse: bool) -> quinn::ServerConfig {
    let mut tls = rustls::ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("ring has TLS 1.3")
        .with_client_cert_verifier(Arc::new(AcceptAll { refuse }))
        .with_cert_resolver(Arc::new(Resolver::new(presented)));
    tls.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(
        QuicServerConfig::try_from(tls).expect("TLS 1.3 it is"),
    ));
    config.transport_config(Arc::new(transport()));
    config
}

/// An endpoint on a free port of 127.0.0.1.
pub fn endpoint<R: Runtime>(runtime: &R, server: Option<quinn::ServerConfig>) -> Endpoint {
    let socket = std::net::UdpSocket::bind(loopback()).expect("there is a free port");
    Endpoint::new(EndpointConfig::default(), server, socket, runtime.quinn())
        .expect("the socket is good")
}

/// An endpoint that receives no answers, on a free port of this address.
pub fn deaf_endpoint<R: Runtime>(runtime: &R, from: std::net::IpAddr) -> Endpoint {
    let socket = std::net::UdpSocket::bind((from, 0)).expect("there is a free port");
    let quinn = runtime.quinn();
    let socket = Arc::new(Deaf(quinn.wrap_udp_socket(socket).expect("the socket is good")));
    Endpoint::new_with_abstract_socket(EndpointConfig::default(), None, socket, quinn)
        .expect("the socket is good")
}

/// A handshake with a node.
///
/// # Errors
///
/// Those of quinn. A success does not mean acceptance: the node may not have verified the
/// certificates yet.
pub async fn dial(
    endpoint: &Endpoint,
    config: quinn::ClientConfig,
    addr: SocketAddr,
) -> Result<Connection, ConnectionError> {
    endpoint.connect_with(config, addr, "polykey").expect("the address can be dialed").await
}

/// A frame with a Hello.
pub fn hello() -> Bytes {
    let hello = Hello { version_min: 1, version_max: 1, features: 0, agent: "raw".to_owned() };
    frame(V1::Hello(hello))
}

/// A frame with a message.
pub fn frame(message: V1) -> Bytes {
    encode(&Message::V1(message)).expect("the message is one of the protocol")
}

/// Sends Hello as a dialer, and waits for the answer. The caller must keep the control stream.
///
/// # Errors
///
/// The connection was lost, or the answer is not a Hello.
pub async fn greet(connection: &Connection) -> Result<(SendStream, RecvStream), String> {
    let (mut send, mut recv) = connection.open_bi().await.map_err(|error| error.to_string())?;
    send.write_all(&hello()).await.map_err(|error| error.to_string())?;
    let mut header = [0; 4];
    recv.read_exact(&mut header).await.map_err(|error| error.to_string())?;
    let mut payload = vec![0; u32::from_be_bytes(header) as usize];
    recv.read_exact(&mut payload).await.map_err(|error| error.to_string())?;
    match pk_proto::native::decode(&payload) {
        Ok(Message::V1(V1::Hello(_))) => Ok((send, recv)),
        other => Err(format!("no Hello but {other:?}")),
    }
}

/// The application code with which a connection was closed by its peer.
pub fn close_code(error: &ConnectionError) -> Option<u64> {
    match error {
        ConnectionError::ApplicationClosed(close) => Some(close.error_code.into_inner()),
        _ => None,
    }
}

/// The TLS alert with which a handshake was refused by the peer.
pub fn alert(error: &ConnectionError) -> Option<u64> {
    match error {
        ConnectionError::ConnectionClosed(close) => u64::from(close.error_code).checked_sub(0x100),
        _ => None,
    }
}

#[derive(Debug)]
struct Resolver(Arc<CertifiedKey>);

impl Resolver {
    fn new(presented: &Presented) -> Self {
        let pkcs8 = [&PKCS8_PREFIX[..], presented.key.seed().as_ref()].concat();
        let key = any_eddsa_type(&PrivatePkcs8KeyDer::from(pkcs8)).expect("it is an Ed25519 key");
        let chain = presented.chain.iter().map(|der| CertificateDer::from(der.clone())).collect();
        Self(Arc::new(CertifiedKey::new(chain, key)))
    }
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
}

impl ResolvesClientCert for Resolver {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// Accepts every certificate, or none.
#[derive(Debug)]
struct AcceptAll {
    refuse: bool,
}

impl ServerCertVerifier for AcceptAll {
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
        vec![SignatureScheme::ED25519]
    }
}

impl ClientCertVerifier for AcceptAll {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        match self.refuse {
            true => Err(Error::InvalidCertificate(CertificateError::Revoked)),
            false => Ok(ClientCertVerified::assertion()),
        }
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
        vec![SignatureScheme::ED25519]
    }
}

//! TLS as Polykey uses it (docs/WIRE.md section 3): version 1.3, Ed25519 only, certificates on both
//! sides, no authority.
//!
//! rustls is configured without tickets, resumption, early data and SNI. [`pk_proto::cert`]
//! verifies the peer; the verdict is stored in a slot per handshake, which is the only source of
//! the peer's identity.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use pk_host::KeyPair;
use pk_proto::cert::{CertificateFault, KnownSignatures, Verified};
use pk_proto::{Dialect, Identity, NodeId};
use quinn_proto::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::crypto::CryptoProvider;
use rustls::crypto::ring::{cipher_suite, default_provider, kx_group};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::{CertifiedKey, Signer, SigningKey};
use rustls::time_provider::TimeProvider;
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, PeerIncompatible,
    SignatureAlgorithm, SignatureScheme,
};

use crate::simulation::TlsRandom;

/// Server name that `connect_with` requires. It is not sent, because SNI is off.
pub const SERVER_NAME: &str = "polykey";

/// Signatures of certificates that are remembered: those of as many nodes, if each has one
/// certificate.
const KNOWN: usize = 1024;

/// Result of the verification of the peer in a handshake; empty until the peer has presented its
/// certificates.
#[derive(Debug, Clone, Default)]
pub struct TlsVerdict(Arc<OnceLock<Result<Verified, CertificateFault>>>);

impl TlsVerdict {
    /// Returns the result, if there is one.
    pub fn get(&self) -> Option<&Result<Verified, CertificateFault>> {
        self.0.get()
    }

    fn set(&self, verdict: Result<Verified, CertificateFault>) -> Result<(), Error> {
        let result = match &verdict {
            Ok(_) => Ok(()),
            Err(fault) => Err(refusal(fault)),
        };
        // A handshake presents certificates once. If it did so twice, the first verdict would
        // remain and the second call fail.
        self.0
            .set(verdict)
            .map_err(|_| Error::General("certificates were presented twice".to_owned()))?;
        result
    }
}

/// The identity that this node presents in handshakes, and the factories of TLS configurations.
#[derive(Debug, Clone)]
pub struct Tls {
    provider: Arc<CryptoProvider>,
    identity: Arc<Presented>,
    /// Names of the dialects, the preferred one first: the order of the acceptor decides.
    alpn: Vec<Vec<u8>>,
    clock: Arc<dyn TimeProvider>,
    known: Arc<Mutex<KnownSignatures>>,
}

impl Tls {
    /// `key` must be the key of the first certificate. `dialects` are offered and accepted.
    /// `clock` judges the validity of certificates.
    pub fn new(
        identity: &Identity,
        key: &KeyPair,
        dialects: &[Dialect],
        clock: Arc<dyn TimeProvider>,
    ) -> Self {
        let mut provider = default_provider();
        // AES-128-GCM must stay: QUIC protects its first packets with it (RFC 9001 section 5.2).
        provider.cipher_suites = vec![
            cipher_suite::TLS13_AES_128_GCM_SHA256,
            cipher_suite::TLS13_AES_256_GCM_SHA384,
            cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        ];
        provider.kx_groups = vec![kx_group::X25519, kx_group::SECP256R1];
        let chain = identity.chain.iter().map(|der| CertificateDer::from(der.to_vec())).collect();
        let key = Arc::new(CertifiedKey::new(chain, Arc::new(TlsKey(key.clone()))));
        let alpn = dialects.iter().map(|dialect| dialect.alpn().to_vec()).collect();
        Self {
            provider: Arc::new(provider),
            identity: Arc::new(Presented(key)),
            alpn,
            clock,
            known: Arc::new(Mutex::new(KnownSignatures::new(KNOWN))),
        }
    }

    fn verifier(&self, expect: Option<Vec<NodeId>>, verdict: &TlsVerdict) -> Arc<Verifier> {
        let known = Arc::clone(&self.known);
        Arc::new(Verifier { expect, verdict: verdict.clone(), known })
    }

    /// Takes random numbers and key exchanges from a simulator.
    #[must_use]
    pub fn with_random(mut self, random: TlsRandom) -> Self {
        let provider = Arc::make_mut(&mut self.provider);
        provider.secure_random = random.numbers;
        provider.kx_groups = vec![random.exchange];
        self
    }

    /// Returns the configuration of an outgoing handshake, with a node that proves one of `expect`.
    ///
    /// # Errors
    ///
    /// rustls refuses the configuration.
    pub fn client(
        &self,
        expect: Vec<NodeId>,
    ) -> Result<(Arc<QuicClientConfig>, TlsVerdict), String> {
        let verdict = TlsVerdict::default();
        let verifier = self.verifier(Some(expect), &verdict);
        let mut config = rustls::ClientConfig::builder_with_details(
            Arc::clone(&self.provider),
            Arc::clone(&self.clock),
        )
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(text)?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_cert_resolver(Arc::clone(&self.identity) as _);
        config.alpn_protocols = self.alpn.clone();
        config.resumption = Resumption::disabled();
        config.enable_early_data = false;
        config.enable_sni = false;
        Ok((Arc::new(QuicClientConfig::try_from(config).map_err(text)?), verdict))
    }

    /// Returns the configuration of an incoming handshake.
    ///
    /// # Errors
    ///
    /// rustls refuses the configuration.
    pub fn server(&self) -> Result<(Arc<QuicServerConfig>, TlsVerdict), String> {
        let verdict = TlsVerdict::default();
        let verifier = self.verifier(None, &verdict);
        let mut config = rustls::ServerConfig::builder_with_details(
            Arc::clone(&self.provider),
            Arc::clone(&self.clock),
        )
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(text)?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::clone(&self.identity) as _);
        config.alpn_protocols = self.alpn.clone();
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        config.max_early_data_size = 0;
        Ok((Arc::new(QuicServerConfig::try_from(config).map_err(text)?), verdict))
    }
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// Verifies the certificates of one peer.
#[derive(Debug)]
struct Verifier {
    /// Ids that were dialed; `None` for an incoming handshake.
    expect: Option<Vec<NodeId>>,
    verdict: TlsVerdict,
    known: Arc<Mutex<KnownSignatures>>,
}

impl Verifier {
    fn judge(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Error> {
        let chain: Vec<&[u8]> = std::iter::once(leaf).chain(rest).map(AsRef::as_ref).collect();
        // It has no invariant that a panic could break.
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        self.verdict.set(match &self.expect {
            Some(expect) => known.verify_server(&chain, expect, now.as_secs()),
            None => known.verify_client(&chain, now.as_secs()),
        })
    }

    /// Verifies that the peer holds the key of its newest certificate, by the common rule of
    /// signature validity.
    fn signed(
        &self,
        message: &[u8],
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let invalid = || Error::InvalidCertificate(CertificateError::BadSignature);
        let Some(Ok(verified)) = self.verdict.get() else { return Err(invalid()) };
        let signature = <&[u8; 64]>::try_from(dss.signature()).map_err(|_| invalid())?;
        if dss.scheme != SignatureScheme::ED25519 {
            return Err(invalid());
        }
        pk_proto::verify(&verified.leaf, message, signature).map_err(|_| invalid())?;
        Ok(HandshakeSignatureValid::assertion())
    }
}

/// Maps a fault to the alert of docs/WIRE.md section 3.4, through the error that rustls translates
/// into it.
fn refusal(fault: &CertificateFault) -> Error {
    match fault.alert() {
        45 => Error::InvalidCertificate(CertificateError::Expired),
        116 => Error::NoCertificatesPresented,
        _ => Error::InvalidCertificate(CertificateError::BadEncoding),
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.judge(leaf, rest, now).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(PeerIncompatible::ServerDoesNotSupportTls12Or13.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        _: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signed(message, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

impl ClientCertVerifier for Verifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.judge(leaf, rest, now).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(PeerIncompatible::Tls12NotOffered.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        _: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signed(message, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

/// The identity that is presented to every peer.
#[derive(Debug)]
struct Presented(Arc<CertifiedKey>);

impl ResolvesServerCert for Presented {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
}

impl ResolvesClientCert for Presented {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// The node's key as a rustls signing key, so that there is no second copy of the secret.
#[derive(Debug, Clone)]
struct TlsKey(KeyPair);

impl SigningKey for TlsKey {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        offered
            .contains(&SignatureScheme::ED25519)
            .then(|| Box::new(self.clone()) as Box<dyn Signer>)
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        SignatureAlgorithm::ED25519
    }
}

impl Signer for TlsKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Error> {
        Ok(self.0.sign(message).0.to_vec())
    }

    fn scheme(&self) -> SignatureScheme {
        SignatureScheme::ED25519
    }
}

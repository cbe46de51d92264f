//! Why a certificate or a chain is refused, and what the peer is told.

use serde::{Deserialize, Serialize};

use super::{MAX_CERTIFICATE_LEN, MAX_CHAIN_LEN};
use crate::{NodeId, SignatureFault};

/// Why a certificate or a chain of certificates is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
#[non_exhaustive]
pub enum CertificateFault {
    /// The peer presented no certificate.
    #[error("the peer presented no certificate")]
    Missing,
    /// The chain has more than [`MAX_CHAIN_LEN`] certificates. None was looked at.
    #[error("the chain has {0} certificates, more than {MAX_CHAIN_LEN}")]
    ChainTooLong(u32),
    /// A certificate has more than [`MAX_CERTIFICATE_LEN`] bytes. It was not looked at.
    #[error("a certificate has {0} bytes, more than {MAX_CERTIFICATE_LEN}")]
    TooLarge(u32),
    /// Not the DER of an X.509 v3 certificate with the members that Polykey's have.
    #[error("a certificate is not DER of the form that Polykey uses")]
    Malformed,
    /// The key or the signature algorithm is not Ed25519.
    #[error("a certificate's key or signature is not Ed25519")]
    NotEd25519,
    /// The subject has no CN, one that is no node id, or several that differ.
    #[error("a certificate's subject is not the name of one node")]
    NoNodeId,
    /// The subject names another node than the one whose key it is. The reference forgets this check, so that anyone can be anyone.
    #[error("a certificate for the key of {key} claims the name of {name}")]
    ForeignName {
        /// The node that the subject names.
        name: NodeId,
        /// The node whose key the certificate is for.
        key: NodeId,
    },
    /// The certificate is not valid yet.
    #[error("a certificate is not valid before unix second {0}")]
    NotYetValid(u64),
    /// The certificate is not valid any more.
    #[error("a certificate expired after unix second {0}")]
    Expired(u64),
    /// The certificate has no signature by its own key.
    #[error("a certificate has no node signature")]
    NoNodeSignature,
    /// The signature by the certificate's own key is not valid.
    #[error("a certificate's node signature: {0}")]
    NodeSignature(#[source] SignatureFault),
    /// A certificate names another issuer than the subject of the next one in the chain.
    #[error("a certificate's issuer is not the subject of the next certificate")]
    IssuerName,
    /// The signature by the key of the next certificate in the chain is not valid.
    #[error("a certificate's issuer signature: {0}")]
    IssuerSignature(#[source] SignatureFault),
    /// No certificate of the chain is of a node that was asked for.
    #[error("the peer is none of the nodes that were asked for")]
    NotAsked,
}

impl CertificateFault {
    /// The TLS alert that the peer gets: 42 `bad_certificate`, 45 `certificate_expired` or 116 `certificate_required`
    /// (WIRE.md section 3.4).
    pub const fn alert(&self) -> u8 {
        match self {
            Self::Missing => 116,
            Self::NotYetValid(_) | Self::Expired(_) => 45,
            _ => 42,
        }
    }

    /// The code of the QUIC CONNECTION_CLOSE that the peer gets: `CRYPTO_ERROR`, 0x100 + [`alert`](Self::alert).
    pub const fn quic_code(&self) -> u64 {
        0x100 + self.alert() as u64
    }
}

//! Reasons to refuse a certificate or a chain, and the alerts sent to the peer.

use serde::{Deserialize, Serialize};

use crate::types::id::NodeId;
use crate::types::signature::SignatureFault;
use crate::types::time::UnixMillis;

/// Why a certificate or a chain of certificates is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
#[non_exhaustive]
pub enum CertificateFault {
    /// The peer presented no certificate.
    #[error("the peer presented no certificate")]
    Missing,
    /// The chain has more than [`MAX_CHAIN_LEN`] certificates. None was parsed.
    #[error("the chain has {0} certificates, more than {MAX_CHAIN_LEN}")]
    ChainTooLong(u32),
    /// A certificate has more than [`MAX_CERTIFICATE_LEN`] bytes. It was not parsed.
    #[error("a certificate has {0} bytes, more than {MAX_CERTIFICATE_LEN}")]
    TooLarge(u32),
    /// It is not the DER of an X.509 v3 certificate with the members of Polykey's.
    #[error("a certificate is not DER in the form that Polykey uses")]
    Malformed,
    /// The key or the signature algorithm is not Ed25519.
    #[error("a certificate's key or signature is not Ed25519")]
    NotEd25519,
    /// The subject has no CN, one that is not a node id, or several that differ.
    #[error("a certificate's subject name is not a node id")]
    NoNodeId,
    /// The subject name is the id of another node than that of the key. The reference does not
    /// check this, so that a peer can claim any id.
    #[error("a certificate for the key of {key} has the subject name {name}")]
    ForeignName {
        /// Node id in the subject name.
        name: NodeId,
        /// Node id of the key.
        key: NodeId,
    },
    /// The certificate is not valid yet, by the clock of the verifier.
    #[error(
        "a certificate is not valid before {}; the clock of this node reads {}: it or the \
         clock of the issuer may be wrong",
        date(*not_before), date(*now)
    )]
    NotYetValid {
        /// First unix second of its validity.
        not_before: u64,
        /// Unix second at which it was verified.
        now: u64,
    },
    /// The certificate has expired, by the clock of the verifier.
    #[error(
        "a certificate expired after {}; the clock of this node reads {}: it or the \
         clock of the issuer may be wrong",
        date(*not_after), date(*now)
    )]
    Expired {
        /// Last unix second of its validity.
        not_after: u64,
        /// Unix second at which it was verified.
        now: u64,
    },
    /// The certificate has no signature by its own key.
    #[error("a certificate has no node signature")]
    NoNodeSignature,
    /// The signature by the certificate's own key is invalid.
    #[error("a certificate's node signature: {0}")]
    NodeSignature(#[source] SignatureFault),
    /// A certificate has another issuer name than the subject name of the next one in the chain.
    #[error("a certificate's issuer is not the subject of the next certificate")]
    IssuerName,
    /// The signature by the key of the next certificate in the chain is invalid.
    #[error("a certificate's issuer signature: {0}")]
    IssuerSignature(#[source] SignatureFault),
    /// No certificate of the chain belongs to an expected node.
    #[error("the peer is none of the expected nodes")]
    NotAsked,
}

impl CertificateFault {
    /// Returns whether the certificate is refused only because of the time, so that a clock may be
    /// wrong.
    pub const fn is_of_time(&self) -> bool {
        matches!(self, Self::NotYetValid { .. } | Self::Expired { .. })
    }

    /// Returns the TLS alert for the peer: 42 `bad_certificate`, 45 `certificate_expired` or 116
    /// `certificate_required` (docs/WIRE.md section 3.4).
    pub const fn alert(&self) -> u8 {
        match self {
            Self::Missing => 116,
            Self::NotYetValid { .. } | Self::Expired { .. } => 45,
            _ => 42,
        }
    }

    /// Returns the code of the QUIC CONNECTION_CLOSE for the peer: `CRYPTO_ERROR`, 0x100 +
    /// [`alert`](Self::alert).
    pub const fn quic_code(&self) -> u64 {
        0x100 + self.alert() as u64
    }
}

fn date(secs: u64) -> UnixMillis {
    UnixMillis::from_secs(secs)
}

/// Maximum length of a certificate, in bytes of DER. Polykey's have about 720.
pub const MAX_CERTIFICATE_LEN: usize = 8 * 1024;

/// Maximum length of a chain, in certificates: one per renewal that a peer still presents.
///
/// Verifying a chain takes less than two signature verifications per certificate.
pub const MAX_CHAIN_LEN: usize = 32;

//! Parsing one certificate.

use alloc::boxed::Box;

use der::{Decode, Encode};
use x509_cert::Version;
use x509_cert::time::Time;

use super::asn1::{Signed, is_ed25519};
use super::fault::MAX_CERTIFICATE_LEN;
use super::{CertId, CertificateFault, name};
use crate::types::id::NodeId;
use crate::types::signature;

/// A certificate whose subject name is the id of its own key.
///
/// Parsing shows only that. The two `verify` methods check that the key has signed it, and who
/// issued it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    der: Box<[u8]>,
    signed: Signed,
    node_id: NodeId,
    node_signature: Option<[u8; 64]>,
}

impl Certificate {
    /// Parses the DER of a certificate.
    ///
    /// # Errors
    ///
    /// - [`TooLarge`](CertificateFault::TooLarge) before anything is parsed,
    /// - [`Malformed`](CertificateFault::Malformed) for anything that is not the one DER encoding
    ///   of its content, lacks a member or has one that Polykey's certificates do not have (unique
    ///   ids), or has a malformed or repeated node signature,
    /// - [`NotEd25519`](CertificateFault::NotEd25519), [`NoNodeId`](CertificateFault::NoNodeId),
    /// - [`ForeignName`](CertificateFault::ForeignName) if the CN is not the certificate's own key.
    pub fn parse(der: &[u8]) -> Result<Self, CertificateFault> {
        Unnamed::parse(der)?.into_named()
    }

    /// Returns the DER that it was parsed from.
    pub fn as_der(&self) -> &[u8] {
        &self.der
    }

    /// Returns the node id: both the CN and the public key.
    pub fn node_id(&self) -> NodeId {
        self.node_id
    }

    /// Returns the node that issued it, by name; `None` if the issuer's name is not a node id.
    pub fn issuer(&self) -> Option<NodeId> {
        name::node_id(&self.signed.tbs.issuer)
    }

    /// Returns the serial number: the content of a DER INTEGER, at most 21 bytes.
    pub fn serial(&self) -> &[u8] {
        self.signed.tbs.serial.as_bytes()
    }

    /// Returns the serial number, if it has the length of a [`CertId`].
    pub fn cert_id(&self) -> Option<CertId> {
        self.serial().try_into().ok().map(CertId::from_bytes)
    }

    /// Returns the first unix second of its validity.
    pub fn not_before(&self) -> u64 {
        unix_seconds(self.signed.tbs.validity.not_before)
    }

    /// Returns the last unix second of its validity.
    pub fn not_after(&self) -> u64 {
        unix_seconds(self.signed.tbs.validity.not_after)
    }

    /// Returns the signature by its own key, if there is one.
    pub fn node_signature(&self) -> Option<&[u8; 64]> {
        self.node_signature.as_ref()
    }

    /// Verifies the signature by its own key (docs/WIRE.md section 3.2).
    ///
    /// # Errors
    ///
    /// [`NoNodeSignature`](CertificateFault::NoNodeSignature),
    /// [`NodeSignature`](CertificateFault::NodeSignature).
    pub fn verify_node_signature(&self) -> Result<(), CertificateFault> {
        let signature = self.node_signature.as_ref().ok_or(CertificateFault::NoNodeSignature)?;
        let message = self
            .signed
            .tbs
            .without_node_signature()
            .to_der()
            .map_err(|_| CertificateFault::Malformed)?;
        signature::verify(&self.node_id, &message, signature)
            .map_err(CertificateFault::NodeSignature)
    }

    /// Verifies that the node of `issuer` issued it.
    ///
    /// # Errors
    ///
    /// [`IssuerName`](CertificateFault::IssuerName),
    /// [`IssuerSignature`](CertificateFault::IssuerSignature).
    pub fn verify_issued_by(&self, issuer: &Self) -> Result<(), CertificateFault> {
        if !name::same(&self.signed.tbs.issuer, &issuer.signed.tbs.subject) {
            return Err(CertificateFault::IssuerName);
        }
        let signature = self.signed.signature().ok_or(CertificateFault::Malformed)?;
        let message = self.signed.tbs.to_der().map_err(|_| CertificateFault::Malformed)?;
        signature::verify(&issuer.node_id, &message, signature)
            .map_err(CertificateFault::IssuerSignature)
    }
}

/// A certificate whose name and key are not checked yet.
///
/// A chain with a malformed certificate is refused as a whole, but expiry is reported before names
/// are checked.
pub(super) struct Unnamed {
    der: Box<[u8]>,
    signed: Signed,
    node_signature: Option<[u8; 64]>,
}

impl Unnamed {
    pub(super) fn parse(der: &[u8]) -> Result<Self, CertificateFault> {
        if der.len() > MAX_CERTIFICATE_LEN {
            return Err(CertificateFault::TooLarge(u32::try_from(der.len()).unwrap_or(u32::MAX)));
        }
        Self::decode(der).ok().flatten().ok_or(CertificateFault::Malformed)
    }

    fn decode(der: &[u8]) -> der::Result<Option<Self>> {
        let signed = Signed::from_der(der)?;
        // The signatures are verified over this encoding, which must therefore equal the received
        // bytes.
        let faithful = signed.to_der()? == der && signed.tbs.version == Version::V3;
        let node_signature = signed.tbs.node_signature()?;
        Ok(faithful.then(|| Self { der: der.into(), signed, node_signature }))
    }

    /// Checks that `now`, in unix seconds, is within the validity.
    pub(super) fn check_validity(&self, now: u64) -> Result<(), CertificateFault> {
        let validity = &self.signed.tbs.validity;
        let (not_before, not_after) =
            (unix_seconds(validity.not_before), unix_seconds(validity.not_after));
        if now < not_before {
            return Err(CertificateFault::NotYetValid { not_before, now });
        }
        if now > not_after {
            return Err(CertificateFault::Expired { not_after, now });
        }
        Ok(())
    }

    /// Checks that it is an Ed25519 certificate whose subject name is the id of its own key.
    pub(super) fn into_named(self) -> Result<Certificate, CertificateFault> {
        let Self { der, signed, node_signature } = self;
        let name = name::node_id(&signed.tbs.subject).ok_or(CertificateFault::NoNodeId)?;
        let key = signed.tbs.node_id().ok_or(CertificateFault::NotEd25519)?;
        if !is_ed25519(&signed.algorithm)
            || !is_ed25519(&signed.tbs.algorithm)
            || signed.signature().is_none()
        {
            return Err(CertificateFault::NotEd25519);
        }
        if name != key {
            return Err(CertificateFault::ForeignName { name, key });
        }
        Ok(Certificate { der, signed, node_id: key, node_signature })
    }
}

fn unix_seconds(time: Time) -> u64 {
    time.to_unix_duration().as_secs()
}

//! Reading one certificate.

use alloc::boxed::Box;

use der::{Decode, Encode};
use x509_cert::Version;
use x509_cert::time::Time;

use super::asn1::{Signed, is_ed25519};
use super::{CertId, CertificateFault, MAX_CERTIFICATE_LEN, name};
use crate::{NodeId, signature};

/// A certificate whose subject is the name of its own key.
///
/// That is all that reading it shows: whether the key agreed and who vouches for it is what the two `verify` methods check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    der: Box<[u8]>,
    signed: Signed,
    node_id: NodeId,
    node_signature: Option<[u8; 64]>,
}

impl Certificate {
    /// Reads the DER of a certificate.
    ///
    /// # Errors
    ///
    /// - [`TooLarge`](CertificateFault::TooLarge) before anything is read,
    /// - [`Malformed`](CertificateFault::Malformed) for anything that is not the one DER encoding of its content, lacks a member or has
    ///   one that Polykey's certificates do not have (unique ids), or has a broken or repeated node signature,
    /// - [`NotEd25519`](CertificateFault::NotEd25519), [`NoNodeId`](CertificateFault::NoNodeId),
    /// - [`ForeignName`](CertificateFault::ForeignName) if the CN is not the certificate's own key.
    pub fn parse(der: &[u8]) -> Result<Self, CertificateFault> {
        Unnamed::parse(der)?.into_named()
    }

    /// The DER it was read from.
    pub fn as_der(&self) -> &[u8] {
        &self.der
    }

    /// The node: both the CN and the public key.
    pub fn node_id(&self) -> NodeId {
        self.node_id
    }

    /// The node that issued it, by name; `None` if the issuer's name is not that of one node.
    pub fn issuer(&self) -> Option<NodeId> {
        name::node_id(&self.signed.tbs.issuer)
    }

    /// The serial number: the content of a DER INTEGER, at most 21 bytes.
    pub fn serial(&self) -> &[u8] {
        self.signed.tbs.serial.as_bytes()
    }

    /// The serial number, if it has the length of a [`CertId`].
    pub fn cert_id(&self) -> Option<CertId> {
        self.serial().try_into().ok().map(CertId::from_bytes)
    }

    /// The first unix second of its validity.
    pub fn not_before(&self) -> u64 {
        unix_seconds(self.signed.tbs.validity.not_before)
    }

    /// The last unix second of its validity.
    pub fn not_after(&self) -> u64 {
        unix_seconds(self.signed.tbs.validity.not_after)
    }

    /// The signature by its own key, if it has one.
    pub fn node_signature(&self) -> Option<&[u8; 64]> {
        self.node_signature.as_ref()
    }

    /// Checks that its own key signed it (WIRE.md section 3.2).
    ///
    /// # Errors
    ///
    /// [`NoNodeSignature`](CertificateFault::NoNodeSignature), [`NodeSignature`](CertificateFault::NodeSignature).
    pub fn verify_node_signature(&self) -> Result<(), CertificateFault> {
        let signature = self.node_signature.as_ref().ok_or(CertificateFault::NoNodeSignature)?;
        let message = self.signed.tbs.without_node_signature().to_der().map_err(|_| CertificateFault::Malformed)?;
        signature::verify(&self.node_id, &message, signature).map_err(CertificateFault::NodeSignature)
    }

    /// Checks that the node of `issuer` issued it.
    ///
    /// # Errors
    ///
    /// [`IssuerName`](CertificateFault::IssuerName), [`IssuerSignature`](CertificateFault::IssuerSignature).
    pub fn verify_issued_by(&self, issuer: &Self) -> Result<(), CertificateFault> {
        if !name::same(&self.signed.tbs.issuer, &issuer.signed.tbs.subject) {
            return Err(CertificateFault::IssuerName);
        }
        let signature = self.signed.signature().ok_or(CertificateFault::Malformed)?;
        let message = self.signed.tbs.to_der().map_err(|_| CertificateFault::Malformed)?;
        signature::verify(&issuer.node_id, &message, signature).map_err(CertificateFault::IssuerSignature)
    }
}

/// A certificate in its outer form only: nothing about its name and key is checked yet.
///
/// A chain is refused as a whole if one certificate is malformed, but expiry is reported before names are looked at.
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
        // The signatures are checked over what is encoded from here, so it has to be what was sent.
        let faithful = signed.to_der()? == der && signed.tbs.version == Version::V3;
        let node_signature = signed.tbs.node_signature()?;
        Ok(faithful.then(|| Self { der: der.into(), signed, node_signature }))
    }

    /// Checks that `now`, in unix seconds, lies within the validity.
    pub(super) fn check_validity(&self, now: u64) -> Result<(), CertificateFault> {
        let validity = &self.signed.tbs.validity;
        let (not_before, not_after) = (unix_seconds(validity.not_before), unix_seconds(validity.not_after));
        if now < not_before {
            return Err(CertificateFault::NotYetValid(not_before));
        }
        if now > not_after {
            return Err(CertificateFault::Expired(not_after));
        }
        Ok(())
    }

    /// Checks that it is an Ed25519 certificate whose subject is the name of its own key.
    pub(super) fn into_named(self) -> Result<Certificate, CertificateFault> {
        let Self { der, signed, node_signature } = self;
        let name = name::node_id(&signed.tbs.subject).ok_or(CertificateFault::NoNodeId)?;
        let key = signed.tbs.node_id().ok_or(CertificateFault::NotEd25519)?;
        if !is_ed25519(&signed.algorithm) || !is_ed25519(&signed.tbs.algorithm) || signed.signature().is_none() {
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

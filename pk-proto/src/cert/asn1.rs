//! The ASN.1 of a Polykey certificate (docs/WIRE.md section 3.1).

use alloc::vec::Vec;

use der::asn1::{BitString, ObjectIdentifier, OctetString, OctetStringRef};
use der::{Decode, Encode, Sequence};
use x509_cert::ext::Extension;
use x509_cert::serial_number::SerialNumber;
use x509_cert::time::Time;
use x509_cert::{AlgorithmIdentifier, SubjectPublicKeyInfo, Version};

use super::name::Name;
use crate::types::id::NodeId;

pub(super) const ED25519: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.101.112");
pub(super) const POLYKEY_VERSION: ObjectIdentifier =
    ObjectIdentifier::new_unwrap("1.3.6.1.4.1.57167.2.2.1");
pub(super) const NODE_SIGNATURE: ObjectIdentifier =
    ObjectIdentifier::new_unwrap("1.3.6.1.4.1.57167.2.2.2");

/// A certificate: the signed part, and the issuer's signature of it.
#[derive(Debug, Clone, PartialEq, Eq, Sequence)]
pub(super) struct Signed {
    pub(super) tbs: Tbs,
    pub(super) algorithm: AlgorithmIdentifier,
    pub(super) signature: BitString,
}

/// The signed part. x509-cert's own type has private fields; this one has all fields that Polykey
/// uses.
#[derive(Debug, Clone, PartialEq, Eq, Sequence)]
pub(super) struct Tbs {
    #[asn1(context_specific = "0", tag_mode = "EXPLICIT")]
    pub(super) version: Version,
    pub(super) serial: SerialNumber,
    pub(super) algorithm: AlgorithmIdentifier,
    pub(super) issuer: Name,
    pub(super) validity: Validity,
    pub(super) subject: Name,
    pub(super) key: SubjectPublicKeyInfo,
    #[asn1(context_specific = "3", tag_mode = "EXPLICIT")]
    pub(super) extensions: Vec<Extension>,
}

/// First and last second. Each is encoded with the time type that it was decoded from, which
/// x509-cert's own type does not guarantee.
#[derive(Debug, Clone, PartialEq, Eq, Sequence)]
pub(super) struct Validity {
    pub(super) not_before: Time,
    pub(super) not_after: Time,
}

impl Signed {
    pub(super) fn new(tbs: Tbs, signature: &[u8; 64]) -> der::Result<Self> {
        Ok(Self { tbs, algorithm: ed25519(), signature: BitString::from_bytes(signature)? })
    }

    /// Returns the issuer's signature, if it has the right length.
    pub(super) fn signature(&self) -> Option<&[u8; 64]> {
        self.signature.as_bytes()?.try_into().ok()
    }
}

impl Tbs {
    /// Returns what the certificate's own key signs: everything except the node signature
    /// (docs/WIRE.md section 3.2).
    pub(super) fn without_node_signature(&self) -> Self {
        let mut tbs = self.clone();
        tbs.extensions.retain(|extension| extension.extn_id != NODE_SIGNATURE);
        tbs
    }

    pub(super) fn push_node_signature(&mut self, signature: &[u8; 64]) -> der::Result<()> {
        self.extensions.push(extension(NODE_SIGNATURE, &OctetStringRef::new(signature)?)?);
        Ok(())
    }

    /// Returns the node signature; `Ok(None)` if there is none, an error if there are several or it
    /// is malformed.
    pub(super) fn node_signature(&self) -> der::Result<Option<[u8; 64]>> {
        let mut found =
            self.extensions.iter().filter(|extension| extension.extn_id == NODE_SIGNATURE);
        let Some(extension) = found.next() else { return Ok(None) };
        let signature = <&OctetStringRef>::from_der(extension.extn_value.as_bytes())?;
        let signature = signature.as_bytes().try_into().ok().filter(|_| found.next().is_none());
        signature.map(Some).ok_or_else(|| der::ErrorKind::Failed.into())
    }

    /// Returns the Ed25519 key; `None` for a key of another kind.
    pub(super) fn node_id(&self) -> Option<NodeId> {
        let bytes: [u8; 32] = self.key.subject_public_key.as_bytes()?.try_into().ok()?;
        is_ed25519(&self.key.algorithm).then(|| NodeId::from_bytes(bytes))
    }
}

pub(super) fn ed25519() -> AlgorithmIdentifier {
    AlgorithmIdentifier { oid: ED25519, parameters: None }
}

pub(super) fn is_ed25519(algorithm: &AlgorithmIdentifier) -> bool {
    algorithm.oid == ED25519 && algorithm.parameters.is_none()
}

pub(super) fn ed25519_key(id: &NodeId) -> der::Result<SubjectPublicKeyInfo> {
    Ok(SubjectPublicKeyInfo {
        algorithm: ed25519(),
        subject_public_key: BitString::from_bytes(id.as_bytes())?,
    })
}

/// Returns an extension that is not critical, like all of Polykey's.
pub(super) fn extension(id: ObjectIdentifier, value: &impl Encode) -> der::Result<Extension> {
    Ok(Extension { extn_id: id, critical: false, extn_value: OctetString::new(value.to_der()?)? })
}

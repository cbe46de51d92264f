//! Creating a certificate without the keys: each step returns the bytes to sign and takes the
//! signature.

use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use core::time::Duration;

use der::Encode;
use der::asn1::{GeneralizedTime, Ia5String, ObjectIdentifier, OctetString, UtcTime};
use der::oid::AssociatedOid;
use sha1::{Digest, Sha1};
use x509_cert::Version;
use x509_cert::ext::Extension;
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::ext::pkix::{
    BasicConstraints, ExtendedKeyUsage, KeyUsage, KeyUsages, SubjectAltName, SubjectKeyIdentifier,
};
use x509_cert::serial_number::SerialNumber;
use x509_cert::time::Time;

use super::asn1::{POLYKEY_VERSION, Signed, Tbs, Validity, ed25519, ed25519_key, extension};
use super::fault::MAX_CERTIFICATE_LEN;
use super::name::NameAttribute;
use super::{CertId, name};
use crate::types::id::NodeId;
use crate::types::signature;
use crate::types::signature::SignatureFault;

/// Content of a new certificate (docs/WIRE.md section 3.1).
///
/// A node's first certificate has itself as issuer. After a key renewal the issuer is the node of
/// the previous key; if a certificate is reissued under the same key, it is the node itself again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateRequest {
    /// Serial number.
    pub serial: CertId,
    /// Node that the certificate is for.
    pub subject: NodeId,
    /// Node that issues it.
    pub issuer: NodeId,
    /// First unix second of its validity.
    pub not_before: u64,
    /// Last unix second of its validity, at most [`CertificateRequest::MAX_NOT_AFTER`].
    pub not_after: u64,
    /// Version of the software that creates it, for example `1.15.1`; ASCII.
    pub version: String,
    /// Attributes of the subject's name in addition to the CN; usually none.
    pub subject_extra: Vec<NameAttribute>,
    /// Attributes of the issuer's name in addition to the CN: the `subject_extra` of its own
    /// certificate.
    pub issuer_extra: Vec<NameAttribute>,
}

impl CertificateRequest {
    /// The last unix second at which a certificate can be valid: 9999-12-31T23:59:59Z, the end of
    /// ASN.1's GeneralizedTime.
    pub const MAX_NOT_AFTER: u64 = 253_402_300_799;

    /// First step: everything except the two signatures.
    ///
    /// # Errors
    ///
    /// [`BuildFault::Validity`], [`BuildFault::Text`].
    pub fn prepare(self) -> Result<UnsignedCertificate, BuildFault> {
        let Self { subject, issuer, not_before, not_after, .. } = self;
        if not_before > not_after || not_after > Self::MAX_NOT_AFTER {
            return Err(BuildFault::Validity { not_before, not_after });
        }
        let tbs = self.tbs().map_err(|_| BuildFault::Text)?;
        let message = tbs.to_der().map_err(|_| BuildFault::Text)?;
        Ok(UnsignedCertificate { subject, issuer, tbs, message })
    }

    /// Performs all steps, for a caller that can sign at once.
    ///
    /// `by_subject` and `by_issuer` return the Ed25519 signature of the given bytes.
    ///
    /// # Errors
    ///
    /// Those of the steps.
    pub fn sign(
        self,
        by_subject: impl FnOnce(&[u8]) -> [u8; 64],
        by_issuer: impl FnOnce(&[u8]) -> [u8; 64],
    ) -> Result<Vec<u8>, BuildFault> {
        let unsigned = self.prepare()?;
        let signature = by_subject(unsigned.message());
        let half_signed = unsigned.signed_by_subject(&signature)?;
        let signature = by_issuer(half_signed.message());
        half_signed.signed_by_issuer(&signature)
    }

    fn tbs(&self) -> der::Result<Tbs> {
        Ok(Tbs {
            version: Version::V3,
            serial: SerialNumber::new(self.serial.as_bytes())?,
            algorithm: ed25519(),
            issuer: name::encode(&self.issuer, &self.issuer_extra)?,
            validity: Validity {
                not_before: time(self.not_before)?,
                not_after: time(self.not_after)?,
            },
            subject: name::encode(&self.subject, &self.subject_extra)?,
            key: ed25519_key(&self.subject)?,
            extensions: extensions(&self.subject, &self.version)?,
        })
    }
}

/// A certificate without signatures.
#[derive(Debug, Clone)]
pub struct UnsignedCertificate {
    subject: NodeId,
    issuer: NodeId,
    tbs: Tbs,
    message: Vec<u8>,
}

impl UnsignedCertificate {
    /// Returns the node that must sign [`message`](Self::message).
    pub fn signer(&self) -> NodeId {
        self.subject
    }

    /// Returns what the subject must sign: the TBSCertificate without the node signature.
    pub fn message(&self) -> &[u8] {
        &self.message
    }

    /// Second step: adds the subject's signature, which is verified.
    ///
    /// # Errors
    ///
    /// [`BuildFault::SubjectSignature`].
    pub fn signed_by_subject(
        mut self,
        signature: &[u8; 64],
    ) -> Result<HalfSignedCertificate, BuildFault> {
        signature::verify(&self.subject, &self.message, signature)
            .map_err(BuildFault::SubjectSignature)?;
        self.tbs.push_node_signature(signature).map_err(|_| BuildFault::TooLarge)?;
        let message = self.tbs.to_der().map_err(|_| BuildFault::TooLarge)?;
        Ok(HalfSignedCertificate { issuer: self.issuer, tbs: self.tbs, message })
    }
}

/// A certificate that its subject has signed and its issuer has not.
#[derive(Debug, Clone)]
pub struct HalfSignedCertificate {
    issuer: NodeId,
    tbs: Tbs,
    message: Vec<u8>,
}

impl HalfSignedCertificate {
    /// Returns the node that must sign [`message`](Self::message).
    pub fn signer(&self) -> NodeId {
        self.issuer
    }

    /// Returns what the issuer must sign: the TBSCertificate with the node signature.
    pub fn message(&self) -> &[u8] {
        &self.message
    }

    /// Last step: adds the issuer's signature, which is verified. Returns the certificate as DER.
    ///
    /// # Errors
    ///
    /// [`BuildFault::IssuerSignature`], [`BuildFault::TooLarge`].
    pub fn signed_by_issuer(self, signature: &[u8; 64]) -> Result<Vec<u8>, BuildFault> {
        signature::verify(&self.issuer, &self.message, signature)
            .map_err(BuildFault::IssuerSignature)?;
        let der = Signed::new(self.tbs, signature).and_then(|signed| signed.to_der());
        der.ok().filter(|der| der.len() <= MAX_CERTIFICATE_LEN).ok_or(BuildFault::TooLarge)
    }
}

/// Why a certificate cannot be created.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BuildFault {
    /// The validity ends before it starts, or after [`CertificateRequest::MAX_NOT_AFTER`].
    #[error("a certificate cannot be valid from unix second {not_before} to {not_after}: the \
        maximum is {max}", max = CertificateRequest::MAX_NOT_AFTER)]
    Validity {
        /// First unix second of the request.
        not_before: u64,
        /// Last unix second of the request.
        not_after: u64,
    },
    /// The version is not ASCII, or an attribute of a name has a character that PrintableString
    /// does not allow.
    #[error(
        "a certificate cannot contain this text: the version must be ASCII, names letters, \
         digits, space and '()+,-./:=?"
    )]
    Text,
    /// The signature is not that of the subject.
    #[error("the subject's signature of its certificate: {0}")]
    SubjectSignature(#[source] SignatureFault),
    /// The signature is not that of the issuer.
    #[error("the issuer's signature of a certificate: {0}")]
    IssuerSignature(#[source] SignatureFault),
    /// The certificate would exceed the length that peers accept.
    #[error("the certificate would have more than {MAX_CERTIFICATE_LEN} bytes")]
    TooLarge,
}

/// 2049-12-31T23:59:59Z, the end of UTCTime.
const MAX_UTC_TIME: u64 = 2_524_607_999;

/// serverAuth, clientAuth, codeSigning, emailProtection, timeStamping, OCSPSigning.
const EXTENDED_KEY_USAGES: [ObjectIdentifier; 6] = [
    ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.3.1"),
    ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.3.2"),
    ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.3.3"),
    ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.3.4"),
    ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.3.8"),
    ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.3.9"),
];

/// Returns everything except the node signature, in the order of the reference.
fn extensions(subject: &NodeId, version: &str) -> der::Result<Vec<Extension>> {
    let text = subject.to_string();
    let key_usage = KeyUsages::DigitalSignature
        | KeyUsages::NonRepudiation
        | KeyUsages::KeyEncipherment
        | KeyUsages::DataEncipherment
        | KeyUsages::KeyAgreement
        | KeyUsages::KeyCertSign
        | KeyUsages::CRLSign;
    let alternative_names = vec![
        GeneralName::DnsName(Ia5String::new(&text)?),
        GeneralName::UniformResourceIdentifier(Ia5String::new(&alloc::format!("pk://{text}"))?),
        GeneralName::from(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        GeneralName::from(IpAddr::V6(Ipv6Addr::LOCALHOST)),
    ];
    let key_identifier = OctetString::new(Sha1::digest(subject.as_bytes()).as_slice())?;
    Ok(vec![
        extension(
            BasicConstraints::OID,
            &BasicConstraints { ca: true, path_len_constraint: None },
        )?,
        extension(KeyUsage::OID, &KeyUsage(key_usage))?,
        extension(ExtendedKeyUsage::OID, &ExtendedKeyUsage(EXTENDED_KEY_USAGES.into()))?,
        extension(SubjectAltName::OID, &SubjectAltName(alternative_names))?,
        extension(SubjectKeyIdentifier::OID, &SubjectKeyIdentifier(key_identifier))?,
        extension(POLYKEY_VERSION, &Ia5String::new(version)?)?,
    ])
}

/// UTCTime through 2049 and GeneralizedTime from 2050 on (RFC 5280 section 4.1.2.5).
fn time(unix_seconds: u64) -> der::Result<Time> {
    let since = Duration::from_secs(unix_seconds);
    if unix_seconds <= MAX_UTC_TIME {
        UtcTime::from_unix_duration(since).map(Time::UtcTime)
    } else {
        GeneralizedTime::from_unix_duration(since).map(Time::GeneralTime)
    }
}

//! Polykey certificates: X.509 certificates that a node issues to itself, and chains of them that
//! lead from a key to its former keys (docs/WIRE.md section 3).
//!
//! Everything here is a pure function of bytes: [`verify_server`] and [`verify_client`] verify what
//! a peer presents, [`Certificate`] parses one, [`CertificateRequest`] creates one from two
//! signatures that the caller computes. Times are unix seconds.

mod asn1;
mod certificate;
mod chain;
pub(crate) mod fault;
mod id;
mod known;
mod name;
mod request;

pub use self::certificate::Certificate;
pub use self::chain::{Verified, verify_client, verify_server};
pub use self::fault::{CertificateFault, MAX_CERTIFICATE_LEN, MAX_CHAIN_LEN};
pub use self::id::CertId;
pub use self::known::KnownSignatures;
pub use self::name::NameAttribute;
pub use self::request::{
    BuildFault, CertificateRequest, HalfSignedCertificate, UnsignedCertificate,
};

/// Default validity of a Polykey certificate, in seconds: 365 days (docs/WIRE.md section 3.1).
pub const DEFAULT_LIFETIME_SECONDS: u64 = 31_536_000;

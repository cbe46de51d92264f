//! Polykey certificates: X.509 that a node issues to itself, and chains of them that lead from a key to the keys it had before
//! (WIRE.md section 3).
//!
//! Everything here is a pure function of bytes: [`verify_server`] and [`verify_client`] judge what a peer presents, [`Certificate`]
//! reads one, [`CertificateRequest`] makes one out of two signatures that somebody else computes. Times are unix seconds.

mod asn1;
mod certificate;
mod chain;
mod fault;
mod id;
mod name;
mod request;

pub use certificate::Certificate;
pub use chain::{Verified, verify_client, verify_server};
pub use fault::CertificateFault;
pub use id::CertId;
pub use name::NameAttribute;
pub use request::{BuildFault, CertificateRequest, HalfSignedCertificate, UnsignedCertificate};

/// The longest certificate that is looked at, in bytes of DER. Polykey's have about 720.
pub const MAX_CERTIFICATE_LEN: usize = 8 * 1024;

/// The longest chain that is looked at, in certificates: one per renewal or rotation that a peer still presents.
///
/// Verifying a chain takes less than two signature checks per certificate.
pub const MAX_CHAIN_LEN: usize = 32;

/// How long a Polykey certificate is valid unless told otherwise, in seconds: 365 days (WIRE.md section 3.1).
pub const DEFAULT_LIFETIME_SECONDS: u64 = 31_536_000;

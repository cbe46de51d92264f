//! Polykey certificates.
/// Placeholder until the merge.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("certificate")]
pub struct CertificateFault;

//! Why a request was not granted.

/// Why a gateway did not grant a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The gateway did not answer in time.
    #[error("no answer")]
    Silent,
    /// The gateway answered in another version: it does not support the protocol.
    #[error("an answer in version {version}")]
    Version {
        /// Version of the answer.
        version: u8,
    },
    /// The gateway refused.
    #[error("refused: {reason} (code {code})")]
    Refused {
        /// Number of the error in the protocol.
        code: u16,
        /// Its meaning.
        reason: &'static str,
    },
    /// The gateway answered, but with nothing that the protocol allows.
    #[error("an invalid answer: {0}")]
    Malformed(&'static str),
}

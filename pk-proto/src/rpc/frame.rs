//! Frames of the native dialect: `u32` length, big-endian, and as many bytes.

use serde::{Deserialize, Serialize};

/// Why bytes are not a frame of the native dialect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[non_exhaustive]
pub enum FrameFault {
    /// The length is over the limit.
    #[error("{0} bytes announced, over the limit of 65536")]
    TooLong(u32),
    /// The bytes are not a message, or not the only encoding of it.
    #[error("not a message of pk/1")]
    Malformed,
    /// A version or kind of message that this version does not know.
    #[error("a message that this version does not know")]
    Unknown,
}

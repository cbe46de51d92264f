//! Failures of decoding, and errors sent by peers.

use alloc::string::String;

use super::frame::FrameFault;
use super::polykey::object::ObjectFault;
use crate::types::refusal::Refusal;

/// Bytes that are not a message of the dialect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum WireFault {
    Frame(FrameFault),
    Object(ObjectFault),
}

impl From<FrameFault> for WireFault {
    fn from(fault: FrameFault) -> Self {
        Self::Frame(fault)
    }
}

/// An error that a peer sent instead of a response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum RemoteFailure {
    /// A refusal that has a counterpart here.
    Refused(Refusal),
    /// Any other exception (Polykey 1.x).
    Exception { class: String, message: String },
}

/// The dialect does not support this.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Unsupported;

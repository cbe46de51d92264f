//! quinn's errors in the core's words.

use pk_proto::{DialFailure, DisconnectReason};
use quinn::{ConnectionError, VarInt};

use super::tls::Verdict;

/// Text of a peer that is kept, in bytes.
const MAX_REASON: usize = 256;

/// Why a dial failed. What our own judgement of the peer's certificates says goes before what came of it below.
pub(super) fn dial_failure(error: ConnectionError, verdict: &Verdict) -> DialFailure {
    if let Some(Err(fault)) = verdict.get() {
        return DialFailure::Certificate(fault.to_string());
    }
    match error {
        ConnectionError::ApplicationClosed(close) => {
            DialFailure::Rejected { code: close.error_code.into_inner(), reason: text(&close.reason) }
        }
        ConnectionError::ConnectionClosed(close) => {
            DialFailure::Rejected { code: close.error_code.into(), reason: text(close.to_string().as_bytes()) }
        }
        ConnectionError::TimedOut => DialFailure::TimedOut,
        ConnectionError::LocallyClosed => DialFailure::Cancelled,
        error => DialFailure::Transport(text(error.to_string().as_bytes())),
    }
}

/// Why a connection is over.
pub(crate) fn disconnect_reason(error: &ConnectionError) -> DisconnectReason {
    match error {
        ConnectionError::LocallyClosed => DisconnectReason::Local,
        ConnectionError::ApplicationClosed(close) => {
            DisconnectReason::Peer { code: close.error_code.into_inner(), reason: text(&close.reason) }
        }
        ConnectionError::TimedOut => DisconnectReason::TimedOut,
        ConnectionError::Reset => DisconnectReason::Reset,
        error => DisconnectReason::Transport(text(error.to_string().as_bytes())),
    }
}

/// A code of the core on the wire; the core has none that does not fit.
pub(crate) fn varint(code: u64) -> VarInt {
    VarInt::from_u64(code).unwrap_or(VarInt::MAX)
}

fn text(bytes: &[u8]) -> String {
    let mut text = String::from_utf8_lossy(bytes.get(..MAX_REASON).unwrap_or(bytes)).into_owned();
    text.retain(|c| !c.is_control());
    text
}

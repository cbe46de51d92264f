//! Conversion of quinn-proto's errors.

use std::io;

use pk_proto::cert::{CertificateFault, Verified};
use pk_proto::{DialFailure, DisconnectReason, UnixMillis};
use quinn_proto::{ConnectionClose, ConnectionError, VarInt};

/// The TLS alert `certificate_expired` as a QUIC error code, also sent for a certificate that is
/// not valid yet.
const CERTIFICATE_EXPIRED: u64 = 0x100 + 45;

/// Maximum length of a stored text of a peer, in bytes.
const MAX_REASON: usize = 256;

/// Why an operation on an application stream failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StreamError {
    /// The peer reset its direction with this code. Nothing more can be read.
    #[error("the peer reset the stream with code {0}")]
    Reset(u64),
    /// The peer stopped reading with this code. Nothing more can be written.
    #[error("the peer stopped reading the stream with code {0}")]
    Stopped(u64),
    /// The local node has ended this direction.
    #[error("this direction of the stream was already ended locally")]
    Ended,
    /// The connection was lost.
    #[error("the connection was lost: {0}")]
    ConnectionLost(DisconnectReason),
}

impl From<StreamError> for io::Error {
    fn from(error: StreamError) -> Self {
        let kind = match error {
            StreamError::Reset(_) | StreamError::Stopped(_) => io::ErrorKind::ConnectionReset,
            StreamError::Ended => io::ErrorKind::BrokenPipe,
            StreamError::ConnectionLost(_) => io::ErrorKind::NotConnected,
        };
        Self::new(kind, error)
    }
}

/// Returns why a connection ended. `unix` is the present time.
pub(crate) fn disconnect_reason(error: &ConnectionError, unix: UnixMillis) -> DisconnectReason {
    match error {
        ConnectionError::LocallyClosed => DisconnectReason::Local,
        ConnectionError::ApplicationClosed(close) => DisconnectReason::Peer {
            code: close.error_code.into_inner(),
            reason: text(&close.reason),
        },
        ConnectionError::TimedOut => DisconnectReason::TimedOut,
        ConnectionError::Reset => DisconnectReason::Reset,
        ConnectionError::ConnectionClosed(close) => {
            DisconnectReason::Transport(closed_by_peer(close, unix))
        }
        error => DisconnectReason::Transport(text(error.to_string().as_bytes())),
    }
}

/// Returns why a dial failed. The local verification of the peer's certificates takes precedence
/// over the resulting transport error. `unix` is the present time.
pub(crate) fn dial_failure(
    error: &ConnectionError,
    verdict: Option<&Result<Verified, CertificateFault>>,
    unix: UnixMillis,
) -> DialFailure {
    if let Some(Err(fault)) = verdict {
        return DialFailure::Certificate(fault.to_string());
    }
    match error {
        ConnectionError::ApplicationClosed(close) => DialFailure::Rejected {
            code: close.error_code.into_inner(),
            reason: text(&close.reason),
        },
        ConnectionError::ConnectionClosed(close) => DialFailure::Rejected {
            code: close.error_code.into(),
            reason: closed_by_peer(close, unix),
        },
        ConnectionError::TimedOut => DialFailure::TimedOut,
        ConnectionError::LocallyClosed => DialFailure::Cancelled,
        error => DialFailure::Transport(text(error.to_string().as_bytes())),
    }
}

/// Describes a close by the peer's transport or TLS. An alert about the validity of the local
/// certificate can be caused by either clock.
pub(crate) fn closed_by_peer(close: &ConnectionClose, unix: UnixMillis) -> String {
    let said = text(close.to_string().as_bytes());
    if u64::from(close.error_code) != CERTIFICATE_EXPIRED {
        return said;
    }
    format!(
        "{said}; by the peer's clock the certificate of this node is not valid now; the clock of \
            this node reads {unix}: either clock may be wrong"
    )
}

/// Converts a code of the core, which always fits.
pub(crate) fn varint(code: u64) -> VarInt {
    VarInt::from_u64(code).unwrap_or(VarInt::MAX)
}

/// Returns a text of a peer as it is stored: limited in length, on one line.
pub(crate) fn text(bytes: &[u8]) -> String {
    let mut text = String::from_utf8_lossy(bytes.get(..MAX_REASON).unwrap_or(bytes)).into_owned();
    text.retain(|c| !c.is_control());
    text
}

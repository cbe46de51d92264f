//! Why a port was not mapped.

use pk_portmap::Fault;

/// Why a protocol did not map the port, or did not renew or withdraw a mapping.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PortMappingFailure {
    /// The socket of the node cannot be mapped: it is bound to a loopback or IPv6 address.
    #[error("the node listens on no IPv4 address of a network")]
    NoAddress,
    /// The system has no IPv4 default route with a gateway.
    #[error("the system has no IPv4 gateway")]
    NoGateway,
    /// The gateway did not answer in time.
    #[error("no gateway answers")]
    Silent,
    /// The gateway has reported that its port 5351 is closed: it does not support the protocol.
    #[error("the gateway does not support this protocol (port 5351 is closed)")]
    Closed,
    /// The gateway answered in another version: it does not support the protocol.
    #[error("the gateway does not support this protocol (it answers in version {version})")]
    Version {
        /// Version of the answer.
        version: u8,
    },
    /// The gateway refused.
    #[error("the gateway refuses: {reason} (code {code})")]
    Refused {
        /// Number of the error in the protocol.
        code: u16,
        /// Its meaning, or the text of the gateway.
        reason: String,
    },
    /// The gateway answered, but with nothing that the protocol allows.
    #[error("the answer of the gateway is invalid: {0}")]
    Malformed(&'static str),
    /// The system failed.
    #[error("{0}")]
    System(String),
}

impl From<Fault> for PortMappingFailure {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Silent => Self::Silent,
            Fault::Version { version } => Self::Version { version },
            Fault::Refused { code, reason } => Self::Refused { code, reason: reason.to_owned() },
            Fault::Malformed(why) => Self::Malformed(why),
        }
    }
}

impl PortMappingFailure {
    /// Returns the name of the variant, for programs.
    pub fn name(&self) -> &'static str {
        match self {
            Self::NoAddress => "NoAddress",
            Self::NoGateway => "NoGateway",
            Self::Silent => "Silent",
            Self::Closed => "Closed",
            Self::Version { .. } => "Version",
            Self::Refused { .. } => "Refused",
            Self::Malformed(_) => "Malformed",
            Self::System(_) => "System",
        }
    }
}

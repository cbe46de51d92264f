//! Methods between nodes, and the format of a stream.

/// A method between nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Method {
    ClosestLocal,
    ClosestActive,
    SignalInitial,
    SignalFinal,
    ClaimsGet,
    CrossSign,
    NetworkSign,
    Authenticate,
}

impl Method {
    const ALL: [Self; 8] = [
        Self::ClosestLocal,
        Self::ClosestActive,
        Self::SignalInitial,
        Self::SignalFinal,
        Self::ClaimsGet,
        Self::CrossSign,
        Self::NetworkSign,
        Self::Authenticate,
    ];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::ClosestLocal => "nodesClosestLocalNodesGet",
            Self::ClosestActive => "nodesClosestActiveConnectionsGet",
            Self::SignalInitial => "nodesConnectionSignalInitial",
            Self::SignalFinal => "nodesConnectionSignalFinal",
            Self::ClaimsGet => "nodesClaimsGet",
            Self::CrossSign => "nodesCrossSignClaim",
            Self::NetworkSign => "nodesClaimNetworkSign",
            Self::Authenticate => "nodesAuthenticateConnection",
        }
    }

    pub(super) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|method| method.name() == name)
    }
}

/// Format of the data on a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PolykeyFormat {
    /// The first message of a peer.
    First,
    /// Further messages of a calling peer, or responses to a local call.
    Call { method: Method, ours: bool },
    /// Responses whose content is ignored: the peer is alive.
    Alive,
}

impl PolykeyFormat {
    /// Returns whether the end of the peer's direction is the end of its response.
    pub(crate) fn is_list(self) -> bool {
        match self {
            Self::Alive => true,
            Self::Call { method, .. } => {
                matches!(method, Method::ClosestLocal | Method::ClosestActive | Method::ClaimsGet)
            }
            Self::First => false,
        }
    }

    pub(super) fn method(self) -> Option<Method> {
        match self {
            Self::Call { method, .. } => Some(method),
            Self::First | Self::Alive => None,
        }
    }
}

/// Prefix of a method name that is the protocol of a stream of the embedder.
pub const PREFIX: &str = "polykey:";

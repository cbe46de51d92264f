//! The claim policy. The core applies it; the embedder sets it, and decides single claims if it is
//! `Ask`.

use alloc::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::types::id::NodeId;

/// Which claims of peers this node signs. The policy does not apply to claims that this node
/// starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub enum ClaimPolicy {
    /// Sign no claims.
    #[default]
    Refuse,
    /// Sign claims of nodes on the allow-list, by any id that their certificates prove.
    AllowList,
    /// Sign claims of nodes on the allow-list; for all others the embedder decides each time
    /// ([`Event::ClaimApprovalRequested`](crate::Event::ClaimApprovalRequested)), and no answer is
    /// a refusal.
    Ask,
    /// Sign all claims.
    All,
}

/// Decision of a policy about one peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Sign,
    Ask,
    Refuse,
}

impl ClaimPolicy {
    /// Decides about a peer, by the ids that its certificates prove.
    pub(crate) fn judge(self, allowed: &BTreeSet<NodeId>, peer: &[NodeId]) -> Verdict {
        let listed = peer.iter().any(|id| allowed.contains(id));
        match self {
            Self::Refuse => Verdict::Refuse,
            Self::All => Verdict::Sign,
            Self::AllowList | Self::Ask if listed => Verdict::Sign,
            Self::AllowList => Verdict::Refuse,
            Self::Ask => Verdict::Ask,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policy_decides_by_every_id_of_a_peer() {
        let id = |byte| NodeId::from_bytes([byte; 32]);
        let allowed = BTreeSet::from([id(1)]);
        let of = |policy: ClaimPolicy| {
            [&[id(1)][..], &[id(2), id(1)], &[id(2)]].map(|peer| policy.judge(&allowed, peer))
        };
        use Verdict::{Ask, Refuse, Sign};
        assert_eq!(of(ClaimPolicy::default()), [Refuse; 3]);
        assert_eq!(of(ClaimPolicy::AllowList), [Sign, Sign, Refuse]);
        assert_eq!(of(ClaimPolicy::Ask), [Sign, Sign, Ask]);
        assert_eq!(of(ClaimPolicy::All), [Sign; 3]);
    }
}

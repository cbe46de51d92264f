//! Whom we sign claims for. The core decides; the embedder sets the policy, and is asked where it says so.

use alloc::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::id::NodeId;

/// Who may have claims signed by this node. Claims that we ask others to sign are not its affair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub enum ClaimPolicy {
    /// Nobody.
    #[default]
    Refuse,
    /// Who was allowed, by any id that its certificates prove.
    AllowList,
    /// Who was allowed; for all others the embedder is asked each time
    /// ([`Event::ClaimAsked`](crate::Event::ClaimAsked)), and no answer is a refusal.
    Ask,
    /// Everybody.
    All,
}

/// What a policy says about one peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Sign,
    Ask,
    Refuse,
}

impl ClaimPolicy {
    /// What is to be done about a peer, by the ids that its certificates prove.
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
    fn a_policy_decides_by_every_id_of_a_peer() {
        let id = |byte| NodeId::from_bytes([byte; 32]);
        let allowed = BTreeSet::from([id(1)]);
        let of =
            |policy: ClaimPolicy| [&[id(1)][..], &[id(2), id(1)], &[id(2)]].map(|peer| policy.judge(&allowed, peer));
        use Verdict::{Ask, Refuse, Sign};
        assert_eq!(of(ClaimPolicy::default()), [Refuse; 3]);
        assert_eq!(of(ClaimPolicy::AllowList), [Sign, Sign, Refuse]);
        assert_eq!(of(ClaimPolicy::Ask), [Sign, Sign, Ask]);
        assert_eq!(of(ClaimPolicy::All), [Sign; 3]);
    }
}

//! Whether this node is away: cut off from the network. Then the silence of a contact proves
//! nothing.
//!
//! A node that keeps a far connection receives something every half minute. If it has received
//! nothing for longer, it is away. One other node is no proof of the opposite: an attacker on the
//! path can let the packets of one accomplice through and drop all others. So a contact leaves only
//! if two other nodes were received since its first failure.

use core::time::Duration;

use crate::types::id::NodeId;
use crate::types::time::Instant;

/// What the failure of a contact says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Witnesses {
    /// Nothing: this node is away.
    None,
    /// One other node was received; that may not be enough.
    One,
    /// Two other nodes were received.
    Two,
}

/// The nodes from which something was received last.
#[derive(Debug, Default)]
pub(crate) struct Presence {
    /// The last three distinct nodes, the latest first: one may be the suspect.
    last: [Option<(NodeId, Instant)>; 3],
    away: bool,
}

impl Presence {
    /// Something was received from a node. Returns whether this node was away.
    pub(crate) fn received(&mut self, node: NodeId, now: Instant) -> bool {
        let before = self.last.iter().position(|entry| entry.is_some_and(|(id, _)| id == node));
        let to = before.unwrap_or(self.last.len() - 1);
        if let Some(moved) = self.last.get_mut(..=to) {
            moved.rotate_right(1);
        }
        if let Some(first) = self.last.first_mut() {
            *first = Some((node, now));
        }
        core::mem::take(&mut self.away)
    }

    /// Returns whether this node is away.
    pub(crate) fn is_away(&self) -> bool {
        self.away
    }

    /// A contact, which fails since `since`, has failed. Returns who proves that the cause is not
    /// here. If nothing was received for `silence`, this node is away from now on.
    pub(crate) fn judge(
        &mut self,
        suspect: &NodeId,
        since: Instant,
        now: Instant,
        silence: Duration,
    ) -> Witnesses {
        let others = self.last.iter().flatten().filter(|(node, _)| node != suspect);
        let lately = others.clone().any(|(_, at)| now.since(*at) <= silence);
        let since = others.filter(|(_, at)| *at >= since).count();
        match (lately, since) {
            (false, _) => {
                self.away = true;
                Witnesses::None
            }
            (true, 2..) => Witnesses::Two,
            (true, _) => Witnesses::One,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SILENCE: Duration = Duration::from_secs(45);

    fn node(number: u8) -> NodeId {
        NodeId::from_bytes([number; 32])
    }

    fn at(seconds: u64) -> Instant {
        Instant::from_micros(seconds * 1_000_000)
    }

    #[test]
    fn node_that_receives_nothing_is_away_until_something_arrives() {
        let mut presence = Presence::default();
        assert_eq!(presence.judge(&node(9), at(0), at(1), SILENCE), Witnesses::None);
        assert!(presence.is_away());
        assert!(presence.received(node(1), at(2)), "it was away");
        assert!(!presence.received(node(1), at(3)) && !presence.is_away());
        assert_eq!(presence.judge(&node(9), at(0), at(48), SILENCE), Witnesses::One);
        assert_eq!(presence.judge(&node(9), at(0), at(49), SILENCE), Witnesses::None);
    }

    #[test]
    fn two_other_nodes_since_the_first_failure_are_two_witnesses() {
        let mut presence = Presence::default();
        presence.received(node(1), at(10));
        presence.received(node(2), at(20));
        assert_eq!(presence.judge(&node(9), at(10), at(30), SILENCE), Witnesses::Two);
        assert_eq!(presence.judge(&node(9), at(11), at(30), SILENCE), Witnesses::One);
        assert_eq!(
            presence.judge(&node(2), at(10), at(30), SILENCE),
            Witnesses::One,
            "the suspect"
        );
        // However often one node sends, it is one.
        for second in 30..60 {
            presence.received(node(2), at(second));
        }
        assert_eq!(presence.judge(&node(9), at(25), at(60), SILENCE), Witnesses::One);
        // The suspect takes the place of no witness.
        presence.received(node(3), at(61));
        presence.received(node(9), at(62));
        assert_eq!(presence.judge(&node(9), at(25), at(62), SILENCE), Witnesses::Two);
    }
}

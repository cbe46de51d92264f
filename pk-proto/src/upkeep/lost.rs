//! Contacts that have left the graph because they did not respond. They are dialed sometimes: if
//! the network was split, its halves find each other again through them.
//!
//! A lost contact is none: it is not reported to peers and no candidate of a search. Its addresses
//! are those that connections have proved, so that no peer can place an address of another host
//! here.

use alloc::collections::BTreeMap;
use core::time::Duration;

use crate::api::upkeep_config::UpkeepConfig;
use crate::types::contact::NodeContact;
use crate::types::id::NodeId;
use crate::types::time::UnixMillis;

/// Lost contacts that are dialed soon after one is back. In a network with NATs a contact comes
/// back sometimes; to dial all the others each time would be a third of the dials.
const FEW: usize = 4;
/// Time within which two that are back are a sign that the network was split.
const TOGETHER: Duration = Duration::from_secs(60);

/// A contact that has left the graph.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LostContact {
    pub(crate) contact: NodeContact,
    /// When it left.
    pub(crate) since: UnixMillis,
}

/// The lost contacts, at most `UpkeepConfig::lost_limit`.
#[derive(Debug, Default)]
pub(crate) struct Lost {
    nodes: BTreeMap<NodeId, LostContact>,
    /// Lost contacts that are dialed soon, because others that were lost are back.
    recovering: usize,
    /// When the first one was back, until another one is.
    first: Option<UnixMillis>,
}

/// What the return of a lost contact says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    /// Nothing.
    One,
    /// The network may have been split: some of the others are dialed soon.
    First,
    /// The network was split: all the others are dialed soon.
    Split,
}

impl Lost {
    /// Adds a contact. If the list is full, a random one is dropped, which is returned: the latest
    /// ones may be an attacker's.
    pub(crate) fn add(
        &mut self,
        config: &UpkeepConfig,
        node: NodeId,
        lost: LostContact,
        random: u64,
    ) -> Option<NodeId> {
        if config.lost_limit == 0 {
            return Some(node);
        }
        let is_full = self.nodes.len() >= config.lost_limit && !self.nodes.contains_key(&node);
        let dropped = if is_full { self.pick(random) } else { None };
        if let Some(dropped) = dropped {
            self.nodes.remove(&dropped);
        }
        self.nodes.insert(node, lost);
        dropped
    }

    /// A node responds. If it was lost for long, others may be back with it: first a few are dialed
    /// soon, and if one of them is, all of them.
    pub(crate) fn found(
        &mut self,
        config: &UpkeepConfig,
        node: &NodeId,
        now: UnixMillis,
    ) -> Option<Found> {
        let lost = self.nodes.remove(node)?;
        let since = |at: UnixMillis| Duration::from_millis(now.0.saturating_sub(at.0));
        if since(lost.since) < config.recover_after || self.nodes.is_empty() {
            return Some(Found::One);
        }
        if self.first.is_some_and(|at| since(at) < TOGETHER) {
            self.first = None;
            self.recovering = 2 * self.nodes.len();
            return Some(Found::Split);
        }
        if self.recovering > 0 {
            return Some(Found::One);
        }
        self.first = Some(now);
        self.recovering = FEW;
        Some(Found::First)
    }

    /// Returns whether all are dialed soon.
    pub(crate) fn recovers(&self) -> bool {
        self.recovering > 0 && self.first.is_none()
    }

    /// Removes a node. Returns whether it was lost.
    pub(crate) fn remove(&mut self, node: &NodeId) -> bool {
        self.nodes.remove(node).is_some()
    }

    /// Removes and returns a contact that was lost too long ago.
    pub(crate) fn pop_expired(&mut self, config: &UpkeepConfig, now: UnixMillis) -> Option<NodeId> {
        let expired = self.nodes.iter().find(|(_, lost)| {
            Duration::from_millis(now.0.saturating_sub(lost.since.0)) > config.lost_for
        });
        let node = expired.map(|(node, _)| *node)?;
        self.nodes.remove(&node);
        Some(node)
    }

    /// Returns the interval at which one contact is dialed: `UpkeepConfig::lost_delay`, and a
    /// twelfth of the time since the last one was lost if that is longer, so that nodes that are
    /// gone for good cause few dials.
    pub(crate) fn interval(&self, config: &UpkeepConfig, now: UnixMillis) -> Duration {
        let latest = self.nodes.values().map(|lost| lost.since).max().unwrap_or(now);
        let gone = Duration::from_millis(now.0.saturating_sub(latest.0));
        config.lost_delay.max(gone / 12)
    }

    /// Returns the next contact to dial, and whether the one after it follows soon.
    pub(crate) fn next(&mut self, random: u64) -> Option<(NodeId, &LostContact, bool)> {
        self.recovering = self.recovering.saturating_sub(1);
        let soon = self.recovering > 0;
        let node = self.pick(random)?;
        Some((node, self.nodes.get(&node)?, soon))
    }

    /// Returns a random one.
    fn pick(&self, random: u64) -> Option<NodeId> {
        let count = u64::try_from(self.nodes.len()).unwrap_or(u64::MAX);
        let place = usize::try_from(random.checked_rem(count)?).ok()?;
        self.nodes.keys().nth(place).copied()
    }

    /// Returns a lost contact.
    pub(crate) fn get(&self, node: &NodeId) -> Option<&LostContact> {
        self.nodes.get(node)
    }

    /// Returns whether a node is lost.
    pub(crate) fn contains(&self, node: &NodeId) -> bool {
        self.nodes.contains_key(node)
    }

    pub(crate) fn len(&self) -> usize {
        self.nodes.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WEEK: u64 = 7 * 86_400_000;

    fn node(number: u8) -> NodeId {
        NodeId::from_bytes([number; 32])
    }

    fn add(lost: &mut Lost, number: u8, since: u64, random: u64) -> Option<NodeId> {
        let contact = LostContact { contact: NodeContact::default(), since: UnixMillis(since) };
        lost.add(&UpkeepConfig::default(), node(number), contact, random)
    }

    #[test]
    fn full_list_drops_a_random_contact() {
        let config = UpkeepConfig::default();
        let mut lost = Lost::default();
        for number in 0..32 {
            assert_eq!(add(&mut lost, number, 0, 7), None);
        }
        assert_eq!(add(&mut lost, 5, 1, 7), None, "it is in the list");
        assert_eq!(add(&mut lost, 99, 0, 39), Some(node(7)));
        assert_eq!((lost.len(), lost.contains(&node(99))), (config.lost_limit, true));
        let none = UpkeepConfig { lost_limit: 0, ..config };
        let contact = LostContact { contact: NodeContact::default(), since: UnixMillis(0) };
        assert_eq!(Lost::default().add(&none, node(1), contact, 0), Some(node(1)));
    }

    #[test]
    fn contact_that_was_lost_for_long_brings_back_the_others_once() {
        let config = UpkeepConfig::default();
        let mut lost = Lost::default();
        for number in 0..6 {
            add(&mut lost, number, 0, 0);
        }
        let early = UnixMillis(config.recover_after.as_millis() as u64 - 1);
        assert_eq!(lost.found(&config, &node(0), early), Some(Found::One));
        let late = UnixMillis(early.0 + 1);
        assert_eq!(lost.found(&config, &node(1), late), Some(Found::First));
        assert_eq!(lost.found(&config, &node(2), late), Some(Found::Split));
        assert_eq!(lost.found(&config, &node(3), late), Some(Found::One), "it has started");
        assert_eq!(lost.found(&config, &node(3), late), None);
        let soon = (0..10).filter(|random| lost.next(*random).is_some_and(|(.., soon)| soon));
        assert_eq!(soon.count(), 5, "each of three is dialed twice, on average");
    }

    #[test]
    fn one_contact_that_is_back_brings_only_a_few_dials() {
        let config = UpkeepConfig::default();
        let mut lost = Lost::default();
        for number in 0..20 {
            add(&mut lost, number, 0, 0);
        }
        for (number, hour) in (0..3).zip(1..) {
            let now = UnixMillis(hour * 3_600_000);
            assert_eq!(lost.found(&config, &node(number), now), Some(Found::First));
            let soon = (0..10).filter(|random| lost.next(*random).is_some_and(|(.., soon)| soon));
            assert_eq!(soon.count(), FEW - 1);
        }
    }

    #[test]
    fn nodes_that_are_gone_for_good_are_dialed_more_and_more_rarely() {
        let config = UpkeepConfig::default();
        let mut lost = Lost::default();
        for number in 0..3 {
            add(&mut lost, number, u64::from(number), 0);
        }
        let (mut now, mut dials) = (UnixMillis(2), 0);
        while !lost.is_empty() {
            now.0 += u64::try_from(lost.interval(&config, now).as_millis()).unwrap();
            while lost.pop_expired(&config, now).is_some() {}
            dials += u32::from(lost.next(now.0).is_some());
        }
        assert!((40..100).contains(&dials), "{dials}");
        add(&mut lost, 9, now.0, 0);
        assert_eq!(lost.interval(&config, now), config.lost_delay);
    }

    #[test]
    fn contact_is_remembered_for_a_week() {
        let config = UpkeepConfig::default();
        let mut lost = Lost::default();
        add(&mut lost, 1, 1000, 0);
        assert_eq!(lost.pop_expired(&config, UnixMillis(1000 + WEEK)), None);
        assert_eq!(lost.pop_expired(&config, UnixMillis(1001 + WEEK)), Some(node(1)));
        assert!(lost.is_empty());
        // A clock that was set back.
        add(&mut lost, 1, 1000, 0);
        assert_eq!(lost.pop_expired(&config, UnixMillis(0)), None);
        assert!(lost.remove(&node(1)) && !lost.remove(&node(1)));
        assert_eq!(lost.next(3), None);
    }
}

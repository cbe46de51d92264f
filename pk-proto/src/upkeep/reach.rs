//! Which contacts respond to dials, and which do not although they are alive.
//!
//! A node behind a NAT connects to others, but does not respond to their dials: its silence proves
//! nothing. It is recognized by both: no dial to it has succeeded, and after one has failed it has
//! connected by itself. Such a contact is *hidden*. It counts as live for the time in which a node
//! checks all of its contacts, since it checks this one too, and is dialed only after that.
//!
//! The NAT of a node that was connected a moment ago still admits packets, so that only a dial
//! after [`NAT_MEMORY`] proves that no NAT is in the way.

use alloc::collections::BTreeMap;
use core::time::Duration;

use crate::api::transport::Side;
use crate::types::id::NodeId;
use crate::types::time::Instant;

/// Time after which NATs have forgotten a connection. Most do after two minutes (RFC 4787 REQ-5).
const NAT_MEMORY: Duration = Duration::from_secs(5 * 60);

/// Longest time for which a hidden contact is not dialed after its last connection: a node with a
/// hundred contacts that checks one in half an hour checks each in 48 h.
pub(crate) const MOST_GRACE: Duration = Duration::from_secs(48 * 60 * 60);

/// Nodes that are remembered after they have left as contacts, because they may be hidden.
const REMEMBERED: usize = 128;
/// Many contacts are hidden if this part of them is.
const MANY: usize = 8;

/// How a contact can be reached. Of one that was stored before the start nothing is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reach {
    /// It has responded to a dial when no NAT remembered an earlier connection.
    Dialed,
    /// It has responded to a dial, perhaps because its NAT remembered an earlier connection; or it
    /// was `Dialed` and did not respond later.
    Reached,
    /// It has only connected by itself.
    Accepted,
    /// It does not respond to dials, but was connected at this time, in seconds.
    Hidden(u32),
}

/// What is known of the contacts.
#[derive(Debug, Default)]
pub(crate) struct Reaches {
    /// By the first bytes of their ids, which saves memory: to find another id with the same ones
    /// takes 2^64 keys, and gains nothing.
    contacts: BTreeMap<[u8; 8], Reach>,
    /// Number of hidden ones.
    hidden: usize,
    /// Nodes that have left because they did not respond, and never did, by the number of their
    /// place in `order`.
    silent: BTreeMap<NodeId, u64>,
    order: BTreeMap<u64, NodeId>,
    next: u64,
}

impl Reaches {
    /// Returns whether a contact is hidden, so that this node may be behind a NAT as well.
    pub(crate) fn has_hidden(&self) -> bool {
        self.hidden > 0
    }

    /// A contact is connected. `how`: which end has dialed, `None` if a relay had announced it;
    /// `new`: it was no contact before; `failed`: it did not respond to the last dial; `seen`: when
    /// it was connected before, if it was since the start.
    pub(crate) fn connected(
        &mut self,
        node: NodeId,
        how: Option<Side>,
        (new, failed): (bool, bool),
        seen: Option<Instant>,
        now: Instant,
    ) {
        if new {
            self.admitted(node, now);
        }
        let known = self.contacts.get(&key(&node)).copied();
        let seen = match known {
            Some(Reach::Hidden(at)) => Some(Instant::from_micros(u64::from(at) * MICROS)),
            _ => seen,
        };
        let dialed = how == Some(Side::Dialer);
        let forgotten = !new && seen.is_none_or(|at| now.since(at) >= NAT_MEMORY);
        let reach = match known {
            _ if dialed && forgotten => Reach::Dialed,
            Some(Reach::Hidden(_)) => Reach::Hidden(seconds(now)),
            Some(Reach::Accepted) if dialed => Reach::Reached,
            Some(Reach::Accepted | Reach::Reached) if failed && !dialed => {
                Reach::Hidden(seconds(now))
            }
            // It was away, or has restarted; or its NAT admitted the dial, because one of its own
            // had failed.
            Some(Reach::Dialed) if failed && !dialed => Reach::Reached,
            Some(reach) => reach,
            None => return,
        };
        self.set(node, reach);
    }

    fn set(&mut self, node: NodeId, reach: Reach) {
        self.remove(&node);
        self.hidden += usize::from(matches!(reach, Reach::Hidden(_)));
        self.contacts.insert(key(&node), reach);
    }

    /// A node that has connected, now or earlier, is a contact from now on.
    pub(crate) fn admitted(&mut self, node: NodeId, now: Instant) {
        let reach = match self.silent.remove(&node) {
            Some(place) => {
                self.order.remove(&place);
                Reach::Hidden(seconds(now))
            }
            None => Reach::Accepted,
        };
        self.set(node, reach);
    }

    /// Returns whether a contact does not respond to dials although it is alive.
    pub(crate) fn is_hidden(&self, node: &NodeId) -> bool {
        matches!(self.contacts.get(&key(node)), Some(Reach::Hidden(_)))
    }

    /// Returns whether a contact may have responded to a dial.
    pub(crate) fn was_reached(&self, node: &NodeId) -> bool {
        !matches!(self.contacts.get(&key(node)), Some(Reach::Hidden(_) | Reach::Accepted))
    }

    /// Returns whether a contact has responded to a dial that no NAT could have admitted.
    pub(crate) fn is_dialed(&self, node: &NodeId) -> bool {
        matches!(self.contacts.get(&key(node)), Some(Reach::Dialed))
    }

    /// Returns whether the silence of a contact is no news: it is hidden, or not known to respond
    /// to dials, where many are hidden.
    pub(crate) fn is_expected(&self, node: &NodeId) -> bool {
        match self.contacts.get(&key(node)) {
            Some(Reach::Hidden(_)) => true,
            Some(Reach::Accepted | Reach::Reached) => self.many_are_hidden(),
            Some(Reach::Dialed) | None => false,
        }
    }

    /// Returns whether a node may well be alive if it does not respond to a dial: nothing proves
    /// that it does, and it is hidden, or many are.
    pub(crate) fn may_be_hidden(&self, node: &NodeId) -> bool {
        match self.contacts.get(&key(node)) {
            None => self.many_are_hidden(),
            Some(_) => self.is_expected(node),
        }
    }

    fn many_are_hidden(&self) -> bool {
        self.hidden > 0 && self.hidden * MANY >= self.contacts.len()
    }

    /// A contact leaves because it does not respond. If it never did, it is hidden if it returns.
    pub(crate) fn leaves(&mut self, node: &NodeId) {
        if !matches!(self.contacts.get(&key(node)), Some(reach) if *reach != Reach::Dialed) {
            return;
        }
        self.next += 1;
        if let Some(before) = self.silent.insert(*node, self.next) {
            self.order.remove(&before);
        }
        self.order.insert(self.next, *node);
        if self.order.len() > REMEMBERED
            && let Some((_, first)) = self.order.pop_first()
        {
            self.silent.remove(&first);
        }
    }

    /// A node is no contact any longer.
    pub(crate) fn remove(&mut self, node: &NodeId) {
        let before = self.contacts.remove(&key(node));
        self.hidden -= usize::from(matches!(before, Some(Reach::Hidden(_))));
    }

    /// Returns the numbers of contacts and of other nodes.
    pub(crate) fn len(&self) -> (usize, usize) {
        (self.contacts.len(), self.silent.len())
    }
}

/// Returns the first bytes of an id.
fn key(node: &NodeId) -> [u8; 8] {
    node.as_bytes().first_chunk().copied().unwrap_or_default()
}

/// Microseconds of a second.
const MICROS: u64 = 1_000_000;

fn seconds(at: Instant) -> u32 {
    u32::try_from(at.as_micros() / MICROS).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: NodeId = NodeId::from_bytes([1; 32]);
    const DIALED: Option<Side> = Some(Side::Dialer);
    const ACCEPTED: Option<Side> = Some(Side::Acceptor);
    const KNOWN: (bool, bool) = (false, false);
    const NEW: (bool, bool) = (true, false);
    const FAILED: (bool, bool) = (false, true);

    fn at(seconds: u64) -> Instant {
        Instant::from_micros(seconds * 1_000_000)
    }

    fn known(reaches: &Reaches) -> (bool, bool) {
        (!reaches.was_reached(&NODE), reaches.is_hidden(&NODE))
    }

    #[test]
    fn node_that_fails_and_then_connects_is_hidden_until_a_late_dial_reaches_it() {
        let mut reaches = Reaches::default();
        reaches.connected(NODE, ACCEPTED, NEW, None, at(10));
        assert_eq!(known(&reaches), (true, false));
        reaches.connected(NODE, DIALED, KNOWN, Some(at(10)), at(20));
        assert_eq!(known(&reaches), (false, false), "its NAT still admits packets");
        reaches.connected(NODE, ACCEPTED, FAILED, Some(at(20)), at(30));
        assert_eq!(known(&reaches), (true, true));
        reaches.connected(NODE, DIALED, KNOWN, None, at(329));
        assert_eq!(known(&reaches), (true, true), "it was connected at 30");
        reaches.connected(NODE, DIALED, KNOWN, None, at(629));
        assert_eq!(known(&reaches), (false, false));
    }

    #[test]
    fn node_that_has_left_without_a_response_is_hidden_when_it_returns() {
        let mut reaches = Reaches::default();
        reaches.connected(NODE, ACCEPTED, NEW, None, at(10));
        reaches.leaves(&NODE);
        reaches.remove(&NODE);
        assert_eq!((known(&reaches), reaches.len()), ((false, false), (0, 1)));
        reaches.admitted(NODE, at(100));
        assert_eq!((known(&reaches), reaches.len()), ((true, true), (1, 0)));
    }

    #[test]
    fn silence_is_expected_of_the_others_where_many_are_hidden() {
        let mut reaches = Reaches::default();
        let node = |number: u8| NodeId::from_bytes([number; 32]);
        for number in 0..8 {
            reaches.connected(node(number), ACCEPTED, NEW, None, at(1));
        }
        assert!((0..8).all(|number| !reaches.is_expected(&node(number))));
        reaches.connected(node(0), ACCEPTED, FAILED, Some(at(1)), at(2));
        assert!((0..8).all(|number| reaches.is_expected(&node(number))));
        reaches.connected(node(1), DIALED, KNOWN, Some(at(1)), at(900));
        assert!(!reaches.is_expected(&node(1)), "it has responded");
        reaches.remove(&node(0));
        assert!(!reaches.is_expected(&node(2)));
    }

    #[test]
    fn node_that_responded_to_a_dial_is_hidden_by_two_failures_only() {
        let mut reaches = Reaches::default();
        reaches.connected(NODE, DIALED, NEW, None, at(10));
        reaches.connected(NODE, DIALED, KNOWN, Some(at(10)), at(310));
        assert!(reaches.is_dialed(&NODE));
        reaches.connected(NODE, ACCEPTED, FAILED, Some(at(310)), at(1000));
        assert_eq!(known(&reaches), (false, false), "it was away or has restarted");
        assert!(!reaches.is_dialed(&NODE));
        reaches.connected(NODE, DIALED, KNOWN, Some(at(1000)), at(2000));
        reaches.connected(NODE, ACCEPTED, FAILED, Some(at(2000)), at(3000));
        assert_eq!(known(&reaches), (false, false), "it has responded between them");
        reaches.connected(NODE, ACCEPTED, FAILED, Some(at(3000)), at(4000));
        assert_eq!(known(&reaches), (true, true));
    }

    #[test]
    fn node_that_responded_to_a_dial_is_not_remembered_when_it_leaves() {
        let mut reaches = Reaches::default();
        reaches.connected(NODE, DIALED, NEW, None, at(10));
        reaches.connected(NODE, DIALED, KNOWN, Some(at(10)), at(310));
        reaches.leaves(&NODE);
        assert_eq!(reaches.len(), (1, 0));
    }

    #[test]
    fn contact_that_was_stored_before_the_start_is_not_judged_by_its_connections() {
        let mut reaches = Reaches::default();
        reaches.connected(NODE, ACCEPTED, FAILED, None, at(10));
        assert_eq!(known(&reaches), (false, false));
        reaches.leaves(&NODE);
        assert_eq!(reaches.len(), (0, 0));
    }

    #[test]
    fn unknown_node_may_be_hidden_where_many_are() {
        let mut reaches = Reaches::default();
        assert!(!reaches.may_be_hidden(&NODE) && !reaches.has_hidden());
        for number in 2..11 {
            reaches.connected(NodeId::from_bytes([number; 32]), ACCEPTED, NEW, None, at(1));
        }
        reaches.set(NodeId::from_bytes([2; 32]), Reach::Hidden(1));
        assert!(!reaches.may_be_hidden(&NODE) && reaches.has_hidden(), "one of nine");
        reaches.set(NodeId::from_bytes([3; 32]), Reach::Hidden(1));
        assert!(
            reaches.may_be_hidden(&NODE) && reaches.may_be_hidden(&NodeId::from_bytes([4; 32]))
        );
        reaches.set(NODE, Reach::Dialed);
        assert!(!reaches.may_be_hidden(&NODE));
    }

    #[test]
    fn oldest_of_too_many_is_forgotten() {
        let mut reaches = Reaches::default();
        let node = |number: u8| NodeId::from_bytes([number; 32]);
        for number in 0..130 {
            reaches.connected(node(number), ACCEPTED, NEW, None, at(1));
            reaches.leaves(&node(number));
            reaches.leaves(&node(number));
            reaches.remove(&node(number));
        }
        assert_eq!((reaches.len(), reaches.order.len()), ((0, REMEMBERED), REMEMBERED));
        reaches.admitted(node(1), at(2));
        reaches.admitted(node(2), at(2));
        assert!(!reaches.is_hidden(&node(1)) && reaches.is_hidden(&node(2)));
    }
}

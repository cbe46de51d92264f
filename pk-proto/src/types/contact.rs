//! Contacts: the addresses of a node with their data.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::cmp::Reverse;

use serde::{Deserialize, Serialize};
use smallvec::{SmallVec, smallvec};

use super::address::{NodeAddress, NodeContactAddressData};
use super::time::UnixMillis;

/// The addresses of a node (specification: NodeContact), each once, the newest `connected_time`
/// first; of equal times, the one set last first. Deserialized contacts are normalized to this
/// form.
///
/// Most nodes have one address and there are many nodes: one address needs no heap memory.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(from = "Vec<(NodeAddress, NodeContactAddressData)>")]
pub struct NodeContact(SmallVec<[(NodeAddress, NodeContactAddressData); 1]>);

impl NodeContact {
    /// Creates a contact with one address.
    pub fn new(address: NodeAddress, data: NodeContactAddressData) -> Self {
        Self(smallvec![(address, data)])
    }

    /// Returns the addresses with their data, the newest first.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &(NodeAddress, NodeContactAddressData)> {
        self.0.iter()
    }

    /// Returns the number of addresses.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns whether there is no address.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the time of the last connection; the epoch if there is no address.
    pub fn connected_time(&self) -> UnixMillis {
        self.0.first().map_or_else(UnixMillis::default, |(_, data)| data.connected_time)
    }

    /// Inserts or replaces an address; scopes are united, and the newer time is kept with its mode.
    /// Above `limit` (at least 1), the address with the oldest `connected_time` is dropped, which
    /// may be this one. Returns whether the address is present now and was not before.
    pub fn set(
        &mut self,
        address: NodeAddress,
        mut data: NodeContactAddressData,
        limit: usize,
    ) -> bool {
        let later = |(_, other): &(_, NodeContactAddressData), time| other.connected_time > time;
        let known = self.0.iter().position(|(known, _)| *known == address);
        let Some(known) = known else {
            let at = self.0.partition_point(|other| later(other, data.connected_time));
            self.0.reserve_exact(1);
            self.0.insert(at, (address, data));
            self.0.truncate(limit.max(1));
            return at < limit.max(1);
        };
        if let Some((_, before)) = self.0.get(known) {
            data.scopes = data.scopes.union(before.scopes);
            if before.connected_time > data.connected_time {
                data.connected_time = before.connected_time;
                data.mode = before.mode;
            }
        }
        // The time is not earlier than before: the address stays or moves towards the front.
        if let Some(moved) = self.0.get_mut(..=known) {
            let at = moved.partition_point(|other| later(other, data.connected_time)).min(known);
            if let Some(moved) = moved.get_mut(at..) {
                moved.rotate_right(1);
                moved.iter_mut().take(1).for_each(|(_, entry)| *entry = data);
            }
        }
        self.0.truncate(limit.max(1));
        false
    }

    /// Returns whether this is one of the addresses.
    pub(crate) fn contains(&self, address: &NodeAddress) -> bool {
        self.0.iter().any(|(known, _)| known == address)
    }

    /// Removes an address, if it is there.
    pub(crate) fn remove(&mut self, address: &NodeAddress) {
        self.0.retain(|(known, _)| known != address);
    }

    /// Returns the times of the addresses, the newest first.
    pub(crate) fn times(&self) -> impl Iterator<Item = UnixMillis> {
        self.0.iter().map(|(_, data)| data.connected_time)
    }

    /// Replaces the times that `times` contains, which must keep their order. Returns whether there
    /// was one.
    pub(crate) fn replace_times(&mut self, times: &BTreeMap<UnixMillis, UnixMillis>) -> bool {
        let mut replaced = false;
        for (_, data) in &mut self.0 {
            if let Some(time) = times.get(&data.connected_time) {
                data.connected_time = *time;
                replaced = true;
            }
        }
        replaced
    }

    /// Returns the addresses that may be sent to peers: those learned in other ways than mDNS,
    /// without a zone. `None` if there are none.
    pub fn global(&self) -> Option<Self> {
        let global: SmallVec<_> = self
            .0
            .iter()
            .filter(|(address, data)| data.scopes.global && !address.is_zoned())
            .cloned()
            .collect();
        (!global.is_empty()).then_some(Self(global))
    }
}

impl From<Vec<(NodeAddress, NodeContactAddressData)>> for NodeContact {
    /// If an address occurs more than once, scopes are united and the newest time is kept with its
    /// mode. Of equal times the first comes first, so that the addresses of a contact result in the
    /// same contact. Takes n log n steps for any number of addresses from a peer.
    fn from(addresses: Vec<(NodeAddress, NodeContactAddressData)>) -> Self {
        let mut addresses: Vec<_> = addresses.into_iter().enumerate().collect();
        addresses.sort_by(|(_, (a, x)), (_, (b, y))| {
            a.cmp(b).then(y.connected_time.cmp(&x.connected_time))
        });
        addresses.dedup_by(|(_, (again, more)), (_, (address, data))| {
            let same = again == address;
            if same {
                data.scopes = data.scopes.union(more.scopes);
            }
            same
        });
        addresses.sort_by_key(|(i, (_, data))| (Reverse(data.connected_time), *i));
        Self(addresses.into_iter().map(|(_, address)| address).collect())
    }
}

impl FromIterator<(NodeAddress, NodeContactAddressData)> for NodeContact {
    /// Like `From<Vec<_>>`.
    fn from_iter<I: IntoIterator<Item = (NodeAddress, NodeContactAddressData)>>(
        addresses: I,
    ) -> Self {
        let addresses: SmallVec<[_; 1]> = addresses.into_iter().collect();
        if addresses.len() <= 1 { Self(addresses) } else { addresses.into_vec().into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::address::ContactMode;
    use crate::types::address::Scopes;

    fn address(port: u16) -> NodeAddress {
        NodeAddress { host: "10.0.0.1".parse().unwrap(), port }
    }

    fn data(connected_time: u64) -> NodeContactAddressData {
        NodeContactAddressData {
            mode: ContactMode::Direct,
            connected_time: UnixMillis(connected_time),
            scopes: Scopes::GLOBAL,
        }
    }

    fn ports(contact: &NodeContact) -> Vec<u16> {
        contact.iter().map(|(address, _)| address.port).collect()
    }

    #[test]
    fn oldest_address_is_dropped_over_the_limit_even_if_it_is_the_new_one() {
        let mut contact = NodeContact::new(address(1), data(30));
        assert!(contact.set(address(2), data(10), 3));
        assert!(contact.set(address(3), data(20), 3));
        assert_eq!(ports(&contact), [1, 3, 2]);
        assert!(contact.set(address(4), data(40), 3));
        assert_eq!(ports(&contact), [4, 1, 3]);
        assert!(!contact.set(address(5), data(5), 3));
        assert_eq!(ports(&contact), [4, 1, 3]);
        assert!(
            contact.set(address(6), data(20), 3),
            "of equal times the older knowledge is dropped"
        );
        assert_eq!(ports(&contact), [4, 1, 6]);
        assert_eq!(contact.connected_time(), UnixMillis(40));
        assert!(
            !contact.set(address(7), data(1), 0),
            "a limit of nothing would leave a contact without address"
        );
        assert_eq!(ports(&contact), [4]);
    }

    #[test]
    fn data_of_one_address_is_merged() {
        let local =
            NodeContactAddressData { mode: ContactMode::Signal, scopes: Scopes::LOCAL, ..data(10) };
        let both = Scopes { local: true, global: true };
        let mut contact = NodeContact::new(address(1), data(20));
        assert!(!contact.set(address(1), local, 5), "known");
        let expected = NodeContactAddressData { scopes: both, ..data(20) };
        assert_eq!(
            contact,
            NodeContact::new(address(1), expected),
            "the older time and its mode do not count"
        );
        let newer = NodeContactAddressData { connected_time: UnixMillis(30), ..local };
        assert!(!contact.set(address(1), newer, 5));
        assert_eq!(
            contact,
            NodeContact::new(address(1), NodeContactAddressData { scopes: both, ..newer })
        );
    }

    #[test]
    fn only_global_addresses_are_sent() {
        let local = NodeContactAddressData { scopes: Scopes::LOCAL, ..data(10) };
        let mut contact = NodeContact::new(address(1), local);
        assert_eq!(contact.global(), None);
        contact.set(address(2), data(5), 5);
        assert_eq!(contact.global(), Some(NodeContact::new(address(2), data(5))));
    }

    #[test]
    fn deserializing_restores_the_order_and_merges_duplicates() {
        let mut contact = NodeContact::default();
        for (port, time) in [(3, 7), (1, 7), (2, 7), (9, 8), (4, 1)] {
            contact.set(address(port), data(time), 5);
        }
        assert_eq!(ports(&contact), [9, 2, 1, 3, 4]);
        let json = serde_json::to_string(&contact).unwrap();
        assert_eq!(
            serde_json::from_str::<NodeContact>(&json).unwrap(),
            contact,
            "ties stay as they were"
        );

        let double =
            NodeContactAddressData { mode: ContactMode::Signal, scopes: Scopes::LOCAL, ..data(3) };
        let bad = [(address(1), data(1)), (address(2), data(2)), (address(1), double)];
        let both =
            NodeContactAddressData { scopes: Scopes { local: true, global: true }, ..double };
        let mut good = NodeContact::new(address(1), both);
        good.set(address(2), data(2), 5);
        let json = serde_json::to_string(&bad).unwrap();
        assert_eq!(serde_json::from_str::<NodeContact>(&json).unwrap(), good);
        assert_eq!(bad.into_iter().collect::<NodeContact>(), good);
    }
}

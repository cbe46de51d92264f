//! What is known of a node: its addresses and what is known of each.

use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::address::{NodeAddress, NodeContactAddressData};
use crate::time::UnixMillis;

/// The addresses of a node (specification: NodeContact), the newest `connected_time` first.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct NodeContact(Vec<(NodeAddress, NodeContactAddressData)>);

impl NodeContact {
    /// A contact with one address.
    pub fn new(address: NodeAddress, data: NodeContactAddressData) -> Self {
        Self(alloc::vec![(address, data)])
    }

    /// Addresses and what is known of them, the newest first.
    pub fn iter(&self) -> impl Iterator<Item = &(NodeAddress, NodeContactAddressData)> {
        self.0.iter()
    }

    /// How many addresses there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is no address.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// When a connection was last made; the epoch if there is no address.
    pub fn connected_time(&self) -> UnixMillis {
        self.0.first().map_or_else(UnixMillis::default, |(_, data)| data.connected_time)
    }

    /// Inserts or replaces an address; scopes add up, and of two times the newer stays. Over `limit`, the address with
    /// the oldest `connected_time` is dropped. Returns whether the address is new.
    pub fn set(&mut self, address: NodeAddress, mut data: NodeContactAddressData, limit: usize) -> bool {
        let known = self.0.iter().position(|(known, _)| *known == address).map(|i| self.0.remove(i).1);
        if let Some(known) = known {
            data.scopes = data.scopes.union(known.scopes);
            if known.connected_time > data.connected_time {
                data.connected_time = known.connected_time;
                data.mode = known.mode;
            }
        }
        let at = self.0.partition_point(|(_, other)| other.connected_time > data.connected_time);
        self.0.insert(at, (address, data));
        self.0.truncate(limit);
        known.is_none()
    }

    /// The addresses that may be told to others: those learnt from the network at large. `None` if there are none.
    pub fn global(&self) -> Option<Self> {
        let global: Vec<_> = self.0.iter().filter(|(_, data)| data.scopes.global).cloned().collect();
        (!global.is_empty()).then_some(Self(global))
    }
}

impl FromIterator<(NodeAddress, NodeContactAddressData)> for NodeContact {
    fn from_iter<I: IntoIterator<Item = (NodeAddress, NodeContactAddressData)>>(addresses: I) -> Self {
        let mut contact = Self::default();
        for (address, data) in addresses {
            contact.set(address, data, usize::MAX);
        }
        contact
    }
}

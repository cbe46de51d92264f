//! The target of a dial race, and the origin of its addresses.

use alloc::vec::Vec;
use core::time::Duration;

use crate::types::address::{ContactMode, NodeAddress, NodeContactAddressData, Scopes};
use crate::types::contact::NodeContact;
use crate::types::id::NodeId;

/// Target of a race, and how to reach it.
#[derive(Debug, Clone)]
pub(crate) struct DialTarget {
    pub(crate) node: NodeId,
    /// Addresses with their origins.
    pub(crate) addresses: Vec<(NodeAddress, AddressOrigin)>,
    /// Connected nodes that may signal; asked one after the other.
    pub(crate) relays: Vec<NodeId>,
    pub(crate) timeout: Duration,
    /// Whether one of them may also relay.
    pub(crate) relayed: bool,
    /// Whether the embedder waits for it. Background dials leave a place for it.
    pub(crate) foreground: bool,
}

impl DialTarget {
    /// Returns a target with addresses of one origin.
    pub(crate) fn at(
        node: NodeId,
        addresses: impl IntoIterator<Item = NodeAddress>,
        origin: AddressOrigin,
        timeout: Duration,
    ) -> Self {
        let addresses = addresses.into_iter().map(|address| (address, origin)).collect();
        Self { node, addresses, relays: Vec::new(), relayed: false, timeout, foreground: false }
    }

    /// Returns a target with the addresses of a contact.
    pub(crate) fn known(node: NodeId, contact: &NodeContact, timeout: Duration) -> Self {
        let addresses = contact
            .iter()
            .map(|(address, data)| (address.clone(), AddressOrigin::known(data)))
            .collect();
        Self { node, addresses, relays: Vec::new(), relayed: false, timeout, foreground: false }
    }

    /// Marks that the embedder waits for it.
    pub(crate) fn foreground(self) -> Self {
        Self { foreground: true, ..self }
    }
}

/// Origin of an address, which determines the mode of a connection to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct AddressOrigin {
    pub(crate) mode: ContactMode,
    pub(crate) scopes: Scopes,
}

impl AddressOrigin {
    /// From the graph, a peer, or the embedder.
    pub(crate) const DIRECT: Self = Self { mode: ContactMode::Direct, scopes: Scopes::GLOBAL };
    /// From a relay, which has informed the node as well.
    pub(crate) const SIGNALLED: Self = Self { mode: ContactMode::Signal, scopes: Scopes::GLOBAL };
    /// From the local network.
    pub(crate) const LOCAL: Self = Self { mode: ContactMode::Direct, scopes: Scopes::LOCAL };
    /// A relayed path.
    pub(crate) const RELAYED: Self = Self { mode: ContactMode::Relay, scopes: Scopes::NONE };

    /// From a contact: dialed, with its original scopes. An address of the local network stays one;
    /// one that a relay has named is proved by the dial.
    pub(crate) fn known(data: &NodeContactAddressData) -> Self {
        match data.mode {
            ContactMode::Relay => Self::DIRECT,
            ContactMode::Direct | ContactMode::Signal => {
                Self { mode: ContactMode::Direct, scopes: data.scopes }
            }
        }
    }
}

//! The specification's names for what has another name, or another form, here.

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;
use core::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::address::{NodeAddress, Scopes};
use crate::graph::NodeContact;
use crate::id::{BucketIndex, NodeId, ParseNodeIdError};
use crate::seed_node::SeedNode;
use crate::time::{Instant, UnixMillis};

/// Names one of the 256 buckets.
pub type NodeBucketIndex = BucketIndex;

/// The nodes of one bucket and what is known of each, in the order of their ids.
pub type NodeBucket<'a> = Vec<(NodeId, &'a NodeContact)>;

/// The key of a [`NodeContact`]: one place where the node may be.
pub type NodeContactAddress = NodeAddress;

/// Where a node joins the network.
pub type SeedNodes = Vec<SeedNode>;

/// What there is to know of a bucket besides its nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeBucketMeta {
    /// Nodes in it.
    pub count: usize,
    /// Nodes that wait for room in it.
    pub pending: usize,
    /// When it was last refreshed; `None` if never.
    pub refreshed: Option<UnixMillis>,
    /// When it is refreshed next; `None` if it is not, as it is nearer than the nearest neighbour or the node does not run.
    pub refresh_at: Option<Instant>,
}

/// How an address was learnt, as one of a set ([`Scopes`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeAddressScope {
    /// On the local network (mDNS).
    Local,
    /// In any other way.
    Global,
}

impl Scopes {
    /// Whether it is in the set.
    pub const fn contains(self, scope: NodeAddressScope) -> bool {
        match scope {
            NodeAddressScope::Local => self.local,
            NodeAddressScope::Global => self.global,
        }
    }

    /// Those that are in the set.
    pub fn iter(self) -> impl Iterator<Item = NodeAddressScope> {
        [NodeAddressScope::Local, NodeAddressScope::Global].into_iter().filter(move |scope| self.contains(*scope))
    }
}

impl FromIterator<NodeAddressScope> for Scopes {
    fn from_iter<I: IntoIterator<Item = NodeAddressScope>>(scopes: I) -> Self {
        let one = |scope| match scope {
            NodeAddressScope::Local => Self::LOCAL,
            NodeAddressScope::Global => Self::GLOBAL,
        };
        scopes.into_iter().map(one).fold(Self::default(), Self::union)
    }
}

/// A [`NodeId`] in its text form, known to be one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeIdEncoded(String);

impl NodeIdEncoded {
    /// The text: `v` and 52 characters.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<NodeId> for NodeIdEncoded {
    fn from(id: NodeId) -> Self {
        Self(id.to_string())
    }
}

impl From<&NodeIdEncoded> for NodeId {
    fn from(encoded: &NodeIdEncoded) -> Self {
        // The text was written by us.
        encoded.0.parse().unwrap_or(Self::from_bytes([0; 32]))
    }
}

impl FromStr for NodeIdEncoded {
    type Err = ParseNodeIdError;

    /// Takes what [`NodeId`] takes, and keeps it in the one form that is written.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse::<NodeId>().map(Self::from)
    }
}

impl fmt::Display for NodeIdEncoded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_of_scopes_is_its_members() {
        use NodeAddressScope::{Global, Local};
        for scopes in [&[][..], &[Local], &[Global], &[Local, Global]] {
            let set: Scopes = scopes.iter().copied().collect();
            assert_eq!(set.iter().collect::<Vec<_>>(), scopes);
            assert_eq!([Local, Global].map(|scope| set.contains(scope)), [set.local, set.global]);
        }
    }

    #[test]
    fn an_encoded_id_is_always_one() {
        let id = NodeId::from_bytes([7; 32]);
        let encoded = NodeIdEncoded::from(id);
        assert_eq!((NodeId::from(&encoded), encoded.as_str().len()), (id, NodeId::TEXT_LEN));
        let hex = alloc::format!("f{}", data_encoding::HEXLOWER.encode(id.as_bytes()));
        assert_eq!(hex.parse::<NodeIdEncoded>().unwrap().to_string(), id.to_string());
        assert_eq!("v".parse::<NodeIdEncoded>(), Err(ParseNodeIdError::Length(0)));
    }
}

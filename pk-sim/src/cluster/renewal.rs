//! Nodes that become other keys, and which of their keys they are when they start again.

use pk_proto::{Failure, Identity, NodeId, Reply, Request, RequestError, RequestId, Snapshot, UnixMillis};

use super::Cluster;
use crate::HostId;
use crate::host::EPOCH;
use crate::identity::{Key, renew};

impl Cluster {
    /// The identity after a change of key: its key is at the node's driver from now on, and nobody presents it yet.
    pub fn next_identity(&mut self, node: HostId) -> Identity {
        let generation = self.nodes[node].identities.len() as u64;
        let new = Key::numbered(self.seed, node as u64 + (generation << 32));
        // A minute after the one before, and long ago, so that clocks may differ.
        let unix = UnixMillis(EPOCH - 43_200_000 + 60_000 * generation);
        let own = self.id(node);
        let host = self.host_mut(node);
        let old = host.keys[&own].clone();
        let identity = renew(&host.identity, &old, &new, unix);
        host.keys.insert(new.id(), new.clone());
        self.nodes[node].identities.insert(new.id(), identity.clone());
        identity
    }

    /// Begins to give a node another key, if the node takes the request.
    pub fn begin_renewal(&mut self, node: HostId) -> Result<RequestId, RequestError> {
        let identity = self.next_identity(node);
        self.try_request(node, Request::Renew { identity })
    }

    /// Gives a node another key, and waits for the end.
    pub fn renew(&mut self, node: HostId) -> Result<Reply, Failure> {
        let begun = self.begin_renewal(node);
        let id = begun.unwrap_or_else(|error| self.fail(&format!("node {node} refused a renewal: {error}")));
        self.await_done(node, id)
    }

    /// As a driver does at its start: of all keys that a node has, the one whose graph the store holds is presented.
    pub(super) fn choose_identity(&mut self, node: HostId) {
        if self.nodes[node].identities.len() < 2 {
            return;
        }
        let rows = self.host(node).store.rows().map(|(table, key, value)| (table, key.clone(), value.clone()));
        let owner = Snapshot::from_rows(rows).ok().and_then(|snapshot| snapshot.meta).map(|meta| meta.owner);
        let known = owner.and_then(|owner| Some((owner, self.nodes[node].identities.get(&owner)?.clone())));
        if let Some((owner, identity)) = known {
            self.nodes[node].id = owner;
            self.host_mut(node).identity = identity;
        }
    }

    /// Whether an id is one that a node has, or had, or began to have.
    pub(super) fn is_of(&self, node: HostId, id: &NodeId) -> bool {
        self.nodes[node].id == *id || self.nodes[node].identities.contains_key(id)
    }
}

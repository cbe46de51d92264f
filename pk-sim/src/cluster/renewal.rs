//! Key renewals of nodes, and the choice of their key at a restart.

use pk_proto::{
    Failure, Identity, NodeId, Reply, Request, RequestError, RequestId, Snapshot, UnixMillis,
};

use super::Cluster;
use crate::host::EPOCH;
use crate::host::id::HostId;
use crate::host::identity::{Key, renew};

impl Cluster {
    /// Returns the identity after a renewal. The node's driver has its key from now on, but does
    /// not present it yet.
    pub fn next_identity(&mut self, node: HostId) -> Identity {
        let generation = self.nodes[node].identities.len() as u64;
        let new = Key::numbered(self.seed, node as u64 + (generation << 32));
        // A minute after the one before, and long ago, so that clocks may differ.
        let unix = UnixMillis(EPOCH - 43_200_000 + 60_000 * generation);
        let own = self.id(node);
        let host = self.host_mut(node);
        let old = host.keys[&own].clone();
        let identity = renew(&host.identity, &old, &new, unix).shortened();
        host.keys.insert(new.id(), new.clone());
        self.nodes[node].identities.insert(new.id(), identity.clone());
        identity
    }

    /// Starts a key renewal, if the node accepts the request.
    pub fn begin_renewal(&mut self, node: HostId) -> Result<RequestId, RequestError> {
        let identity = self.next_identity(node);
        self.try_request(node, Request::Renew { identity })
    }

    /// Renews the key of a node, and waits for the result.
    pub fn renew(&mut self, node: HostId) -> Result<Reply, Failure> {
        let begun = self.begin_renewal(node);
        let id = begun
            .unwrap_or_else(|error| self.fail(&format!("node {node} refused a renewal: {error}")));
        self.await_done(node, id)
    }

    /// As a driver does at its start: presents the identity that owns the store.
    pub(super) fn choose_identity(&mut self, node: HostId) {
        if self.nodes[node].identities.len() < 2 {
            return;
        }
        let rows = self
            .host(node)
            .store
            .rows()
            .map(|(table, key, value)| (table, key.clone(), value.clone()));
        let owner = Snapshot::from_rows(rows)
            .ok()
            .and_then(|snapshot| snapshot.meta)
            .map(|meta| meta.owner);
        let known =
            owner.and_then(|owner| Some((owner, self.nodes[node].identities.get(&owner)?.clone())));
        if let Some((owner, identity)) = known {
            self.nodes[node].id = owner;
            self.host_mut(node).identity = identity;
        }
    }

    /// Returns whether an id belongs, belonged, or was to belong to a node.
    pub(super) fn is_of(&self, node: HostId, id: &NodeId) -> bool {
        self.nodes[node].id == *id || self.nodes[node].identities.contains_key(id)
    }
}

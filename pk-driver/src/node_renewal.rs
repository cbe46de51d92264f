//! Calls about who a node is. Part of [`Node`].

use pk_proto::Identity;

use crate::error::NodeError;
use crate::identity::IdentityError;
use crate::keys::KeyPair;
use crate::node::Node;
use crate::renewal::Renewed;

impl<R> Node<R> {
    /// The certificates that this node presents, newest first.
    pub fn identity(&self) -> Identity {
        self.custody.identity()
    }

    /// Becomes another, new key. The node stays reachable under its old id: its certificates lead from the new key to the
    /// old ones. Connections stay for 30 s at most; the nearest nodes are dialled again.
    ///
    /// With a [`KeyStore`](crate::KeyStore) in [`NodeConfig::keys`](crate::NodeConfig::keys) the new key is written there
    /// first, and when this returns the next start has it, also after a power failure. Goes on if the future is dropped.
    ///
    /// # Errors
    ///
    /// [`NodeError::Request`], [`NodeError::Failure`], [`NodeError::Closed`], [`NodeError::Keys`], [`NodeError::Identity`]:
    /// the node runs on under the key that it has. After a failure of the store, or a crash, the next start finds the
    /// renewal done or not done, and either way one key.
    pub async fn renew(&self) -> Result<Renewed, NodeError> {
        let key = KeyPair::generate().map_err(IdentityError::from)?;
        self.renew_to(key).await
    }

    /// As [`renew`](Self::renew), for a key that the embedder has made. For the present key, only its certificate is made
    /// anew.
    ///
    /// # Errors
    ///
    /// As [`renew`](Self::renew).
    pub async fn renew_to(&self, key: KeyPair) -> Result<Renewed, NodeError> {
        self.custody.begin(self.handle.clone(), Some(key))?.await.unwrap_or(Err(NodeError::Closed))
    }
}

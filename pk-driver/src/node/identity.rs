//! Calls about the identity of a node. Part of [`Node`].

use pk_proto::Identity;

use crate::error::NodeError;
use crate::node::Node;
use crate::node::renewal::{CertificateFailure, Renewed};
use pk_host::IdentityError;
use pk_host::KeyPair;

impl<R> Node<R> {
    /// Returns the certificates that this node presents, newest first.
    pub fn identity(&self) -> Identity {
        self.identity_manager.identity()
    }

    /// Returns why the latest attempts to reissue the certificate failed. `None` if the certificate
    /// is not due or was reissued.
    pub fn certificate_failure(&self) -> Option<CertificateFailure> {
        self.identity_manager.failure()
    }

    /// Renews the key; with a [`signer`](crate::NodeConfig::signer), the hot key. The node stays
    /// reachable under its former id, because its certificates lead from the new key to the old
    /// ones. Connections close within 30 s; the nearest nodes are dialed again.
    ///
    /// With a [`KeyStore`](crate::KeyStore) in [`NodeConfig::keys`](crate::NodeConfig::keys) the
    /// new key is written there first, and once this returns the next start uses it, also after a
    /// power failure. Continues if the future is dropped.
    ///
    /// # Errors
    ///
    /// [`NodeError::Request`], [`NodeError::Failure`], [`NodeError::Closed`], [`NodeError::Keys`],
    /// [`NodeError::Identity`]: the node continues under its present key. After a failure of the
    /// store, or a crash, the next start finds the renewal either completed or not, with one key in
    /// both cases.
    pub async fn renew(&self) -> Result<Renewed, NodeError> {
        let key = KeyPair::generate().map_err(IdentityError::from)?;
        self.renew_to(key).await
    }

    /// Like [`renew`](Self::renew), with a key from the embedder. For the present key, only its
    /// certificate is reissued, by the signer if there is one.
    ///
    /// # Errors
    ///
    /// Those of [`renew`](Self::renew).
    pub async fn renew_to(&self, key: KeyPair) -> Result<Renewed, NodeError> {
        self.identity_manager
            .begin(self.handle.clone(), Some(key))?
            .await
            .unwrap_or(Err(NodeError::Closed))
    }
}

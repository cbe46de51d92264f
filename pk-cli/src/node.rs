//! A node as the commands start it.

use std::net::SocketAddr;

use pk_driver::{Node, NodeConfig, Runtime};
use pk_proto::{BucketIndex, NodeContact, NodeId};

use crate::error::Result;
use crate::keys::NodeKeys;

/// The settings of a node with these keys. Without `listen` it takes a free port on every address.
pub(crate) fn config(keys: &NodeKeys, listen: Option<SocketAddr>) -> NodeConfig {
    let mut config = NodeConfig::new(keys.key.clone(), keys.identity.clone());
    if let Some(listen) = listen {
        config.listen = listen;
    }
    config
}

/// Every node of the graph with its bucket, the nearest first.
pub(crate) async fn graph<R: Runtime>(node: &Node<R>) -> Result<Vec<(BucketIndex, NodeId, NodeContact)>> {
    let own = node.own_id();
    let nodes = node.closest_nodes(own, usize::MAX).await?;
    Ok(nodes.into_iter().filter_map(|(id, contact)| Some((own.bucket_index(&id)?, id, contact))).collect())
}

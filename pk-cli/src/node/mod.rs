//! Configurations of the nodes that commands start.

pub(crate) mod echo;
pub(crate) mod keys;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

use pk_driver::{KeyPair, Node, NodeConfig, Runtime};
use pk_proto::{BucketIndex, NodeContact, NodeId};

use crate::error::{CliError, Result};

/// Returns the configuration of the node in a directory and locks the directory.
///
/// # Errors
///
/// The directory contains no node, another process uses it, or its content cannot be read.
pub(crate) fn open(dir: &Path) -> Result<NodeConfig> {
    keys::expect(dir)?;
    Ok(NodeConfig::open(dir)?)
}

/// Starts the node in a directory for a local command; it does not need to be reachable.
///
/// # Errors
///
/// Those of [`open`], or the node cannot start.
pub(crate) async fn start_alone<R: Runtime>(dir: &Path, runtime: R) -> Result<Node<R>> {
    let mut config = open(dir)?;
    config.listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    Ok(Node::start_on(runtime, config).await?)
}

/// Returns the configuration of a node that is not stored.
///
/// # Errors
///
/// Reading system randomness fails.
pub(crate) fn ephemeral(key: KeyPair) -> Result<NodeConfig> {
    NodeConfig::ephemeral(key).map_err(|error| CliError::new("Identity", error.to_string()))
}

/// Returns every contact with its bucket, the nearest first.
pub(crate) async fn graph<R: Runtime>(
    node: &Node<R>,
) -> Result<Vec<(BucketIndex, NodeId, NodeContact)>> {
    let own = node.own_id();
    let nodes = node.closest_nodes(own, usize::MAX).await?;
    Ok(nodes
        .into_iter()
        .filter_map(|(id, contact)| Some((own.bucket_index(&id)?, id, contact)))
        .collect())
}

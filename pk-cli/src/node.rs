//! A node as the commands start it.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

use pk_driver::{KeyPair, Node, NodeConfig, Runtime};
use pk_proto::{BucketIndex, NodeContact, NodeId};

use crate::error::{CliError, Result};
use crate::keys;

/// The settings of the node in a folder, as it was when it last ran. The folder is its alone from here on.
///
/// # Errors
///
/// There is no node in the folder, one is running there, or what is stored cannot be read.
pub(crate) fn open(dir: &Path) -> Result<NodeConfig> {
    keys::expect(dir)?;
    Ok(NodeConfig::open(dir)?)
}

/// Starts the node in a folder for work on its own: nobody else needs to reach it.
///
/// # Errors
///
/// As [`open`]; it cannot start.
pub(crate) async fn start_alone<R: Runtime>(dir: &Path, runtime: R) -> Result<Node<R>> {
    let mut config = open(dir)?;
    config.listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    Ok(Node::start_on(runtime, config).await?)
}

/// The settings of a node that is kept nowhere.
///
/// # Errors
///
/// The operating system has no randomness to give.
pub(crate) fn ephemeral(key: KeyPair) -> Result<NodeConfig> {
    NodeConfig::ephemeral(key).map_err(|error| CliError::new("Identity", error.to_string()))
}

/// Every node of the graph with its bucket, the nearest first.
pub(crate) async fn graph<R: Runtime>(node: &Node<R>) -> Result<Vec<(BucketIndex, NodeId, NodeContact)>> {
    let own = node.own_id();
    let nodes = node.closest_nodes(own, usize::MAX).await?;
    Ok(nodes.into_iter().filter_map(|(id, contact)| Some((own.bucket_index(&id)?, id, contact))).collect())
}

//! Execution of the commands of the line protocol, and the form of their results.

use std::collections::BTreeMap;

use pk_driver::{Node, Runtime};
use pk_proto::{
    ActiveConnection, ActiveNode, ClosestNodesQuery, ConnectionInfo, ContactMode, Distance,
    Failure, FindNodeOptions, NodeContact, NodeContactAddressData, NodeId, RequestOptions,
    SetNodeOptions,
};
use serde_json::{Map, Value, json};

use super::claims;
use super::command::Command;
use crate::error::Result;
use crate::node;
use crate::node::echo;
use crate::output::polykey_json;

/// Number of nodes in a response of the reference.
const CLOSEST_LIMIT: usize = 20;

/// Executes a command.
pub(super) async fn perform<R: Runtime + Unpin>(node: &Node<R>, command: Command) -> Result<Value> {
    let options = RequestOptions::default();
    match command {
        Command::Connect { node: target, address } => {
            let info = node.connect(target, address, options).await?;
            Ok(json!({
                "nodeId": info.node.to_string(),
                "host": info.address.host.to_string(),
                "port": info.address.port,
                "connectionId": polykey_json::connection_id(&info.shared_id),
            }))
        }
        Command::Disconnect { node: target } => {
            node.disconnect(target).await?;
            Ok(json!({}))
        }
        Command::FindNode { node: target } => {
            let outcome = node.find_node(target, FindNodeOptions::default()).await?;
            Ok(outcome.found.map_or(Value::Null, |(at, data)| polykey_json::found(&at, &data)))
        }
        Command::FindClosest { target, count } => {
            let outcome = node.find_closest(target, count, FindNodeOptions::default()).await?;
            Ok(outcome.nodes.iter().map(polykey_json::found_closest).collect())
        }
        Command::Ping { node: target } => match node.ping_node(target, options).await {
            Ok(pong) => Ok(polykey_json::found(&pong.address, &pong.data)),
            Err(pk_driver::NodeError::Failure(Failure::NotFound(_))) => Ok(Value::Null),
            Err(error) => Err(error.into()),
        },
        Command::Closest { target, via: None } => {
            Ok(closest_json(&node.closest_nodes(target, CLOSEST_LIMIT).await?))
        }
        Command::Closest { target, via: Some(via) } => {
            let query = ClosestNodesQuery { known: true, connected: false };
            Ok(closest_json(&node.query_closest_nodes(via, target, query, options).await?.known))
        }
        Command::Active { target, via: None } => {
            Ok(active_json(&closest_connected(target, node.connections().await?)))
        }
        Command::Active { target, via: Some(via) } => {
            let query = ClosestNodesQuery { known: false, connected: true };
            Ok(active_json(&node.query_closest_nodes(via, target, query, options).await?.connected))
        }
        Command::Graph => {
            let nodes = node::graph(node).await?;
            let entry = |(bucket, id, known): &(_, NodeId, _)| {
                (
                    id.to_string(),
                    json!({ "bucket": bucket, "contact": polykey_json::contact(known) }),
                )
            };
            Ok(nodes.iter().map(entry).collect::<Map<_, _>>().into())
        }
        Command::Connections => {
            Ok(node.connections().await?.iter().map(polykey_json::connection).collect())
        }
        Command::Metrics => {
            let (core, driver) = (node.metrics().await?, node.driver_metrics());
            Ok(json!({ "core": counters(core.iter()), "driver": counters(driver.iter()) }))
        }
        Command::SetNode { node: target, address, scopes, block, force } => {
            let data = NodeContactAddressData {
                mode: ContactMode::Direct,
                connected_time: pk_driver::unix_now(),
                scopes,
            };
            polykey_json::set_node(
                node.set_node(target, address, data, SetNodeOptions { block, force, options })
                    .await?,
            )
        }
        Command::UnsetNode { node: target } => {
            node.unset_node(target).await?;
            Ok(json!({}))
        }
        Command::Signal { target, relay } => {
            let info = node.connect_through(target, relay, options).await?;
            let (host, port) = (info.address.host.to_string(), info.address.port);
            Ok(json!({ "nodeId": info.node.to_string(), "host": host, "port": port }))
        }
        Command::Mdns { node: target } => {
            Ok(node.query_mdns(target, None).await?.iter().map(polykey_json::address).collect())
        }
        Command::Renew => {
            let renewed = node.renew().await?;
            let (old, new) = (renewed.old.to_string(), renewed.new.to_string());
            Ok(
                json!({ "oldNodeId": old, "nodeId": new, "certChainPem": polykey_json::pem(&node.identity()) }),
            )
        }
        Command::Cert => Ok(json!({ "certPem": polykey_json::pem(&node.identity()) })),
        Command::Stream { node: target, text } => {
            let stream = node.open_stream(target, echo::PROTOCOL, options).await?;
            let echoed = echo::call(stream, text.as_bytes()).await?;
            Ok(String::from_utf8_lossy(&echoed).into())
        }
        Command::Claims(command) => claims::perform(node, command).await,
        // The caller ends the session.
        Command::Quit => Ok(Value::Null),
    }
}

fn counters(counters: impl Iterator<Item = (&'static str, u64)>) -> Map<String, Value> {
    counters.map(|(name, value)| (name.to_owned(), value.into())).collect()
}

fn closest_json(nodes: &[(NodeId, NodeContact)]) -> Value {
    nodes.iter().map(|(id, known)| polykey_json::closest_node(*id, known)).collect()
}

fn active_json(nodes: &[ActiveNode]) -> Value {
    nodes.iter().map(polykey_json::active_node).collect()
}

/// Returns the connected nodes closest to a target, nearest first, each with its connections.
fn closest_connected(target: NodeId, connections: Vec<ConnectionInfo>) -> Vec<ActiveNode> {
    let mut nodes: BTreeMap<Distance, ActiveNode> = BTreeMap::new();
    for info in connections {
        let node = nodes
            .entry(target.distance(&info.node))
            .or_insert_with(|| ActiveNode { node: info.node, connections: Vec::new() });
        node.connections.push(ActiveConnection {
            shared_id: info.shared_id,
            address: info.address,
            primary: info.primary,
            idle_in_ms: info
                .idle_in
                .map(|idle_in| u64::try_from(idle_in.as_millis()).unwrap_or(u64::MAX)),
        });
    }
    nodes.into_values().take(CLOSEST_LIMIT).collect()
}

//! The events of the line protocol.

use pk_driver::{Events, Node, NodeError, Notice, Runtime};
use pk_proto::claims::ClaimId;
use pk_proto::{Event, NodeId, Role, Synced};
use serde::Serialize;
use serde_json::{Value, json};

use super::lines::Printer;
use crate::error::CliError;
use crate::shape;
use crate::words::{ms, why_closed};

/// The first line.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Ready {
    event: &'static str,
    node_id: NodeId,
    host: String,
    port: u16,
    public_key_hex: String,
    cert_pem: String,
    pid: u32,
}

impl Ready {
    pub(super) fn new<R: Runtime>(node: &Node<R>, cert_pem: String) -> Self {
        let addr = node.local_addrs().first().copied();
        Self {
            event: "ready",
            node_id: node.own_id(),
            host: addr.map_or_else(String::new, |addr| addr.ip().to_string()),
            port: addr.map_or(0, |addr| addr.port()),
            public_key_hex: data_encoding::HEXLOWER.encode(node.own_id().as_bytes()),
            cert_pem,
            pid: std::process::id(),
        }
    }
}

/// The last line.
#[derive(Serialize)]
pub(super) struct Stopped {
    pub(super) event: &'static str,
}

/// The only line of a node that cannot start.
#[derive(Serialize)]
pub(super) struct Fatal {
    pub(super) event: &'static str,
    pub(super) error: Value,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Opened {
    event: &'static str,
    node_id: NodeId,
    host: String,
    port: u16,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct About {
    event: &'static str,
    node_id: NodeId,
    reason: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Renewed {
    event: &'static str,
    old_node_id: NodeId,
    node_id: NodeId,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct OfClaim {
    event: &'static str,
    claim_id_encoded: String,
    node_id: Option<NodeId>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Asked {
    event: &'static str,
    ask: u64,
    node_id: NodeId,
    payload: Value,
    within_ms: f64,
}

#[derive(Serialize)]
struct Lagged {
    event: &'static str,
    missed: u64,
}

#[derive(Serialize)]
struct Joined {
    event: &'static str,
    seeds: Vec<NodeId>,
    failed: Vec<Value>,
}

/// Prints what happens until the node has shut down.
pub(super) async fn print(mut events: Events, printer: &Printer) {
    while let Some(notice) = events.next().await {
        match notice {
            Notice::Event(Event::ConnectionOpened { node, role, address, .. }) => {
                let event = match role {
                    Role::Dialler => "connectionForward",
                    Role::Acceptor => "connectionReverse",
                };
                let (host, port) = (address.host.to_string(), address.port);
                printer.print(&Opened { event, node_id: node, host, port }).await;
            }
            Notice::Event(Event::ConnectionClosed { node, why, .. }) => {
                let reason = why_closed(&why);
                printer.print(&About { event: "connectionClosed", node_id: node, reason }).await;
            }
            Notice::Event(Event::IdentityRenewed { old, new }) => {
                printer.print(&Renewed { event: "identityRenewed", old_node_id: old, node_id: new }).await;
            }
            Notice::Event(Event::PeerMisbehaved { node, fault, .. }) => {
                let reason = fault.to_string();
                printer.print(&About { event: "peerMisbehaved", node_id: node, reason }).await;
            }
            Notice::Event(Event::ClaimAdded { claim, node }) => of_claim(printer, "claimAdded", claim, node).await,
            Notice::Event(Event::ClaimInDoubt { claim, node }) => {
                of_claim(printer, "claimInDoubt", claim, Some(node)).await;
            }
            Notice::Event(Event::ClaimSettled { claim, node }) => {
                of_claim(printer, "claimSettled", claim, Some(node)).await;
            }
            Notice::Event(Event::ClaimAsked { ask, node, claim, within }) => {
                let (payload, within_ms) = (shape::payload(&claim), ms(within));
                printer.print(&Asked { event: "claimAsked", ask: ask.0, node_id: node, payload, within_ms }).await;
            }
            Notice::Event(_) => {}
            Notice::Lagged(missed) => printer.print(&Lagged { event: "lagged", missed }).await,
        }
    }
}

async fn of_claim(printer: &Printer, event: &'static str, claim: ClaimId, node: Option<NodeId>) {
    printer.print(&OfClaim { event, claim_id_encoded: claim.to_string(), node_id: node }).await;
}

/// Prints how joining through the seeds went.
pub(super) async fn print_joined(printer: &Printer, result: Result<Synced, NodeError>) {
    match result {
        Ok(synced) => {
            let failed = synced.failed.iter();
            let failed = failed.map(|(seed, why)| json!({ "seed": seed.to_string(), "message": why.to_string() }));
            printer.print(&Joined { event: "joined", failed: failed.collect(), seeds: synced.seeds }).await;
        }
        Err(error) => printer.print(&Fatal { event: "joinFailed", error: CliError::from(error).json() }).await,
    }
}

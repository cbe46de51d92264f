//! The events of the line protocol.

use pk_driver::{EventOrLag, Events, Node, NodeError, Runtime};
use pk_proto::claims::ClaimId;
use pk_proto::{Event, NodeId, Side, Synced};
use serde::Serialize;
use serde_json::{Value, json};

use super::lines::Printer;
use super::port_mapping;
use crate::commands::chain;
use crate::error::CliError;
use crate::output::format::{ms, why_closed};
use crate::output::polykey_json;

/// First line.
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

/// Last line.
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
struct Dropped {
    event: &'static str,
    node_ids: Vec<NodeId>,
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
struct OfApproval {
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

/// The local chain is forked.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Forked {
    event: &'static str,
    seq: u64,
    claims: [String; 2],
    reason: &'static str,
}

/// The store accepts no more writes.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Closed {
    event: &'static str,
    reason: String,
}

/// Prints events until the node has shut down.
pub(super) async fn print(mut events: Events, printer: &Printer) {
    while let Some(notice) = events.next().await {
        match notice {
            EventOrLag::Event(Event::ConnectionOpened { node, side, address, .. }) => {
                let event = match side {
                    Side::Dialer => "connectionForward",
                    Side::Acceptor => "connectionReverse",
                };
                let (host, port) = (address.host.to_string(), address.port);
                printer.print(&Opened { event, node_id: node, host, port }).await;
            }
            EventOrLag::Event(Event::ConnectionClosed { node, why, .. }) => {
                let reason = why_closed(&why);
                printer.print(&About { event: "connectionClosed", node_id: node, reason }).await;
            }
            EventOrLag::Event(Event::IdentityRenewed { old, new }) => {
                printer
                    .print(&Renewed { event: "identityRenewed", old_node_id: old, node_id: new })
                    .await;
            }
            EventOrLag::Event(Event::FormerIdsDropped { ids }) => {
                printer.print(&Dropped { event: "formerIdsDropped", node_ids: ids }).await;
            }
            EventOrLag::Event(Event::PeerMisbehaved { node, fault, .. }) => {
                let reason = fault.to_string();
                printer.print(&About { event: "peerMisbehaved", node_id: node, reason }).await;
            }
            EventOrLag::Event(Event::ClaimAdded { claim, node }) => {
                of_claim(printer, "claimAdded", claim, node).await;
            }
            EventOrLag::Event(Event::ClaimUnconfirmed { claim, node }) => {
                of_claim(printer, "claimInDoubt", claim, Some(node)).await;
            }
            EventOrLag::Event(Event::ClaimConfirmed { claim, node }) => {
                of_claim(printer, "claimSettled", claim, Some(node)).await;
            }
            EventOrLag::Event(Event::ClaimApprovalRequested { approval, node, claim, within }) => {
                let (payload, within_ms) = (polykey_json::payload(&claim), ms(within));
                printer
                    .print(&OfApproval {
                        event: "claimAsked",
                        ask: approval.0,
                        node_id: node,
                        payload,
                        within_ms,
                    })
                    .await;
            }
            EventOrLag::Event(Event::ChainForked { seq, claims }) => {
                let claims = claims.map(|claim| claim.to_string());
                printer
                    .print(&Forked { event: "chainForked", seq, claims, reason: chain::FORKED })
                    .await;
            }
            EventOrLag::Event(Event::StoreClosed { why }) => {
                printer.print(&Closed { event: "storeClosed", reason: why }).await;
            }
            EventOrLag::PortMapping(event) => port_mapping::print(printer, &event).await,
            EventOrLag::Event(_) => {}
            EventOrLag::Lagged(missed) => printer.print(&Lagged { event: "lagged", missed }).await,
        }
    }
}

async fn of_claim(printer: &Printer, event: &'static str, claim: ClaimId, node: Option<NodeId>) {
    printer.print(&OfClaim { event, claim_id_encoded: claim.to_string(), node_id: node }).await;
}

/// Prints the result of joining through the seed nodes.
pub(super) async fn print_joined(printer: &Printer, result: Result<Synced, NodeError>) {
    match result {
        Ok(synced) => {
            let failed = synced.failed.iter();
            let failed = failed
                .map(|(seed, why)| json!({ "seed": seed.to_string(), "message": why.to_string() }));
            printer
                .print(&Joined { event: "joined", failed: failed.collect(), seeds: synced.seeds })
                .await;
        }
        Err(error) => {
            printer
                .print(&Fatal { event: "joinFailed", error: CliError::from(error).json() })
                .await;
        }
    }
}

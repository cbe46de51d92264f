//! A Polykey 1.15.1 node in the network of the demo.

use std::time::{Duration, Instant};

use pk_driver::{Node, Runtime};
use pk_interop::{InstallError, Peer, PeerError, Polykey, Settings, cache_dir};
use pk_proto::{FindNodeOptions, GestaltQuery, NodeId, RequestOptions};
use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::claims::whole;
use super::network::Network;
use super::report::{Outcome, Progress};
use crate::error::{CliError, Result};
use crate::output::format::{Spread, count, human, ms};

/// Installs the package with npm, unless it is installed.
pub(super) async fn install() -> Result<(Polykey, Outcome)> {
    let dir = cache_dir().ok_or_else(|| {
        CliError::new("NoCache", "there is no directory for the npm package")
            .tip("Set XDG_CACHE_HOME.")
    })?;
    let (done, installed) = oneshot::channel();
    // npm can take a minute.
    let install = move || {
        // Fails if the receiver was dropped.
        let _ = done.send(Polykey::install(dir));
    };
    let thread = std::thread::Builder::new().name("npm".to_owned()).spawn(install);
    thread.map_err(|error| CliError::new("Thread", error.to_string()))?;
    let installed =
        installed.await.map_err(|_| CliError::new("Npm", "the installation was interrupted"))?;
    let polykey = installed.map_err(|error| not_to_be_had(&error))?;
    Ok((polykey, Outcome { summary: "Polykey 1.15.1 is installed".to_owned(), figures: json!({}) }))
}

fn not_to_be_had(error: &InstallError) -> CliError {
    let tip = match error {
        InstallError::Missing { .. } | InstallError::Version(_) => {
            "Install Node.js 20 or later with npm, or leave --interop out."
        }
        InstallError::Npm(_) => {
            "npm needs its registry for the first installation; the package is cached."
        }
        _ => "Check that directory, or set XDG_CACHE_HOME to another one.",
    };
    CliError::new("Interop", error.to_string()).tip(tip)
}

impl From<PeerError> for CliError {
    fn from(error: PeerError) -> Self {
        Self::new("Polykey", error.to_string())
    }
}

/// A Polykey 1.15.1 node joins, all nodes find it, it finds all nodes, and one node and it claim
/// each other. It stops at the end of the step.
pub(super) async fn meet<R: Runtime + Unpin>(
    network: &Network<R>,
    polykey: &Polykey,
    progress: &Progress,
) -> Result<Outcome> {
    let peer = polykey.start(Settings::default()).await?;
    let seed = network.nodes.first().ok_or_else(|| CliError::new("Start", "no node listens"))?;
    let begun = Instant::now();
    let addr =
        *seed.local_addrs().first().ok_or_else(|| CliError::new("Start", "no node listens"))?;
    peer.ask("sync", json!({ "nodeId": seed.own_id(), "host": addr.ip(), "port": addr.port() }))
        .await?;
    let joined = begun.elapsed();
    progress.tick();
    let mut ours = Vec::new();
    let mut theirs = Vec::new();
    for node in &network.nodes {
        ours.push(find_polykey_node(node, peer.node_id()).await?);
        theirs.push(it_finds(&peer, node.own_id()).await?);
        progress.tick();
    }
    let claims = claim_polykey_node(seed, &peer).await?;
    let (ours, theirs) = (Spread::of(ours), Spread::of(theirs));
    let nodes = network.nodes.len() as u64;
    Ok(Outcome {
        summary: format!(
            "a Polykey 1.15.1 node joined in {}; {} found it: median {}; it found them: median \
                {}; its chain of {} is valid, with one claim initiated by each side",
            human(joined),
            count(nodes, "node"),
            human(ours.median),
            human(theirs.median),
            count(claims as u64, "claim"),
        ),
        figures: json!({
            "joinedMs": ms(joined), "found": nodes, "foundBy": nodes,
            "medianMs": ms(ours.median), "theirMedianMs": ms(theirs.median),
            "claims": claims,
        }),
    })
}

async fn find_polykey_node<R: Runtime + Unpin>(node: &Node<R>, target: NodeId) -> Result<Duration> {
    let outcome = node.find_node(target, FindNodeOptions::default()).await?;
    match outcome.found {
        Some(_) => Ok(outcome.stats.elapsed),
        None => Err(CliError::new(
            "NotFound",
            format!("{} did not find the Polykey node: {outcome:?}", node.own_id()),
        )),
    }
}

/// A node of the demo claims it, and it claims that node. Then both are linked, and its chain is
/// verified. Returns the length of that chain.
async fn claim_polykey_node<R: Runtime>(node: &Node<R>, peer: &Peer) -> Result<usize> {
    let (ours, theirs) = (node.own_id(), peer.node_id());
    peer.ask("allow", json!({ "nodeId": ours })).await?;
    node.claim_node(theirs, RequestOptions::default()).await?;
    node.allow_claim(theirs, RequestOptions::default()).await?;
    peer.ask("claim", json!({ "nodeId": ours })).await?;
    let chain = whole(node, theirs).await?;
    let gestalt = node.gestalt(ours, GestaltQuery::default(), RequestOptions::default()).await?;
    let of_theirs = peer.ask("gestalt", json!({})).await?;
    let issuers: Vec<_> =
        chain.iter().filter_map(|claim| claim.link().map(|link| link.issuer)).collect();
    if issuers != [ours, theirs] || !gestalt.nodes.contains(&theirs) || !contains(&of_theirs, ours)
    {
        let message = format!(
            "the Polykey node and {ours} are not linked: {chain:?}, {gestalt:?}, {of_theirs}"
        );
        return Err(CliError::new("Claim", message));
    }
    Ok(chain.len())
}

fn contains(list: &Value, node: NodeId) -> bool {
    let node = node.to_string();
    list.as_array().is_some_and(|nodes| nodes.iter().any(|other| *other == node))
}

async fn it_finds(peer: &Peer, target: NodeId) -> Result<Duration> {
    let begun = Instant::now();
    match peer.ask("find", json!({ "nodeId": target })).await? {
        Value::Null => {
            Err(CliError::new("NotFound", format!("the Polykey node did not find {target}")))
        }
        _ => Ok(begun.elapsed()),
    }
}

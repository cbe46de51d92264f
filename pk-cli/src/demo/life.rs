//! The steps of the demo about the life of a node: how it is reached through others, and that it stays itself.

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use pk_driver::{KeyStore, MdnsInterfaces, NodeConfig, Runtime};
use pk_proto::{ContactMode, FindNode, Options, Scopes, Strategies};
use serde_json::json;

use super::claims::whole;
use super::network::{Network, until};
use super::report::{Outcome, Progress};
use crate::error::{CliError, Result};
use crate::words::{count, human, ms};

/// A busy machine may be late.
const MDNS_TIMEOUT: Duration = Duration::from_secs(8);

/// Two newcomers that only share a relay, the first node, connect through it.
pub(super) async fn signal<R: Runtime + Unpin>(
    network: &mut Network<R>,
    runtime: &R,
    progress: &Progress,
) -> Result<Outcome> {
    let relay = network.seed()?;
    let (a, b) = (network.guest(runtime, |_| {}).await?, network.guest(runtime, |_| {}).await?);
    for node in [&a, &b] {
        node.connect(relay.node, relay.address.clone(), Options::default()).await?;
    }
    // No other way than this one.
    let strategies = Strategies { direct: false, signal: true, mdns: false };
    let find = FindNode { strategies: Some(strategies), ..FindNode::default() };
    let outcome = a.find_node(b.own_id(), find).await?;
    match &outcome.found {
        Some((_, data)) if data.mode == ContactMode::Signal => {}
        _ => return Err(CliError::new("Signal", format!("the two did not connect through the relay: {outcome:?}"))),
    }
    let rtt = b.ping_node(a.own_id(), Options::default()).await?.rtt;
    progress.tick();
    let took = outcome.stats.elapsed;
    Ok(Outcome {
        summary: format!(
            "two newcomers that share only a relay connected through it in {}: round trip {}",
            human(took),
            human(rtt)
        ),
        figures: json!({ "mode": "signal", "findMs": ms(took), "rttMs": ms(rtt) }),
    })
}

/// Two newcomers that know nobody find each other on the local network, on a port that no one else uses.
pub(super) async fn mdns<R: Runtime + Unpin>(
    network: &mut Network<R>,
    runtime: &R,
    progress: &Progress,
) -> Result<Outcome> {
    let port = UdpSocket::bind("0.0.0.0:0").and_then(|socket| socket.local_addr())?.port();
    let local = |config: &mut NodeConfig| {
        config.core.mdns = true;
        config.core.mdns_timeout = MDNS_TIMEOUT;
        config.driver.mdns.port = port;
        config.driver.mdns.interfaces = MdnsInterfaces::Loopback;
    };
    let (a, b) = (network.guest(runtime, local).await?, network.guest(runtime, local).await?);
    let outcome = a.find_node(b.own_id(), FindNode::default()).await?;
    match &outcome.found {
        Some((_, data)) if data.scopes == Scopes::LOCAL => {}
        _ => return Err(CliError::new("Mdns", format!("nobody was found on the local network: {outcome:?}"))),
    }
    progress.tick();
    let took = outcome.stats.elapsed;
    Ok(Outcome {
        summary: format!("two newcomers that know nobody met on the local network in {}", human(took)),
        figures: json!({ "scope": "local", "findMs": ms(took) }),
    })
}

/// The node that has a folder stops, starts again from it, and finds the others without a seed.
pub(super) async fn restart<R: Runtime + Unpin>(
    network: &mut Network<R>,
    runtime: &R,
    progress: &Progress,
) -> Result<Outcome> {
    let before = network.resident()?;
    let (id, head) = (before.own_id(), before.chain_head().await?);
    before.shutdown().await;
    let begun = Instant::now();
    let node = network.reopen(runtime).await?;
    let started = begun.elapsed();
    if node.own_id() != id {
        return Err(CliError::new("Restart", format!("{id} came back as {}", node.own_id())));
    }
    let known = node.metrics().await?.nodes;
    if known == 0 {
        return Err(CliError::new("Restart", format!("{id} has forgotten everybody")));
    }
    if node.chain_head().await? != head {
        return Err(CliError::new("Restart", format!("{id} has another chain than before")));
    }
    let target = network.other()?;
    let outcome = node.find_node(target.own_id(), FindNode::default()).await?;
    if outcome.found.is_none() {
        let message = format!("{id} did not find {} after its restart: {outcome:?}", target.own_id());
        return Err(CliError::new("NotFound", message));
    }
    let found = begun.elapsed();
    target.ping_node(id, Options::default()).await?;
    progress.tick();
    Ok(Outcome {
        summary: format!(
            "a node was up again from its folder in {}, knew {}, had found one without a seed after {}",
            human(started),
            count(known, "other"),
            human(found)
        ),
        figures: json!({ "startMs": ms(started), "known": known, "findMs": ms(found) }),
    })
}

/// The node that has a folder becomes another key. It is reached by its old id, and whoever reaches it learns the new one.
pub(super) async fn renew<R: Runtime + Unpin>(
    network: &mut Network<R>,
    runtime: &R,
    progress: &Progress,
) -> Result<Outcome> {
    let node = network.resident()?;
    let friend = network.other()?;
    friend.ping_node(node.own_id(), Options::default()).await?;
    let begun = Instant::now();
    let renewed = node.renew().await?;
    let took = begun.elapsed();
    let (old, new) = (renewed.old, renewed.new);
    let key = KeyStore::new(network.folder()).load_key()?.map(|key| key.node_id());
    if old == new || node.own_id() != new || key != Some(new) {
        return Err(CliError::new("Renew", format!("{old} is {} now, and its key that of {key:?}", node.own_id())));
    }
    // Over a new connection, which is made by the old id.
    friend.disconnect(old).await?;
    friend.disconnect(new).await?;
    let rtt = friend.ping_node(old, Options::default()).await?.rtt;
    until(runtime, "a node that reached another one by its old id does not learn the new one", async || {
        // Not by its graph: the bucket of the new id may be full, where the new one waits for room.
        let by_new = friend.connections().await?.iter().any(|connection| connection.node == new);
        Ok((by_new && friend.contact(old).await?.is_none()).then_some(()))
    })
    .await?;
    // The claims are those of the old key, and the certificates say whose that was.
    let claims = whole(&friend, new).await?.len();
    let outcome = network.first()?.find_node(new, FindNode::default()).await?;
    if outcome.found.is_none() {
        return Err(CliError::new("NotFound", format!("{new} was not found by its new id: {outcome:?}")));
    }
    let mut learnt = 0;
    for other in &network.nodes {
        let connected = other.connections().await?.iter().any(|connection| connection.node == new);
        learnt += u64::from(connected || other.contact(new).await?.is_some());
    }
    progress.tick();
    Ok(Outcome {
        summary: format!(
            "a node took a new key in {}; reached by its old id, round trip {}; its {} hold; {} by the new one",
            human(took),
            human(rtt),
            count(claims as u64, "claim"),
            match learnt {
                1 => "1 node knows it".to_owned(),
                learnt => format!("{learnt} nodes know it"),
            }
        ),
        figures: json!({ "renewMs": ms(took), "rttMs": ms(rtt), "claims": claims, "learnt": learnt }),
    })
}

//! Steps of the demo about the life of a node: signalling, mDNS, restart, renewal.

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use pk_driver::{KeyStore, MdnsInterfaces, NodeConfig, Runtime};
use pk_proto::{ContactMode, FindNodeOptions, RequestOptions, Scopes, Strategies};
use serde_json::json;

use super::claims::whole;
use super::network::{Network, until};
use super::report::{Outcome, Progress};
use crate::error::{CliError, Result};
use crate::output::format::{count, human, ms};

/// Generous, because a busy machine may be late.
const MDNS_TIMEOUT: Duration = Duration::from_secs(8);

/// Two new nodes that share only a relay, the first node, connect through it.
pub(super) async fn signal<R: Runtime + Unpin>(
    network: &mut Network<R>,
    runtime: &R,
    progress: &Progress,
) -> Result<Outcome> {
    let relay = network.seed()?;
    let (a, b) = (network.guest(runtime, |_| {}).await?, network.guest(runtime, |_| {}).await?);
    for node in [&a, &b] {
        node.connect(relay.node, relay.address.clone(), RequestOptions::default()).await?;
    }
    // Allow only this strategy.
    let strategies = Strategies { direct: false, signal: true, mdns: false, relay: false };
    let find = FindNodeOptions { strategies: Some(strategies), ..FindNodeOptions::default() };
    let outcome = a.find_node(b.own_id(), find).await?;
    match &outcome.found {
        Some((_, data)) if data.mode == ContactMode::Signal => {}
        _ => {
            return Err(CliError::new(
                "Signal",
                format!("the two nodes did not connect through the relay: {outcome:?}"),
            ));
        }
    }
    let rtt = b.ping_node(a.own_id(), RequestOptions::default()).await?.rtt;
    progress.tick();
    let took = outcome.stats.elapsed;
    Ok(Outcome {
        summary: format!(
            "two new nodes that share only a relay connected through it in {}: round trip {}",
            human(took),
            human(rtt)
        ),
        figures: json!({ "mode": "signal", "findMs": ms(took), "rttMs": ms(rtt) }),
    })
}

/// Two new nodes without contacts find each other on the local network, on ports that nothing else
/// uses.
pub(super) async fn mdns<R: Runtime + Unpin>(
    network: &mut Network<R>,
    runtime: &R,
    progress: &Progress,
) -> Result<Outcome> {
    let port = || UdpSocket::bind("0.0.0.0:0")?.local_addr().map(|addr| addr.port());
    let (port, standard_port) = (port()?, port()?);
    let local = |config: &mut NodeConfig| {
        config.core.mdns = true;
        config.core.mdns_timeout = MDNS_TIMEOUT;
        config.driver.mdns.port = port;
        config.driver.mdns.standard_port = Some(standard_port);
        config.driver.mdns.interfaces = MdnsInterfaces::Loopback;
    };
    let (a, b) = (network.guest(runtime, local).await?, network.guest(runtime, local).await?);
    let outcome = a.find_node(b.own_id(), FindNodeOptions::default()).await?;
    match &outcome.found {
        Some((_, data)) if data.scopes == Scopes::LOCAL => {}
        _ => {
            return Err(CliError::new(
                "Mdns",
                format!("no node was found on the local network: {outcome:?}"),
            ));
        }
    }
    progress.tick();
    let took = outcome.stats.elapsed;
    Ok(Outcome {
        summary: format!(
            "two new nodes without contacts found each other on the local network in {}",
            human(took)
        ),
        figures: json!({ "scope": "local", "findMs": ms(took) }),
    })
}

/// The node with a directory stops, starts again from it, and finds the others without a seed node.
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
        return Err(CliError::new("Restart", format!("{id} has restarted as {}", node.own_id())));
    }
    let known = node.metrics().await?.nodes;
    if known == 0 {
        return Err(CliError::new("Restart", format!("{id} has lost its node graph")));
    }
    if node.chain_head().await? != head {
        return Err(CliError::new("Restart", format!("the chain of {id} has changed")));
    }
    let target = network.other()?;
    let outcome = node.find_node(target.own_id(), FindNodeOptions::default()).await?;
    if outcome.found.is_none() {
        let message =
            format!("{id} did not find {} after its restart: {outcome:?}", target.own_id());
        return Err(CliError::new("NotFound", message));
    }
    let found = begun.elapsed();
    target.ping_node(id, RequestOptions::default()).await?;
    progress.tick();
    Ok(Outcome {
        summary: format!(
            "a node restarted from its directory in {}, knew {}, and found one without a seed node in {}",
            human(started),
            count(known, "other"),
            human(found)
        ),
        figures: json!({ "startMs": ms(started), "known": known, "findMs": ms(found) }),
    })
}

/// The node with a directory renews its key. It is reached under its former id, and its peers learn
/// the new one.
pub(super) async fn renew<R: Runtime + Unpin>(
    network: &mut Network<R>,
    runtime: &R,
    progress: &Progress,
) -> Result<Outcome> {
    let node = network.resident()?;
    let friend = network.other()?;
    friend.ping_node(node.own_id(), RequestOptions::default()).await?;
    let begun = Instant::now();
    let renewed = node.renew().await?;
    let took = begun.elapsed();
    let (old, new) = (renewed.old, renewed.new);
    let key = KeyStore::new(network.folder()).load_key()?.map(|key| key.node_id());
    if old == new || node.own_id() != new || key != Some(new) {
        return Err(CliError::new(
            "Renew",
            format!("{old} became {}, but its key is that of {key:?}", node.own_id()),
        ));
    }
    // Forces a new connection, which is dialed under the former id.
    friend.disconnect(old).await?;
    friend.disconnect(new).await?;
    let rtt = friend.ping_node(old, RequestOptions::default()).await?.rtt;
    until(
        runtime,
        "a node that reached another one under its former id did not learn the new id",
        async || {
            // Not by its node graph: the bucket of the new id may be full, so that the new id is
            // pending.
            let by_new =
                friend.connections().await?.iter().any(|connection| connection.node == new);
            Ok((by_new && friend.contact(old).await?.is_none()).then_some(()))
        },
    )
    .await?;
    // The claims are signed by the old key; the certificates prove its owner.
    let claims = whole(&friend, new).await?.len();
    let outcome = network.first()?.find_node(new, FindNodeOptions::default()).await?;
    if outcome.found.is_none() {
        return Err(CliError::new(
            "NotFound",
            format!("{new} was not found under its new id: {outcome:?}"),
        ));
    }
    let mut learnt = 0;
    for other in &network.nodes {
        let connected = other.connections().await?.iter().any(|connection| connection.node == new);
        learnt += u64::from(connected || other.contact(new).await?.is_some());
    }
    progress.tick();
    Ok(Outcome {
        summary: format!(
            "a node renewed its key in {}; reached under its former id, round trip {}; its {} \
                are valid; {} by the new one",
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

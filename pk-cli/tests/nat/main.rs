//! Real `pk run` nodes behind real NATs: network namespaces, with nftables masquerade in front of them.
//!
//! Needs root, `ip` and `nft`. Where one is missing the tests say so on stderr and pass, except in CI (`CI=true`), where
//! everything has to be there.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a helper of tests fails as a test does")]

mod internet;
#[path = "../cli/process.rs"]
#[allow(dead_code, reason = "shared with the other tests of the program")]
mod process;

use serde_json::{Value, json};

use crate::internet::{Internet, Nat};
use crate::process::Agent;

/// A search that cannot succeed ends by then.
const CONNECT_TIMEOUT_MS: &str = "8000";

/// A node somewhere on the internet.
fn node(internet: &Internet, host: &str, relay: Option<&Agent>) -> Agent {
    let mut args = vec!["--host", "0.0.0.0", "--port", "4433", "--connect-timeout", CONNECT_TIMEOUT_MS];
    let seed = relay.map(|relay| format!("pk://{}@{}:4433", relay.id, internet.address("relay")));
    args.extend(seed.iter().flat_map(|seed| ["--seed-node", seed.as_str()]));
    let mut agent = Agent::start_in(&internet.namespace(host), &args);
    if relay.is_some() {
        agent.event("joined");
    }
    agent
}

/// One node finds another one that it shares only a relay with, and speaks to it.
fn find(from: &mut Agent, to: &Agent) -> Value {
    let found = from.ask(&format!("findNode {}", to.id));
    assert_ne!(found, json!(null), "the node was not found");
    assert_eq!(from.ask(&format!("stream {} through the NAT", to.id)), "through the NAT");
    found
}

#[test]
fn two_nodes_behind_port_preserving_nats_connect_in_both_directions() {
    let Some(internet) = Internet::new("pp", &[("a", Nat::PortPreserving), ("b", Nat::PortPreserving)]) else { return };
    let relay = node(&internet, "relay", None);
    for [first, second] in [["a", "b"], ["b", "a"]] {
        let mut first = node(&internet, first, Some(&relay));
        let second = node(&internet, second, Some(&relay));
        let found = find(&mut first, &second);
        assert_eq!(found[1]["mode"], "signal", "{found}");
        first.quit();
        second.quit();
        // The NATs forget; else the next two would come through the holes of these.
        internet.forget();
    }
    relay.quit();
}

#[test]
fn symmetric_and_public_connect_in_both_directions() {
    let Some(internet) = Internet::new("sp", &[("a", Nat::Symmetric), ("p", Nat::None)]) else { return };
    let relay = node(&internet, "relay", None);
    for [first, second] in [["a", "p"], ["p", "a"]] {
        let mut first = node(&internet, first, Some(&relay));
        let second = node(&internet, second, Some(&relay));
        find(&mut first, &second);
        first.quit();
        second.quit();
        internet.forget();
    }
    relay.quit();
}

#[test]
fn two_nodes_behind_symmetric_nats_are_told_that_it_cannot_be() {
    let Some(internet) = Internet::new("ss", &[("a", Nat::Symmetric), ("b", Nat::Symmetric)]) else { return };
    let relay = node(&internet, "relay", None);
    let mut a = node(&internet, "a", Some(&relay));
    let b = node(&internet, "b", Some(&relay));
    assert_eq!(a.ask(&format!("findNode {}", b.id)), json!(null));
    let why = a.answer(&format!("connect-reason {}", b.id));
    assert!(why.to_string().contains("signalling was accepted, but the dial timed out"), "{why}");
    a.quit();
    b.quit();
    relay.quit();
}

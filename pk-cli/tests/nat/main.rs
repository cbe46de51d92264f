//! Real `pk run` nodes behind real NATs: network namespaces, with nftables masquerade in front of
//! them.
//!
//! Needs root, `ip` and `nft`. If one is missing, the tests print so on stderr and pass, except in
//! CI (`CI=true`), where all are required.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a helper of tests fails as a test does")]

#[cfg(target_os = "linux")]
#[allow(dead_code, reason = "shared with the tests of port mapping")]
mod gateway;
#[allow(dead_code, reason = "shared with the other tests in namespaces")]
mod internet;
#[cfg(target_os = "linux")]
mod mapped;
#[path = "../cli/process.rs"]
#[allow(dead_code, reason = "shared with the other tests of the program")]
mod process;
mod relay;

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::internet::{Internet, Nat};
use crate::process::{Agent, pk_in, pk_ok};

/// Maximum duration of a search that cannot succeed.
const CONNECT_TIMEOUT_MS: &str = "8000";

/// A node somewhere on the internet.
fn node(internet: &Internet, host: &str, relay: Option<&Agent>) -> Agent {
    node_with(internet, host, relay, &[])
}

/// A node somewhere on the internet, with more options.
fn node_with(internet: &Internet, host: &str, relay: Option<&Agent>, options: &[&str]) -> Agent {
    let mut args =
        vec!["--host", "0.0.0.0", "--port", "4433", "--connect-timeout", CONNECT_TIMEOUT_MS];
    args.extend(options);
    let seed = relay.map(|relay| format!("pk://{}@{}:4433", relay.id, internet.address("relay")));
    args.extend(seed.iter().flat_map(|seed| ["--seed-node", seed.as_str()]));
    let mut agent = Agent::start_in(&internet.namespace(host), &args);
    if relay.is_some() {
        agent.event("joined");
    }
    agent
}

/// One node finds another one with which it shares only a relay, and opens a stream to it. Returns
/// the mode of the connection.
fn find(from: &mut Agent, to: &Agent) -> Value {
    let found = from.ask(&format!("findNode {}", to.id));
    assert_ne!(found, json!(null), "the node was not found");
    assert_eq!(from.ask(&format!("stream {} through the NAT", to.id)), "through the NAT");
    found[1]["mode"].clone()
}

/// Builds an internet with two hosts and a relay for each direction, and makes one host find the
/// other. Each time it is built again, since a NAT remembers which packets it let through.
fn in_both_directions(name: &str, a: Nat, b: Nat, check: impl Fn([&mut Agent; 2])) {
    for [from, to] in [["a", "b"], ["b", "a"]] {
        let Some(internet) = Internet::new(&format!("{name}{from}"), &[("a", a), ("b", b)]) else {
            return;
        };
        // If it relayed, that could be quicker than punching.
        let relay = node_with(&internet, "relay", None, &["--relay", "off"]);
        let mut first = node(&internet, from, Some(&relay));
        let mut second = node(&internet, to, Some(&relay));
        find(&mut first, &second);
        check([&mut first, &mut second]);
        first.quit();
        second.quit();
        relay.quit();
    }
}

#[test]
fn two_nodes_behind_port_preserving_nats_connect_in_both_directions() {
    // Without the help of the relay each NAT drops what the other node sends.
    in_both_directions("pp", Nat::PortPreserving, Nat::PortPreserving, |nodes| {
        // Not the mode of the connection: a direct dial that is repeated during the punch can be
        // quicker than the dial after the signal.
        assert_ne!(nodes.map(Agent::punches), [0, 0], "connected without a punch");
    });
}

#[test]
fn symmetric_and_public_connect_in_both_directions() {
    in_both_directions("sp", Nat::Symmetric, Nat::None, |_| {});
}

#[test]
fn search_between_symmetric_nats_fails_with_the_reason_if_the_relay_only_signals() {
    let Some(internet) = Internet::new("ss", &[("a", Nat::Symmetric), ("b", Nat::Symmetric)])
    else {
        return;
    };
    let relay = node_with(&internet, "relay", None, &["--relay", "off"]);
    let mut a = node(&internet, "a", Some(&relay));
    let b = node(&internet, "b", Some(&relay));
    let begun = Instant::now();
    assert_eq!(a.ask(&format!("findNode {}", b.id)), json!(null));
    assert!(begun.elapsed() < Duration::from_secs(60), "the deadline of a request has passed");
    let why = a.answer(&format!("signal {} {}", b.id, relay.id));
    assert_eq!((&why["ok"], &why["error"]["name"]), (&json!(false), &json!("Dial")), "{why}");
    let causes = why["error"]["errors"].as_array().unwrap();
    let names: Vec<_> = causes.iter().map(|cause| cause["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["Relay", "TimedOutAfterSignal"], "{why}");

    // The output of a one-shot.
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().to_str().unwrap();
    pk_ok(&["keygen", "--dir", dir]);
    let seed = format!("pk://{}@{}:4433", relay.id, internet.address("relay"));
    let ended =
        pk_in(&internet.namespace("a"), &["find", &b.id, "--dir", dir, "--seed-node", &seed]);
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(1), ""), "{ended}");
    assert!(ended.stderr.contains("signalling was accepted, but the dial timed out"), "{ended}");
    assert!(ended.stderr.contains("tip: the NATs of both nodes are too strict"), "{ended}");
    a.quit();
    b.quit();
    relay.quit();
}

//! Nodes that cannot reach each other connect by relay.

use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::internet::{Internet, Nat};
use crate::node;
use crate::process::Agent;

/// Time within which a node must be found by relay.
const FOUND: Duration = Duration::from_secs(5);

/// Bytes of one line of text that is sent and echoed.
const PIECE: usize = 60_000;

/// A node finds another one by relay.
fn find_by_relay(from: &mut Agent, to: &Agent) {
    let begun = Instant::now();
    let found = from.ask(&format!("findNode {}", to.id));
    assert!(begun.elapsed() < FOUND, "{:?}", begun.elapsed());
    assert_eq!(found[1]["mode"], "relay", "{found}");
    assert_eq!(modes(from, to), ["relay"]);
}

/// The primary connection of a node with another one.
fn primary(of: &mut Agent, with: &Agent) -> Option<Value> {
    let connections = of.ask("connections");
    let mut all = connections.as_array().unwrap().iter();
    all.find(|info| info["nodeId"] == with.id && info["primary"] == true).cloned()
}

fn modes(of: &mut Agent, with: &Agent) -> Vec<String> {
    let primary = primary(of, with);
    primary.iter().map(|info| info["mode"].as_str().unwrap().to_owned()).collect()
}

/// Waits until something holds.
fn until(limit: Duration, what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < limit, "not within {limit:?}: {what}");
        sleep(Duration::from_millis(200));
    }
}

#[test]
fn symmetric_nats_are_crossed_by_relay_with_claims_and_fifty_megabytes() {
    let Some(internet) = Internet::new("rs", &[("a", Nat::Symmetric), ("b", Nat::Symmetric)])
    else {
        return;
    };
    let relay = node(&internet, "relay", None);
    let mut a = node(&internet, "a", Some(&relay));
    let mut b = node(&internet, "b", Some(&relay));
    find_by_relay(&mut a, &b);
    assert_eq!(modes(&mut b, &a), ["relay"]);

    b.ask(&format!("allow {}", a.id));
    a.ask(&format!("claim {}", b.id));
    assert_eq!(b.ask("sigchain").as_array().unwrap().len(), 1);

    let text = "fifty megabytes ".repeat(PIECE / 16);
    let command = format!("stream {} {text}", b.id);
    let mut carried = 0;
    while carried < 50_000_000 {
        assert_eq!(a.ask(&command), json!(text.trim_end()));
        carried += text.len();
    }
    assert_eq!(modes(&mut a, &b), ["relay"]);
    for agent in [a, b, relay] {
        agent.quit();
    }
}

#[test]
fn symmetric_and_port_preserving_nats_are_crossed_by_relay() {
    for (from, to) in [("a", "b"), ("b", "a")] {
        let hosts = [("a", Nat::Symmetric), ("b", Nat::PortPreserving)];
        let Some(internet) = Internet::new(&format!("rp{from}"), &hosts) else { return };
        let relay = node(&internet, "relay", None);
        let mut first = node(&internet, from, Some(&relay));
        let second = node(&internet, to, Some(&relay));
        find_by_relay(&mut first, &second);
        for agent in [first, second, relay] {
            agent.quit();
        }
    }
}

#[test]
fn another_relay_is_used_when_one_is_killed() {
    let hosts = [("a", Nat::Symmetric), ("b", Nat::Symmetric), ("other", Nat::None)];
    let Some(internet) = Internet::new("rk", &hosts) else { return };
    let mut relay = node(&internet, "relay", None);
    let mut other = node(&internet, "other", Some(&relay));
    let mut a = node(&internet, "a", Some(&relay));
    let mut b = node(&internet, "b", Some(&relay));
    for agent in [&mut a, &mut b] {
        assert_ne!(agent.ask(&format!("findNode {}", other.id)), json!(null));
    }
    find_by_relay(&mut a, &b);
    relay.kill();
    // The connection over it is noticed to be dead, and replaced.
    until(Duration::from_secs(20), "a relayed connection through the other relay", || {
        let found = a.answer(&format!("ping {}", b.id));
        found["ok"] == true && found["result"] != json!(null)
    });
    assert_eq!(modes(&mut a, &b), ["relay"]);
    assert_eq!(a.ask(&format!("stream {} through the other", b.id)), "through the other");
    assert_ne!(other.ask(&format!("ping {}", b.id)), json!(null));
    for agent in [a, b, other] {
        agent.quit();
    }
}

#[test]
fn blocked_path_that_opens_later_replaces_the_relay_on_the_same_connection() {
    let hosts = [("a", Nat::None), ("b", Nat::None)];
    let Some(internet) = Internet::new("ru", &hosts) else { return };
    internet.block("a", "b");
    let relay = node(&internet, "relay", None);
    let mut a = node(&internet, "a", Some(&relay));
    let mut b = node(&internet, "b", Some(&relay));
    find_by_relay(&mut a, &b);
    let relayed = primary(&mut a, &b).unwrap()["connectionId"].clone();
    assert_eq!(a.ask(&format!("stream {} before", b.id)), "before");
    internet.unblock("a", "b");
    until(Duration::from_secs(30), "a direct path", || {
        [modes(&mut a, &b), modes(&mut b, &a)].iter().flatten().all(|mode| mode != "relay")
    });
    // The relayed connection has moved, with everything on it.
    let connections = a.ask("connections");
    let moved = connections.as_array().unwrap().iter();
    let moved: Vec<_> = moved.filter(|info| info["connectionId"] == relayed).collect();
    assert!(moved.len() == 1 && moved[0]["mode"] != "relay", "{connections}");
    assert_eq!(a.ask(&format!("stream {} after", b.id)), "after");
    for agent in [a, b, relay] {
        agent.quit();
    }
}

#[test]
fn nodes_behind_one_nat_without_hairpinning_or_mdns_connect_over_the_local_network() {
    let Some(mut internet) = Internet::new("rl", &[("a", Nat::Symmetric)]) else { return };
    internet.add_behind("b", "a");
    let relay = node(&internet, "relay", None);
    let mut a = node(&internet, "a", Some(&relay));
    let mut b = node(&internet, "b", Some(&relay));
    let begun = Instant::now();
    assert_ne!(a.ask(&format!("findNode {}", b.id)), json!(null));
    assert!(begun.elapsed() < FOUND, "{:?}", begun.elapsed());
    until(Duration::from_secs(10), "a connection over the local network", || {
        [modes(&mut a, &b), modes(&mut b, &a)].iter().flatten().all(|mode| mode == "direct")
    });
    let local = primary(&mut a, &b).unwrap();
    assert!(local["address"]["host"].as_str().unwrap().starts_with("10.100.0."), "{local}");
    assert_eq!(a.ask(&format!("stream {} at home", b.id)), "at home");
    for agent in [a, b, relay] {
        agent.quit();
    }
}

//! Connected nodes whose machine gets another address.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::lan_kit::Lan;
use crate::process::Agent;

/// A connection that does not follow ends after its idle timeout; one that is dialed again has
/// another id. The rest is for a busy machine.
const LIMIT: Duration = Duration::from_secs(20);

fn connection(agent: &mut Agent) -> Value {
    agent.ask("connections")[0].clone()
}

/// Waits until the peer of `agent` is at `host`, over the same connection.
fn wait_until_moved(agent: &mut Agent, host: &str, before: &Value) {
    let until = Instant::now() + LIMIT;
    loop {
        let now = connection(agent);
        assert_eq!(now["connectionId"], before["connectionId"], "another connection: {now}");
        if now.to_string().contains(host) {
            return;
        }
        assert!(Instant::now() < until, "the peer is not at {host}: {now}\n{}", agent.kill());
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The address of one of two connected nodes is replaced: first of the one that dialed, then of the
/// one that accepted. Nothing is sent before the other end knows.
fn assert_connection_follows(name: &str, runtime: &str, listen: [&str; 2]) {
    let Some(lan) = Lan::new(name, &["a", "b"]) else { return };
    lan.ip("a", "addr add 10.9.0.1/24 dev eth0");
    lan.ip("b", "addr add 10.9.0.2/24 dev eth0");
    // Only the change makes a node send.
    let quiet = ["--keepalive-timeout", "600000", "--keepalive-interval", "300000"];
    let more = [&quiet[..], &["--runtime", runtime]].concat();
    let start = |host: &str, listen: &str| {
        Agent::start_in(&lan.namespace(host), &[&["--listen", listen][..], &more].concat())
    };
    let (mut a, mut b) = (start("a", listen[0]), start("b", listen[1]));
    a.ask(&format!("connect {} 10.9.0.2 4433", b.id));
    assert_eq!(a.ask(&format!("stream {} before", b.id)), "before");
    let (at_a, at_b) = (connection(&mut a), connection(&mut b));

    lan.ip("a", "addr del 10.9.0.1/24 dev eth0");
    lan.ip("a", "addr add 10.9.0.11/24 dev eth0");
    wait_until_moved(&mut b, "10.9.0.11", &at_b);
    assert_eq!(b.ask(&format!("stream {} dialer", a.id)), "dialer");

    lan.ip("b", "addr del 10.9.0.2/24 dev eth0");
    lan.ip("b", "addr add 10.9.0.12/24 dev eth0");
    wait_until_moved(&mut a, "10.9.0.12", &at_a);
    assert_eq!(a.ask(&format!("stream {} acceptor", b.id)), "acceptor");
    a.ask(&format!("ping {}", b.id));
    assert_eq!(connection(&mut a)["connectionId"], at_a["connectionId"]);
    assert_eq!(connection(&mut b)["connectionId"], at_b["connectionId"]);
}

#[test]
fn connection_of_a_wildcard_socket_follows_an_address_change() {
    assert_connection_follows("any", "tokio", ["[::]:4433", "0.0.0.0:4433"]);
}

#[test]
fn connection_of_a_wildcard_socket_follows_an_address_change_on_smol() {
    assert_connection_follows("anys", "smol", ["0.0.0.0:4433", "[::]:4433"]);
}

#[test]
fn socket_on_one_address_moves_to_its_replacement() {
    for (name, runtime) in [("one", "tokio"), ("ones", "smol")] {
        assert_connection_follows(name, runtime, ["10.9.0.1:4433", "10.9.0.2:4433"]);
    }
}

/// The advertisement names the address of the socket, which is replaced.
#[test]
fn mdns_advertises_the_address_that_replaces_the_one_of_the_socket() {
    let Some(lan) = Lan::new("mdns", &["a", "b"]) else { return };
    lan.ip("a", "addr add 10.9.0.1/24 dev eth0");
    lan.ip("b", "addr add 10.9.0.2/24 dev eth0");
    let mut b = Agent::start_in(&lan.namespace("b"), &["--listen", "10.9.0.2:4433", "--mdns"]);
    let mut a = Agent::start_in(&lan.namespace("a"), &["--listen", "0.0.0.0:4433", "--mdns"]);
    wait_for_mdns(&mut a, &b.id, "10.9.0.2");
    a.kill();

    lan.ip("b", "addr del 10.9.0.2/24 dev eth0");
    lan.ip("b", "addr add 10.9.0.12/24 dev eth0");
    // One that has cached nothing.
    let mut a = Agent::start_in(&lan.namespace("a"), &["--listen", "0.0.0.0:4433", "--mdns"]);
    wait_for_mdns(&mut a, &b.id, "10.9.0.12");
    assert_ne!(a.ask(&format!("findNode {}", b.id)), Value::Null, "{}", b.kill());
    assert_eq!(a.ask(&format!("stream {} moved", b.id)), "moved");
}

/// Waits until an mDNS query of `agent` returns exactly the address `ip` of a node.
fn wait_for_mdns(agent: &mut Agent, node: &str, ip: &str) {
    let until = Instant::now() + LIMIT;
    loop {
        let found = agent.ask(&format!("mdns {node}"));
        let addresses = found.as_array().map(Vec::as_slice).unwrap_or_default();
        if let [address] = addresses
            && address.to_string().contains(ip)
        {
            return;
        }
        assert!(Instant::now() < until, "mDNS returns {found}, not {ip}: {}", agent.kill());
    }
}

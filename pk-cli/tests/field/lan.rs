//! Nodes that find each other on the local network.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::internet::{Internet, Nat};
use crate::lan_kit::Lan;
use crate::process::{Agent, command_in, finish, pk_in, pk_ok};

const LIMIT: Duration = Duration::from_secs(60);

/// Options for the groups of the reference only, and for the standard ones only.
const GROUPS: [[&str; 2]; 2] = [["--mdns-standard-port", "0"], ["--mdns-groups", "none"]];

fn node(lan: &Lan, host: &str, more: &[&str]) -> Agent {
    Agent::start_in(&lan.namespace(host), &[&["--listen", "[::]:4433", "--mdns"], more].concat())
}

/// Repeats the mDNS query until it returns addresses, since an interface may not be in use yet.
/// Returns them.
fn query_until_found(from: &mut Agent, to: &Agent) -> String {
    let until = Instant::now() + LIMIT;
    loop {
        let addresses = from.ask(&format!("mdns {}", to.id));
        if addresses != json!([]) {
            return addresses.to_string();
        }
        assert!(Instant::now() < until, "mDNS does not find the node: {}", from.kill());
    }
}

/// Makes both nodes find each other. Returns the address at which the first one found the other.
fn meet(a: &mut Agent, b: &mut Agent) -> String {
    query_until_found(a, b);
    query_until_found(b, a);
    let found = a.ask(&format!("findNode {}", b.id));
    assert_ne!(found, json!(null), "the node was not found: {}", a.kill());
    assert_eq!(a.ask(&format!("stream {} hello", b.id)), "hello");
    found[0][0].as_str().unwrap().to_owned()
}

fn bridged(name: &str, count: usize, address: impl Fn(&Lan, &str, usize)) {
    let Some(lan) = Lan::new(name, &["a", "b"]) else { return };
    for (at, host) in ["a", "b"].into_iter().enumerate() {
        lan.bridges(host, count);
        address(&lan, host, at + 1);
    }
    for groups in GROUPS {
        let (mut a, mut b) = (node(&lan, "a", &groups), node(&lan, "b", &groups));
        meet(&mut a, &mut b);
        let log = a.kill();
        assert!(
            log.contains("--mdns-interface") && log.contains("br-"),
            "{groups:?}: interfaces that are left out are logged: {log}"
        );
    }
}

#[test]
fn lan_peer_is_found_beside_thirty_bridges() {
    bridged("br30", 30, |lan, host, n| {
        lan.ip(host, &format!("addr add 192.168.50.{n}/24 dev eth0"));
        lan.ip(host, "route add default dev eth0");
    });
}

#[test]
fn lan_peer_is_found_beside_sixty_bridges_without_a_default_route() {
    bridged("br60", 60, |lan, host, n| {
        lan.ip(host, &format!("addr add 192.168.50.{n}/24 dev eth0"));
    });
}

#[test]
fn hosts_with_ipv6_only_connect() {
    let Some(lan) = Lan::new("six", &["a", "b"]) else { return };
    lan.ip("a", "addr add fd09::1/64 dev eth0 nodad");
    lan.ip("b", "addr add fd09::2/64 dev eth0 nodad");
    for groups in GROUPS {
        let (mut a, mut b) = (node(&lan, "a", &groups), node(&lan, "b", &groups));
        meet(&mut a, &mut b);
    }
}

#[test]
fn hosts_with_link_local_addresses_only_connect() {
    let Some(lan) = Lan::new("ll", &["a", "b", "c"]) else { return };
    for more in [&GROUPS[0][..], &GROUPS[1], &["--mdns-interface", "eth0"]] {
        let (mut a, mut b, mut c) =
            (node(&lan, "a", more), node(&lan, "b", more), node(&lan, "c", more));
        let at = meet(&mut a, &mut b);
        assert!(at.starts_with("fe80:") && at.contains('%'), "{at}");
        // Such an address is valid on this link only: the node that was dialed from it does not
        // report it to others.
        meet(&mut c, &mut b);
        assert_eq!(c.ask(&format!("closest {} {}", a.id, b.id)), json!([]));
        assert_eq!(c.ask(&format!("active {} {}", a.id, b.id)), json!([]));
    }
}

#[test]
fn interface_with_ipv4_only_serves_those_without_ipv6() {
    let Some(lan) = Lan::new("four", &["a", "b"]) else { return };
    for (n, host) in [(1, "a"), (2, "b")] {
        lan.exec(host, &["sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1"]);
        lan.ip(host, &format!("addr add 10.9.0.{n}/24 dev eth0"));
    }
    for groups in GROUPS {
        let (mut a, mut b) = (node(&lan, "a", &groups), node(&lan, "b", &groups));
        assert_eq!(meet(&mut a, &mut b), "10.9.0.2");
    }
}

#[test]
fn interface_that_comes_up_later_is_used() {
    let Some(lan) = Lan::new("later", &["a", "b"]) else { return };
    lan.ip("b", "addr add 10.9.0.2/24 dev eth0");
    for groups in GROUPS {
        lan.ip("a", "link set eth0 down");
        let (mut a, mut b) = (node(&lan, "a", &groups), node(&lan, "b", &groups));
        lan.ip("a", "link set eth0 up");
        lan.ip("a", "addr add 10.9.0.1/24 dev eth0");
        meet(&mut a, &mut b);
        lan.ip("a", "addr del 10.9.0.1/24 dev eth0");
    }
}

#[test]
fn unknown_interface_is_an_error_that_lists_existing_ones() {
    let Some(lan) = Lan::new("none", &["a"]) else { return };
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().to_str().unwrap();
    pk_ok(&["keygen", "--dir", dir]);
    let args = ["run", "--dir", dir, "--mdns", "--mdns-interface", "wlan7"];
    let ended = pk_in(&lan.namespace("a"), &args);
    assert_eq!(ended.code, Some(1), "{ended}");
    let expected = "no network interface `wlan7` for mDNS; existing interfaces: eth0, lo";
    assert!(
        ended.stderr.contains(expected) && ended.stderr.contains("--mdns-interface"),
        "{ended}"
    );
}

#[test]
fn refused_multicast_membership_is_logged() {
    let Some(lan) = Lan::new("igmp", &["a", "b"]) else { return };
    for (n, host) in [(1, "a"), (2, "b")] {
        lan.exec(host, &["sysctl", "-qw", "net.ipv4.igmp_max_memberships=1"]);
        lan.bridges(host, 2);
        lan.ip(host, &format!("addr add 192.168.50.{n}/24 dev eth0"));
    }
    let (mut a, mut b) = (node(&lan, "a", &[]), node(&lan, "b", &[]));
    meet(&mut a, &mut b);
    let log = a.kill();
    assert!(
        log.contains("cannot join its multicast group on br-0") && log.contains("--mdns-interface"),
        "{log}"
    );
}

#[test]
fn two_nodes_behind_one_nat_are_advised_to_use_mdns() {
    let Some(mut internet) = Internet::new("one", &[("a", Nat::PortPreserving)]) else { return };
    internet.add_behind("b", "a");
    let relay = Agent::start_in(
        &internet.namespace("relay"),
        &["--listen", "0.0.0.0:4433", "--relay", "off"],
    );
    let seed = format!("pk://{}@{}:4433", relay.id, internet.address("relay"));
    let mut b = Agent::start_in(
        &internet.namespace("b"),
        &["--listen", "0.0.0.0:4433", "--mdns", "--seed-node", &seed],
    );
    b.event("joined");
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().to_str().unwrap();
    pk_ok(&["keygen", "--dir", dir]);
    let find = |line: &str, more: &[&str]| {
        let args = [&[line, &b.id, "--dir", dir, "--seed-node", &seed], more].concat();
        finish(&mut command_in(&internet.namespace("a"), &args), 2 * LIMIT)
    };
    for line in ["find", "ping"] {
        let alone = find(line, &[]);
        assert_eq!((alone.code, alone.stdout.as_str()), (Some(1), ""), "{alone}");
        assert!(
            alone.stderr.contains("both nodes have the same public address")
                && alone.stderr.contains("--mdns"),
            "{alone}"
        );
    }
    // The advice in the message works.
    let local = find("find", &["--mdns"]);
    assert_eq!(local.code, Some(0), "{local}");
}

//! A dial that the system rejects fails at once, with the error of the system.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::lan_kit::Lan;
use crate::process::Agent;

/// A dial has 15 s. A rejection needs none of it; the rest is for a busy machine.
const AT_ONCE: Duration = Duration::from_secs(4);

/// Tries to connect to an absent node. Returns the error, which must be immediate.
fn dial_error(agent: &mut Agent, host: &str) -> String {
    const UNKNOWN: &str = "vha4e7nbk17opbvaircmjpeiteb56e2dv3ma146vjei403d0fdte0";
    let begun = Instant::now();
    let answer: Value = agent.answer(&format!("connect {UNKNOWN} {host} 4433"));
    assert!(begun.elapsed() < AT_ONCE, "{host}: after {:?}: {answer}", begun.elapsed());
    assert_eq!(answer["ok"], false, "{host}: {answer}");
    answer.to_string()
}

#[test]
fn dial_rejected_by_the_system_fails_at_once_with_the_reason() {
    let Some(lan) = Lan::new("rej", &["a"]) else { return };
    lan.ip("a", "addr add 10.9.0.1/24 dev eth0");
    lan.ip("a", "addr add fd09::1/64 dev eth0 nodad");
    lan.ip("a", "route add unreachable 10.20.0.0/16");
    lan.ip("a", "route add prohibit 10.21.0.0/16");
    lan.ip("a", "route add blackhole 10.22.0.0/16");
    lan.ip("a", "-6 route add unreachable fd20::/64");
    lan.exec("a", &["nft", "add table inet f; add chain inet f out { type filter hook output priority 0; }; add rule inet f out ip daddr 10.9.0.66 drop"]);
    for (listen, runtime) in
        [("[::]:4433", "tokio"), ("[::]:4433", "smol"), ("0.0.0.0:4433", "tokio")]
    {
        let mut agent =
            Agent::start_in(&lan.namespace("a"), &["--listen", listen, "--runtime", runtime]);
        let mut expect = |host: &str, reason: &str| {
            let why = dial_error(&mut agent, host);
            assert!(why.contains(reason), "{host} on {listen}: {why}");
        };
        // No route, a route that rejects, and a firewall.
        expect("10.99.0.1", "Network is unreachable");
        expect("10.20.0.1", "No route to host");
        expect("10.21.0.1", "Permission denied");
        expect("10.22.0.1", "Invalid argument");
        expect("10.9.0.66", "Operation not permitted");
        if listen.starts_with('[') {
            expect("2001:db8::1", "Network is unreachable");
            expect("fd20::1", "No route to host");
            // A link-local address of an interface that does not exist.
            expect("fe80::1%999", "the system cannot send there");
        } else {
            expect(
                "fd09::2",
                "this node listens on 0.0.0.0:4433 and therefore cannot dial IPv6 addresses",
            );
        }
    }
}

#[test]
fn connection_survives_a_short_route_outage() {
    let Some(lan) = Lan::new("outage", &["a", "b"]) else { return };
    lan.ip("a", "addr add 10.9.0.1/24 dev eth0");
    lan.ip("b", "addr add 10.9.0.2/24 dev eth0");
    let mut a = Agent::start_in(
        &lan.namespace("a"),
        &["--listen", "[::]:4433", "--keepalive-interval", "500"],
    );
    let b = Agent::start_in(&lan.namespace("b"), &["--listen", "[::]:4433"]);
    a.ask(&format!("connect {} 10.9.0.2 4433", b.id));
    let before = a.ask("connections")[0]["connectionId"].clone();
    lan.ip("a", "route add unreachable 10.9.0.2/32");
    std::thread::sleep(Duration::from_secs(3));
    lan.ip("a", "route del unreachable 10.9.0.2/32");
    assert_eq!(a.ask(&format!("stream {} still here", b.id)), "still here");
    assert_eq!(a.ask("connections")[0]["connectionId"], before);
}

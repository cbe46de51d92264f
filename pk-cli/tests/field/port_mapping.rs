//! A node with `--port-mapping` behind a router that the test controls, in each protocol.

use std::net::Ipv4Addr;
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::gateway::{Gateway, Manner, Plan};
use crate::lan_kit::Lan;
use crate::process::{Agent, command_in};

const ROUTER: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 1);
const OTHER: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 9);

/// Longest time for which a stop waits for the router, and more for a busy machine.
const STOP: Duration = Duration::from_secs(5);

/// A local network of a router and a node.
struct Home {
    lan: Lan,
    router: Gateway,
}

impl Home {
    /// `None`, with a message, if that is not possible here.
    fn new(name: &str, plan: Plan) -> Option<Self> {
        let lan = Lan::new(name, &["gw", "node"])?;
        for address in [ROUTER, OTHER] {
            lan.ip("gw", &format!("addr add {address}/24 dev eth0"));
        }
        lan.ip("node", "addr add 192.168.77.2/24 dev eth0");
        lan.ip("node", &format!("route add default via {ROUTER}"));
        let router = Gateway::start(&lan.namespace("gw"), ROUTER, OTHER, plan);
        Some(Self { lan, router })
    }

    fn node(&self, args: &[&str]) -> Agent {
        let args = [&["run", "--stdio", "--listen", "0.0.0.0:4433"], args].concat();
        let mut command = command_in(&self.lan.namespace("node"), &args);
        for proxy in ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"] {
            command.env_remove(proxy);
        }
        Agent::spawn(&mut command)
    }
}

/// A router with one protocol.
fn only(protocol: &str, manner: Manner) -> Plan {
    let mut plan = Plan::silent();
    match protocol {
        "pcp" => plan.pcp = manner,
        "natpmp" => (plan.pcp, plan.nat_pmp) = (Manner::OtherVersion, manner),
        _ => plan.igd = manner,
    }
    plan
}

/// The names of the failures of a round, by protocol.
fn causes(agent: &mut Agent) -> Value {
    let failed = agent.event("portMappingFailed");
    assert_eq!(failed["retryInMs"], 30_000.0, "{failed}");
    let causes = failed["causes"].as_array().unwrap().iter();
    causes.map(|cause| json!([cause["protocol"], cause["error"]["name"]])).collect()
}

/// Stops a node, which must not take long. Returns the event about the mapping.
fn stop(mut agent: Agent, event: &str) -> Value {
    let begun = Instant::now();
    agent.send("quit");
    let event = agent.event(event);
    agent.ended();
    assert!(begun.elapsed() < STOP, "{:?}", begun.elapsed());
    event
}

/// Maps, renews and withdraws; `requests` are those of the router at the end, without repetitions.
fn life(protocol: &str, runtime: &str, requests: &[&str]) {
    let name = format!("pm{}{}", &protocol[..1], &runtime[..1]);
    let Some(home) = Home::new(&name, only(protocol, Manner::Grant)) else { return };
    let mut node =
        home.node(&["--port-mapping", "--port-mapping-lifetime", "8", "--runtime", runtime]);
    let mapped = node.event("portMapped");
    let expected = json!({
        "event": "portMapped", "protocol": protocol, "host": "20.1.2.3", "port": 4433,
        "lifetimeMs": 8000.0, "public": true,
    });
    assert_eq!(mapped, expected);
    let begun = Instant::now();
    let renewed = node.event("portMappingRenewed");
    assert_eq!((&renewed["host"], &renewed["restarted"]), (&json!("20.1.2.3"), &json!(false)));
    assert!(
        begun.elapsed() > Duration::from_secs(3),
        "half of the lifetime: {:?}",
        begun.elapsed()
    );
    assert_eq!(stop(node, "portMappingWithdrawn")["port"], 4433);
    let mut seen = home.router.seen();
    seen.dedup();
    seen.retain(|request| request.starts_with(protocol));
    assert_eq!(seen, requests);
}

#[test]
fn port_is_mapped_renewed_and_withdrawn_by_pcp() {
    life("pcp", "tokio", &["pcp map 4433 for 8", "pcp map 4433 for 0"]);
}

#[test]
fn port_is_mapped_renewed_and_withdrawn_by_pcp_on_smol() {
    life("pcp", "smol", &["pcp map 4433 for 8", "pcp map 4433 for 0"]);
}

#[test]
fn port_is_mapped_renewed_and_withdrawn_by_nat_pmp() {
    let map = ["natpmp address", "natpmp map 4433 for 8"];
    life("natpmp", "tokio", &[&map[..], &map, &["natpmp map 4433 for 0"]].concat());
}

#[test]
fn port_is_mapped_renewed_and_withdrawn_by_upnp() {
    life("igd", "tokio", &["igd search", "igd add 4433 for 8", "igd delete 4433"]);
}

#[test]
fn refusal_of_each_protocol_is_reported() {
    let plan = Plan {
        pcp: Manner::Refuse,
        nat_pmp: Manner::Refuse,
        igd: Manner::Refuse,
        ..Plan::silent()
    };
    let Some(home) = Home::new("pmref", plan) else { return };
    let mut node = home.node(&["--port-mapping"]);
    let failed = node.event("portMappingFailed");
    let error = |code: u64| json!({ "name": "Refused", "message": format!("the gateway refuses: not authorized (code {code})") });
    let expected = json!([
        { "protocol": "pcp", "error": error(2) },
        { "protocol": "natpmp", "error": error(2) },
        { "protocol": "igd", "error": error(606) },
    ]);
    assert_eq!(failed["causes"], expected);
    node.quit();
}

#[test]
fn silent_router_is_reported_and_delays_neither_start_nor_stop() {
    let Some(home) = Home::new("pmsil", Plan::silent()) else { return };
    let begun = Instant::now();
    let mut node = home.node(&["--port-mapping"]);
    assert!(begun.elapsed() < STOP, "`ready` does not wait for the router");
    let silent = json!([["pcp", "Silent"], ["natpmp", "Silent"], ["igd", "Silent"]]);
    assert_eq!(causes(&mut node), silent);
    node.quit();
    // While the router is asked.
    let node = home.node(&["--port-mapping"]);
    let begun = Instant::now();
    node.quit();
    assert!(begun.elapsed() < STOP, "{:?}", begun.elapsed());
}

#[test]
fn router_that_falls_silent_is_reported() {
    for (protocol, name) in [("pcp", "pmfp"), ("igd", "pmfi")] {
        let Some(home) = Home::new(name, only(protocol, Manner::Grant)) else { return };
        let mut node = home.node(&["--port-mapping", "--port-mapping-lifetime", "8"]);
        node.event("portMapped");
        home.router.change(|plan| *plan = Plan::silent());
        let failed = stop(node, "portMappingWithdrawalFailed");
        assert_eq!(failed["error"]["name"], "Silent", "{failed}");
    }
    // A mapping that cannot be renewed is lost when it ends, and asked for again.
    let Some(home) = Home::new("pmfr", only("pcp", Manner::Grant)) else { return };
    let mut node = home.node(&["--port-mapping"]);
    node.event("portMapped");
    home.router.change(|plan| plan.pcp = Manner::Silent);
    assert_eq!(node.event("portMappingRenewalFailed")["error"]["name"], "Silent");
    node.event("portMappingLost");
    home.router.change(|plan| plan.pcp = Manner::Grant);
    node.event("portMapped");
    stop(node, "portMappingWithdrawn");
}

#[test]
fn restart_of_the_router_is_noticed() {
    let Some(home) = Home::new("pmres", only("pcp", Manner::Grant)) else { return };
    let mut node = home.node(&["--port-mapping"]);
    node.event("portMapped");
    home.router.change(|plan| plan.started = Instant::now());
    assert_eq!(node.event("portMappingRenewed")["restarted"], true);
    home.router.change(|plan| plan.external = Ipv4Addr::new(20, 1, 2, 4));
    assert_eq!(node.event("portMapped")["host"], "20.1.2.4");
    stop(node, "portMappingWithdrawn");
}

#[test]
fn address_behind_a_second_nat_is_reported_as_not_public() {
    let plan = Plan { external: Ipv4Addr::new(10, 0, 0, 7), ..only("pcp", Manner::Grant) };
    let Some(home) = Home::new("pmdbl", plan) else { return };
    let mut node = home.node(&["--port-mapping"]);
    let mapped = node.event("portMapped");
    assert_eq!((&mapped["host"], &mapped["public"]), (&json!("10.0.0.7"), &json!(false)));
    stop(node, "portMappingWithdrawn");
}

#[test]
fn garbage_of_the_router_is_bounded_and_named() {
    let answer = vec![2, 0x81, 0, 0, 0, 0, 0, 8, 0, 0, 0, 1];
    let descriptions = ["", "no XML", "<root></root>"];
    for (n, (pcp, name)) in [
        (answer[..3].to_vec(), "Malformed"),
        (answer.clone(), "Malformed"),
        // Another opcode.
        ([&[2, 0xff], &answer[2..]].concat(), "Malformed"),
        // A request.
        ([&[2, 1], &answer[2..]].concat(), "Malformed"),
        (vec![77; 1500], "Version"),
        (Vec::new(), "Malformed"),
    ]
    .into_iter()
    .enumerate()
    {
        let plan = Plan {
            pcp: Manner::Garbage(pcp),
            nat_pmp: Manner::Garbage(vec![0, 0x81, 0, 0, 9]),
            igd: Manner::Garbage(descriptions[n % 3].into()),
            ..Plan::silent()
        };
        let Some(home) = Home::new(&format!("pmg{n}"), plan) else { return };
        let mut node = home.node(&["--port-mapping"]);
        let expected = json!([["pcp", name], ["natpmp", "Malformed"], ["igd", "Malformed"]]);
        assert_eq!(causes(&mut node), expected);
        node.quit();
    }
}

#[test]
fn answers_of_other_hosts_are_not_accepted() {
    let plan = Plan {
        pcp: Manner::Elsewhere,
        nat_pmp: Manner::Elsewhere,
        igd: Manner::Elsewhere,
        ..Plan::silent()
    };
    let Some(home) = Home::new("pmels", plan) else { return };
    let mut node = home.node(&["--port-mapping"]);
    let expected = json!([["pcp", "Silent"], ["natpmp", "Silent"], ["igd", "Malformed"]]);
    assert_eq!(causes(&mut node), expected);
    node.quit();
}

#[test]
fn node_without_the_option_sends_nothing_to_the_router() {
    let plan =
        Plan { pcp: Manner::Grant, nat_pmp: Manner::Grant, igd: Manner::Grant, ..Plan::silent() };
    let Some(home) = Home::new("pmoff", plan) else { return };
    let node = home.node(&[]);
    sleep(Duration::from_secs(2));
    node.quit();
    assert_eq!(home.router.seen(), Vec::<String>::new());
    // The same time is sufficient with the option.
    let node = home.node(&["--port-mapping"]);
    sleep(Duration::from_secs(2));
    stop(node, "portMappingWithdrawn");
    assert_ne!(home.router.seen(), Vec::<String>::new());
}

#[test]
fn mapping_follows_the_node_into_another_network() {
    let Some(home) = Home::new("pmmov", only("pcp", Manner::Grant)) else { return };
    home.router.change(|plan| plan.lifetime = 7200);
    let mut node = home.node(&["--port-mapping"]);
    node.event("portMapped");
    home.lan.ip("node", "addr del 192.168.77.2/24 dev eth0");
    home.lan.ip("node", "addr add 192.168.77.3/24 dev eth0");
    home.lan.ip("node", &format!("route add default via {ROUTER}"));
    node.event("portMappingLost");
    node.event("portMapped");
    stop(node, "portMappingWithdrawn");
}

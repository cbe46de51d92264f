//! A node behind a symmetric NAT that maps its port.

use std::net::Ipv4Addr;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::gateway::{Gateway, Manner, Plan};
use crate::internet::{Internet, Nat};
use crate::process::{Agent, LIMIT, command_in};
use crate::{find, node};

const PORT: &str = "4433";

/// Waits until a node has stored this address of another one.
fn wait_until_known(agent: &mut Agent, host: &str) {
    let until = Instant::now() + LIMIT;
    loop {
        let graph = agent.ask("graph").to_string();
        let entry = format!("{host}-{PORT}");
        if graph.contains(&entry) || graph.contains(&format!("\"{host}\",{PORT}")) {
            return;
        }
        assert!(Instant::now() < until, "{entry} is not known: {graph}");
        sleep(Duration::from_millis(50));
    }
}

/// Without the mapping these two connect by relay only.
#[test]
fn node_behind_a_symmetric_nat_is_found_at_its_mapped_address() {
    let hosts = [("a", Nat::Symmetric), ("b", Nat::Symmetric)];
    let Some(internet) = Internet::with_addresses("map", "20.77.0", &hosts) else { return };
    let mut relay = node(&internet, "relay", None);
    let external: Ipv4Addr = internet.address("a").parse().unwrap();
    let address = Ipv4Addr::new(10, 100, 0, 1);
    // The other address is not used.
    let plan = Plan { pcp: Manner::Grant, external, lifetime: 7200, ..Plan::silent() };
    let _router = Gateway::start(&internet.router("a"), address, Ipv4Addr::LOCALHOST, plan);

    let seed = format!("pk://{}@{}:{PORT}", relay.id, internet.address("relay"));
    let args = ["run", "--stdio", "--host", "0.0.0.0", "--port", PORT, "--port-mapping"];
    let args = [&args[..], &["--seed-node", &seed]].concat();
    let mut a = Agent::spawn(&mut command_in(&internet.namespace("a"), &args));
    assert_eq!(a.event("portMapped")["host"], external.to_string().as_str());
    internet.forward("a", PORT.parse().unwrap());
    a.event("joined");
    wait_until_known(&mut relay, &external.to_string());

    let mut b = node(&internet, "b", Some(&relay));
    assert_eq!(find(&mut b, &a), "direct");
    b.quit();
    a.send("quit");
    a.event("portMappingWithdrawn");
    a.ended();
    relay.quit();
}

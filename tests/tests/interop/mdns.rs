//! Nodes of both kinds find each other on the local network, in the groups of the reference.

use std::net::Ipv4Addr;
use std::time::Duration;

use pk_driver::NodeConfig;
use pk_interop::{Polykey, Settings};
use pk_proto::{FindEnd, FindNodeOptions};
use pk_tests::Rt;
use pk_tests::node::{connections_with, shutdown, socket, start_with};
use pk_tests::socket::private_port;
use pk_tests::wait::within;
use serde_json::json;

use crate::kit::{PATIENCE, ask, polykey_connections, start_polykey};

cases!(
    local_node_finds_a_polykey_node_by_mdns,
    polykey_node_finds_the_local_node_by_mdns,
    local_node_with_both_kinds_of_groups_finds_a_polykey_node,
);

const QUERY: Duration = Duration::from_secs(10);

/// A local node in the groups of the reference, at a port of this test.
fn local(port: u16, standard_port: Option<u16>) -> impl FnOnce(&mut NodeConfig) {
    move |config| {
        config.listen = (Ipv4Addr::UNSPECIFIED, 0).into();
        config.core.mdns = true;
        config.core.mdns_timeout = QUERY;
        config.driver.mdns.port = port;
        config.driver.mdns.standard_port = standard_port;
    }
}

fn polykey(port: u16) -> Settings {
    let options = json!({ "groups": ["224.0.0.250", "ff02::fa17"], "port": port });
    Settings {
        host: Ipv4Addr::UNSPECIFIED.into(),
        manager: json!({ "mdnsOptions": options }),
        ..Settings::default()
    }
}

async fn local_node_finds_a_polykey_node_by_mdns<R: Rt>(runtime: R, package: Polykey) {
    find_polykey_node(&runtime, &package, None).await;
}

async fn local_node_with_both_kinds_of_groups_finds_a_polykey_node<R: Rt>(
    runtime: R,
    package: Polykey,
) {
    find_polykey_node(&runtime, &package, Some(private_port())).await;
}

async fn find_polykey_node<R: Rt>(runtime: &R, package: &Polykey, standard_port: Option<u16>) {
    let port = private_port();
    let theirs = start_polykey(runtime, package, polykey(port)).await;
    let ours = start_with(runtime, 1, local(port, standard_port)).await;
    let query = ours.query_mdns(theirs.node_id(), Some(QUERY));
    let addresses = within(runtime, PATIENCE, "the query", query).await.unwrap();
    let expected = theirs.seed().address.port;
    assert!(
        !addresses.is_empty() && addresses.iter().all(|address| address.port == expected),
        "{addresses:?}"
    );
    let find = ours.find_node(theirs.node_id(), FindNodeOptions::default());
    let found = within(runtime, PATIENCE, "the search", find).await.unwrap();
    assert_eq!(found.ended, FindEnd::Connected, "{found:?}");
    assert_eq!(connections_with(&ours, theirs.node_id()).await.len(), 1);
    shutdown(runtime, &[&ours]).await;
}

async fn polykey_node_finds_the_local_node_by_mdns<R: Rt>(runtime: R, package: Polykey) {
    let port = private_port();
    let ours = start_with(&runtime, 1, local(port, None)).await;
    let theirs = start_polykey(&runtime, &package, polykey(port)).await;
    let with = json!({ "nodeId": ours.own_id(), "timeout": 15_000 });
    let addresses = ask(&runtime, &theirs, "mdns", with.clone()).await;
    let expected = json!(socket(&ours).port());
    let addresses = addresses.as_array().cloned().unwrap_or_default();
    assert!(
        !addresses.is_empty() && addresses.iter().all(|address| address[1] == expected),
        "{addresses:?}"
    );
    let found = ask(&runtime, &theirs, "findMdns", with).await;
    assert_eq!((&found[0][1], &found[1]["scopes"]), (&expected, &json!(["local"])), "{found}");
    assert!(!polykey_connections(&runtime, &theirs, ours.own_id()).await.is_empty());
    // The goodbye of the local node ends its entry.
    shutdown(&runtime, &[&ours]).await;
}

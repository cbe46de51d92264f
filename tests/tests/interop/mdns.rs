//! Nodes of both kinds find each other on the local network, in the groups of the reference.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use pk_driver::NodeConfig;
use pk_interop::{Polykey, Settings};
use pk_proto::{FindEnd, FindNodeOptions, Host};
use pk_tests::Rt;
use pk_tests::node::{connections_with, shutdown, socket, start_with};
use pk_tests::socket::private_port;
use pk_tests::wait::within;
use serde_json::{Value, json};

use crate::kit::{PATIENCE, ask, polykey_connections, start_polykey};

cases!(
    alone
    local_node_finds_a_polykey_node_by_mdns_over_ipv4,
    local_node_finds_a_polykey_node_by_mdns_over_ipv6,
    polykey_node_finds_the_local_node_by_mdns_over_ipv4,
    polykey_node_finds_the_local_node_by_mdns_over_ipv6,
    local_node_with_both_kinds_of_groups_finds_a_polykey_node,
);

const QUERY: Duration = Duration::from_secs(10);

/// The families of the groups that both nodes use: nothing else is sent between them until one
/// dials the other.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Family {
    V4,
    V6,
    Both,
}

impl Family {
    fn listens_on(self) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::UNSPECIFIED.into(),
            Self::V6 | Self::Both => Ipv6Addr::UNSPECIFIED.into(),
        }
    }

    fn groups(self) -> Vec<IpAddr> {
        let groups = ["224.0.0.250", "ff02::fa17"].map(|group| group.parse::<IpAddr>().unwrap());
        groups.into_iter().filter(|group| self.contains(*group)).collect()
    }

    fn contains(self, ip: IpAddr) -> bool {
        self == Self::Both || ip.is_ipv6() == (self == Self::V6)
    }
}

/// A local node in the groups of the reference, at a port of this test.
fn local(family: Family, port: u16, standard_port: Option<u16>) -> impl FnOnce(&mut NodeConfig) {
    move |config| {
        config.listen = (family.listens_on(), 0).into();
        config.core.mdns = true;
        config.core.mdns_timeout = QUERY;
        config.driver.mdns.groups = family.groups();
        config.driver.mdns.port = port;
        config.driver.mdns.standard_port = standard_port;
    }
}

fn polykey(family: Family, port: u16) -> Settings {
    let options = json!({ "groups": family.groups(), "port": port });
    Settings {
        host: family.listens_on(),
        manager: json!({ "mdnsOptions": options }),
        ..Settings::default()
    }
}

async fn local_node_finds_a_polykey_node_by_mdns_over_ipv4<R: Rt>(runtime: R, package: Polykey) {
    find_polykey_node(&runtime, &package, Family::V4, None).await;
}

async fn local_node_finds_a_polykey_node_by_mdns_over_ipv6<R: Rt>(runtime: R, package: Polykey) {
    find_polykey_node(&runtime, &package, Family::V6, None).await;
}

async fn local_node_with_both_kinds_of_groups_finds_a_polykey_node<R: Rt>(
    runtime: R,
    package: Polykey,
) {
    find_polykey_node(&runtime, &package, Family::Both, Some(private_port())).await;
}

async fn polykey_node_finds_the_local_node_by_mdns_over_ipv4<R: Rt>(runtime: R, package: Polykey) {
    be_found(&runtime, &package, Family::V4).await;
}

async fn polykey_node_finds_the_local_node_by_mdns_over_ipv6<R: Rt>(runtime: R, package: Polykey) {
    be_found(&runtime, &package, Family::V6).await;
}

async fn find_polykey_node<R: Rt>(
    runtime: &R,
    package: &Polykey,
    family: Family,
    standard_port: Option<u16>,
) {
    let port = private_port();
    let theirs = start_polykey(runtime, package, polykey(family, port)).await;
    let ours = start_with(runtime, 1, local(family, port, standard_port)).await;
    let query = ours.query_mdns(theirs.node_id(), Some(QUERY));
    let addresses = within(runtime, PATIENCE, "the query", query).await.unwrap();
    let expected = theirs.seed().address.port;
    // A node that listens on all addresses names those of both families.
    let is_of_family = |host: &Host| match host {
        Host::Ip(ip) => family.contains(*ip),
        Host::Zoned(ip, _) => family.contains((*ip).into()),
        Host::Name(_) => false,
    };
    assert!(
        addresses.iter().all(|it| it.port == expected)
            && addresses.iter().any(|it| is_of_family(&it.host)),
        "{addresses:?}"
    );
    let find = ours.find_node(theirs.node_id(), FindNodeOptions::default());
    let found = within(runtime, PATIENCE, "the search", find).await.unwrap();
    assert_eq!(found.ended, FindEnd::Connected, "{found:?}");
    assert_eq!(connections_with(&ours, theirs.node_id()).await.len(), 1);
    shutdown(runtime, &[&ours]).await;
}

async fn be_found<R: Rt>(runtime: &R, package: &Polykey, family: Family) {
    let port = private_port();
    let ours = start_with(runtime, 1, local(family, port, None)).await;
    let theirs = start_polykey(runtime, package, polykey(family, port)).await;
    let with = json!({ "nodeId": ours.own_id(), "timeout": 15_000 });
    let addresses = ask(runtime, &theirs, "mdns", with.clone()).await;
    let expected = json!(socket(&ours).port());
    let addresses = addresses.as_array().cloned().unwrap_or_default();
    let is_of_family = |address: &Value| {
        // Without the zone of a link-local address.
        let host = address[0].as_str().unwrap_or_default();
        host.split('%').next().unwrap_or_default().parse().is_ok_and(|ip| family.contains(ip))
    };
    assert!(
        addresses.iter().all(|address| address[1] == expected)
            && addresses.iter().any(is_of_family),
        "{addresses:?}"
    );
    let found = ask(runtime, &theirs, "findMdns", with).await;
    assert_eq!((&found[0][1], &found[1]["scopes"]), (&expected, &json!(["local"])), "{found}");
    assert!(!polykey_connections(runtime, &theirs, ours.own_id()).await.is_empty());
    // The goodbye of the local node ends its entry.
    shutdown(runtime, &[&ours]).await;
}

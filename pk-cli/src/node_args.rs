//! Options of a node, which all commands that run one have in common.

use std::net::IpAddr;
use std::time::Duration;

use clap::Args;
use pk_driver::{MdnsInterfaces, NodeConfig};
use pk_proto::{NetworkId, RelayPolicy};

/// Options for the network of the node.
#[derive(Debug, Args)]
pub(crate) struct NetworkArgs {
    /// Network of this node, such as mainnet.example.org: nodes of other networks are refused.
    /// (default: none)
    #[arg(long, value_name = "NAME")]
    network: Option<NetworkId>,
    /// Also refuse nodes that name no network, such as those of Polykey 1.x.
    #[arg(long, requires = "network")]
    network_required: bool,
}

impl NetworkArgs {
    /// Applies the options to the configuration of a node.
    pub(crate) fn apply(&self, config: &mut NodeConfig) {
        config.core.network = self.network.clone();
        config.core.network_required = self.network_required;
    }
}

/// Options for relaying.
#[derive(Debug, Args)]
pub(crate) struct RelayArgs {
    /// Nodes that may connect through this node if they cannot reach each other: none; pairs with
    /// one of its contacts or of the nodes on its allow-list; or all.
    #[arg(long, value_name = "NODES", value_enum, default_value_t)]
    relay: Relaying,
}

/// The nodes for which a node relays.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
enum Relaying {
    Off,
    #[default]
    Known,
    All,
}

impl RelayArgs {
    /// Applies the options to the configuration of a node.
    pub(crate) fn apply(&self, config: &mut NodeConfig) {
        config.core.relay.policy = match self.relay {
            Relaying::Off => RelayPolicy::Off,
            Relaying::Known => RelayPolicy::Known,
            Relaying::All => RelayPolicy::All,
        };
    }
}

/// Options for the port mapping.
#[derive(Debug, Args)]
pub(crate) struct PortMappingArgs {
    /// Ask the router to pass packets on to this node (PCP, NAT-PMP or UPnP-IGD), so that nodes
    /// outside of the local network can connect to it. The mapping is withdrawn when the node
    /// stops.
    #[arg(long)]
    port_mapping: bool,
    /// Lifetime of the mapping to request, in seconds, 8 to 86400. It is renewed at half of the
    /// lifetime that the router grants. (default: 7200)
    #[arg(long, value_name = "SECONDS", requires = "port_mapping", value_parser = clap::value_parser!(u64).range(8..=86_400))]
    port_mapping_lifetime: Option<u64>,
}

impl PortMappingArgs {
    /// Applies the options to the configuration of a node.
    pub(crate) fn apply(&self, config: &mut NodeConfig) {
        let settings = &mut config.driver.port_mapping;
        settings.enabled = self.port_mapping;
        if let Some(seconds) = self.port_mapping_lifetime {
            settings.lifetime = Duration::from_secs(seconds);
        }
    }
}

/// Options for mDNS.
#[derive(Debug, Args)]
pub(crate) struct MdnsArgs {
    /// Advertise this node on the local network and discover others there (mDNS).
    #[arg(long)]
    mdns: bool,
    /// Multicast groups for mDNS, beside the standard ones: at most one IPv4 and one IPv6 address,
    /// or `none`. Only nodes with a common group and port discover each other. (default: those of
    /// Polykey, 224.0.0.250 and ff02::fa17)
    #[arg(long, value_name = "IP", requires = "mdns", value_delimiter = ',', value_parser = mdns_group)]
    mdns_groups: Vec<MdnsGroup>,
    /// UDP port of --mdns-groups. (default: 64023, that of Polykey)
    #[arg(long, value_name = "PORT", requires = "mdns", value_parser = clap::value_parser!(u16).range(1..))]
    mdns_port: Option<u16>,
    /// UDP port of the standard groups, 224.0.0.251 and ff02::fb; 0 disables them. (default: 5353)
    #[arg(long, value_name = "PORT", requires = "mdns")]
    mdns_standard_port: Option<u16>,
    /// Network interface to use for mDNS, such as eth0. Can be repeated. (default: the interfaces
    /// most likely to lead to other nodes, at most 16, without loopback)
    #[arg(long, value_name = "NAME", requires = "mdns")]
    mdns_interface: Vec<String>,
}

impl MdnsArgs {
    /// Applies the options to the configuration of a node.
    pub(crate) fn apply(&self, config: &mut NodeConfig) {
        config.core.mdns = self.mdns;
        if !self.mdns_groups.is_empty() {
            let groups = self.mdns_groups.iter().filter_map(|group| group.0);
            config.driver.mdns.groups = groups.collect();
        }
        if let Some(port) = self.mdns_port {
            config.driver.mdns.port = port;
        }
        if let Some(port) = self.mdns_standard_port {
            config.driver.mdns.standard_port = (port != 0).then_some(port);
        }
        if !self.mdns_interface.is_empty() {
            config.driver.mdns.interfaces = MdnsInterfaces::Named(self.mdns_interface.clone());
        }
    }

    /// Returns whether mDNS is on.
    pub(crate) fn is_on(&self) -> bool {
        self.mdns
    }
}

/// A multicast group on the command line; `None` for `none`.
#[derive(Debug, Clone, Copy)]
struct MdnsGroup(Option<IpAddr>);

fn mdns_group(text: &str) -> Result<MdnsGroup, String> {
    match text {
        "none" => Ok(MdnsGroup(None)),
        _ => text.parse().map(|group| MdnsGroup(Some(group))).map_err(|_| {
            "a group is a multicast address such as 224.0.0.250, or `none`".to_owned()
        }),
    }
}

//! Selection of the network interfaces for mDNS.
//!
//! A system limits the multicast groups of a socket (Linux: `igmp_max_memberships`, default 20),
//! and a host with containers has more interfaces than that. The interfaces are therefore ranked,
//! the best ones are used, and a join is tried on each first. Interfaces that are left out are
//! logged, because mdns-sd does not report an interface that it cannot use.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::link::{Family, Link, Tried};
use super::system::{self, Facts};
use crate::config::MdnsInterfaces;

/// Maximum number of interfaces: their addresses fit into one response.
const LIMIT: usize = 16;

/// Time for which information about interfaces is reused. mdns-sd looks for changes every 5 s, once
/// per address.
const FRESH: Duration = Duration::from_secs(2);

/// Maximum number of interface names in one message.
const NAMES: usize = 8;

const ADVICE: &str =
    "name the interfaces to use with --mdns-interface (DriverConfig::mdns.interfaces)";

/// How likely other nodes are reachable over an interface; the first variant is the best.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    /// It has a default route.
    DefaultRoute,
    /// A device, or a bridge with a device among its ports.
    Hardware,
    /// Another interface with an address that is not link-local.
    Addressed,
    /// A bridge without a device, such as for containers.
    Bridge,
    /// Another interface with link-local addresses only.
    LinkLocal,
}

/// The selected interfaces.
#[derive(Debug, Default, PartialEq, Eq)]
struct Choice {
    /// Links in the order of their ranks, each with the addresses to advertise.
    links: Vec<(Link, BTreeSet<IpAddr>)>,
    /// Names of usable interfaces that are left out.
    left_out: Vec<String>,
    /// Interfaces that the embedder named and that cannot be used, with the reason.
    unusable: Vec<String>,
}

/// Selects interfaces, repeatedly as they change.
#[derive(Debug)]
pub(super) struct Interfaces {
    wanted: MdnsInterfaces,
    bound: IpAddr,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    looked: Option<Instant>,
    choice: Choice,
    /// Links that could be joined.
    joined: BTreeSet<Link>,
}

impl Interfaces {
    pub(super) fn new(wanted: MdnsInterfaces, bound: IpAddr) -> Arc<Self> {
        Arc::new(Self { wanted, bound, state: Mutex::default() })
    }

    /// Returns whether an address of an interface is used. mdns-sd asks whenever it looks for
    /// changes.
    pub(super) fn uses(&self, index: u32, ip: IpAddr) -> bool {
        // The state is consistent after every step.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.looked.is_none_or(|looked| looked.elapsed() > FRESH) {
            let choice = choose(&system::interfaces(), &self.wanted, self.bound);
            let first = state.looked.is_none();
            if first || choice != state.choice {
                let tried = system::join(choice.links.iter().map(|(link, _)| *link));
                choice.warn(first);
                warn_refused(&tried);
                state.joined = tried
                    .into_iter()
                    .filter(|tried| tried.result.is_ok())
                    .map(|tried| tried.link)
                    .collect();
                state.choice = choice;
            }
            state.looked = Some(Instant::now());
        }
        let link = Link { index, family: Family::of(ip) };
        let mut links = state
            .choice
            .links
            .iter()
            .filter(|(chosen, _)| *chosen == link && state.joined.contains(chosen));
        links.any(|(_, addrs)| addrs.contains(&ip))
    }
}

impl Choice {
    /// Logs interfaces that are not used. Those that are merely left out are logged only the
    /// `first` time, because containers come and go.
    fn warn(&self, first: bool) {
        for why in &self.unusable {
            tracing::warn!("mDNS cannot use the network interface {why}; {ADVICE}");
        }
        if first && !self.left_out.is_empty() {
            let used = self.links.iter().map(|(link, _)| link.index).collect::<BTreeSet<_>>().len();
            let (all, names) = (used + self.left_out.len(), shortened(&self.left_out));
            tracing::warn!(
                "mDNS uses {used} of {all} network interfaces, without {names}; {ADVICE}"
            );
        }
    }
}

/// Logs links on which the group cannot be joined.
fn warn_refused(tried: &[Tried]) {
    let refused = tried.iter().filter_map(|tried| Some((tried, tried.result.as_ref().err()?)));
    let refused: Vec<_> =
        refused.map(|(tried, error)| format!("{} ({error})", tried.name)).collect();
    if !refused.is_empty() {
        tracing::warn!("mDNS cannot join its multicast group on {}; {ADVICE}", shortened(&refused));
    }
    if refused.len() == tried.len() {
        warn_unused();
    }
}

/// Logs that there is nothing to use.
pub(super) fn warn_unused() {
    tracing::warn!(
        "mDNS has no usable network interface: no node is found on the local network; {ADVICE}"
    );
}

/// A link to use.
#[derive(Debug)]
pub(super) struct Usable {
    pub(super) link: Link,
    /// Addresses of the interface to advertise, of both families.
    pub(super) addrs: BTreeSet<IpAddr>,
    /// Addresses of the link's family, each with the length of its prefix.
    pub(super) prefixes: Vec<(IpAddr, u8)>,
}

/// Returns the links to use at present. Logs what is left out, if `warns`.
pub(super) fn usable(wanted: &MdnsInterfaces, bound: IpAddr, warns: bool) -> Vec<Usable> {
    let all = system::interfaces();
    let choice = choose(&all, wanted, bound);
    if warns {
        choice.warn(true);
    }
    let of_interface = |index: u32| {
        let links = choice.links.iter().filter(move |(link, _)| link.index == index);
        links.flat_map(|(_, addrs)| addrs).copied().collect()
    };
    let usable = |link: Link| {
        let facts = all.iter().find(|facts| facts.index == link.index);
        let prefixes = facts.into_iter().flat_map(|facts| &facts.prefixes).copied();
        Usable {
            link,
            addrs: of_interface(link.index),
            prefixes: prefixes.filter(|(ip, _)| Family::of(*ip) == link.family).collect(),
        }
    };
    choice.links.iter().map(|(link, _)| usable(*link)).collect()
}

/// Selects the interfaces to use.
fn choose(all: &[Facts], wanted: &MdnsInterfaces, bound: IpAddr) -> Choice {
    let mut choice = Choice::default();
    let mut ranked = Vec::new();
    for facts in all {
        let named = matches!(wanted, MdnsInterfaces::Named(names) if names.contains(&facts.name));
        let fits = match wanted {
            MdnsInterfaces::Named(_) => named,
            MdnsInterfaces::Loopback => facts.loopback,
            // A node that listens on loopback is reachable only there.
            MdnsInterfaces::All => facts.loopback == bound.is_loopback(),
        };
        if !fits {
            continue;
        }
        let rank = rank(facts);
        let links = links(facts, bound, named || rank != Rank::Bridge);
        match unusable(facts, links.is_empty()) {
            Some(why) if named => choice.unusable.push(format!("{} ({why})", facts.name)),
            Some(_) => {}
            None => ranked.push((rank, facts, links)),
        }
    }
    if let MdnsInterfaces::Named(names) = wanted {
        let absent = names.iter().filter(|name| all.iter().all(|facts| facts.name != **name));
        choice.unusable.extend(absent.map(|name| format!("{name} (it has no address)")));
    }
    ranked.sort_by_key(|(rank, facts, _)| (*rank, facts.index));
    for (at, (_, facts, links)) in ranked.into_iter().enumerate() {
        if at < LIMIT {
            choice.links.extend(links);
        } else {
            choice.left_out.push(facts.name.clone());
        }
    }
    choice
}

fn rank(facts: &Facts) -> Rank {
    if facts.default_route {
        Rank::DefaultRoute
    } else if facts.hardware {
        Rank::Hardware
    } else if facts.bridge {
        Rank::Bridge
    } else if facts.addrs.iter().all(is_link_local) {
        Rank::LinkLocal
    } else {
        Rank::Addressed
    }
}

/// Returns why an interface cannot be used, or `None` if it can.
fn unusable(facts: &Facts, no_address: bool) -> Option<&'static str> {
    match facts {
        _ if !facts.up => Some("it is down"),
        _ if facts.bridge_port => Some("it is a port of a bridge; use the bridge"),
        _ if facts.point_to_point => Some("it is point-to-point"),
        _ if !facts.multicast && !facts.loopback => Some("it does not support multicast"),
        _ if no_address => Some("it has no address that the node listens on"),
        _ => None,
    }
}

/// Returns the links of an interface with the addresses to advertise: those that the node listens
/// on. Link-local ones are included if `link_local`, or if there are no others.
fn links(facts: &Facts, bound: IpAddr, link_local: bool) -> BTreeMap<Link, BTreeSet<IpAddr>> {
    let listens = |ip: &IpAddr| match bound {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => ip.is_ipv4(),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => true,
        bound => *ip == bound,
    };
    let only_link_local = facts.addrs.iter().filter(|ip| listens(ip)).all(is_link_local);
    let mut links: BTreeMap<Link, BTreeSet<IpAddr>> = BTreeMap::new();
    for ip in facts.addrs.iter().filter(|ip| listens(ip)) {
        if link_local || only_link_local || !is_link_local(ip) {
            links
                .entry(Link { index: facts.index, family: Family::of(*ip) })
                .or_default()
                .insert(*ip);
        }
    }
    links
}

pub(super) fn is_link_local(ip: &IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

fn shortened(names: &[String]) -> String {
    let shown = names.get(..NAMES).unwrap_or(names).join(", ");
    match names.len().saturating_sub(NAMES) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANY: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);

    fn facts(index: u32, name: &str, addrs: &[&str]) -> Facts {
        let addrs = addrs.iter().map(|ip| ip.parse().unwrap()).collect();
        Facts { index, name: name.to_owned(), addrs, up: true, multicast: true, ..Facts::default() }
    }

    fn bridge(index: u32) -> Facts {
        let addrs = [format!("172.{}.0.1", 16 + index), format!("fe80::{index}")];
        Facts { bridge: true, ..facts(index, &format!("br-{index}"), &[&addrs[0], &addrs[1]]) }
    }

    /// Returns the advertised addresses.
    fn advertised(choice: &Choice) -> Vec<String> {
        choice.links.iter().flat_map(|(_, addrs)| addrs).map(ToString::to_string).collect()
    }

    #[test]
    fn lan_interface_ranks_before_thirty_bridges_whose_link_local_addresses_are_not_advertised() {
        let mut all: Vec<_> = (1..=30).map(bridge).collect();
        all.push(Facts { default_route: true, ..facts(99, "eth0", &["192.168.1.2", "fe80::99"]) });
        let choice = choose(&all, &MdnsInterfaces::All, ANY);
        let advertised = advertised(&choice);
        assert!(
            advertised.contains(&"192.168.1.2".to_owned())
                && advertised.contains(&"fe80::99".to_owned()),
            "{advertised:?}"
        );
        assert_eq!(advertised.len(), LIMIT + 1, "{advertised:?}");
        assert_eq!(choice.left_out.len(), 31 - LIMIT);
        assert_eq!(
            shortened(&choice.left_out),
            "br-16, br-17, br-18, br-19, br-20, br-21, br-22, br-23 and 7 more"
        );
    }

    #[test]
    fn rank_is_route_then_hardware_then_address() {
        let all = [
            facts(1, "cali1", &["fe80::1"]),
            bridge(2),
            facts(3, "vlan3", &["10.0.0.3"]),
            Facts { hardware: true, ..facts(4, "eth1", &["fe80::4"]) },
            Facts { default_route: true, ..facts(5, "eth0", &["10.0.0.5"]) },
        ];
        let mut ranks: Vec<_> = all.iter().map(rank).collect();
        ranks.reverse();
        assert!(ranks.is_sorted() && ranks.windows(2).all(|pair| pair[0] != pair[1]), "{ranks:?}");
    }

    #[test]
    fn unusable_interface_is_skipped_silently_unless_it_was_named() {
        let all = [
            Facts { loopback: true, ..facts(1, "lo", &["127.0.0.1", "::1"]) },
            Facts { bridge_port: true, ..facts(2, "veth2", &["fe80::2"]) },
            Facts { point_to_point: true, ..facts(3, "tun0", &["10.8.0.1"]) },
            Facts { multicast: false, ..facts(4, "dummy0", &["10.9.0.1"]) },
            Facts { up: false, ..facts(5, "eth1", &["10.10.0.1"]) },
            facts(6, "wlan0", &[]),
        ];
        let choice = choose(&all, &MdnsInterfaces::All, ANY);
        assert_eq!(choice, Choice::default());
        let names = all.iter().map(|facts| facts.name.clone()).collect();
        let choice = choose(&all, &MdnsInterfaces::Named(names), ANY);
        assert_eq!(
            (advertised(&choice), choice.unusable.len()),
            (vec!["127.0.0.1".to_owned(), "::1".to_owned()], 5)
        );
        assert_eq!(choice.unusable[1], "tun0 (it is point-to-point)");
    }

    #[test]
    fn only_addresses_that_the_node_listens_on_are_advertised() {
        let all = [
            Facts { loopback: true, ..facts(1, "lo", &["127.0.0.1", "::1"]) },
            facts(2, "eth0", &["10.0.0.2", "2001:db8::2", "fe80::2"]),
            facts(3, "eth1", &["10.0.1.2"]),
        ];
        let advertised =
            |bound: &str| advertised(&choose(&all, &MdnsInterfaces::All, bound.parse().unwrap()));
        assert_eq!(advertised("0.0.0.0"), ["10.0.0.2", "10.0.1.2"]);
        assert_eq!(advertised("10.0.1.2"), ["10.0.1.2"]);
        assert_eq!(advertised("127.0.0.1"), ["127.0.0.1"]);
        assert_eq!(advertised("::"), ["10.0.0.2", "2001:db8::2", "fe80::2", "10.0.1.2"]);
    }

    #[test]
    fn hosts_with_link_local_addresses_only_advertise_them() {
        let choice = choose(&[facts(2, "eth0", &["fe80::2"])], &MdnsInterfaces::All, ANY);
        assert_eq!(advertised(&choice), ["fe80::2"]);
        let bridge = Facts { bridge: true, ..facts(3, "br0", &["fe80::3"]) };
        assert_eq!(advertised(&choose(&[bridge], &MdnsInterfaces::All, ANY)), ["fe80::3"]);
    }
}

//! mDNS: advertises this node and searches for others, in two places at once.
//!
//! - [`standard`]: the groups of RFC 6762, with mdns-sd;
//! - [`group`]: other groups, by default those of the reference, with pk-mdns.
//!
//! The service is `_polykey._udp`; the name of an instance is the NodeId of its node. A search
//! covers both, and its results are merged here. The interfaces are selected by [`interfaces`].

mod group;
mod interfaces;
mod link;
mod sighting;
mod standard;
mod system;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use pk_proto::{EffectId, Instant, NodeId};
use pk_quic::Response;

use self::group::Group;
use self::sighting::{ADDRESSES, Sighting};
use self::standard::Standard;
use crate::config::{MdnsConfig, MdnsInterfaces};
use crate::cx::{Cx, WakeSource};
use crate::error::StartError;
use crate::system::tasks::Tasks;

/// Maximum number of nodes stored during a search.
const NODES: usize = 1024;

/// Checks that the interfaces that the embedder named exist.
pub(crate) fn check(config: &MdnsConfig) -> Result<(), StartError> {
    let MdnsInterfaces::Named(wanted) = &config.interfaces else { return Ok(()) };
    let known = system::names();
    match wanted.iter().find(|name| !known.contains(*name)) {
        Some(name) => Err(StartError::MdnsInterface {
            name: name.clone(),
            known: known.into_iter().collect(),
        }),
        None => Ok(()),
    }
}

/// The mDNS state of this node.
pub(crate) struct Mdns {
    /// Address that the node listens on; an unspecified address means all.
    bound: IpAddr,
    standard: Standard,
    group: Group,
    advertised: BTreeMap<NodeId, u16>,
    browses: BTreeMap<EffectId, Browse>,
    /// Nodes found during this search, by where they were found.
    found: BTreeMap<NodeId, BTreeMap<Place, BTreeSet<SocketAddr>>>,
}

/// Where a node is advertised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Standard,
    /// The group on a link, by its number.
    Group(u32),
}

struct Browse {
    node: NodeId,
    deadline: Instant,
    reported: BTreeSet<SocketAddr>,
}

impl Mdns {
    pub(crate) fn new(bound: SocketAddr, tasks: Tasks) -> Self {
        Self {
            bound: bound.ip(),
            standard: Standard::default(),
            group: Group::new(tasks),
            advertised: BTreeMap::new(),
            browses: BTreeMap::new(),
            found: BTreeMap::new(),
        }
    }

    /// The node listens on another address from now on, which replaces the advertised one.
    pub(crate) fn rebound(&mut self, cx: &mut Cx, bound: SocketAddr) {
        self.bound = bound.ip();
        self.standard.rebound(cx, self.bound);
        for node in self.advertised.keys().copied().collect::<Vec<_>>() {
            self.advertise(cx, node, Some(bound.port()));
        }
    }

    /// The addresses of this machine have changed.
    pub(crate) fn addresses_changed(&mut self, cx: &mut Cx) {
        if self.is_used() {
            self.group.look(cx, self.bound);
        }
    }

    /// Executes the effect `Advertise`.
    pub(crate) fn advertise(&mut self, cx: &mut Cx, node: NodeId, port: Option<u16>) {
        match port {
            Some(port) => {
                self.advertised.insert(node, port);
                self.group.advertise(cx, self.bound, node, port);
            }
            None => {
                self.advertised.remove(&node);
                self.group.withdraw(cx, node);
            }
        }
        self.standard.advertise(cx, self.bound, node, port);
    }

    /// Executes the effect `Browse`.
    pub(crate) fn browse(&mut self, cx: &mut Cx, id: EffectId, node: NodeId, deadline: Instant) {
        cx.deadlines.set(deadline, WakeSource::Browse(id));
        self.browses.insert(id, Browse { node, deadline, reported: BTreeSet::new() });
        self.report(cx, node);
        self.standard.browse(cx, self.bound);
        self.group.browse(cx, self.bound);
    }

    /// Executes the effect `CancelBrowse`, or handles the deadline of a browse.
    pub(crate) fn end_browse(&mut self, cx: &mut Cx, id: EffectId) {
        let Some(browse) = self.browses.remove(&id) else { return };
        cx.deadlines.cancel(browse.deadline, WakeSource::Browse(id));
        cx.answer(Response::Discovered { id, addrs: Vec::new(), done: true });
        if self.browses.is_empty() {
            self.found.clear();
            self.standard.stop_browsing();
            self.group.stop_browsing(cx);
        }
    }

    /// The deadline of the standard groups: the delay before the next browse has passed.
    pub(crate) fn resume(&mut self, cx: &mut Cx) {
        self.standard.resume(cx, self.bound, !self.browses.is_empty());
    }

    /// Handles events of the standard groups.
    pub(crate) fn poll(&mut self, cx: &mut Cx) {
        let sightings = self.standard.poll(cx, self.bound);
        self.see(cx, sightings.into_iter().map(|sighting| (Place::Standard, sighting)));
    }

    /// Handles datagrams of the other groups, and what is due there.
    pub(crate) fn poll_group(&mut self, cx: &mut Cx) {
        let sightings = self.group.poll(cx, self.bound);
        self.see(cx, sightings.into_iter().map(|(link, it)| (Place::Group(link), it)));
    }

    /// Withdraws the advertisements. The shutdown of the node waits for it.
    pub(crate) fn close(&mut self, cx: &mut Cx, tasks: &Tasks) {
        self.standard.close(tasks);
        self.group.close(cx);
    }

    fn is_used(&self) -> bool {
        !self.advertised.is_empty() || !self.browses.is_empty()
    }

    fn see(&mut self, cx: &mut Cx, sightings: impl Iterator<Item = (Place, Sighting)>) {
        if self.browses.is_empty() {
            return;
        }
        for (place, sighting) in sightings {
            match sighting {
                Sighting::Found(node, addrs) => {
                    if self.found.len() < NODES || self.found.contains_key(&node) {
                        self.found.entry(node).or_default().insert(place, addrs);
                        self.report(cx, node);
                    }
                }
                Sighting::Lost(node) => {
                    if let Some(places) = self.found.get_mut(&node) {
                        places.remove(&place);
                        if places.is_empty() {
                            self.found.remove(&node);
                        }
                    }
                }
            }
        }
    }

    /// Reports the addresses of a node to those that search for it.
    fn report(&mut self, cx: &mut Cx, node: NodeId) {
        let addrs: BTreeSet<SocketAddr> = self
            .found
            .get(&node)
            .into_iter()
            .flat_map(BTreeMap::values)
            .flatten()
            .copied()
            .collect();
        for (id, browse) in self.browses.iter_mut().filter(|(_, browse)| browse.node == node) {
            let room = ADDRESSES.saturating_sub(browse.reported.len());
            let new: Vec<_> = addrs.difference(&browse.reported).copied().take(room).collect();
            if !new.is_empty() {
                browse.reported.extend(&new);
                cx.answer(Response::Discovered { id: *id, addrs: new, done: false });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_interface_is_an_error() {
        let named = |name: &str| MdnsConfig {
            interfaces: MdnsInterfaces::Named(vec![name.into()]),
            ..MdnsConfig::default()
        };
        let error = check(&named("no-such-one")).unwrap_err().to_string();
        assert!(
            error.starts_with("no network interface `no-such-one` for mDNS; existing interfaces: "),
            "{error}"
        );
        let lo = system::interfaces().into_iter().find(|facts| facts.loopback).unwrap();
        assert!(check(&named(&lo.name)).is_ok());
    }
}

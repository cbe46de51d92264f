//! The local network: telling it of us, asking it for others (specification: queryMDNS, findNodeByMDNS).

use core::net::SocketAddr;

use super::NodeManager;
use super::open::{Open, Stage};
use crate::address::NodeAddress;
use crate::id::{EffectId, NodeId, RequestId};
use crate::io::Output;
use crate::lookup::Lookup;
use crate::request::Reply;
use crate::time::Instant;

/// Addresses that one question may bring.
const FOUND_LIMIT: usize = 64;

impl NodeManager {
    /// Tells the local network where we listen; nowhere takes it back.
    pub(super) fn advertise(&mut self, addrs: &[SocketAddr]) {
        if self.cx.config.mdns {
            self.advertised = addrs.first().map(SocketAddr::port);
            let (node, port) = (self.cx.own(), self.advertised);
            self.cx.output(Output::Advertise { node, port });
        }
    }

    /// Tells the local network that we are another node now.
    pub(super) fn advertise_instead_of(&mut self, old: NodeId) {
        if self.advertised.is_some() {
            let (node, port) = (self.cx.own(), self.advertised);
            self.cx.output(Output::Advertise { node: old, port: None });
            self.cx.output(Output::Advertise { node, port });
        }
    }

    /// Asks the local network where a node is, for a request.
    pub(super) fn browse(&mut self, request: RequestId, node: NodeId, deadline: Instant) -> EffectId {
        let id = self.cx.ids.effect();
        self.browses.insert(id, request);
        self.cx.output(Output::Browse { id, node, deadline });
        id
    }

    /// Nobody waits for an answer any more.
    pub(super) fn end_browse(&mut self, id: EffectId) {
        if self.browses.remove(&id).is_some() {
            self.cx.output(Output::CancelBrowse { id });
        }
    }

    pub(super) fn end_browse_of(&mut self, lookup: &Lookup) {
        if let Some(browse) = lookup.browse() {
            self.end_browse(browse);
        }
    }

    /// The local network has answered.
    pub(super) fn discovered(&mut self, id: EffectId, addrs: &[SocketAddr], done: bool) {
        let Some(request) = self.browses.get(&id).copied() else {
            self.cx.metrics.late_inputs += 1;
            return;
        };
        if done {
            self.browses.remove(&id);
        }
        let addresses = addrs.iter().copied().map(NodeAddress::from_socket);
        let Self { cx, connections, open, .. } = self;
        match open.get_mut(&request).map(|Open { stage, .. }| stage) {
            Some(Stage::Find { lookup, .. }) => {
                if !addrs.is_empty() {
                    let goal = lookup.discovered(cx, addresses.collect());
                    connections.dial(cx, request, goal.urgent());
                }
                if done {
                    lookup.set_browse(None);
                }
                self.awake.insert(request);
            }
            Some(Stage::QueryMdns { found, .. }) => {
                for address in addresses {
                    if found.len() < FOUND_LIMIT && !found.contains(&address) {
                        found.push(address);
                    }
                }
                if done {
                    let found = core::mem::take(found);
                    self.end(request, Ok(Reply::QueryMdns(found)));
                }
            }
            _ => {}
        }
    }
}

//! mDNS: advertising the local node and querying the addresses of other nodes (specification:
//! queryMDNS, findNodeByMDNS).

use core::net::SocketAddr;

use super::node::NodeManager;
use super::state::stage::{MdnsQuery, Search};
use crate::api::output::Output;
use crate::api::reply::Reply;
use crate::machine::effects::EffectOwner;
use crate::types::address::NodeAddress;
use crate::types::id::{EffectId, NodeId, RequestId};
use crate::types::time::Instant;

/// Maximum number of addresses that one query returns.
const FOUND_LIMIT: usize = 64;

impl NodeManager {
    /// Advertises the port of the first listening address on the local network, if the port has
    /// changed. Without an address it withdraws the advertisement.
    pub(super) fn advertise(&mut self, addrs: &[SocketAddr]) {
        let port = addrs.first().map(SocketAddr::port).filter(|_| self.cx.config.mdns);
        if port != self.advertised {
            self.advertised = port;
            self.cx.output(Output::Advertise { node: self.cx.own(), port });
        }
    }

    /// Replaces the advertisement of a former id by one of the current id.
    pub(super) fn advertise_instead_of(&mut self, old: NodeId) {
        if self.advertised.is_some() {
            let (node, port) = (self.cx.own(), self.advertised);
            self.cx.output(Output::Advertise { node: old, port: None });
            self.cx.output(Output::Advertise { node, port });
        }
    }

    /// Starts a query of the local network for the addresses of a node, on behalf of a request.
    /// Returns the effect.
    pub(super) fn browse(
        &mut self,
        request: RequestId,
        node: NodeId,
        deadline: Instant,
    ) -> EffectId {
        let id = self.cx.effects.begin(EffectOwner::Browse(request));
        self.cx.output(Output::Browse { id, node, deadline });
        id
    }

    /// Cancels a query of the local network. Has no effect if the query has ended.
    pub(super) fn end_browse(&mut self, id: EffectId) {
        if self.cx.effects.take(id).is_some() {
            self.cx.output(Output::CancelBrowse { id });
        }
    }

    /// Handles addresses that were discovered on the local network; `done`: the query has ended.
    pub(super) fn discovered(&mut self, request: RequestId, addrs: &[SocketAddr], done: bool) {
        let addresses = addrs.iter().copied().map(NodeAddress::from_socket);
        if self.requests.stage::<Search>(request).is_some() {
            self.search_discovered(request, addresses.collect(), done);
        } else if let Some(MdnsQuery { found, .. }) = self.requests.stage_mut(request) {
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
    }
}

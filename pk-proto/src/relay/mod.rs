//! Relaying: circuits that this node forwards, and relayed paths that it is an end of
//! (docs/DESIGN.md, Relaying).

pub(crate) mod circuits;
pub(crate) mod paths;
mod volume;

use alloc::collections::{BTreeMap, BTreeSet};
use core::net::SocketAddr;

use self::circuits::Circuits;
use self::paths::Paths;
use crate::api::census::Census;
use crate::api::metrics::Metrics;
use crate::types::address::NodeAddress;
use crate::types::id::{ConnectionId, NodeId, RaceId, RequestId};

/// State of relaying, in all three roles.
#[derive(Debug, Default)]
pub(crate) struct Relay {
    /// As the relay.
    pub(crate) circuits: Circuits,
    /// As an end.
    pub(crate) paths: Paths,
    /// Requests to relays that were not answered.
    pub(crate) asked: BTreeMap<RequestId, Asked>,
    /// Calls that ask for the addresses of a peer in the local network.
    pub(crate) near: BTreeSet<RequestId>,
    /// Addresses at which relayed connections are probed next.
    pub(crate) probes: BTreeMap<ConnectionId, SocketAddr>,
}

/// A request to a relay.
#[derive(Debug)]
pub(crate) struct Asked {
    /// Race that waits for it.
    pub(crate) race: RaceId,
    /// Connection with the relay.
    pub(crate) carrier: ConnectionId,
    /// Address of the relay.
    pub(crate) relay: NodeAddress,
    /// Node at the other end.
    pub(crate) target: NodeId,
}

impl Relay {
    /// Ends all circuits and paths, because the node has stopped.
    pub(crate) fn clear(&mut self) {
        self.circuits.clear();
        self.paths.clear();
        self.asked.clear();
        self.near.clear();
        self.probes.clear();
    }

    /// Counts the tables of relaying.
    pub(crate) fn count_tables(&self, census: &mut Census) {
        census.circuits = self.circuits.len();
        census.relayed_paths = self.paths.len() + self.asked.len();
        census.relayed_volumes = self.circuits.volumes();
    }

    /// Writes the gauges of relaying.
    pub(crate) fn measure(&self, metrics: &mut Metrics) {
        metrics.circuits = self.circuits.len() as u64;
        metrics.relayed_paths = self.paths.len() as u64;
    }
}

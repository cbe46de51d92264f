//! Circuits that this node forwards.

use alloc::collections::BTreeMap;

use super::volume::Volumes;
use crate::api::output::CircuitLimits;
use crate::api::relay_config::RelayConfig;
use crate::shares::{Limits, Shares, Source};
use crate::types::address::NodeAddress;
use crate::types::id::{RequestId, StreamId};
use crate::types::refusal::Refusal;
use crate::types::time::Instant;

/// A circuit is refused if it could carry less, in bytes.
const LEAST_VOLUME: u64 = 256 * 1024;

/// Circuits by the stream of the node that has requested them.
#[derive(Debug, Default)]
pub(crate) struct Circuits {
    circuits: BTreeMap<StreamId, Circuit>,
    /// Offers to the other ends that were not answered, with the stream of each circuit.
    offers: BTreeMap<RequestId, StreamId>,
    shares: Shares,
    volumes: Volumes,
}

/// One circuit.
#[derive(Debug)]
struct Circuit {
    owner: Source,
    /// Bytes that it may carry.
    volume: u64,
    state: State,
}

#[derive(Debug)]
enum State {
    /// The other end was asked.
    Offered {
        request: RequestId,
        /// Stream to it.
        stream: StreamId,
        /// What this node has seen of the other end, for its owner.
        seen: Seen,
    },
    /// It carries datagrams.
    Open {
        /// Stream to its other end.
        other: StreamId,
    },
}

/// What a relay has seen of one end of a circuit; it tells the other end.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    /// Its address; `None` if it is not a public one.
    pub(crate) address: Option<NodeAddress>,
    /// Whether both ends have one IP address.
    pub(crate) same_network: bool,
}

/// A circuit that its other end has accepted.
#[derive(Debug)]
pub(crate) struct Accepted {
    /// Stream to its other end.
    pub(crate) other: StreamId,
    /// What this node has seen of the other end, for the owner.
    pub(crate) seen: Seen,
    /// What the circuit may carry.
    pub(crate) limits: CircuitLimits,
}

impl Circuits {
    /// Takes room for a circuit of a node.
    ///
    /// # Errors
    /// The limit that is reached. Nothing is counted.
    pub(crate) fn admit(
        &mut self,
        config: &RelayConfig,
        share: u32,
        owner: &Source,
        now: Instant,
    ) -> Result<u64, Refusal> {
        let limits = Limits::new(config.circuits, share).per_node(config.circuits_per_node);
        self.shares.take(owner, &limits)?;
        let volumes = (config.volume_per_node, config.volume);
        let reserved = self.volumes.reserve(&owner.node, volumes, LEAST_VOLUME, now);
        if reserved.is_none() {
            self.shares.give_back(owner);
        }
        reserved.ok_or(Refusal::Volume)
    }

    /// Gives back the room of a circuit that was admitted and not offered.
    pub(crate) fn give_up(&mut self, owner: &Source, volume: u64) {
        self.shares.give_back(owner);
        self.volumes.give_back(&owner.node, volume);
    }

    /// Notes an admitted circuit, which was offered to its other end.
    pub(crate) fn offered(
        &mut self,
        stream: StreamId,
        (owner, volume): (Source, u64),
        (request, other): (RequestId, StreamId),
        seen: Seen,
    ) {
        self.offers.insert(request, stream);
        let state = State::Offered { request, stream: other, seen };
        self.circuits.insert(stream, Circuit { owner, volume, state });
    }

    /// The other end has answered. Returns the stream of the circuit; `None` if it has ended
    /// before.
    pub(crate) fn answered(&mut self, request: RequestId) -> Option<StreamId> {
        self.offers.remove(&request)
    }

    /// The other end has accepted a circuit.
    pub(crate) fn accepted(&mut self, stream: StreamId, config: &RelayConfig) -> Option<Accepted> {
        let circuit = self.circuits.get_mut(&stream)?;
        let State::Offered { stream: other, seen, .. } = &circuit.state else { return None };
        let (other, seen) = (*other, seen.clone());
        circuit.state = State::Open { other };
        let limits = CircuitLimits {
            owner: circuit.owner.node,
            owner_rate: config.rate_per_node,
            rate: config.rate,
            volume: circuit.volume,
            idle_timeout: config.idle_timeout,
        };
        Some(Accepted { other, seen, limits })
    }

    /// A circuit has ended after some bytes. Returns the stream to its other end.
    pub(crate) fn end(&mut self, stream: StreamId, bytes: u64) -> Option<StreamId> {
        let Circuit { owner, volume, state } = self.circuits.remove(&stream)?;
        self.give_up(&owner, volume.saturating_sub(bytes));
        match state {
            State::Offered { request, stream: other, .. } => {
                self.offers.remove(&request);
                Some(other)
            }
            State::Open { other } => Some(other),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.circuits.len()
    }

    pub(crate) fn volumes(&self) -> usize {
        self.volumes.len()
    }

    /// Forgets everything but what was carried, because the node has stopped.
    pub(crate) fn clear(&mut self) {
        self.circuits.clear();
        self.offers.clear();
        self.shares = Shares::default();
    }
}

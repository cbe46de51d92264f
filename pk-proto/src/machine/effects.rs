//! Outstanding effects, and who receives the completion of each.

use alloc::collections::{BTreeMap, BTreeSet};

use crate::api::census::Census;
use crate::claims::ClaimId;
use crate::shares::Source;
use crate::types::id::{ConnectionId, EffectId, NodeId, RaceId, RequestId, StreamId};
use crate::wire::message::SignalTerms;

/// Who receives the completion of an effect, by the output that started the effect.
#[derive(Debug, Clone, Copy)]
pub(crate) enum EffectOwner {
    /// A race that resolves a host name; `name` is the key of the name within the race.
    Resolve {
        race: RaceId,
        name: u32,
    },
    /// A request that queries the local network.
    Browse(RequestId),
    /// A renewal.
    ReplaceIdentity(RequestId),
    Sign(SignOwner),
    Persist(PersistOwner),
    Load(LoadOwner),
}

/// Who receives a signature.
#[derive(Debug, Clone, Copy)]
pub(crate) enum SignOwner {
    Claim(ClaimSigner),
    /// This node, as the source of a signal.
    SignalRequest {
        purpose: SignalPurpose,
        relay: NodeId,
        target: NodeId,
        terms: SignalTerms,
    },
    /// A signal that this node relays, by the stream of its source.
    SignalForward(StreamId),
}

/// What a signal is requested for.
#[derive(Debug, Clone, Copy)]
pub(crate) enum SignalPurpose {
    /// A race.
    Dial(RaceId),
    /// A relayed connection, which may become direct.
    Upgrade(ConnectionId),
}

/// Which claim is signed.
#[derive(Debug, Clone, Copy)]
pub(crate) enum ClaimSigner {
    /// That of an exchange that this node has started.
    Initiator(RequestId),
    /// That of an exchange that a peer has started.
    Responder(StreamId),
    /// A claim of another type in the local chain.
    Own(RequestId),
    /// A claim about a network, for a peer.
    Network(StreamId),
}

/// Who receives the outcome of a transaction.
#[derive(Debug, Clone, Copy)]
pub(crate) enum PersistOwner {
    /// Claims; `appends`: the transaction moves the end of the local chain.
    Claim {
        writer: ClaimWriter,
        appends: bool,
    },
    Renewal(RequestId),
    /// A request that writes the links of a chain.
    Links(RequestId),
    /// The node graph.
    Graph,
}

/// What of claims is written.
#[derive(Debug, Clone, Copy)]
pub(crate) enum ClaimWriter {
    /// An exchange that this node has started.
    Initiator(RequestId),
    /// An exchange that a peer has started.
    Responder(StreamId),
    /// A claim of another type in the local chain.
    Own(RequestId),
    /// A change of the allow-list.
    AllowList { request: RequestId, node: NodeId, allowed: bool },
    /// An exchange whose request ended while the outcome of its transaction was unknown.
    Detached { peer: NodeId, claim: ClaimId, theirs: ClaimId },
    /// The end of an exchange; nothing waits for it.
    Settled,
}

/// Who receives rows.
#[derive(Debug, Clone, Copy)]
pub(crate) enum LoadOwner {
    /// A transaction whose outcome is unknown.
    Evidence(EffectId),
    /// An exchange that this node has started.
    Initiator(RequestId),
    /// An exchange that a peer has started.
    Responder(StreamId),
    /// A peer that has requested claims, and what its read is charged to.
    Peer {
        stream: StreamId,
        source: Source,
    },
    Request(RequestId),
    /// The search for forks in the local chain.
    Forks,
}

impl PersistOwner {
    /// Returns the request that ends with the transaction.
    pub(crate) fn request(self) -> Option<RequestId> {
        match self {
            Self::Claim { writer, .. } => match writer {
                ClaimWriter::Initiator(request) | ClaimWriter::Own(request) => Some(request),
                ClaimWriter::AllowList { request, .. } => Some(request),
                ClaimWriter::Responder(_) | ClaimWriter::Detached { .. } | ClaimWriter::Settled => {
                    None
                }
            },
            Self::Renewal(request) => Some(request),
            Self::Links(_) | Self::Graph => None,
        }
    }

    /// Returns whether the transaction moves the end of the local chain.
    pub(crate) fn appends(self) -> bool {
        matches!(self, Self::Claim { appends: true, .. })
    }
}

impl EffectOwner {
    /// Returns whether a node that stops waits for the completion, besides those that its requests
    /// and its graph wait for.
    fn delays_stop(self) -> bool {
        match self {
            Self::Sign(SignOwner::Claim(_))
            | Self::Persist(PersistOwner::Claim { .. } | PersistOwner::Links(_))
            | Self::Load(LoadOwner::Initiator(_) | LoadOwner::Responder(_)) => true,
            Self::Resolve { .. } | Self::Browse(_) | Self::ReplaceIdentity(_) => false,
            Self::Sign(SignOwner::SignalRequest { .. } | SignOwner::SignalForward(_)) => false,
            Self::Persist(PersistOwner::Renewal(_) | PersistOwner::Graph) => false,
            Self::Load(
                LoadOwner::Evidence(_)
                | LoadOwner::Peer { .. }
                | LoadOwner::Request(_)
                | LoadOwner::Forks,
            ) => false,
        }
    }
}

/// Assigns the ids of effects and holds the owner of each effect until its last completion.
#[derive(Debug, Default)]
pub(crate) struct Effects {
    next: u64,
    owners: BTreeMap<EffectId, EffectOwner>,
    /// The effects of each race, which resolve host names.
    names: BTreeSet<(RaceId, EffectId)>,
    /// Transactions that are completed and whose outcome the store did not know. They are
    /// outstanding until it is known.
    in_doubt: BTreeMap<EffectId, PersistOwner>,
}

impl Effects {
    /// Assigns the id of a new effect.
    pub(crate) fn begin(&mut self, owner: EffectOwner) -> EffectId {
        let id = EffectId(self.next);
        // 2^64 effects are not reached in any run, so saturation only documents that this cannot
        // wrap.
        self.next = self.next.saturating_add(1);
        self.restore(id, owner);
        id
    }

    /// Ends an effect. Returns its owner, or `None` if no completion of this id is outstanding.
    pub(crate) fn take(&mut self, id: EffectId) -> Option<EffectOwner> {
        let owner = self.owners.remove(&id);
        if let Some(EffectOwner::Resolve { race, .. }) = owner {
            self.names.remove(&(race, id));
        }
        owner
    }

    /// Restores an effect that was taken, because another completion follows.
    pub(crate) fn restore(&mut self, id: EffectId, owner: EffectOwner) {
        if let EffectOwner::Resolve { race, .. } = owner {
            self.names.insert((race, id));
        }
        self.owners.insert(id, owner);
    }

    /// Forgets the host names that a race resolves.
    pub(crate) fn forget_race(&mut self, ended: RaceId) {
        let names = (ended, EffectId(0))..=(ended, EffectId(u64::MAX));
        while let Some((race, id)) = self.names.range(names.clone()).next().copied() {
            self.names.remove(&(race, id));
            self.owners.remove(&id);
        }
    }

    /// Notes that the outcome of a transaction that was taken is unknown.
    pub(crate) fn doubt(&mut self, id: EffectId, owner: PersistOwner) {
        self.in_doubt.insert(id, owner);
    }

    /// Ends the doubt about a transaction. Returns its owner.
    pub(crate) fn decide(&mut self, id: EffectId) -> Option<PersistOwner> {
        self.in_doubt.remove(&id)
    }

    /// Returns the owner of a transaction whose outcome is unknown.
    pub(crate) fn doubted(&self, id: EffectId) -> Option<PersistOwner> {
        self.in_doubt.get(&id).copied()
    }

    /// Replaces the owner of the exchange of a request whose transaction is in doubt.
    pub(crate) fn detach(&mut self, of: RequestId, detached: ClaimWriter) {
        for owner in self.in_doubt.values_mut() {
            if let PersistOwner::Claim { writer, .. } = owner
                && matches!(writer, ClaimWriter::Initiator(request) if *request == of)
            {
                *writer = detached;
            }
        }
    }

    /// Returns the owner of every outstanding effect.
    pub(crate) fn owners(&self) -> impl Iterator<Item = EffectOwner> {
        self.owners
            .values()
            .copied()
            .chain(self.in_doubt.values().copied().map(EffectOwner::Persist))
    }

    /// Returns whether a node that stops waits for a completion.
    pub(crate) fn delay_stop(&self) -> bool {
        self.owners().any(EffectOwner::delays_stop)
    }

    /// Counts the outstanding effects by owner.
    pub(crate) fn count(&self, census: &mut Census) {
        for owner in self.owners() {
            let count = match owner {
                EffectOwner::Resolve { .. } => &mut census.resolves,
                EffectOwner::Browse(_) => &mut census.browses,
                EffectOwner::Sign(SignOwner::Claim(_))
                | EffectOwner::Persist(PersistOwner::Claim { .. })
                | EffectOwner::Load(LoadOwner::Initiator(_) | LoadOwner::Responder(_)) => {
                    &mut census.claim_effects
                }
                EffectOwner::Sign(
                    SignOwner::SignalRequest { .. } | SignOwner::SignalForward(_),
                ) => &mut census.signatures,
                EffectOwner::Persist(PersistOwner::Links(_)) => &mut census.links,
                EffectOwner::Load(
                    LoadOwner::Peer { .. } | LoadOwner::Request(_) | LoadOwner::Forks,
                ) => &mut census.store_reads,
                // At most one of each; counted with what it belongs to.
                EffectOwner::ReplaceIdentity(_)
                | EffectOwner::Persist(PersistOwner::Renewal(_) | PersistOwner::Graph)
                | EffectOwner::Load(LoadOwner::Evidence(_)) => continue,
            };
            *count += 1;
        }
    }
}

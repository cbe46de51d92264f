//! Signals that this node requests, relays and receives.

use alloc::collections::BTreeMap;

use crate::api::census::Census;
use crate::machine::effects::SignalPurpose;
use crate::shares::{Shares, Source};
use crate::signalling::guard::SignalGuard;
use crate::signalling::punches::Punches;
use crate::types::address::NodeAddress;
use crate::types::id::{ConnectionId, NodeId, StreamId};
use crate::types::time::{Instant, WallClock};
use crate::wire::message::{SignalRequest, SignalTerms};

/// State of signalling, in all three roles.
#[derive(Debug, Default)]
pub(in crate::manager) struct Signalling {
    /// Relay: limits on signal requests.
    pub(in crate::manager) relayed: SignalGuard,
    /// Target: limits on punch requests.
    pub(in crate::manager) targeted: SignalGuard,
    pub(in crate::manager) punches: Punches,
    /// Relay: signals that are being signed, by the stream of their source.
    pub(in crate::manager) signing: BTreeMap<StreamId, Forward>,
    /// Relay: number of signals in progress, until their target has responded.
    pub(in crate::manager) relaying: Shares,
    /// Relay: calls to targets, and what each is charged to.
    pub(in crate::manager) forwarded: BTreeMap<StreamId, Source>,
    /// Source: calls to relays.
    pub(in crate::manager) relay_calls: BTreeMap<StreamId, RelayCall>,
    /// Source: clock of the latest requests, and the time at which the latest was signed.
    pub(in crate::manager) clock: Option<(WallClock, Instant)>,
}

impl Signalling {
    /// Ends all punches, because the node stops.
    pub(in crate::manager) fn stop(&mut self) {
        self.punches.clear();
    }

    /// Counts the tables of signalling.
    pub(in crate::manager) fn count_tables(&self, census: &mut Census) {
        census.signals = self.relay_calls.len() + self.forwarded.len();
        census.punches = self.punches.len();
        for guard in [&self.relayed, &self.targeted] {
            let (nonces, rates) = guard.tables();
            census.nonces += nonces;
            census.rates += rates;
        }
    }
}

/// A call to a relay.
#[derive(Debug)]
pub(in crate::manager) struct RelayCall {
    pub(in crate::manager) purpose: SignalPurpose,
    pub(in crate::manager) relay: NodeId,
    /// Address of the relay.
    pub(in crate::manager) relay_at: NodeAddress,
    pub(in crate::manager) target: NodeId,
    pub(in crate::manager) terms: SignalTerms,
}

/// A signal to a target, at the relay.
#[derive(Debug)]
pub(in crate::manager) struct Forward {
    pub(in crate::manager) target: ConnectionId,
    pub(in crate::manager) source: NodeId,
    pub(in crate::manager) address: NodeAddress,
    pub(in crate::manager) request: SignalRequest,
    pub(in crate::manager) from: Source,
}

//! Claims of this node (DESIGN section 6): its chain, whom it signs for, what is not finished.
//!
//! What we begin is in [`node`] (links) and [`own`] (other types), what peers begin in [`handle`] and [`network`]. This file
//! has what they share: the table of what is remembered, the answers of effects, and resumption.

mod handle;
mod network;
mod node;
mod own;
mod view;

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::vec::Vec;

use self::handle::Handling;
use self::network::NetworkClaim;
pub(super) use self::node::{ClaimNode, Claiming, standing};
pub(super) use self::own::OwnClaim;
pub use self::view::ExchangeInfo;
use super::open::{Audience, Open, Stage, Then};
use super::{NodeManager, Phase};
use crate::claims::exchange::{Sides, ToSign};
use crate::claims::rows::read_claim_row;
use crate::claims::sigchain::{self, Appended, Sigchain, allow_row};
use crate::claims::{Claim, ClaimId, OpenExchange, Verdict};
use crate::error::{Failure, RequestError};
use crate::id::{AskId, ConnectionId, EffectId, NodeId, RequestId, StreamId};
use crate::io::{Event, Output, Signature, StoreOp, StoreRange, StoreRow};
use crate::request::{Options, Reply};
use crate::rpc::ExchangeStep;
use crate::store::Snapshot;
use crate::time::Instant;
use crate::timers::Timer;
use crate::trace::Call;

/// Doublings of `claim_resume_delay`.
const MAX_BACKOFF: u32 = 6;

/// Everything that this node holds of claims.
#[derive(Debug, Default)]
pub(super) struct Claims {
    chain: Sigchain,
    allowed: BTreeSet<NodeId>,
    /// Claims of ours that stand, and whose exchange is not finished.
    ours: BTreeMap<ClaimId, Standing>,
    /// Claims of peers that we have agreed to sign, by issuer and id.
    theirs: BTreeMap<(NodeId, ClaimId), Agreed>,
    /// Exchanges that peers have begun.
    handling: BTreeMap<StreamId, Handling>,
    /// Claims about networks that peers want signed.
    network: BTreeMap<StreamId, NetworkClaim>,
    /// The streams of our exchanges.
    streams: BTreeMap<StreamId, RequestId>,
    /// Questions to the embedder, each about a stream.
    asks: BTreeMap<AskId, StreamId>,
    /// What waits for the answer to an effect.
    effects: BTreeMap<EffectId, Waits>,
}

/// A claim of ours that stands.
#[derive(Debug)]
struct Standing {
    peer: NodeId,
    /// The claim of the peer that we have signed last.
    theirs: ClaimId,
    /// Who works on it.
    busy: Option<RequestId>,
    /// How often it was resumed in vain.
    attempts: u32,
}

/// With what we agree to sign a claim of a peer.
#[derive(Debug, Clone)]
struct Agreed {
    /// Our signature of the peer's claim.
    signature: Signature,
    /// Our claim, with our signature.
    mine: Claim,
}

/// Who waits for an effect.
#[derive(Debug)]
enum Waits {
    /// An exchange that we have begun.
    Node(RequestId),
    /// An exchange that a peer has begun.
    Handling(StreamId),
    /// A claim of ours of another type.
    Own(RequestId),
    /// A claim about a network.
    Network(StreamId),
    /// A change of the allow-list.
    Allow { request: RequestId, node: NodeId, allowed: bool },
    /// Nobody: it only has to be done.
    Nobody,
}

impl Claims {
    /// As the last life left it.
    pub(super) fn new(snapshot: &mut Snapshot) -> Self {
        let mut claims = Self { allowed: snapshot.allowed.drain(..).collect(), ..Self::default() };
        let mut made = Vec::new();
        for open in snapshot.exchanges.drain(..) {
            match open {
                OpenExchange::Ours { peer, claim, theirs } => {
                    claims.ours.insert(claim, Standing { peer, theirs, busy: None, attempts: 0 });
                }
                OpenExchange::Theirs { issuer, claim, signature, mine } => {
                    made.push(mine.id());
                    claims.theirs.insert((issuer, claim), Agreed { signature, mine });
                }
            }
        }
        claims.chain = Sigchain::new(snapshot.chain, made.into_iter());
        claims
    }

    /// Whether no effect is waited for.
    pub(super) fn is_idle(&self) -> bool {
        self.effects.is_empty()
    }
}

/// A. Ours.
impl NodeManager {
    /// Answers [`Event::ClaimAsked`]: signs the claim, or refuses to. Nothing happens if that is decided already, or the
    /// peer has gone.
    pub fn answer_claim(&mut self, ask: AskId, sign: bool, now: Instant) {
        self.enter(now, || Call::AnswerClaim { ask, sign });
        self.decided(ask, sign);
        self.settle();
    }
}

impl NodeManager {
    /// Whether there is room to remember another claim of ours.
    pub(super) fn check_claims(&self) -> Result<(), RequestError> {
        let limit = self.cx.config.open_exchange_limit;
        if self.claims.ours.len() >= limit { Err(RequestError::TooMany(limit)) } else { Ok(()) }
    }

    // -- the allow-list

    pub(super) fn check_allow(&self, allowed: bool) -> Result<(), RequestError> {
        let limit = self.cx.config.allow_list_limit;
        if allowed && self.claims.allowed.len() >= limit { Err(RequestError::TooMany(limit)) } else { Ok(()) }
    }

    /// Writes a change of the allow-list; it holds when it is written.
    pub(super) fn allow_begin(&mut self, request: RequestId, deadline: Instant, node: NodeId, allowed: bool) {
        self.begin(request, Open { audience: Audience::Embedder, deadline, stage: Stage::AllowClaim });
        self.claim_persist(alloc::vec![allow_row(&node, allowed)], true, Waits::Allow { request, node, allowed });
    }

    /// The node of a request could not be connected.
    pub(super) fn not_found(&mut self, audience: Audience, then: &Then, failure: Failure) -> Result<Reply, Failure> {
        match then {
            Then::ClaimNode(Claiming { standing: Some(mine), .. }) => {
                self.in_doubt(*mine, audience == Audience::Nobody);
                Err(Failure::ClaimInDoubt(*mine))
            }
            _ => Err(failure),
        }
    }

    // -- effects

    fn claim_sign(&mut self, to_sign: ToSign, waits: Waits) {
        let id = self.cx.ids.effect();
        self.claims.effects.insert(id, waits);
        self.cx.output(Output::Sign { id, key: to_sign.key, bytes: to_sign.bytes });
    }

    fn claim_load(&mut self, range: StoreRange, waits: Waits) {
        let id = sigchain::load_one(&mut self.cx, range);
        self.claims.effects.insert(id, waits);
    }

    fn claim_persist(&mut self, ops: Vec<StoreOp>, durable: bool, waits: Waits) {
        let id = self.cx.ids.effect();
        self.claims.effects.insert(id, waits);
        self.persist(id, ops, durable);
    }

    /// Appends a claim that fits, with what else is to be true from then on.
    fn claim_append(&mut self, claim: &Claim, with: Vec<StoreOp>, waits: Waits) {
        let id = self.cx.ids.effect();
        self.claims.effects.insert(id, waits);
        let mut ops = self.claims.chain.append(&self.cx, id, claim);
        ops.extend(with);
        self.persist(id, ops, true);
    }

    /// A signature was made, or not. Returns whether claims have waited for it.
    pub(super) fn claim_signed(&mut self, id: EffectId, result: &Result<Signature, String>) -> bool {
        let Some(waits) = self.claims.effects.remove(&id) else { return false };
        if result.is_err() {
            self.cx.metrics.signing_failures += 1;
        }
        let result = result.clone().map_err(Failure::Signing);
        match waits {
            Waits::Node(request) => self.node_signed(request, result),
            Waits::Handling(stream) => self.handling_signed(stream, result.ok()),
            Waits::Own(request) => self.own_signed(request, result),
            Waits::Network(stream) => self.network_signed(stream, result.ok()),
            Waits::Allow { .. } | Waits::Nobody => {}
        }
        true
    }

    /// Rows were read, or not. Returns whether claims have waited for them.
    pub(super) fn claim_loaded(&mut self, id: EffectId, result: &Result<(Vec<StoreRow>, bool), String>) -> bool {
        let Some(waits) = self.claims.effects.remove(&id) else { return false };
        let row = match result {
            Ok((rows, _)) => Ok(rows.first().cloned()),
            Err(why) => Err(Failure::Store(why.clone())),
        };
        match waits {
            Waits::Node(request) => self.node_loaded(request, row),
            Waits::Handling(stream) => self.handling_loaded(stream, row),
            Waits::Own(_) | Waits::Network(_) | Waits::Allow { .. } | Waits::Nobody => {}
        }
        true
    }

    /// A transaction is over. Returns whether it was one of claims.
    pub(super) fn claim_persisted(&mut self, id: EffectId, result: &Result<(), String>) -> bool {
        let Some(waits) = self.claims.effects.remove(&id) else { return false };
        if result.is_err() {
            self.cx.metrics.store_failures += 1;
        }
        let appended = self.claims.chain.persisted(id, result.is_ok());
        if let Some(Appended { claim, link }) = appended.filter(|_| result.is_ok()) {
            self.cx.metrics.claims += 1;
            let node = link.and_then(|link| self.cx.own_chain().iter().find_map(|own| link.other(own)));
            self.cx.event(Event::ClaimAdded { claim, node });
        }
        let result = result.clone().map_err(Failure::Store);
        match waits {
            Waits::Node(request) => self.node_persisted(request, result),
            Waits::Handling(stream) => self.handling_persisted(stream, result.is_ok()),
            Waits::Own(request) => self.own_persisted(request, result),
            Waits::Allow { request, node, allowed } => {
                if result.is_ok() && allowed {
                    self.claims.allowed.insert(node);
                } else if result.is_ok() {
                    self.claims.allowed.remove(&node);
                }
                self.end(request, result.map(|()| Reply::AllowClaim));
            }
            Waits::Network(_) | Waits::Nobody => {}
        }
        if appended.is_some() {
            self.chain_is_free();
        }
        true
    }

    /// Nothing is being written to the chain: whoever waits to draft a claim may.
    fn chain_is_free(&mut self) {
        let waiting = |open: &Open| matches!(&open.stage, Stage::ClaimNode(node) if node.waits());
        let ours: Vec<_> = self.open.iter().filter(|(_, open)| waiting(open)).map(|(id, _)| *id).collect();
        ours.into_iter().for_each(|id| self.node_draft(id));
        let waiting = |open: &Open| matches!(&open.stage, Stage::AddClaim(own) if own.waits());
        let own: Vec<_> = self.open.iter().filter(|(_, open)| waiting(open)).map(|(id, _)| *id).collect();
        own.into_iter().for_each(|id| self.own_draft(id));
        let theirs = self.claims.handling.iter().filter(|(_, handling)| handling.waits());
        let theirs: Vec<_> = theirs.map(|(stream, _)| *stream).collect();
        theirs.into_iter().for_each(|stream| self.handling_draft(stream));
    }

    // -- streams

    /// The peer's part in an exchange has come further.
    pub(super) fn exchange(&mut self, stream: StreamId, conn: ConnectionId, step: ExchangeStep) {
        match (self.claims.streams.get(&stream).copied(), step) {
            (_, ExchangeStep::Begun(token)) => self.handling_begun(stream, conn, &token),
            (Some(request), ExchangeStep::Token(token)) => self.node_token(request, stream, &token),
            (Some(request), ExchangeStep::Finished) => self.node_finished(request, stream),
            (Some(request), ExchangeStep::Failed(failure)) => {
                self.claims.streams.remove(&stream);
                self.node_stream_failed(request, failure);
            }
            (None, ExchangeStep::Token(token)) => self.handling_token(stream, &token),
            (None, ExchangeStep::Finished) => self.handling_finished(stream),
            (None, ExchangeStep::Failed(_)) => self.handling_failed(stream),
        }
    }

    /// Who is on either side of a connection.
    fn sides(&self, conn: ConnectionId) -> Sides {
        Sides { own: self.cx.own_chain().to_vec(), peer: self.connections.chain(conn) }
    }

    // -- the policy

    fn verdict(&self, conn: ConnectionId) -> Verdict {
        self.cx.config.claim_policy.judge(&self.claims.allowed, &self.connections.chain(conn))
    }

    /// Asks the embedder about a claim that came on a stream.
    fn ask(&mut self, stream: StreamId, conn: ConnectionId, claim: Claim) -> AskId {
        let (ask, within) = (self.cx.ids.ask(), self.cx.config.claim_ask_timeout);
        self.claims.asks.insert(ask, stream);
        self.cx.timers.set(Timer::Ask(ask), self.cx.now + within);
        // The peer waits for us, and we for the embedder; the answer is sent a little after it.
        let until = self.cx.now + within + self.cx.config.call_timeout;
        self.rpc.wait_until(&mut self.cx, stream, until);
        let node = self.connections.node(conn).unwrap_or(self.cx.own());
        self.cx.event(Event::ClaimAsked { ask, node, claim, within });
        ask
    }

    /// The embedder has decided, or has not in time.
    pub(super) fn decided(&mut self, ask: AskId, sign: bool) {
        let Some(stream) = self.forget_ask(ask) else {
            self.cx.metrics.late_inputs += 1;
            return;
        };
        if self.claims.network.contains_key(&stream) {
            self.network_decided(stream, sign);
        } else {
            self.handling_decided(stream, sign);
        }
    }

    fn forget_ask(&mut self, ask: AskId) -> Option<StreamId> {
        self.cx.timers.cancel(Timer::Ask(ask));
        self.claims.asks.remove(&ask)
    }

    /// Another attempt is due.
    pub(super) fn claim_retry(&mut self, id: RequestId) {
        match self.open.get(&id).map(|open| &open.stage) {
            Some(Stage::ClaimNode(_)) => self.node_retry(id),
            Some(Stage::AddClaim(_)) => self.own_draft(id),
            _ => {}
        }
    }

    // -- what is not finished

    /// The node listens: tells of what its last life has left.
    pub(super) fn tell_of_doubts(&mut self) {
        for (claim, standing) in &self.claims.ours {
            self.cx.event(Event::ClaimInDoubt { claim: *claim, node: standing.peer });
        }
    }

    /// A node is connected: what is not finished with it goes on.
    pub(super) fn resume_with(&mut self, chain: &[NodeId]) {
        let with = |standing: &Standing| standing.busy.is_none() && chain.contains(&standing.peer);
        let claims: Vec<_> = self.claims.ours.iter().filter(|(_, of)| with(of)).map(|(claim, _)| *claim).collect();
        claims.into_iter().for_each(|claim| self.resume(claim));
    }

    /// Resumes the exchange of a claim that stands, if nobody does and its peer is connected.
    pub(super) fn resume(&mut self, claim: ClaimId) {
        if self.phase != Phase::Running {
            return;
        }
        let Some(standing) = self.claims.ours.get(&claim).filter(|standing| standing.busy.is_none()) else { return };
        let target = standing.peer;
        let Some(conn) = self.connections.primary(&target) else { return };
        let (id, deadline) = (self.cx.ids.request(), self.cx.now + self.cx.config.request_deadline);
        let claiming = Claiming { standing: Some(claim), ..Claiming::new(target, Options::default()) };
        let stage = self.node_begin(id, conn, claiming);
        self.begin(id, Open { audience: Audience::Nobody, deadline, stage });
    }

    /// An exchange whose claim stands has ended without the peer's word.
    fn in_doubt(&mut self, claim: ClaimId, known: bool) {
        let Some(standing) = self.claims.ours.get_mut(&claim) else { return };
        standing.busy = None;
        let delay = self.cx.config.claim_resume_delay * (1 << standing.attempts.min(MAX_BACKOFF));
        standing.attempts = standing.attempts.saturating_add(1);
        self.cx.timers.set(Timer::ClaimResume(claim), self.cx.now + delay);
        if !known {
            self.cx.event(Event::ClaimInDoubt { claim, node: standing.peer });
        }
    }

    /// The peer has its claim.
    fn settled(&mut self, claim: ClaimId) {
        self.cx.timers.cancel(Timer::ClaimResume(claim));
        if let Some(Standing { peer, theirs, .. }) = self.claims.ours.remove(&claim) {
            let removal = OpenExchange::Ours { peer, claim, theirs }.removal();
            // If a crash undoes it, the peer is asked once more, and says the same.
            self.claim_persist(alloc::vec![removal], false, Waits::Nobody);
        }
    }

    /// The claim in a row of our chain.
    fn claim_of(row: Option<StoreRow>) -> Result<Claim, Failure> {
        let damaged = || Failure::Store("a claim of our chain cannot be read".into());
        let (key, value) = row.ok_or_else(damaged)?;
        let (_, json) = read_claim_row(&key, &value).map_err(|_| damaged())?;
        Claim::parse(json.as_bytes()).map_err(|_| damaged())
    }
}

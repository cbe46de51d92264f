//! Links that we begin (specification: claimNode): the initiator, its restarts and its end.

use alloc::boxed::Box;
use core::time::Duration;

use bytes::Bytes;

use super::{NodeManager, Standing, Waits};
use crate::claims::exchange::{Initiator, Next};
use crate::claims::sigchain::claim_range;
use crate::claims::{Claim, ClaimContent, ClaimId, ClaimLinkNode, ClaimStep, ExchangeFault, OpenExchange};
use crate::cx::Dice;
use crate::error::{Failure, PeerFault};
use crate::id::{ConnectionId, NodeId, RequestId, StreamId};
use crate::io::{Dialect, DisconnectReason, Event, Signature, StoreRow};
use crate::manager::Phase;
use crate::manager::open::{Audience, Open, Stage, Then};
use crate::request::{FindNode, Options, Reply};
use crate::rpc::{Answer, Answered, Question, Refusal};
use crate::timers::Timer;

/// The longest wait before another attempt.
const MAX_PAUSE: Duration = Duration::from_secs(10);

/// What an exchange is for; it outlives the search for the peer and each attempt.
#[derive(Debug, Clone, Copy)]
pub(in crate::manager) struct Claiming {
    pub(in crate::manager) target: NodeId,
    pub(in crate::manager) options: Options,
    /// How many attempts were in vain.
    pub(in crate::manager) attempts: u32,
    /// Our claim, if it stands.
    pub(in crate::manager) standing: Option<ClaimId>,
}

/// An exchange of ours under way.
#[derive(Debug)]
pub(in crate::manager) struct ClaimNode {
    claiming: Claiming,
    conn: ConnectionId,
    /// `None` before its first word, and once it is lost.
    stream: Option<StreamId>,
    /// `None`: between two attempts.
    state: Option<Initiator>,
}

impl Claiming {
    /// A new claim.
    pub(in crate::manager) fn new(target: NodeId, options: Options) -> Self {
        Self { target, options, attempts: 0, standing: None }
    }
}

impl ClaimNode {
    /// Whether it waits for our chain.
    pub(super) fn waits(&self) -> bool {
        matches!(self.state, Some(Initiator::Waiting))
    }

    /// Our claim, past the point of no return.
    pub(in crate::manager) fn standing(&self) -> Option<ClaimId> {
        self.claiming.standing.or_else(|| self.state.as_ref().and_then(Initiator::standing))
    }

    /// Whether our claim is being written: it does not end before that has.
    pub(in crate::manager) fn is_persisting(&self) -> bool {
        matches!(self.state, Some(Initiator::Persisting { .. }))
    }

    /// How far it has come.
    pub(super) fn step(&self) -> ClaimStep {
        self.state.as_ref().map_or(ClaimStep::Pausing, Initiator::step)
    }

    pub(super) fn target(&self) -> NodeId {
        self.claiming.target
    }
}

/// The standing claim of a request, in whatever stage it is.
pub(in crate::manager) fn standing(stage: &Stage) -> Option<ClaimId> {
    match stage {
        Stage::ClaimNode(node) => node.standing(),
        Stage::Find { then: Then::ClaimNode(claiming), .. } => claiming.standing,
        _ => None,
    }
}

impl NodeManager {
    // -- beginning

    /// The node is connected: begins an attempt.
    pub(in crate::manager) fn node_begin(&mut self, id: RequestId, conn: ConnectionId, claiming: Claiming) -> Stage {
        let mut node = ClaimNode { claiming, conn, stream: None, state: Some(Initiator::Waiting) };
        match claiming.standing {
            Some(mine) => {
                if let Some(standing) = self.claims.ours.get_mut(&mine) {
                    standing.busy = Some(id);
                }
                self.cx.timers.cancel(Timer::ClaimResume(mine));
                self.node_resume(id, &mut node, mine);
            }
            None => self.draft(id, &mut node),
        }
        Stage::ClaimNode(Box::new(node))
    }

    /// Goes on with a claim that stands. A node of the other dialect may not know what it has answered: what we have signed is
    /// looked for in its chain first.
    fn node_resume(&mut self, id: RequestId, node: &mut ClaimNode, mine: ClaimId) {
        let theirs = self.claims.ours.get(&mine).map(|standing| standing.theirs);
        if let (Some(theirs), Some(Dialect::Polykey)) = (theirs, self.rpc.dialect(node.conn)) {
            let before = u128::from_be_bytes(*theirs.as_bytes()).saturating_sub(1);
            let after = Some(ClaimId::from_bytes(before.to_be_bytes()));
            // One claim is told whatever its length.
            let question = Question::Claims { after, max_bytes: 0 };
            let deadline = self.cx.now + self.cx.config.call_timeout;
            node.stream = self.rpc.call(&mut self.cx, node.conn, id, question, deadline);
            node.state = Some(Initiator::Checking { mine, theirs });
        } else {
            node.state = Some(Initiator::Loading { mine });
            self.claim_load(claim_range(&mine), Waits::Node(id));
        }
    }

    /// The peer has told what is in its chain, or not.
    pub(in crate::manager) fn node_checked(&mut self, id: RequestId, result: Result<Answered, Failure>) {
        let Some(mut node) = self.take_node(id) else { return };
        // There may be more, which nobody asks for.
        self.drop_stream(&mut node);
        let Some(state @ Initiator::Checking { mine, .. }) = node.state.take() else { return self.put_node(id, node) };
        let sides = self.sides(node.conn);
        let failure = match result.map(|answered| answered.answer) {
            Ok(Answer::Claims(page)) => {
                let found = page.claims.first().map(|(_, token)| &token[..]);
                if state.is_settled(&sides, found) {
                    self.put_node(id, node);
                    return self.end(id, Ok(Reply::ClaimNode(mine)));
                }
                node.state = Some(Initiator::Loading { mine });
                self.claim_load(claim_range(&mine), Waits::Node(id));
                None
            }
            Ok(Answer::Refused(refusal)) => Some(Failure::Refused(refusal)),
            Ok(_) => Some(Failure::Peer(PeerFault::Unexpected)),
            Err(failure) => Some(failure),
        };
        self.put_node(id, node);
        if let Some(failure) = failure {
            self.node_failed(id, failure);
        }
    }

    /// The chain is free: drafts the claim of an exchange that waits for it.
    pub(super) fn node_draft(&mut self, id: RequestId) {
        if let Some(mut node) = self.take_node(id) {
            self.draft(id, &mut node);
            self.put_node(id, node);
        }
    }

    fn draft(&mut self, id: RequestId, node: &mut ClaimNode) {
        let (issuer, subject) = (self.cx.own(), self.connections.node(node.conn).unwrap_or(node.claiming.target));
        let content = ClaimContent::link(&ClaimLinkNode { issuer, subject });
        // A link that we write has the form of a claim.
        if let Some(Ok(claim)) = self.claims.chain.draft(&self.cx, &content) {
            let (state, to_sign) = Initiator::drafted(claim, issuer);
            node.state = Some(state);
            self.claim_sign(to_sign, Waits::Node(id));
        }
    }

    // -- what comes back

    pub(super) fn node_signed(&mut self, id: RequestId, result: Result<Signature, Failure>) {
        let Some(mut node) = self.take_node(id) else { return };
        let next = match (node.state.take(), result) {
            (Some(state), Ok(signature)) => match state.signed(signature) {
                Ok((state, next)) => {
                    node.state = Some(state);
                    Ok(next)
                }
                Err(fault) => Err(Failure::Signing(alloc::format!("{fault}"))),
            },
            (Some(state), Err(failure)) => {
                let (standing, key) = (state.standing(), state.signer());
                if standing.is_some() || key.is_some_and(|key| key != self.cx.own()) {
                    // The holder may be back in a moment; and a key that is not ours any more is not asked again.
                    self.put_node(id, node);
                    return self.node_pause(id, standing);
                }
                Err(failure)
            }
            (None, _) => Ok(Next::Wait),
        };
        self.put_node(id, node);
        match next {
            Ok(next) => self.node_next(id, next),
            Err(failure) => self.end(id, Err(failure)),
        }
    }

    pub(super) fn node_loaded(&mut self, id: RequestId, row: Result<Option<StoreRow>, Failure>) {
        let claim = row.and_then(Self::claim_of);
        let loaded = claim.and_then(|claim| {
            let damaged = |_| Failure::Store("a claim of our chain is not signed by us".into());
            Initiator::loaded(&claim).map_err(damaged)
        });
        match loaded {
            Ok((state, first)) => {
                let Some(mut node) = self.take_node(id) else { return };
                node.state = Some(state);
                self.put_node(id, node);
                self.node_next(id, Next::Begin(first));
            }
            Err(failure) => self.end(id, Err(failure)),
        }
    }

    pub(super) fn node_token(&mut self, id: RequestId, stream: StreamId, token: &[u8]) {
        let Some(mut node) = self.take_node(id) else { return };
        let Some(state) = node.state.take() else { return self.put_node(id, node) };
        let (sides, mine) = (self.sides(node.conn), state.standing());
        let claim = Claim::parse(token).map_err(ExchangeFault::from);
        match claim.and_then(|claim| state.token(&sides, claim)) {
            Ok((state, next)) => {
                node.state = Some(state);
                self.put_node(id, node);
                let step = self.cx.now + self.cx.config.call_timeout;
                self.node_patience(id, stream, step);
                self.node_next(id, next);
            }
            Err(fault) => {
                node.claiming.standing = mine;
                self.put_node(id, node);
                self.cx.metrics.claim_faults += 1;
                // The failure of the stream follows.
                self.rpc.exchange_fault(&mut self.cx, stream, PeerFault::Claims(fault));
            }
        }
    }

    fn node_next(&mut self, id: RequestId, next: Next) {
        match next {
            Next::Wait => {}
            Next::Sign(to_sign) => self.claim_sign(to_sign, Waits::Node(id)),
            Next::Begin(first) => self.node_say_first(id, first),
            Next::Note { mine, theirs } => match self.claims.ours.get(&mine) {
                Some(standing) if standing.theirs != theirs => {
                    let row = OpenExchange::Ours { peer: standing.peer, claim: mine, theirs }.row();
                    self.claim_persist(alloc::vec![row], true, Waits::Node(id));
                }
                _ => self.node_persisted(id, Ok(())),
            },
            Next::Append(mine) if self.claims.chain.fits(mine.claim()) => {
                let Some(Open { stage: Stage::ClaimNode(node), .. }) = self.open.get(&id) else { return };
                let Some(theirs) = node.state.as_ref().and_then(Initiator::noted) else { return };
                let open = OpenExchange::Ours { peer: node.claiming.target, claim: mine.claim().id(), theirs };
                self.claim_append(mine.claim(), alloc::vec![open.row()], Waits::Node(id));
            }
            Next::Append(_) => {
                self.cx.metrics.claims_stale += 1;
                self.node_pause(id, None);
            }
        }
    }

    fn node_say_first(&mut self, id: RequestId, first: Bytes) {
        let Some(Open { deadline, stage: Stage::ClaimNode(node), .. }) = self.open.get_mut(&id) else { return };
        match self.rpc.begin_exchange(&mut self.cx, node.conn, first, *deadline) {
            Ok(stream) => {
                node.stream = Some(stream);
                self.claims.streams.insert(stream, id);
            }
            Err(failure) => self.node_failed(id, failure),
        }
    }

    fn node_say_last(&mut self, id: RequestId, last: Bytes) {
        let Some(Open { stage: Stage::ClaimNode(node), .. }) = self.open.get(&id) else { return };
        match node.stream {
            Some(stream) => {
                let until = self.cx.now + self.cx.config.call_timeout;
                self.rpc.exchange_token(&mut self.cx, stream, last);
                self.node_patience(id, stream, until);
            }
            None => self.node_failed(id, Failure::ConnectionLost(DisconnectReason::Local)),
        }
    }

    /// From its first answer on, the peer has as long for each step as for any call.
    fn node_patience(&mut self, id: RequestId, stream: StreamId, until: crate::time::Instant) {
        if let Some(open) = self.open.get(&id) {
            self.rpc.wait_until(&mut self.cx, stream, until.min(open.deadline));
        }
    }

    /// Our claim is written, or not.
    pub(super) fn node_persisted(&mut self, id: RequestId, result: Result<(), Failure>) {
        let Some(mut node) = self.take_node(id) else { return };
        let Some(state) = node.state.take() else { return self.put_node(id, node) };
        if let Err(failure) = result {
            // Nothing of it is written: what did not stand does not.
            self.put_node(id, node);
            return self.end(id, Err(failure));
        }
        let (mine, theirs) = (state.standing(), state.noted());
        let (state, last) = state.persisted();
        node.state = Some(state);
        node.claiming.standing = mine;
        if let (Some(mine), Some(theirs)) = (mine, theirs) {
            let new = Standing { peer: node.claiming.target, theirs, busy: Some(id), attempts: 0 };
            self.claims.ours.entry(mine).or_insert(new).theirs = theirs;
        }
        self.put_node(id, node);
        if let Some(last) = last {
            self.node_say_last(id, last);
        }
        let overdue = self.open.get(&id).is_some_and(|open| open.deadline <= self.cx.now);
        if overdue || self.phase != Phase::Running {
            self.end(id, Err(if overdue { Failure::DeadlineExceeded } else { Failure::Stopped }));
        }
    }

    /// The peer has said all that it will.
    pub(super) fn node_finished(&mut self, id: RequestId, stream: StreamId) {
        let Some(Open { stage: Stage::ClaimNode(node), .. }) = self.open.get(&id) else { return };
        match node.state {
            Some(Initiator::Finishing { mine }) => {
                self.rpc.exchange_finish(&mut self.cx, stream);
                self.claims.streams.remove(&stream);
                if let Some(Open { stage: Stage::ClaimNode(node), .. }) = self.open.get_mut(&id) {
                    node.stream = None;
                }
                self.end(id, Ok(Reply::ClaimNode(mine)));
            }
            _ => {
                self.cx.metrics.claim_faults += 1;
                self.rpc.exchange_fault(&mut self.cx, stream, PeerFault::Claims(ExchangeFault::Early));
            }
        }
    }

    pub(super) fn node_stream_failed(&mut self, id: RequestId, failure: Failure) {
        let Some(Open { stage: Stage::ClaimNode(node), .. }) = self.open.get_mut(&id) else { return };
        node.stream = None;
        // What is being written is waited for; then there is nobody to tell, and it is resumed.
        if !node.is_persisting() {
            self.node_failed(id, failure);
        }
    }

    // -- attempts

    /// An attempt has failed. It is made again if that helps: because another claim came first, or because ours stands.
    fn node_failed(&mut self, id: RequestId, failure: Failure) {
        let Some(open) = self.open.get(&id) else { return };
        let standing = standing(&open.stage);
        let retriable = matches!(failure, Failure::Refused(Refusal::Stale | Refusal::Busy));
        if standing.is_some() || retriable {
            self.cx.metrics.claims_stale += u64::from(failure == Failure::Refused(Refusal::Stale));
            self.node_pause(id, standing);
        } else {
            self.end(id, Err(failure));
        }
    }

    /// Ends an attempt; the next one begins in a moment, which is left to chance so that those who collide do not again.
    fn node_pause(&mut self, id: RequestId, standing: Option<ClaimId>) {
        let Some(mut node) = self.take_node(id) else { return };
        self.drop_stream(&mut node);
        node.state = None;
        node.claiming.standing = standing;
        let delay = self.cx.config.claim_retry_delay * (1 << node.claiming.attempts.min(8));
        let delay = delay.min(MAX_PAUSE);
        node.claiming.attempts = node.claiming.attempts.saturating_add(1);
        let micros = u64::try_from(delay.as_micros()).unwrap_or(u64::MAX);
        let chance = self.cx.random_u64(Dice::Claims) % micros.max(1);
        self.cx.timers.set(Timer::ClaimRetry(id), self.cx.now + delay / 2 + Duration::from_micros(chance));
        self.put_node(id, node);
    }

    /// The next attempt is due.
    pub(in crate::manager) fn node_retry(&mut self, id: RequestId) {
        let Some(mut open) = self.open.remove(&id) else { return };
        let claiming = match open.stage {
            Stage::ClaimNode(node) if node.state.is_none() => node.claiming,
            stage => {
                open.stage = stage;
                self.open.insert(id, open);
                return;
            }
        };
        if let Some(conn) = self.connections.primary(&claiming.target) {
            open.stage = self.node_begin(id, conn, claiming);
            self.open.insert(id, open);
        } else if open.audience == Audience::Embedder {
            let find = FindNode { options: claiming.options, ..FindNode::default() };
            self.search(id, open.audience, open.deadline, claiming.target, &find, Then::ClaimNode(claiming));
        } else {
            // In the background it goes on when the peer comes back.
            let node = ClaimNode { claiming, conn: ConnectionId(0), stream: None, state: None };
            open.stage = Stage::ClaimNode(Box::new(node));
            self.open.insert(id, open);
            self.end(id, Err(Failure::NotFound(alloc::vec::Vec::new())));
        }
    }

    // -- ends

    /// What the end of a request means if its claim stands: the peer may not have its own, unless it has said so.
    pub(in crate::manager) fn claim_outcome(
        &mut self,
        audience: Audience,
        stage: &Stage,
        result: Result<Reply, Failure>,
    ) -> Result<Reply, Failure> {
        let Some(mine) = standing(stage) else { return result };
        match result {
            Ok(Reply::ClaimNode(claim)) => {
                if audience == Audience::Nobody
                    && let Some(Standing { peer: node, .. }) = self.claims.ours.get(&claim)
                {
                    self.cx.event(Event::ClaimSettled { claim, node: *node });
                }
                self.settled(claim);
                Ok(Reply::ClaimNode(claim))
            }
            _ => {
                self.in_doubt(mine, audience == Audience::Nobody);
                Err(Failure::ClaimInDoubt(mine))
            }
        }
    }

    /// The exchange is not in the table any more.
    pub(in crate::manager) fn node_ended(&mut self, id: RequestId, mut node: ClaimNode) {
        self.cx.timers.cancel(Timer::ClaimRetry(id));
        self.drop_stream(&mut node);
    }

    fn drop_stream(&mut self, node: &mut ClaimNode) {
        if let Some(stream) = node.stream.take() {
            self.claims.streams.remove(&stream);
            self.rpc.cancel(&mut self.cx, stream);
        }
    }

    /// Takes the exchange of a request out of the table, to be put back at once.
    fn take_node(&mut self, id: RequestId) -> Option<ClaimNode> {
        match &mut self.open.get_mut(&id)?.stage {
            Stage::ClaimNode(node) => {
                let empty = ClaimNode { claiming: node.claiming, conn: node.conn, stream: node.stream, state: None };
                Some(core::mem::replace(&mut **node, empty))
            }
            _ => None,
        }
    }

    fn put_node(&mut self, id: RequestId, taken: ClaimNode) {
        if let Some(Open { stage: Stage::ClaimNode(node), .. }) = self.open.get_mut(&id) {
            **node = taken;
        }
    }
}

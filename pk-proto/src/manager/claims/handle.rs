//! Links that peers begin (specification: handleClaimNode): the responder.

use alloc::vec::Vec;

use super::{Agreed, NodeManager, Waits};
use crate::claims::exchange::{Responder, Theirs, content, sent};
use crate::claims::sigchain::{Answered, claim_range};
use crate::claims::{
    Claim, ClaimId, ClaimLinkNode, ClaimStep, ExchangeFault, FullySigned, HalfSigned, OpenExchange, Verdict,
};
use crate::error::{Failure, PeerFault};
use crate::id::{AskId, ConnectionId, NodeId, StreamId};
use crate::io::{Signature, StoreOp, StoreRow};
use crate::manager::Phase;
use crate::rpc::Refusal;

/// An exchange that a peer has begun.
#[derive(Debug)]
pub(super) struct Handling {
    conn: ConnectionId,
    node: NodeId,
    /// The question to the embedder.
    ask: Option<AskId>,
    state: Responder,
}

impl Handling {
    /// Whether it waits for our chain.
    pub(super) fn waits(&self) -> bool {
        matches!(self.state, Responder::Waiting { .. })
    }

    /// How far it has come.
    pub(super) fn step(&self) -> ClaimStep {
        self.state.step()
    }

    pub(super) fn node(&self) -> NodeId {
        self.node
    }
}

impl NodeManager {
    // -- beginning

    /// A peer begins an exchange with its claim.
    pub(super) fn handling_begun(&mut self, stream: StreamId, conn: ConnectionId, token: &[u8]) {
        let node = self.connections.node(conn).filter(|_| self.takes_claims(conn));
        let Some(node) = node else { return self.refuse_exchange(stream, Refusal::Busy) };
        let sides = self.sides(conn);
        let claim = Claim::parse(token).map_err(ExchangeFault::from);
        let theirs = match claim.and_then(|claim| Theirs::verify(&sides, claim)) {
            Ok(theirs) => theirs,
            Err(fault) => return self.exchange_broken(stream, fault),
        };
        // The same claim on another stream: its peer has given up the first one.
        let name = (theirs.link.issuer, theirs.id());
        let same = self.claims.handling.iter().find(|(_, handling)| handling.state.name() == name);
        if let Some((earlier, handling)) = same {
            if matches!(handling.state, Responder::Appending { .. }) {
                return self.refuse_exchange(stream, Refusal::Busy);
            }
            let earlier = *earlier;
            self.handling_failed(earlier);
            self.rpc.cancel(&mut self.cx, earlier);
        }
        let handle = |state| Handling { conn, node, ask: None, state };
        match self.claims.theirs.get(&name).cloned() {
            Some(Agreed { signature, mine }) => {
                let (theirs, link) = match theirs.with_signature(signature) {
                    Ok(theirs) => theirs,
                    Err(fault) => return self.exchange_broken(stream, fault),
                };
                // Of our own making, and verified like any other.
                let mine = HalfSigned::verify(mine, &self.cx.own()).ok();
                let current = |mine: &HalfSigned| {
                    let issuer = mine.claim().link().map(|link| link.issuer);
                    self.claims.chain.fits(mine.claim()) && issuer == sides.peer.first().copied()
                };
                match mine.filter(current) {
                    Some(mine) => {
                        let state = answered(&theirs, link, signature, mine, false);
                        self.claims.handling.insert(stream, handle(state));
                        self.say_answer(stream, &theirs);
                    }
                    // It was never appended, and cannot be any more.
                    None => {
                        self.claims.handling.insert(stream, handle(Responder::Waiting { theirs, link }));
                        self.handling_draft(stream);
                    }
                }
            }
            None => {
                self.claims.handling.insert(stream, handle(Responder::LookingUp { theirs }));
                self.claim_load(Answered::range(&name.0, &name.1), Waits::Handling(stream));
            }
        }
    }

    /// Whether a peer may begin another exchange, or have a claim about a network signed.
    pub(super) fn takes_claims(&self, conn: ConnectionId) -> bool {
        let config = &self.cx.config;
        let node = self.connections.node(conn);
        let of_peer = self.claims.handling.values().filter(|handling| Some(handling.node) == node).count();
        let of_peer = of_peer + self.claims.network.values().filter(|network| network.conn() == conn).count();
        self.phase == Phase::Running
            && !self.connections.is_retired(conn)
            && self.claims.handling.len() + self.claims.network.len() < config.exchange_limit
            && of_peer < config.exchanges_per_peer
    }

    // -- what comes back

    pub(super) fn handling_loaded(&mut self, stream: StreamId, row: Result<Option<StoreRow>, Failure>) {
        let Some(Handling { conn, node, ask, state }) = self.claims.handling.remove(&stream) else { return };
        let Ok(row) = row else { return self.refuse_exchange(stream, Refusal::Busy) };
        let state = match (state, row) {
            (Responder::LookingUp { theirs }, None) => {
                self.claims
                    .handling
                    .insert(stream, Handling { conn, node, ask, state: Responder::Deciding { theirs } });
                return self.handling_decide(stream);
            }
            (Responder::LookingUp { theirs }, Some((_, row))) => {
                let Ok(Answered { signature, mine }) = Answered::read(&row) else {
                    return self.refuse_exchange(stream, Refusal::Busy);
                };
                match theirs.with_signature(signature) {
                    Ok((theirs, link)) => {
                        self.claim_load(claim_range(&mine), Waits::Handling(stream));
                        Responder::Recalling { theirs, link, signature }
                    }
                    Err(fault) => return self.exchange_broken(stream, fault),
                }
            }
            (Responder::Recalling { theirs, link, signature }, row) => {
                let mine = Self::claim_of(row).ok().and_then(|claim| Responder::recalled(&claim).ok());
                let Some(mine) = mine else { return self.refuse_exchange(stream, Refusal::Busy) };
                let state = answered(&theirs, link, signature, mine, true);
                self.claims.handling.insert(stream, Handling { conn, node, ask, state });
                return self.say_answer(stream, &theirs);
            }
            (state, _) => state,
        };
        self.claims.handling.insert(stream, Handling { conn, node, ask, state });
    }

    /// Whether to sign is decided by the policy.
    fn handling_decide(&mut self, stream: StreamId) {
        let Some(Handling { conn, state: Responder::Deciding { theirs }, .. }) = self.claims.handling.get(&stream)
        else {
            return;
        };
        let (conn, claim) = (*conn, theirs.half.claim().clone());
        match self.verdict(conn) {
            Verdict::Sign => self.handling_decided(stream, true),
            Verdict::Refuse => self.handling_decided(stream, false),
            Verdict::Ask => {
                let ask = self.ask(stream, conn, claim);
                if let Some(handling) = self.claims.handling.get_mut(&stream) {
                    handling.ask = Some(ask);
                }
            }
        }
    }

    /// The policy or the embedder has decided.
    pub(super) fn handling_decided(&mut self, stream: StreamId, sign: bool) {
        let Some(Handling { conn, node, state, .. }) = self.claims.handling.remove(&stream) else { return };
        let Responder::Deciding { theirs } = state else { return };
        if !sign {
            return self.refuse_exchange(stream, Refusal::Denied);
        }
        let patience = self.cx.now + self.cx.config.call_timeout;
        self.rpc.wait_until(&mut self.cx, stream, patience);
        let (state, to_sign) = Responder::agreed(theirs);
        self.claims.handling.insert(stream, Handling { conn, node, ask: None, state });
        self.claim_sign(to_sign, Waits::Handling(stream));
    }

    /// Drafts our claim, unless our chain is being written: then when it is not any more.
    pub(super) fn handling_draft(&mut self, stream: StreamId) {
        let Some(Handling { conn, node, ask, state }) = self.claims.handling.remove(&stream) else { return };
        let (sides, owner) = (self.sides(conn), self.cx.own());
        let state = match state {
            Responder::Waiting { theirs, link } => {
                match self.claims.chain.draft(&self.cx, &content(&sides, &link)) {
                    // A link that we write has the form of a claim.
                    Some(Ok(mine)) => {
                        let (state, to_sign) = Responder::drafted(theirs, link, mine, owner);
                        self.claim_sign(to_sign, Waits::Handling(stream));
                        state
                    }
                    _ => Responder::Waiting { theirs, link },
                }
            }
            state => state,
        };
        self.claims.handling.insert(stream, Handling { conn, node, ask, state });
    }

    pub(super) fn handling_signed(&mut self, stream: StreamId, signature: Option<Signature>) {
        let Some(Handling { conn, node, ask, state }) = self.claims.handling.remove(&stream) else { return };
        let state = signature.and_then(|signature| state.signed(signature).ok());
        let Some(state) = state else { return self.refuse_exchange(stream, Refusal::Busy) };
        let ops = match &state {
            Responder::Agreeing { theirs, mine, .. } => Some(self.agree(theirs, mine)),
            _ => None,
        };
        self.claims.handling.insert(stream, Handling { conn, node, ask, state });
        match ops {
            Some(ops) => self.claim_persist(ops, true, Waits::Handling(stream)),
            None => self.handling_draft(stream),
        }
    }

    /// What writes down that we have agreed, and forgets what there is no room for.
    fn agree(&mut self, theirs: &FullySigned, mine: &HalfSigned) -> Vec<StoreOp> {
        let (issuer, claim) = (theirs.owner(), theirs.claim().id());
        let open = OpenExchange::Theirs { issuer, claim, signature: our_signature(theirs), mine: mine.claim().clone() };
        let mut ops = alloc::vec![open.row()];
        let config = &self.cx.config;
        let known = &self.claims.theirs;
        // The oldest ones go: by our claims, whose ids are by our own clock.
        let of_issuer = |name: &&(NodeId, ClaimId)| name.0 == issuer && name.1 != claim;
        let oldest = |names: &mut dyn Iterator<Item = (&(NodeId, ClaimId), &Agreed)>| {
            names.min_by_key(|(_, agreed)| agreed.mine.id()).map(|(name, _)| *name)
        };
        let forgotten = if known.keys().filter(of_issuer).count() >= config.exchanges_per_peer {
            oldest(&mut known.iter().filter(|(name, _)| of_issuer(name)))
        } else if known.len() + self.claims.ours.len() >= config.open_exchange_limit {
            oldest(&mut known.iter())
        } else {
            None
        };
        if let Some(name) = forgotten
            && let Some(Agreed { signature, mine }) = self.claims.theirs.remove(&name)
        {
            self.cx.metrics.exchanges_forgotten += 1;
            ops.push(OpenExchange::Theirs { issuer: name.0, claim: name.1, signature, mine }.removal());
        }
        ops
    }

    /// A transaction is over: that we have agreed is written, or our claim is.
    pub(super) fn handling_persisted(&mut self, stream: StreamId, written: bool) {
        let Some(Handling { conn, node, ask, state }) = self.claims.handling.remove(&stream) else { return };
        if !written {
            return self.refuse_exchange(stream, Refusal::Busy);
        }
        match state {
            Responder::Agreeing { theirs, link, mine } => {
                let (signature, name) = (our_signature(&theirs), (theirs.owner(), theirs.claim().id()));
                self.claims.theirs.insert(name, Agreed { signature, mine: mine.claim().clone() });
                if self.claims.chain.fits(mine.claim()) {
                    let state = answered(&theirs, link, signature, mine, false);
                    self.claims.handling.insert(stream, Handling { conn, node, ask, state });
                    self.say_answer(stream, &theirs);
                } else {
                    // Another claim came first, and the peer has not seen ours.
                    let state = Responder::Waiting { theirs, link };
                    self.claims.handling.insert(stream, Handling { conn, node, ask, state });
                    self.handling_draft(stream);
                }
            }
            Responder::Appending { theirs, issuer } => {
                self.claims.theirs.remove(&(issuer, theirs));
                self.rpc.exchange_finish(&mut self.cx, stream);
            }
            state => drop(self.claims.handling.insert(stream, Handling { conn, node, ask, state })),
        }
    }

    /// Sends their claim with our signature, and ours.
    fn say_answer(&mut self, stream: StreamId, theirs: &FullySigned) {
        let Some(Handling { state: Responder::Answered { mine, .. }, .. }) = self.claims.handling.get(&stream) else {
            return;
        };
        let mine = sent(mine.claim());
        self.cx.metrics.claims_signed += 1;
        self.rpc.exchange_token(&mut self.cx, stream, sent(theirs.claim()));
        self.rpc.exchange_token(&mut self.cx, stream, mine);
    }

    // -- the peer's last word

    pub(super) fn handling_token(&mut self, stream: StreamId, token: &[u8]) {
        let Some(Handling { conn, node, ask, state }) = self.claims.handling.remove(&stream) else { return };
        let Responder::Answered { theirs, issuer, signature, mine, stands } = state else {
            // What is being written is not undone.
            if let Responder::Appending { .. } = state {
                self.claims.handling.insert(stream, Handling { conn, node, ask, state });
            } else if let Some(ask) = ask {
                self.forget_ask(ask);
            }
            return self.exchange_broken(stream, ExchangeFault::Unexpected);
        };
        let claim = Claim::parse(token).map_err(ExchangeFault::from);
        match claim.and_then(|claim| Responder::last(&mine, claim)) {
            Err(fault) => self.exchange_broken(stream, fault),
            Ok(_) if stands => self.rpc.exchange_finish(&mut self.cx, stream),
            Ok(full) if self.claims.chain.fits(full.claim()) => {
                let mine = mine.claim().clone();
                let answered = Answered { signature, mine: mine.id() }.row(&issuer, &theirs);
                let state = Responder::Appending { theirs, issuer };
                let removal = OpenExchange::Theirs { issuer, claim: theirs, signature, mine }.removal();
                self.claims.handling.insert(stream, Handling { conn, node, ask, state });
                self.claim_append(full.claim(), alloc::vec![answered, removal], Waits::Handling(stream));
            }
            Ok(_) => {
                self.cx.metrics.claims_stale += 1;
                self.rpc.exchange_refuse(&mut self.cx, stream, Refusal::Stale);
            }
        }
    }

    /// The peer has ended its direction.
    pub(super) fn handling_finished(&mut self, stream: StreamId) {
        let Some(handling) = self.claims.handling.get(&stream) else { return };
        if !matches!(handling.state, Responder::Appending { .. }) {
            self.handling_failed(stream);
            self.exchange_broken(stream, ExchangeFault::Early);
        }
    }

    /// The stream is gone. What we have agreed to stays written; what is being appended will be.
    pub(super) fn handling_failed(&mut self, stream: StreamId) {
        let Some(handling) = self.claims.handling.get(&stream) else { return };
        if !matches!(handling.state, Responder::Appending { .. })
            && let Some(Handling { ask: Some(ask), .. }) = self.claims.handling.remove(&stream)
        {
            self.forget_ask(ask);
        }
    }

    fn refuse_exchange(&mut self, stream: StreamId, refusal: Refusal) {
        self.cx.metrics.signatures_refused += 1;
        self.rpc.exchange_refuse(&mut self.cx, stream, refusal);
    }

    fn exchange_broken(&mut self, stream: StreamId, fault: ExchangeFault) {
        self.cx.metrics.claim_faults += 1;
        let refusal = match fault {
            ExchangeFault::Signed(_) => Refusal::Signature,
            ExchangeFault::Reused => Refusal::Replayed,
            _ => Refusal::Claim,
        };
        self.rpc.exchange_refuse_fault(&mut self.cx, stream, refusal, PeerFault::Claims(fault));
    }
}

/// The peer is to sign our claim.
fn answered(
    theirs: &FullySigned,
    link: ClaimLinkNode,
    signature: Signature,
    mine: HalfSigned,
    stands: bool,
) -> Responder {
    Responder::Answered { theirs: theirs.claim().id(), issuer: link.issuer, signature, mine, stands }
}

/// Our signature of a claim of a peer, which is the second one.
fn our_signature(theirs: &FullySigned) -> Signature {
    let signature = theirs.claim().token().signatures().get(1);
    signature.map_or(Signature([0; 64]), |signature| *signature.signature())
}

//! Link claims that peers start (specification: handleClaimNode): the responder.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use crate::api::error::{Failure, PeerFault};
use crate::claims::exchange::parties::sent;
use crate::claims::exchange::{Responder, Theirs, content};
use crate::claims::sigchain::{StoredAnswer, claim_range};
use crate::claims::{
    Claim, ClaimId, ClaimLinkNode, DoublySigned, ExchangeFault, OpenExchange, SinglySigned, Verdict,
};
use crate::machine::effects::{ClaimSigner, ClaimWriter, LoadOwner};
use crate::machine::phase::Phase;
use crate::manager::node::NodeManager;
use crate::manager::state::claims::{AcceptedClaim, Claims, PendingCommitment};
use crate::manager::state::incoming::{IncomingExchange, Turn};
use crate::manager::state::writes::Evidence;
use crate::shares::{Full, Limits, Source};
use crate::store::table::{StoreOp, StoreRow};
use crate::types::id::{ConnectionId, NodeId, StreamId};
use crate::types::network::Network;
use crate::types::refusal::Refusal;
use crate::types::signature::Signature;

/// Number of full turns within `Config::claim_wait_timeout`.
const TURNS: u32 = 4;

impl NodeManager {
    // -- start

    /// Handles the first token of an exchange that a peer has started.
    pub(super) fn incoming_begun(&mut self, stream: StreamId, conn: ConnectionId, token: &[u8]) {
        let parties = self.parties(conn);
        // The policy is checked before the claim is parsed.
        if self.verdict(conn) == Verdict::Refuse && !self.has_agreed_with(&parties.peer) {
            return self.refuse_exchange(stream, Refusal::Denied);
        }
        let Some((node, source)) = self.connections.node(conn).zip(self.takes_claims(conn)) else {
            return self.refuse_exchange(stream, Refusal::Busy);
        };
        let claim = Claim::parse(token).map_err(ExchangeFault::from);
        let theirs = match claim.and_then(|claim| Theirs::verify(&parties, claim)) {
            Ok(theirs) => theirs,
            // A peer that has renewed its key issues claims by its new id at once, also over a
            // connection that proves only the former id. The peer must reconnect.
            Err(ExchangeFault::Issuer) => return self.refuse_exchange(stream, Refusal::Signature),
            Err(fault) => return self.exchange_broken(stream, fault),
        };
        // The peer repeats the claim on another stream, so it has abandoned the earlier one.
        let name = (theirs.link.issuer, theirs.id());
        if let Some((earlier, incoming)) = self.claims.incoming.of_claim(&name) {
            if matches!(incoming.state, Responder::Appending { .. }) {
                return self.refuse_exchange(stream, Refusal::Busy);
            }
            self.incoming_failed(earlier);
            self.rpc.cancel(&mut self.cx, earlier);
        }
        let handle = |state| IncomingExchange {
            conn,
            node,
            source,
            approval: None,
            turn: Turn::default(),
            state,
        };
        match self.claims.theirs.get(&name).cloned() {
            Some(AcceptedClaim { signature, mine, .. }) => {
                let (theirs, link) = match theirs.with_signature(signature) {
                    Ok(theirs) => theirs,
                    Err(fault) => return self.exchange_broken(stream, fault),
                };
                // A stored local claim is verified like a received one.
                let mine = SinglySigned::verify(mine, &self.cx.own()).ok();
                let current = |mine: &SinglySigned| {
                    let issuer = mine.claim().link().map(|link| link.issuer);
                    self.claims.chain.fits(mine.claim()) && issuer == parties.peer.first().copied()
                };
                match mine.filter(current) {
                    Some(mine) => {
                        let state = answered(&theirs, link, signature, mine, false);
                        self.claims.incoming.insert(stream, handle(state));
                        self.say_answer(stream, &theirs);
                    }
                    // The local claim was never appended, and another claim has taken its place.
                    None => {
                        self.claims
                            .incoming
                            .insert(stream, handle(Responder::Waiting { theirs, link }));
                        self.incoming_wait(stream);
                    }
                }
            }
            None => {
                self.claims.incoming.insert(stream, handle(Responder::LookingUp { theirs }));
                self.claim_load(
                    StoredAnswer::range(&name.0, &name.1),
                    LoadOwner::Responder(stream),
                );
            }
        }
    }

    /// Returns whether this node has agreed to sign a claim of the peer. Such an exchange must be
    /// answered, whatever the policy is now.
    fn has_agreed_with(&self, peer: &[NodeId]) -> bool {
        let least = |id: &NodeId| (*id, ClaimId::from_bytes([0; 16]));
        let open = |id: &NodeId| {
            self.claims.theirs.range(least(id)..).next().is_some_and(|((of, _), _)| of == id)
        };
        peer.iter().any(|id| self.claims.answered.contains(id) || open(id))
    }

    /// Returns what another exchange or network claim of a peer is charged to; `None` if a limit is
    /// reached.
    pub(super) fn takes_claims(&mut self, conn: ConnectionId) -> Option<Source> {
        if self.cx.phase() != Phase::Running || self.connections.is_retired(conn) {
            return None;
        }
        let source = self.connections.source(conn)?;
        let config = &self.cx.config;
        let limits = Limits::new(config.exchange_limit, config.network_share)
            .per_node(config.exchanges_per_peer);
        let Claims { incoming, network, approvals, .. } = &self.claims;
        let room = limits.check_beside(&source, &[incoming.shares(), network.shares()]);
        // An approval whose peer has left still counts until its timeout.
        match room.and_then(|()| limits.check_beside(&source, &[approvals.shares()])) {
            Ok(()) => Some(source),
            Err(full) => {
                self.cx.metrics.shares_refused += u64::from(full != Full::Table);
                None
            }
        }
    }

    // -- completions

    /// Handles the row of an earlier answer to the peer's claim, or the row of the local claim in
    /// that answer.
    pub(super) fn incoming_loaded(
        &mut self,
        stream: StreamId,
        row: Result<Option<StoreRow>, Failure>,
    ) {
        let Some(IncomingExchange { conn, node, source, approval, turn, state }) =
            self.claims.incoming.remove(stream)
        else {
            return;
        };
        let Ok(row) = row else { return self.refuse_exchange(stream, Refusal::Busy) };
        let state = match (state, row) {
            (Responder::LookingUp { theirs }, None) => {
                self.claims.incoming.insert(
                    stream,
                    IncomingExchange {
                        conn,
                        node,
                        source,
                        approval,
                        turn,
                        state: Responder::Deciding { theirs },
                    },
                );
                return self.incoming_decide(stream);
            }
            (Responder::LookingUp { theirs }, Some((_, row))) => {
                let Ok(StoredAnswer { signature, mine }) = StoredAnswer::read(&row) else {
                    return self.refuse_exchange(stream, Refusal::Busy);
                };
                match theirs.with_signature(signature) {
                    Ok((theirs, link)) => {
                        self.claim_load(claim_range(&mine), LoadOwner::Responder(stream));
                        Responder::Recalling { theirs, link, signature }
                    }
                    Err(fault) => return self.exchange_broken(stream, fault),
                }
            }
            (Responder::Recalling { theirs, link, signature }, row) => {
                let mine =
                    Self::claim_of(row).ok().and_then(|claim| Responder::recalled(&claim).ok());
                let Some(mine) = mine else { return self.refuse_exchange(stream, Refusal::Busy) };
                let state = answered(&theirs, link, signature, mine, true);
                self.claims
                    .incoming
                    .insert(stream, IncomingExchange { conn, node, source, approval, turn, state });
                return self.say_answer(stream, &theirs);
            }
            (state, _) => state,
        };
        self.claims
            .incoming
            .insert(stream, IncomingExchange { conn, node, source, approval, turn, state });
    }

    /// Applies the policy to an exchange.
    fn incoming_decide(&mut self, stream: StreamId) {
        let Some(IncomingExchange { conn, source, state: Responder::Deciding { theirs }, .. }) =
            self.claims.incoming.get(stream)
        else {
            return;
        };
        let (conn, source, claim) = (*conn, *source, theirs.half.claim().clone());
        match self.verdict(conn) {
            Verdict::Sign => self.incoming_decided(stream, true),
            Verdict::Refuse => self.incoming_decided(stream, false),
            Verdict::Ask => {
                let approval = self.request_approval(stream, conn, source, claim);
                self.claims.incoming.update(stream, |incoming| incoming.approval = Some(approval));
            }
        }
    }

    /// Handles the decision of the policy or the embedder: starts to sign, or refuses.
    pub(super) fn incoming_decided(&mut self, stream: StreamId, sign: bool) {
        let Some(IncomingExchange { conn, node, source, state, .. }) =
            self.claims.incoming.remove(stream)
        else {
            return;
        };
        let Responder::Deciding { theirs } = state else { return };
        if !sign {
            return self.refuse_exchange(stream, Refusal::Denied);
        }
        let patience = self.cx.now + self.cx.config.call_timeout;
        self.rpc.wait_until(&mut self.cx, stream, patience);
        let (state, to_sign) = Responder::agreed(theirs);
        self.claims.incoming.insert(
            stream,
            IncomingExchange { conn, node, source, approval: None, turn: Turn::default(), state },
        );
        self.claim_sign(to_sign, ClaimSigner::Responder(stream));
    }

    /// Sets the timeout of an exchange that waits for its turn. Its local claim is drafted when it
    /// has its turn.
    fn incoming_wait(&mut self, stream: StreamId) {
        let Some(incoming) = self.claims.incoming.get(stream) else { return };
        if !incoming.waits() {
            return;
        }
        let longest = self.cx.now + self.cx.config.claim_wait_timeout;
        let until = incoming.turn.wait_until.unwrap_or(longest);
        self.claims.incoming.update(stream, |incoming| incoming.turn.wait_until = Some(until));
        let patience = until + self.cx.config.call_timeout;
        self.rpc.wait_until(&mut self.cx, stream, patience);
    }

    /// Drafts the local claim, which starts the turn of the exchange. Returns whether that was
    /// possible.
    pub(super) fn incoming_draft(&mut self, stream: StreamId) -> bool {
        let Some(IncomingExchange { conn, node, source, approval, turn, state }) =
            self.claims.incoming.remove(stream)
        else {
            return false;
        };
        let Responder::Waiting { theirs, link } = state else {
            self.claims
                .incoming
                .insert(stream, IncomingExchange { conn, node, source, approval, turn, state });
            return false;
        };
        let (parties, owner) = (self.parties(conn), self.cx.own());
        let drafted =
            self.claims.chain.draft(&self.cx.own(), self.cx.unix(), &content(&parties, &link));
        // A link that this node creates is always a valid claim.
        let Some(Ok(mine)) = drafted else {
            let state = Responder::Waiting { theirs, link };
            self.claims
                .incoming
                .insert(stream, IncomingExchange { conn, node, source, approval, turn, state });
            return false;
        };
        let (state, to_sign) = Responder::drafted(theirs, link, mine, owner);
        let patience = self.cx.now + self.cx.config.call_timeout;
        self.rpc.wait_until(&mut self.cx, stream, patience);
        self.claim_sign(to_sign, ClaimSigner::Responder(stream));
        let turn =
            Turn { until: Some(self.cx.now + self.cx.config.claim_wait_timeout / TURNS), ..turn };
        self.claims
            .incoming
            .insert(stream, IncomingExchange { conn, node, source, approval, turn, state });
        true
    }

    /// Handles the signature of a claim. If signing has failed, the exchange is refused with
    /// `Busy`.
    pub(super) fn incoming_signed(&mut self, stream: StreamId, signature: Option<Signature>) {
        let Some(IncomingExchange { conn, node, source, approval, turn, state }) =
            self.claims.incoming.remove(stream)
        else {
            return;
        };
        let state = signature.and_then(|signature| state.signed(signature).ok());
        let Some(state) = state else { return self.refuse_exchange(stream, Refusal::Busy) };
        let ops = match &state {
            Responder::Agreeing { theirs, mine, .. } => {
                Some(self.agree(stream, theirs, mine, source.network))
            }
            _ => None,
        };
        self.claims
            .incoming
            .insert(stream, IncomingExchange { conn, node, source, approval, turn, state });
        match ops {
            Some((ops, evidence)) => {
                self.claim_persist(ops, evidence, ClaimWriter::Responder(stream));
            }
            None => self.incoming_wait(stream),
        }
    }

    /// Returns the transaction that stores the commitment to sign, and removes commitments that
    /// exceed a limit. The tables in memory change when it is written.
    fn agree(
        &mut self,
        stream: StreamId,
        theirs: &DoublySigned,
        mine: &SinglySigned,
        network: Network,
    ) -> (Vec<StoreOp>, Evidence) {
        let name = (theirs.owner(), theirs.claim().id());
        let (signature, mine) = (our_signature(theirs), mine.claim().clone());
        let row = |(issuer, claim), signature, mine| OpenExchange::Theirs {
            issuer,
            claim,
            signature,
            mine,
        };
        let new = row(name, signature, mine.clone()).row();
        // The row is evidence because the local claim in it is new.
        let evidence = Evidence::of(&new);
        let mut ops = alloc::vec![new];
        let removed = self.no_room_beside(&name);
        for name in &removed {
            if let Some(AcceptedClaim { signature, mine, .. }) =
                self.claims.theirs.get(name).cloned()
            {
                ops.push(row(*name, signature, mine).removal());
            }
        }
        let agreed = AcceptedClaim { signature, mine, network: Some(network) };
        self.claims.commitments.insert(stream, PendingCommitment { name, agreed, removed });
        (ops, evidence)
    }

    /// A commitment to sign was written, or not.
    fn agreed(&mut self, stream: StreamId, written: bool) {
        let Some(PendingCommitment { name, agreed, removed }) =
            self.claims.commitments.remove(&stream)
        else {
            return;
        };
        if written {
            for name in removed {
                let removed = self.claims.theirs.remove(&name);
                self.cx.metrics.exchanges_forgotten += u64::from(removed.is_some());
            }
            self.claims.theirs.insert(name, agreed);
        }
    }

    /// Returns the commitments that must be removed to make room for one more, in addition to those
    /// whose write is in progress. The oldest are removed first, by the ids of the local claims,
    /// because the local clock determines these.
    fn no_room_beside(&self, new: &(NodeId, ClaimId)) -> Vec<(NodeId, ClaimId)> {
        let config = &self.cx.config;
        let issuer = &new.0;
        let writing = self.claims.commitments.values();
        let coming: BTreeSet<_> = writing
            .clone()
            .map(|pending| pending.name)
            .filter(|name| name != new && !self.claims.theirs.contains_key(name))
            .chain([*new])
            .collect();
        let going: BTreeSet<_> = writing.flat_map(|pending| &pending.removed).collect();
        let mut known: Vec<_> = self
            .claims
            .theirs
            .iter()
            .filter(|(name, _)| *name != new && !going.contains(name))
            .collect();
        known.sort_by_key(|(_, agreed)| agreed.mine.id());
        let mut known: Vec<_> =
            known.into_iter().map(|(name, agreed)| (*name, agreed.network)).collect();

        let of_issuer = |name: &(NodeId, ClaimId)| name.0 == *issuer;
        let count = known.iter().filter(|(name, _)| of_issuer(name)).count();
        let over = (count + coming.iter().filter(|name| of_issuer(name)).count())
            .saturating_sub(config.exchanges_per_peer);
        let mut forgotten: Vec<_> =
            known.iter().map(|(name, _)| *name).filter(of_issuer).take(over).collect();
        known.retain(|(name, _)| !forgotten.contains(name));
        let over = (known.len() + coming.len() + self.claims.ours.len())
            .saturating_sub(config.open_exchange_limit);
        for _ in 0..over {
            // Remove from the network with the most commitments, so that a peer that invents nodes
            // does not remove those of other networks.
            let mut counts = BTreeMap::new();
            known.iter().for_each(|(_, network)| *counts.entry(*network).or_insert(0usize) += 1);
            let most =
                counts.into_iter().max_by_key(|(_, count)| *count).map(|(network, _)| network);
            let Some(at) = known.iter().position(|(_, network)| Some(*network) == most) else {
                break;
            };
            forgotten.push(known.remove(at).0);
        }
        forgotten
    }

    /// Handles the outcome of a transaction: the commitment to sign, or the local claim.
    pub(super) fn incoming_persisted(&mut self, stream: StreamId, written: bool) {
        // Also if the exchange has ended meanwhile.
        self.agreed(stream, written);
        let Some(IncomingExchange { conn, node, source, approval, turn, state }) =
            self.claims.incoming.remove(stream)
        else {
            return;
        };
        if !written {
            return self.refuse_exchange(stream, Refusal::Busy);
        }
        match state {
            Responder::Agreeing { theirs, link, mine } => {
                let signature = our_signature(&theirs);
                if self.claims.chain.fits(mine.claim()) {
                    let state = answered(&theirs, link, signature, mine, false);
                    self.claims.incoming.insert(
                        stream,
                        IncomingExchange { conn, node, source, approval, turn, state },
                    );
                    self.say_answer(stream, &theirs);
                } else {
                    // Another claim was appended first, and the peer has not received this one.
                    let state = Responder::Waiting { theirs, link };
                    self.claims.incoming.insert(
                        stream,
                        IncomingExchange { conn, node, source, approval, turn, state },
                    );
                    self.incoming_wait(stream);
                }
            }
            Responder::Appending { theirs, issuer } => {
                self.claims.theirs.remove(&(issuer, theirs));
                self.claims.answered.insert(issuer);
                self.rpc.exchange_finish(&mut self.cx, stream);
            }
            state => self
                .claims
                .incoming
                .insert(stream, IncomingExchange { conn, node, source, approval, turn, state }),
        }
    }

    /// Sends the peer's claim with the local signature, and then the local claim.
    fn say_answer(&mut self, stream: StreamId, theirs: &DoublySigned) {
        let Some(IncomingExchange { state: Responder::Answered { mine, .. }, .. }) =
            self.claims.incoming.get(stream)
        else {
            return;
        };
        let mine = sent(mine.claim());
        self.cx.metrics.claims_signed += 1;
        self.rpc.exchange_token(&mut self.cx, stream, sent(theirs.claim()));
        self.rpc.exchange_token(&mut self.cx, stream, mine);
    }

    // -- the last token of the peer

    /// Handles a token of the peer: the local claim with the peer's signature is appended if it
    /// still fits.
    pub(super) fn incoming_token(&mut self, stream: StreamId, token: &[u8]) {
        let Some(IncomingExchange { conn, node, source, approval, turn, state }) =
            self.claims.incoming.remove(stream)
        else {
            return;
        };
        let Responder::Answered { theirs, issuer, signature, mine, stands } = state else {
            // A write in progress is not undone.
            if let Responder::Appending { .. } = state {
                self.claims
                    .incoming
                    .insert(stream, IncomingExchange { conn, node, source, approval, turn, state });
            } else if let Some(approval) = approval {
                self.withdraw_approval(approval);
            }
            return self.exchange_broken(stream, ExchangeFault::Unexpected);
        };
        let claim = Claim::parse(token).map_err(ExchangeFault::from);
        match claim.and_then(|claim| Responder::last(&mine, claim)) {
            Err(fault) => self.exchange_broken(stream, fault),
            Ok(_) if stands => self.rpc.exchange_finish(&mut self.cx, stream),
            Ok(full) if self.claims.chain.fits(full.claim()) => {
                let mine = mine.claim().clone();
                let answered = StoredAnswer { signature, mine: mine.id() }.row(&issuer, &theirs);
                let state = Responder::Appending { theirs, issuer };
                let removal =
                    OpenExchange::Theirs { issuer, claim: theirs, signature, mine }.removal();
                self.claims
                    .incoming
                    .insert(stream, IncomingExchange { conn, node, source, approval, turn, state });
                self.claim_append(
                    full.claim(),
                    alloc::vec![answered, removal],
                    ClaimWriter::Responder(stream),
                );
            }
            Ok(_) => {
                self.cx.metrics.claims_stale += 1;
                self.rpc.exchange_refuse(&mut self.cx, stream, Refusal::Stale);
            }
        }
    }

    /// Handles the end of the peer's direction: a fault unless the local claim is being appended.
    pub(super) fn incoming_finished(&mut self, stream: StreamId) {
        let Some(incoming) = self.claims.incoming.get(stream) else { return };
        if !matches!(incoming.state, Responder::Appending { .. }) {
            self.incoming_failed(stream);
            self.exchange_broken(stream, ExchangeFault::Early);
        }
    }

    /// Discards an exchange whose stream has failed. A commitment stays stored, and a write in
    /// progress completes.
    pub(super) fn incoming_failed(&mut self, stream: StreamId) {
        let Some(incoming) = self.claims.incoming.get(stream) else { return };
        if !matches!(incoming.state, Responder::Appending { .. })
            && let Some(IncomingExchange { approval: Some(approval), .. }) =
                self.claims.incoming.remove(stream)
        {
            self.withdraw_approval(approval);
        }
    }

    /// Refuses an exchange and counts it.
    fn refuse_exchange(&mut self, stream: StreamId, refusal: Refusal) {
        self.cx.metrics.signatures_refused += 1;
        self.rpc.exchange_refuse(&mut self.cx, stream, refusal);
    }

    /// Refuses an exchange whose peer has violated its rules, and counts the fault.
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

/// Returns the state that waits for the peer to sign the local claim.
fn answered(
    theirs: &DoublySigned,
    link: ClaimLinkNode,
    signature: Signature,
    mine: SinglySigned,
    stands: bool,
) -> Responder {
    Responder::Answered {
        theirs: theirs.claim().id(),
        issuer: link.issuer,
        signature,
        mine,
        stands,
    }
}

/// Returns the local signature of a claim of a peer, which is the second one.
fn our_signature(theirs: &DoublySigned) -> Signature {
    let signature = theirs.claim().token().signatures().get(1);
    signature.map_or(Signature([0; 64]), |signature| *signature.signature())
}

//! Transactions whose outcome is needed, and how the node determines the outcome that a failed
//! store cannot report.
//!
//! A store that fails may have applied the transaction ([`WriteFailure::Unknown`]). The node then
//! reads a row that the transaction would have changed, and repeats the read until the store
//! responds. The owner of the transaction receives the outcome that this row shows, as if the store
//! had reported it. Until then the transaction counts as in progress: its claim is neither appended
//! nor discarded, and no other claim is drafted.

use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use super::node::NodeManager;
use super::state::writes::{Doubt, Evidence, Write};
use crate::api::error::Failure;
use crate::api::event::Event;
use crate::api::output::Output;
use crate::machine::effects::{EffectOwner, LoadOwner, PersistOwner};
use crate::machine::timer::Timer;
use crate::store::table::{StoreOp, StoreRow, WriteFailure};
use crate::types::id::{EffectId, RequestId};

/// Delay before evidence is read again after the first failure; it doubles per failure.
const FIRST_WAIT: Duration = Duration::from_millis(250);
/// Maximum delay.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

impl NodeManager {
    /// Writes rows durably, once the store has an owner. `evidence` determines the outcome if the
    /// store fails.
    pub(super) fn persist(&mut self, id: EffectId, ops: Vec<StoreOp>, evidence: Evidence) {
        self.writes.under_way.insert(id, Write { evidence, doubt: None });
        self.output_write(id, ops, true);
    }

    /// Writes rows whose loss in a crash is harmless, and that can be written twice. If the store
    /// fails, it does not matter whether they were written.
    pub(super) fn persist_loosely(&mut self, id: EffectId, ops: Vec<StoreOp>) {
        self.output_write(id, ops, false);
    }

    /// Writes the owner row durably, for a renewal. While the store has no owner yet, other
    /// transactions wait for this one.
    pub(super) fn persist_owner(
        &mut self,
        renewal: RequestId,
        ops: Vec<StoreOp>,
        evidence: Evidence,
    ) {
        let id = self.cx.effects.begin(EffectOwner::Persist(PersistOwner::Renewal(renewal)));
        self.writes.under_way.insert(id, Write { evidence, doubt: None });
        self.cx.output(Output::Persist { id, ops, durable: true });
    }

    /// Starts the next transaction that has waited for the owner of the store, if the store has an
    /// owner now. Returns whether there was one.
    pub(super) fn write_waiting(&mut self) -> bool {
        if self.graph_writer.awaits_owner() {
            return false;
        }
        let waiting = self.writes.waiting.pop_front();
        let found = waiting.is_some();
        if let Some((id, ops, durable)) = waiting {
            self.output_write(id, ops, durable);
        }
        found
    }

    fn output_write(&mut self, id: EffectId, mut ops: Vec<StoreOp>, durable: bool) {
        if self.graph_writer.awaits_owner() {
            return self.writes.waiting.push_back((id, ops, durable));
        }
        ops.extend(self.graph_writer.missing_meta(self.cx.own()));
        self.cx.output(Output::Persist { id, ops, durable });
    }

    /// Handles a store that accepts no more writes. Emits `StoreClosed` the first time.
    pub(super) fn store_closed(&mut self, why: &str) {
        if !core::mem::replace(&mut self.writes.closed, true) {
            self.cx.event(Event::StoreClosed { why: why.into() });
        }
    }

    /// Handles the result of a transaction. If the outcome is unknown, starts to read its evidence.
    pub(super) fn persisted(
        &mut self,
        id: EffectId,
        owner: PersistOwner,
        result: Result<(), WriteFailure>,
    ) {
        match (self.writes.under_way.get_mut(&id), result) {
            (Some(write), Err(WriteFailure::Unknown(why))) => {
                write.doubt = Some(Doubt { why, attempts: 0 });
                self.cx.metrics.writes_unknown += 1;
                self.cx.effects.doubt(id, owner);
                if owner.appends() {
                    self.claims.chain.doubt();
                }
                // The request ends at its deadline although its transaction is undecided, also if
                // the deadline has already passed.
                if let Some(request) = owner.request()
                    && let Some(deadline) = self.requests.deadline(request)
                {
                    self.cx.timers.set(Timer::Request(request), deadline);
                }
                self.look(id);
            }
            (_, result) => {
                self.writes.under_way.remove(&id);
                self.written(owner, result);
            }
        }
    }

    /// Reads the evidence of a transaction.
    pub(super) fn look(&mut self, write: EffectId) {
        let Some(Write { evidence, .. }) = self.writes.under_way.get(&write) else { return };
        let range = evidence.range.clone();
        let id = self.cx.effects.begin(EffectOwner::Load(LoadOwner::Evidence(write)));
        // A limit of zero bytes returns one row of any length.
        self.cx.output(Output::Load { id, range, max_bytes: 0 });
    }

    /// Handles the evidence of a transaction: the outcome is decided, or the read failed and is
    /// repeated after a delay.
    pub(super) fn evidence_loaded(
        &mut self,
        id: EffectId,
        result: &Result<(Vec<StoreRow>, bool), String>,
    ) {
        let Some(Write { evidence, doubt: Some(doubt) }) = self.writes.under_way.get_mut(&id)
        else {
            return;
        };
        match result {
            Ok((rows, _)) => {
                let applied = evidence.is_in(rows);
                let failure = WriteFailure::NotApplied(core::mem::take(&mut doubt.why));
                self.writes.under_way.remove(&id);
                if let Some(owner) = self.cx.effects.decide(id) {
                    self.written(owner, if applied { Ok(()) } else { Err(failure) });
                }
            }
            Err(_) => {
                self.cx.metrics.store_failures += 1;
                let wait = (FIRST_WAIT * (1 << doubt.attempts.min(8))).min(LONGEST_WAIT);
                doubt.attempts = doubt.attempts.saturating_add(1);
                self.cx.timers.set(Timer::Evidence(id), self.cx.now + wait);
            }
        }
    }

    /// Returns the failure of a request that must end before its outcome is known, because the
    /// store does not know it or has not responded.
    pub(super) fn undecided(&self, id: RequestId) -> Failure {
        let unanswered = || "the store has not responded".into();
        Failure::OutcomeUnknown(self.doubt_of(id).map_or_else(unanswered, String::from))
    }

    /// Returns the failure of the store because of which the outcome of a request's transaction is
    /// unknown.
    pub(super) fn doubt_of(&self, id: RequestId) -> Option<&str> {
        self.doubt_where(|owner| owner.request() == Some(id))
    }

    /// Returns the failure of the store because of which the outcome of a transaction is unknown:
    /// of the first transaction with an owner for which `is` returns true.
    pub(super) fn doubt_where(&self, is: impl Fn(PersistOwner) -> bool) -> Option<&str> {
        let mut doubts = self.writes.doubts();
        doubts.find(|(id, _)| self.cx.effects.doubted(*id).is_some_and(&is)).map(|(_, why)| why)
    }
}

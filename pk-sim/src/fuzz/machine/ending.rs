//! The end of a run: nothing is left over, the machine stops, is silent, and another one starts
//! from its rows.

use std::time::Duration;

use arbitrary::Unstructured;
use pk_proto::{DialFailure, DisconnectReason, RecordedCall};

use super::Play;
use crate::fuzz::cast::Cast;
use crate::fuzz::driver::ConnState;
use crate::fuzz::run::Run;
use crate::host::store::CrashPolicy;

/// Number of calls within which a machine must come to rest, or stop.
const PATIENCE: usize = 5000;
/// Number of these that come when a timer is due. The others are late, so that a timer of a
/// millisecond does not outlast a deadline of a day.
const PUNCTUAL: usize = 400;
/// Delay of late calls: less than the shortest interval of background searches.
const LATE: Duration = Duration::from_secs(20);
/// Tables of effects that were pending when the machine was stopped by force, and of what waits for
/// them. Their completions come too late.
const EFFECTS: [&str; 9] = [
    "appending",
    "browses",
    "claim_effects",
    "commitments",
    "exchanges",
    "links",
    "store_reads",
    "resolves",
    "signatures",
];
/// Calls to a stopped machine.
const AFTERLIFE: u64 = 24;

impl Play<'_> {
    pub(super) fn end(mut self) -> Run {
        if self.driver.trusted && !self.driver.stopped {
            self.quiet();
        }
        self.stop();
        self.silence();
        if self.driver.restart(CrashPolicy::Random) {
            self.driver.replay();
        }
        self.driver.finish()
    }

    /// Completes everything, ends every connection and lets time pass, until nothing is in
    /// progress.
    fn quiet(&mut self) {
        for call in 0..PATIENCE {
            self.release();
            // It was stopping already.
            if self.driver.stopped {
                return;
            }
            let census = self.driver.census();
            if census.left_over().next().is_none() {
                self.driver.run.quiet += 1;
                return;
            }
            if !self.pass(call) {
                self.driver
                    .fail(&format!("quiet: no timer, and left over {:?}", left_over(&census)));
            }
        }
        let census = self.driver.census();
        self.driver
            .fail(&format!("quiet: after {PATIENCE} timers left over {:?}", left_over(&census)));
    }

    /// Fires the next timer, when it is due or later. Returns whether there is one.
    fn pass(&mut self, call: usize) -> bool {
        let Some(due) = self.driver.timeout() else { return false };
        let late = if call < PUNCTUAL { Duration::ZERO } else { LATE };
        self.driver.now = self.driver.now.max(due) + late;
        self.driver.fire();
        true
    }

    /// Completes every effect, fails every dial, ends every connection.
    fn release(&mut self) {
        while let Some(lease) = self.driver.leases.pop() {
            self.driver.call(RecordedCall::Release(lease));
        }
        for _ in 0..PATIENCE {
            let mut moved = self.store_works();
            if !self.driver.effects.is_empty() {
                let effect = self.driver.effects.remove(0);
                self.answer(effect, false);
                moved = true;
            }
            if let Some((conn, of)) = self.driver.conns.first_key_value() {
                let conn = *conn;
                match of.state {
                    ConnState::Dialing { .. } => self.dial_fails(conn, DialFailure::TimedOut),
                    ConnState::Live | ConnState::Closing => {
                        self.disconnect(conn, DisconnectReason::TimedOut);
                    }
                }
                moved = true;
            }
            if !moved {
                return;
            }
        }
        self.driver.fail("quiet: the machine starts something else with every answer");
    }

    /// Stops the machine, completes its effects, and lets time pass until it has stopped.
    pub(super) fn stop(&mut self) {
        self.driver.call(RecordedCall::Stop);
        for call in 0..PATIENCE {
            if self.driver.trusted {
                self.release();
            }
            if self.driver.stopped {
                break;
            }
            if !self.pass(call) {
                self.driver.fail("stop: neither stopped nor a timer");
            }
        }
        if !self.driver.stopped {
            self.driver.fail("stop: it does not stop");
        }
        let census = self.driver.census();
        let mut left = left_over(&census);
        left.retain(|(table, _)| !EFFECTS.contains(table));
        if !census.timers.is_empty() || self.driver.trusted && !left.is_empty() {
            self.driver.fail(&format!("stop: left over {left:?}, timers {:?}", census.timers));
        }
    }

    /// A stopped machine has no outputs, whatever is called. The checkers verify that.
    fn silence(&mut self) {
        // Its driver may break the contract: its actions must have no effect.
        self.driver.distrust();
        for seed in 0..AFTERLIFE {
            let mut noise = [0; 256];
            blake3::Hasher::new().update(&seed.to_be_bytes()).finalize_xof().fill(&mut noise);
            if let Some(call) = Unstructured::new(&noise)
                .arbitrary()
                .ok()
                .and_then(|call: RecordedCall| Cast::get().fill(&call))
            {
                self.driver.call(call);
            }
        }
        self.driver.pass(Duration::from_secs(86_400), 16);
    }
}

fn left_over(census: &pk_proto::Census) -> Vec<(&'static str, usize)> {
    census.left_over().collect()
}

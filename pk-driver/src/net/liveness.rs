//! When connections are looked at (see [`pk_quic::liveness`]): deadlines of the pump, and the use of
//! streams by the embedder.

use pk_proto::{ConnectionId, Input, Instant};
use pk_quic::liveness::{Finding, Liveness, patience};
use quinn::ConnectionStats;

use crate::cx::{Cx, WakeSource};
use crate::stream::usage::Usage;

/// The silence of one connection, and its deadline in the pump.
#[derive(Debug, Default)]
pub(super) struct Watched {
    liveness: Liveness,
    /// Deadline that is set.
    armed: Option<Instant>,
}

impl Watched {
    /// Returns whether the connection is suspected.
    pub(super) fn is_suspected(&self) -> bool {
        self.liveness.is_suspected()
    }

    /// Data is about to be sent. Frames that were received until now do not acknowledge it.
    pub(super) fn before_send(&mut self, now: Instant, stats: &ConnectionStats) {
        self.liveness.before_send(now, stats);
    }

    /// QUIC has accepted data of the core.
    pub(super) fn sent_on(
        &mut self,
        cx: &mut Cx,
        conn: ConnectionId,
        quinn: &quinn::Connection,
        usage: &Usage,
    ) {
        self.liveness.sent_on(cx.now, of(cx, quinn));
        self.arm(cx, conn, usage);
    }

    /// Starts the checks if the embedder has used its streams since the last call.
    pub(super) fn look_if_used(
        &mut self,
        cx: &mut Cx,
        conn: ConnectionId,
        quinn: &quinn::Connection,
        usage: &Usage,
    ) {
        self.liveness.look_if_used(cx.now, || quinn.stats(), of(cx, quinn), usage.uses());
        self.arm(cx, conn, usage);
    }

    /// Handles a due check. `waits`: a call on the connection waits for its answer.
    pub(super) fn look_due(
        &mut self,
        cx: &mut Cx,
        conn: ConnectionId,
        quinn: &quinn::Connection,
        usage: &Usage,
        waits: bool,
    ) {
        self.unwatch(cx, conn);
        let patience = of(cx, quinn);
        let finding = self.liveness.look_due(cx.now, &quinn.stats(), patience, waits, usage.uses());
        match finding {
            Finding::Silent => cx.input(Input::Suspected { conn }),
            Finding::Heard => cx.input(Input::Heard { conn }),
            Finding::Quiet | Finding::Active | Finding::Late | Finding::Suspected => {}
        }
        self.arm(cx, conn, usage);
        if finding == Finding::Quiet {
            usage.unwatch();
            // A use before that woke nothing.
            self.look_if_used(cx, conn, quinn, usage);
        }
    }

    /// Sets the deadline to the time of the next check.
    fn arm(&mut self, cx: &mut Cx, conn: ConnectionId, usage: &Usage) {
        let due = self.liveness.due();
        if due != self.armed {
            self.unwatch(cx, conn);
            if let Some(due) = due {
                self.armed = Some(due);
                usage.watch();
                cx.deadlines.set(due, WakeSource::Liveness(conn));
            }
        }
    }

    /// Removes the deadline of the connection.
    pub(super) fn unwatch(&mut self, cx: &mut Cx, conn: ConnectionId) {
        if let Some(due) = self.armed.take() {
            cx.deadlines.cancel(due, WakeSource::Liveness(conn));
        }
    }
}

/// Returns how long a connection may be silent.
fn of(cx: &Cx, quinn: &quinn::Connection) -> std::time::Duration {
    patience(quinn.rtt(), cx.config.suspect_delay, cx.config.idle_timeout)
}

//! Turns: the claims for exchanges of peers are drafted one after the other.
//!
//! Of two claims that are drafted on one head only one can be appended. A Polykey 1.x node reports
//! the refusal of the other to its user. So while one such claim is unfinished, other exchanges
//! wait. Each waits at most `claim_wait_timeout`, and `exchange_limit` and `exchanges_per_peer`
//! limit their number. Nodes take turns, regardless of the number of exchanges that each has
//! started.
//!
//! Waiting nodes cannot deadlock. A turn ends with the last message of its peer. An initiator sends
//! that message as soon as its own claim is committed. After the peer's answer it waits for no
//! turn, neither at its own node nor at another one, and before that answer no exchange waits for
//! it. A peer that sends nothing loses its turn after a quarter of `claim_wait_timeout`.

use crate::machine::phase::Phase;
use crate::machine::timer::Timer;
use crate::manager::node::NodeManager;
use crate::manager::state::claims::Claims;
use crate::manager::state::incoming::IncomingExchange;
use crate::types::id::StreamId;
use crate::types::time::Instant;
use crate::wire::dialect::Dialect;

/// Number of attempts of a local claim that yield to a peer that cannot retry.
const COURTESIES: u32 = 4;

impl Claims {
    /// Returns the exchange whose claim is drafted next; `None` if none can be now.
    fn next_turn(&self, now: Instant) -> Option<StreamId> {
        if self.chain.is_appending() {
            return None;
        }
        if let Some(stream) = self.incoming.overdue(now) {
            return Some(stream);
        }
        if self.incoming.turns(now).next().is_some() {
            return None;
        }
        // Nodes take turns in the circular order of all ids, starting after the node of the last
        // turn.
        self.incoming.next_after(self.last_turn)
    }
}

impl NodeManager {
    /// Drafts the claims whose turn it is. Called after everything that can end a turn.
    pub(in crate::manager) fn next_turn(&mut self) {
        if self.cx.phase() != Phase::Running {
            return self.cx.timers.cancel(Timer::ClaimTurn);
        }
        while let Some(stream) = self.claims.next_turn(self.cx.now) {
            self.claims.last_turn = self.claims.incoming.get(stream).map(IncomingExchange::node);
            if !self.incoming_draft(stream) {
                break;
            }
        }
        match self.claims.incoming.turn_ends(self.cx.now) {
            Some(at) => self.cx.timers.set(Timer::ClaimTurn, at),
            None => self.cx.timers.cancel(Timer::ClaimTurn),
        }
    }

    /// Returns whether a local claim should be drafted again later instead of appended now. This is
    /// so while a Polykey 1.x node has its turn: its last message is expected, and it cannot retry
    /// if the local chain moves. `attempts` is the number of attempts so far.
    pub(super) fn gives_way(&self, attempts: u32) -> bool {
        let polykey = |incoming: &IncomingExchange| {
            self.rpc.dialect(incoming.conn()) == Some(Dialect::Polykey)
        };
        let mut turns = self.claims.incoming.turns(self.cx.now);
        attempts < COURTESIES
            && turns.any(|(_, incoming)| incoming.is_answered() && polykey(incoming))
    }
}

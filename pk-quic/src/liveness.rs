//! Which connections are silent: something was sent, and nothing is received.
//!
//! quinn-proto does not report what is unacknowledged. But every authentic packet has a frame, and
//! what is not acknowledged is probed (RFC 9002 section 6.2), at intervals that double. So a peer
//! is silent if frames that it must acknowledge leave, and none comes in, for a few round trips.
//! The probe of a peer that supports it is an IMMEDIATE_ACK frame, and a PING otherwise.
//!
//! A connection is looked at only while it is used: a send begins the looks. They become rarer as
//! the probes do, and end when nothing has left for a while but keep-alives and probes, and no call
//! waits for its answer; so an idle node takes no turns. What has come in before a look may have
//! come before or after what was sent before it. Only a later probe shows which, so that the first
//! looks follow each other closely.

use std::time::Duration;

use pk_proto::Instant;
use quinn_proto::{ConnectionStats, FrameStats};

/// Round trips that a connection may be silent.
const ROUND_TRIPS: u32 = 3;

/// What a peer may add to a round trip before it acknowledges (RFC 9000 section 18.2,
/// `max_ack_delay`).
const ACK_DELAY: Duration = Duration::from_millis(25);

/// Pauses between looks that find nothing new, as parts of the time that a connection may be
/// silent; then there are no more, or a whole one each if an answer is waited for. Together they
/// are longer than it takes a silent peer to draw the next probe.
const PAUSES: [u32; 5] = [4, 4, 4, 2, 2];

/// Between two looks at a suspected connection: how late an acknowledgement is noticed. Data shows
/// at once.
const SUSPECTED_LOOK: Duration = Duration::from_millis(50);

/// Looks in a row that may come too late to count. After a suspend what has arrived meanwhile is
/// not processed yet; a machine that is always late must not hide a dead peer forever.
const LATE_LOOKS: u8 = 2;

/// What is known of the silence of one connection.
#[derive(Debug, Default)]
pub(crate) struct Liveness {
    /// When it is looked at next.
    due: Option<Instant>,
    /// Since when something may be unanswered.
    unanswered: Option<Instant>,
    /// As of the last time that it was read.
    traffic: Traffic,
    /// Something was sent since the last look.
    fresh: bool,
    /// Looks in a row that found nothing new, up to the number of [`PAUSES`].
    rests: usize,
    /// How often the embedder has used its streams.
    uses: u64,
    /// Of the last look, or of a send since.
    noted_at: Instant,
    late: u8,
    suspected: bool,
}

/// What has passed on a connection, in frames. Datagrams say nothing: only an authentic packet has
/// any frame.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Traffic {
    received: u64,
    /// What the peer has to acknowledge.
    sent: u64,
    /// The same without PING and IMMEDIATE_ACK: neither keep-alives nor probes.
    content: u64,
}

/// What a look finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Finding {
    /// Nothing is waited for.
    Quiet,
    /// It is in use, and alive as far as can be said by now.
    Active,
    /// Something was sent, and nothing received, for too long.
    Silent,
    /// As `Silent`, but not to be relied on.
    Late,
    /// It was suspected, and something was received.
    Heard,
    /// It is still suspected.
    Suspected,
}

impl Liveness {
    /// Takes notice of what has passed. Returns whether anything was received.
    fn note(&mut self, now: Instant, traffic: Traffic) -> bool {
        let heard = traffic.received > self.traffic.received;
        if heard {
            self.unanswered = None;
            self.late = 0;
        } else if traffic.sent > self.traffic.sent {
            self.unanswered.get_or_insert(now);
        }
        self.fresh |= traffic.content > self.traffic.content;
        (self.traffic, self.noted_at) = (traffic, now);
        heard
    }

    /// Data is about to be sent. Frames that were received until now do not acknowledge it.
    pub(crate) fn before_send(&mut self, now: Instant, stats: &ConnectionStats) {
        self.note_before_send(now, traffic(stats));
    }

    fn note_before_send(&mut self, now: Instant, traffic: Traffic) {
        if self.due.is_none() {
            self.start(now, traffic);
        } else if !self.suspected {
            self.note(now, traffic);
        }
    }

    /// QUIC has taken something to be sent.
    fn sent(&mut self, now: Instant) {
        self.unanswered.get_or_insert(now);
        self.fresh = true;
    }

    /// The connection is in use from now on.
    fn start(&mut self, now: Instant, traffic: Traffic) {
        (self.traffic, self.noted_at) = (traffic, now);
        self.unanswered = None;
        self.fresh = true;
        self.rests = 0;
        self.late = 0;
    }

    /// The embedder has used its streams so often. Packets may have left since then, or will.
    fn used(&mut self, uses: u64) -> bool {
        let used = uses != std::mem::replace(&mut self.uses, uses);
        self.fresh |= used;
        used
    }

    /// A look. `patience`: how long the connection may be silent. `waits`: an answer is waited for
    /// on it.
    fn look(&mut self, now: Instant, traffic: Traffic, patience: Duration, waits: bool) -> Finding {
        let late =
            self.due.is_some_and(|due| now.since(due) > patience / 2) && self.late < LATE_LOOKS;
        let (before, answered) = (self.noted_at, self.unanswered.is_none());
        let heard = self.note(now, traffic);
        if answered && let Some(since) = &mut self.unanswered {
            // It left since the last look; half of the time is left for an answer in any case.
            *since = before.max(now - patience / 2);
        }
        self.rests =
            if std::mem::take(&mut self.fresh) { 0 } else { (self.rests + 1).min(PAUSES.len()) };
        let silent = self.unanswered.is_some_and(|since| now.since(since) >= patience);
        let finding = match (self.suspected, heard) {
            (true, true) => Finding::Heard,
            (true, false) => Finding::Suspected,
            (false, _) if silent && late => Finding::Late,
            (false, _) if silent => Finding::Silent,
            (false, _) if self.unanswered.is_none() && !waits && self.rests == PAUSES.len() => {
                Finding::Quiet
            }
            (false, _) => Finding::Active,
        };
        if finding == Finding::Late {
            self.late += 1;
            self.unanswered = Some(now);
        }
        self.suspected = matches!(finding, Finding::Silent | Finding::Suspected);
        finding
    }

    /// The time of the next look.
    fn next(&self, now: Instant, patience: Duration) -> Instant {
        if self.suspected {
            return now + SUSPECTED_LOOK;
        }
        let pause = now + patience / PAUSES.get(self.rests).copied().unwrap_or(1);
        self.unanswered.map_or(pause, |since| pause.min(since + patience)).max(now)
    }
}

impl Liveness {
    /// Returns whether the connection is suspected.
    pub(crate) fn is_suspected(&self) -> bool {
        self.suspected
    }

    /// Returns the time of the next check.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// QUIC has accepted data of the core.
    pub(crate) fn sent_on(&mut self, now: Instant, patience: Duration) {
        self.sent(now);
        self.watch_soon(now, patience);
    }

    /// Starts the checks if the embedder has used its streams since the last call; `uses` counts
    /// that.
    pub(crate) fn look_if_used(
        &mut self,
        now: Instant,
        stats: impl FnOnce() -> ConnectionStats,
        patience: Duration,
        uses: u64,
    ) {
        if self.used(uses) {
            if self.due.is_none() {
                self.start(now, traffic(&stats()));
            }
            self.watch_soon(now, patience);
        }
    }

    /// Handles a due check. `waits`: a call on the connection waits for its answer. After
    /// [`Finding::Quiet`] there is no further check.
    pub(crate) fn look_due(
        &mut self,
        now: Instant,
        stats: &ConnectionStats,
        patience: Duration,
        waits: bool,
        uses: u64,
    ) -> Finding {
        self.used(uses);
        let finding = self.look(now, traffic(stats), patience, waits);
        self.due = (finding != Finding::Quiet).then(|| self.next(now, patience));
        finding
    }

    /// Sets the next check no later than the first one after a send.
    fn watch_soon(&mut self, now: Instant, patience: Duration) {
        let soon = now + patience / PAUSES[0];
        self.due = Some(self.due.map_or(soon, |due| due.min(soon)));
    }
}

/// Returns how long a connection may be silent: `suspect_delay`, or some round trips if that is
/// longer, but at most half of the idle timeout.
pub(crate) fn patience(rtt: Duration, suspect_delay: Duration, idle_timeout: Duration) -> Duration {
    let silence = (rtt * ROUND_TRIPS + ACK_DELAY).max(suspect_delay).min(idle_timeout / 2);
    // Whole microseconds, the unit of instants: otherwise a check would be due before its time.
    Duration::from_micros(u64::try_from(silence.as_micros()).unwrap_or(u64::MAX))
}

/// Returns the number of received frames: a packet that adds to it is authentic.
pub(crate) fn received(stats: &ConnectionStats) -> u64 {
    let rx = &stats.frame_rx;
    acknowledged(rx) + rx.acks + rx.connection_close
}

fn traffic(stats: &ConnectionStats) -> Traffic {
    let tx = &stats.frame_tx;
    let sent = acknowledged(tx);
    Traffic { received: received(stats), sent, content: sent - tx.ping - tx.immediate_ack }
}

/// Frames of a direction that have to be acknowledged: all but ACK, PADDING and CONNECTION_CLOSE
/// (RFC 9002 section 2). quinn has no sum of them.
fn acknowledged(stats: &FrameStats) -> u64 {
    let connection = stats.crypto + u64::from(stats.handshake_done) + stats.new_token;
    let ids = stats.new_connection_id + stats.retire_connection_id;
    let path = stats.ping + stats.path_challenge + stats.path_response;
    let acks = stats.ack_frequency + stats.immediate_ack;
    let limits =
        stats.max_data + stats.max_stream_data + stats.max_streams_bidi + stats.max_streams_uni;
    let blocked = stats.data_blocked
        + stats.stream_data_blocked
        + stats.streams_blocked_bidi
        + stats.streams_blocked_uni;
    let data = stats.stream + stats.reset_stream + stats.stop_sending + stats.datagram;
    connection + ids + path + acks + limits + blocked + data
}

#[cfg(test)]
mod tests;

//! Acknowledgements: which ends suspect their connections because acknowledgements are missing.
//!
//! Acknowledgements are not simulated, only their absence. A stream message that does not arrive,
//! or whose receiver cannot answer, leaves its sender waiting. If it has received nothing by
//! `TransportConfig::suspect_delay`, or three round trips if that is longer, its machine receives
//! `Suspected`. The next packet it receives causes `Heard`.

use pk_proto::{Input, Instant};

use super::Transport;
use super::connection::EndState;
use crate::wire::packet::{Arrival, EndIndex, Packet};
use crate::wire::{Happening, Wire};

impl Transport {
    /// Records whether a message has arrived at its end, which decides whether its sender waits for
    /// an answer.
    pub(super) fn acknowledge(&mut self, wire: &mut Wire, arrival: &Arrival, arrived: bool) {
        let (serial, to) = (arrival.serial, arrival.to);
        if !matches!(
            arrival.packet,
            Packet::Stream { .. } | Packet::StreamOver | Packet::Alive { answer: false }
        ) {
            return;
        }
        let Some(connection) = self.connections.get(&serial) else { return };
        let from = 1 - to;
        if arrived && let Some(traffic) = wire.traffic.get_mut(connection.ends[to].host) {
            traffic.acknowledges();
        }
        let [sender, receiver] = [&connection.ends[from], &connection.ends[to]];
        let latency = wire.network.link(sender.host, receiver.host).latency;
        let there = &wire.hosts[receiver.host];
        let remembers = there.life == receiver.life || there.transport.keeps_secret;
        let answers = arrived && connection.passes(wire, to);
        if answers && !receiver.state.is_over() {
            if sender.unanswered.is_some() {
                wire.schedule(wire.now + latency, Happening::Heard { serial, side: from });
            }
            return;
        }
        if answers
            && receiver.state == EndState::Gone
            && remembers
            && there.transport.stateless_reset
        {
            wire.schedule(wire.now + latency, Happening::Forgotten { serial, side: from });
        }
        self.wait_for_answer(wire, serial, from);
    }

    fn wait_for_answer(&mut self, wire: &mut Wire, serial: u64, side: EndIndex) {
        let Some(connection) = self.connections.get_mut(&serial) else { return };
        let (host, peer) = (connection.ends[side].host, connection.ends[1 - side].host);
        let end = &mut connection.ends[side];
        if end.state == EndState::Open && end.unanswered.is_none() {
            end.unanswered = Some(wire.now);
            let round_trips = wire.network.link(host, peer).latency * 6;
            let patience = wire.hosts[host].transport.suspect_delay.max(round_trips);
            wire.schedule(
                wire.now + patience,
                Happening::Unanswered { serial, side, since: wire.now },
            );
        }
    }

    /// An end has waited for an answer since then.
    pub(crate) fn unanswered(
        &mut self,
        wire: &mut Wire,
        serial: u64,
        side: EndIndex,
        since: Instant,
    ) {
        let Some(connection) = self.connections.get_mut(&serial) else { return };
        let end = &mut connection.ends[side];
        if end.unanswered != Some(since) || end.state != EndState::Open || end.suspected {
            return;
        }
        if wire.hosts[end.host].frozen {
            // Its driver is frozen, and will check much too late.
            end.unanswered = None;
        } else if let Some(conn) = end.number {
            end.suspected = true;
            self.counters.suspicions += 1;
            wire.deliver(end.host, Input::Suspected { conn });
        }
    }

    /// An end receives something.
    pub(crate) fn heard(&mut self, wire: &mut Wire, serial: u64, side: EndIndex) {
        let Some(connection) = self.connections.get_mut(&serial) else { return };
        let end = &mut connection.ends[side];
        end.unanswered = None;
        if std::mem::take(&mut end.suspected)
            && let (EndState::Open, Some(conn)) = (end.state, end.number)
        {
            wire.deliver(end.host, Input::Heard { conn });
        }
    }
}

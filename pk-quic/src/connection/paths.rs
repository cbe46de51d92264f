//! Datagrams of a connection, and the addresses of its peer.

use std::net::SocketAddr;

use pk_proto::{Input, Side, is_relayed_address};
use quinn_proto::{ConnectionEvent, Transmit};

use super::{Connection, Stage};
use crate::cids::long_headers;
use crate::cx::Cx;
use crate::follow::Followed;
use crate::liveness::received;
use crate::unvalidated::Unvalidated;

impl Connection {
    /// Handles a datagram of `len` bytes from the address that quinn-proto knows, or from a dialer
    /// that may have moved.
    pub(crate) fn handle(
        &mut self,
        cx: &mut Cx,
        event: ConnectionEvent,
        from: SocketAddr,
        len: usize,
    ) {
        if self.side == Side::Acceptor {
            self.handle_dialer(event, from, len);
            return;
        }
        if self.followed.is_none() {
            self.quic.handle_event(event);
            return;
        }
        // The peer was followed elsewhere, and sends from here again.
        let before = received(&self.quic.stats());
        self.quic.handle_event(event);
        let known = self.quic.remote_address();
        if received(&self.quic.stats()) > before
            && self.followed.as_ref().is_some_and(|followed| followed.moves(cx.now))
        {
            self.return_to(cx, known);
        }
    }

    /// Handles a datagram that an acceptor has received.
    fn handle_dialer(&mut self, event: ConnectionEvent, from: SocketAddr, len: usize) {
        let known = self.quic.remote_address();
        if known == from && self.unvalidated.is_none() {
            self.quic.handle_event(event);
            return;
        }
        let responses = self.quic.stats().frame_rx.path_response;
        self.quic.handle_event(event);
        let present = self.quic.remote_address();
        if present != known {
            self.unvalidated = Some(Unvalidated::new(present, len));
        } else if let Some(unvalidated) = &mut self.unvalidated
            && unvalidated.addr() == from
        {
            unvalidated.heard(len);
            if self.quic.stats().frame_rx.path_response > responses {
                self.unvalidated = None;
            }
        }
    }

    /// Returns whether a datagram may leave for the address of a dialer that has moved.
    fn admits(&mut self, cx: &mut Cx, transmit: &Transmit) -> bool {
        let present = self.quic.remote_address();
        // quinn-proto goes back if nothing has validated the address.
        self.unvalidated = self.unvalidated.filter(|unvalidated| unvalidated.addr() == present);
        let Some(unvalidated) = &mut self.unvalidated else { return true };
        let admits = transmit.destination != present || unvalidated.admits(transmit.size);
        cx.metrics.unvalidated_withheld += u64::from(!admits);
        admits
    }

    /// Returns the address that quinn-proto knows, if a datagram from `from` may show that the peer
    /// has moved.
    pub(crate) fn followable(&self, cx: &Cx, from: SocketAddr) -> Option<SocketAddr> {
        let known = self.quic.remote_address();
        let follows = cx.settings.migration && self.is_live() && self.side == Side::Dialer;
        (follows && known != from).then_some(known)
    }

    /// Handles a datagram of `len` bytes that arrived from another address than quinn-proto knows.
    pub(crate) fn follow(
        &mut self,
        cx: &mut Cx,
        event: ConnectionEvent,
        from: SocketAddr,
        len: usize,
    ) {
        let before = self.quic.stats();
        let round_trip = self.quic.rtt();
        self.quic.handle_event(event);
        let after = self.quic.stats();
        if received(&after) <= received(&before) {
            return;
        }
        match &mut self.followed {
            Some(followed) if followed.real() == from => {
                let acknowledges = after.frame_rx.acks > before.frame_rx.acks;
                let other_host = followed.former().ip() != from.ip();
                if followed.heard(len, acknowledges, cx.now) && other_host {
                    // What is known of the former path does not apply (RFC 9000 section 9.4).
                    self.quic.path_changed(cx.at);
                }
            }
            Some(followed) if !followed.moves(cx.now) => {}
            followed => {
                let former = followed.as_ref().map_or(self.remote, Followed::validated);
                let round_trip = followed.as_ref().map_or(round_trip, Followed::round_trip);
                *followed = Some(Followed::new(from, former, round_trip, len, cx.now));
                cx.metrics.followed += 1;
                // Its acknowledgement validates the address.
                self.quic.ping();
                self.report_address(cx, from);
            }
        }
    }

    /// Assumes the peer at a validated address.
    pub(super) fn return_to(&mut self, cx: &mut Cx, address: SocketAddr) {
        self.followed = match self.followed.take() {
            Some(_) if address == self.quic.remote_address() => None,
            Some(followed) => Some(Followed::returned(address, followed.round_trip(), cx.now)),
            None => None,
        };
        self.quic.ping();
        self.report_address(cx, address);
    }

    pub(super) fn report_address(&mut self, cx: &mut Cx, addr: SocketAddr) {
        if self.remote != addr
            && let (Some(conn), true) = (self.id, self.is_live())
        {
            self.remote = addr;
            cx.input(Input::RemoteAddressChanged { conn, addr });
        }
    }

    /// The local addresses changed.
    pub(crate) fn local_changed(&mut self, cx: &Cx) {
        if self.is_live() && cx.settings.migration {
            self.quic.local_address_changed();
            self.quic.path_changed(cx.at);
            // Without an unused id of the peer nothing is sent.
            self.quic.ping();
        }
    }

    /// Executes the effect `ProbePath`: the peer migrates if the next datagram arrives from here,
    /// and is followed if its own arrive.
    pub(crate) fn probe(&mut self, cx: &mut Cx, addr: SocketAddr) {
        if cx.settings.migration && self.is_live() && self.side == Side::Dialer {
            cx.metrics.paths_probed += 1;
            self.probe = Some(addr);
            self.quic.ping();
        }
    }

    /// Writes datagrams to an empty buffer.
    pub(crate) fn poll_transmit(
        &mut self,
        cx: &mut Cx,
        max: usize,
        buf: &mut Vec<u8>,
    ) -> Option<Transmit> {
        loop {
            let held = self.followed.as_ref().and_then(Followed::next_send);
            if held.is_some_and(|at| at > cx.now) {
                return None;
            }
            buf.clear();
            let max = if held.is_some() { 1 } else { max };
            let mut transmit = self.quic.poll_transmit(cx.at, max, buf)?;
            if !self.is_live() && self.is_withheld(&transmit, buf) {
                continue;
            }
            if self.unvalidated.is_some() && !self.admits(cx, &transmit) {
                continue;
            }
            if let Some(followed) = &mut self.followed
                && transmit.destination == self.quic.remote_address()
            {
                followed.took(cx.now);
                if !followed.admits(transmit.size) {
                    cx.metrics.follow_withheld += 1;
                    continue;
                }
                transmit.destination = followed.real();
            }
            if transmit.segment_size.is_none()
                && is_relayed_address(&transmit.destination)
                && let Some(direct) = self.probe.take()
            {
                transmit.destination = direct;
            }
            return Some(transmit);
        }
    }

    /// Reads the headers of an outgoing handshake packet. Returns whether it must not be sent.
    pub(super) fn is_withheld(&mut self, transmit: &Transmit, buf: &[u8]) -> bool {
        let size = transmit.segment_size.unwrap_or(transmit.size).max(1);
        let datagrams = buf.get(..transmit.size).unwrap_or_default().chunks(size);
        for header in datagrams.flat_map(long_headers) {
            self.ids = Some((header.from, header.to));
            match &mut self.stage {
                Stage::Dialing { has_sent_handshake, .. } => {
                    *has_sent_handshake |= header.is_handshake;
                }
                Stage::Closed { is_withdrawn: true } if header.is_handshake => return true,
                _ => {}
            }
        }
        false
    }
}

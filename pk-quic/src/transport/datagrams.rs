//! The way of a datagram to its connection, and the start of incoming connections.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use bytes::BytesMut;
use pk_proto::{Network, is_relayed_address};
use quinn_proto::{DatagramEvent, EcnCodepoint, Incoming};

use super::{Datagram, Transmit, Transport, UNSENT};
use crate::admission::Admission;
use crate::connection::Connection;
use crate::resets::has_reset_form;

/// Destination of a datagram.
enum Routed {
    Connection(usize),
    Incoming(Box<Incoming>),
}

impl Transport {
    /// Passes a datagram to its connection, or decides about a new one.
    pub(super) fn deliver(&mut self, from: SocketAddr, datagram: &Datagram<'_>) {
        match self.route(from, datagram) {
            Some(Routed::Connection(handle)) => {
                self.touched.insert(handle);
            }
            Some(Routed::Incoming(incoming)) => self.incoming(*incoming),
            None => {}
        }
    }

    /// Passes a datagram to its connection, if there is one.
    fn route(&mut self, from: SocketAddr, datagram: &Datagram<'_>) -> Option<Routed> {
        let mut buf = Vec::new();
        let event = self.decode(from, datagram, &mut buf)?;
        match event {
            DatagramEvent::ConnectionEvent(handle, event) => {
                let connection = self.connections.get_mut(&handle.0)?;
                match connection.followable(&self.cx, from) {
                    None => {
                        connection.handle(&mut self.cx, event, from, datagram.bytes.len());
                    }
                    Some(known) => {
                        // quinn-proto drops it unless it comes from the known address.
                        let again = self.decode(known, datagram, &mut buf);
                        if let Some(DatagramEvent::ConnectionEvent(other, event)) = again
                            && other == handle
                            && let Some(connection) = self.connections.get_mut(&handle.0)
                        {
                            let len = datagram.bytes.len();
                            connection.follow(&mut self.cx, event, from, len);
                        }
                    }
                }
                Some(Routed::Connection(handle.0))
            }
            DatagramEvent::NewConnection(incoming) => Some(Routed::Incoming(Box::new(incoming))),
            DatagramEvent::Response(transmit) => {
                buf.truncate(transmit.size);
                let is_reset = has_reset_form(&buf);
                if is_reset && !self.reset_limit.take(Network::of(from.ip()), self.cx.now) {
                    self.cx.metrics.resets_dropped += 1;
                } else {
                    self.cx.metrics.resets += u64::from(is_reset);
                    self.answer(&transmit, buf);
                }
                None
            }
        }
    }

    fn decode(
        &mut self,
        from: SocketAddr,
        datagram: &Datagram<'_>,
        buf: &mut Vec<u8>,
    ) -> Option<DatagramEvent> {
        let ecn = EcnCodepoint::from_bits(datagram.ecn);
        let to = datagram.to.map(|to| to.to_canonical());
        self.endpoint.handle(self.cx.at, from, to, ecn, BytesMut::from(datagram.bytes), buf)
    }

    fn answer(&mut self, transmit: &quinn_proto::Transmit, mut bytes: Vec<u8>) {
        bytes.truncate(transmit.size);
        let transmit = self.outgoing(transmit);
        self.send_alone(transmit, bytes);
    }

    /// Queues a datagram that belongs to no connection. Beyond the limit it is lost, as on the
    /// network. Returns whether it was queued.
    pub(super) fn send_alone(&mut self, transmit: Transmit, bytes: Vec<u8>) -> bool {
        let has_room = self.answers.len() < UNSENT;
        if has_room {
            self.answers.push_back((transmit, bytes));
        } else {
            self.cx.metrics.unsent_dropped += 1;
        }
        has_room
    }

    pub(super) fn outgoing(&self, transmit: &quinn_proto::Transmit) -> Transmit {
        // The whole loopback network belongs to the machine.
        let is_own =
            |ip: &IpAddr| ip.is_loopback() || self.own.as_ref().is_none_or(|own| own.contains(ip));
        Transmit {
            to: transmit.destination,
            ecn: transmit.ecn.map_or(0, |ecn| ecn as u8),
            size: transmit.size,
            segment_size: transmit.segment_size,
            from: transmit.src_ip.filter(is_own),
            is_first: false,
        }
    }

    fn incoming(&mut self, incoming: Incoming) {
        if self.is_closed {
            self.endpoint.ignore(incoming);
            return;
        }
        let network = Network::of(incoming.remote_address().ip());
        let validated = incoming.remote_address_validated();
        let mut buf = Vec::new();
        match self.cx.admission.admit(network, validated, self.cx.now) {
            Admission::Accept => {
                self.cx.metrics.handshakes += 1;
                if !self.accept(incoming) {
                    self.cx.handshake_failed(network);
                }
            }
            Admission::Retry => {
                self.cx.metrics.handshakes_retried += 1;
                match self.endpoint.retry(incoming, &mut buf) {
                    Ok(transmit) => self.answer(&transmit, buf),
                    // Possible for every unvalidated peer.
                    Err(error) => self.endpoint.ignore(error.into_incoming()),
                }
            }
            refusal => {
                let metrics = &mut self.cx.metrics;
                match refusal {
                    Admission::RefuseNetwork => metrics.handshakes_refused_network += 1,
                    _ => metrics.handshakes_refused += 1,
                }
                let transmit = self.endpoint.refuse(incoming, &mut buf);
                self.answer(&transmit, buf);
            }
        }
    }

    fn accept(&mut self, incoming: Incoming) -> bool {
        let Ok((tls, verdict)) = self.tls.server() else {
            self.endpoint.ignore(incoming);
            return false;
        };
        let mut server = self.server.clone();
        server.crypto = tls;
        if is_relayed_address(&incoming.remote_address()) {
            server.transport_config(Arc::clone(&self.relayed));
        }
        let mut buf = Vec::new();
        match self.endpoint.accept(incoming, self.cx.at, &mut buf, Some(Arc::new(server))) {
            Ok(accepted) => {
                let handle = accepted.0.0;
                let connection = Connection::accepted(&mut self.cx, accepted, verdict);
                self.insert(handle, connection);
                true
            }
            Err(error) => {
                if let Some(transmit) = error.response {
                    self.answer(&transmit, buf);
                }
                false
            }
        }
    }

    pub(super) fn insert(&mut self, handle: usize, connection: Connection) {
        self.connections.insert(handle, Box::new(connection));
        self.touched.insert(handle);
    }
}

//! Counters of the driver and its transport.

use pk_quic::TransportMetrics;

/// Declares the counters once: the struct, and the list of names and values.
macro_rules! metrics {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Counters of a driver since the start of its node, and numbers of what exists now.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
        #[non_exhaustive]
        pub struct DriverMetrics {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl DriverMetrics {
            /// Returns every counter with its name.
            pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($name), self.$name),)*].into_iter()
            }
        }
    };
}

metrics! {
    // -- current numbers
    /// Tasks and threads of this node: the pump, and those of the store, of the recording and of
    /// renewals.
    tasks,
    /// Incoming handshakes in progress.
    handshakes_pending,
    /// Dials in progress.
    dials_pending,
    /// Connections whose handshake succeeded.
    connections,
    /// Connections that have ended and that QUIC keeps for a moment, to answer late packets.
    connections_closing,
    /// Streams of the core.
    streams,
    /// Application streams of live connections.
    streams_handed_over,

    // -- totals
    /// Turns of the pump.
    turns,
    /// Sources that were served.
    served,
    /// Turns that ended because their budget was used up.
    budget_exhausted,
    /// Incoming handshakes that were started.
    handshakes,
    /// Incoming handshakes that failed: missing or invalid certificates, TLS errors.
    handshakes_failed,
    /// Incoming handshakes that exceeded `handshake_timeout`.
    handshakes_timed_out,
    /// Peers that had to validate their address by Retry.
    handshakes_retried,
    /// Incoming handshakes refused because of `handshake_limit`.
    handshakes_refused,
    /// Incoming handshakes refused because of `handshake_network_limit`.
    handshakes_refused_network,
    /// Punch datagrams sent.
    punches,
    /// Punch datagrams that were not sent because the socket has no address of the family.
    punches_dropped,
    /// Datagrams outside of connections that were not sent, because too many waited for the socket.
    unsent_dropped,
    /// Stateless resets sent to peers that used unknown connections.
    resets,
    /// Stateless resets not sent because of the limit per network.
    resets_dropped,
    /// Application streams that were reset because of `application_memory`.
    streams_unread,
    /// Peers that were followed to another address.
    followed,
    /// Peers that did not answer at the address to which they were followed.
    follow_failed,
    /// Datagrams not sent to an address that is not validated yet, of an acceptor that has moved.
    follow_withheld,
    /// Datagrams not sent to an address that is not validated yet, of a dialer that has moved.
    unvalidated_withheld,
    /// Datagrams that were received.
    datagrams_received,
    /// Received datagrams that were dropped because of their length.
    datagrams_too_long,
    /// Signatures made for the core.
    signatures,
    /// Transactions requested by the core.
    writes_begun,
    /// Transactions of the core that succeeded.
    writes,
    /// Transactions of the core that failed.
    writes_failed,
    /// Host names that could not be resolved.
    resolutions_failed,
    /// Advertisements that were ignored because this driver was built without mDNS.
    advertisements_ignored,
    /// mDNS advertisements and browses that failed.
    mdns_failures,
    /// mDNS browses that were restarted because the listener fell behind or the thread ended.
    mdns_restarts,
    /// Corrections of the wall clock that were reported to the core.
    clock_corrections,
    /// Changes of the addresses of this machine that were announced to peers.
    address_changes,
    /// Moves of the socket to another address, because its own was gone.
    rebinds,
    /// Mappings of the port by the router, each time to another external address.
    port_mappings,
    /// Renewals of a port mapping.
    port_mapping_renewals,
    /// Attempts to renew a port mapping that failed.
    port_mapping_renewals_failed,
    /// Restarts of the router that had lost the port mapping.
    port_mapping_restarts,
    /// Port mappings that ended, or belong to a network that the node has left.
    port_mappings_lost,
    /// Port mappings that were withdrawn at the stop of the node.
    port_mappings_withdrawn,
    /// Rounds in which no protocol mapped the port.
    port_mapping_failures,
    /// Refusals of the router to map, renew or withdraw.
    port_mapping_refusals,
    /// Incoming streams that were refused because their acceptor was full or dropped.
    accepts_refused,
}

impl DriverMetrics {
    /// Takes over the counters of the transport.
    pub(crate) fn add_transport(&mut self, transport: &TransportMetrics) {
        self.handshakes_pending = transport.handshakes_pending;
        self.dials_pending = transport.dials_pending;
        self.connections = transport.connections;
        self.connections_closing = transport.connections_closing;
        self.streams = transport.streams;
        self.streams_handed_over = transport.application_streams;
        self.handshakes = transport.handshakes;
        self.handshakes_failed = transport.handshakes_failed;
        self.handshakes_timed_out = transport.handshakes_timed_out;
        self.handshakes_retried = transport.handshakes_retried;
        self.handshakes_refused = transport.handshakes_refused;
        self.handshakes_refused_network = transport.handshakes_refused_network;
        self.punches = transport.punches;
        self.punches_dropped = transport.punches_dropped;
        self.resets = transport.resets;
        self.resets_dropped = transport.resets_dropped;
        self.streams_unread = transport.streams_unread;
        self.followed = transport.followed;
        self.follow_failed = transport.follow_failed;
        self.follow_withheld = transport.follow_withheld;
        self.unvalidated_withheld = transport.unvalidated_withheld;
        self.datagrams_too_long = transport.datagrams_too_long;
        self.unsent_dropped = transport.unsent_dropped;
    }
}

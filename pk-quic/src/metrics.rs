//! Counters of the transport.

/// Declares the counters once: the struct, and the list of names and values.
macro_rules! metrics {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Counters of the transport since its start, and present numbers.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct TransportMetrics {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl TransportMetrics {
            /// Returns every counter with its name.
            pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($name), self.$name),)*].into_iter()
            }
        }
    };
}

metrics! {
    // -- present numbers
    /// Incoming handshakes in progress.
    handshakes_pending,
    /// Dials in progress.
    dials_pending,
    /// Connections whose handshake succeeded.
    connections,
    /// Connections that have ended and that QUIC keeps for a moment, to answer late packets.
    connections_closing,
    /// Streams of the node protocol.
    streams,
    /// Application streams.
    application_streams,
    /// Relayed paths of this node.
    paths,
    /// Circuits that are forwarded.
    circuits,

    // -- totals
    /// Incoming handshakes that were started.
    handshakes,
    /// Incoming handshakes that failed.
    handshakes_failed,
    /// Incoming handshakes that took longer than `handshake_timeout`.
    handshakes_timed_out,
    /// Incoming handshakes that had to validate their address.
    handshakes_retried,
    /// Incoming handshakes refused because of `handshake_limit`.
    handshakes_refused,
    /// Incoming handshakes refused because of `handshake_network_limit`.
    handshakes_refused_network,
    /// Received datagrams that were dropped because of their length.
    datagrams_too_long,
    /// Datagrams outside of connections that were not sent, because too many waited for the socket.
    unsent_dropped,
    /// Stateless resets that were sent.
    resets,
    /// Stateless resets that were not sent because of the limit of their network.
    resets_dropped,
    /// Punch datagrams that were sent.
    punches,
    /// Punch datagrams that were not sent because the socket has no address of the family.
    punches_dropped,
    /// Application streams that were reset because of `application_memory`.
    streams_unread,
    /// Peers that were followed to another address.
    followed,
    /// Peers that did not answer at the address to which they were followed.
    follow_failed,
    /// Datagrams that were not sent to an address that is not validated yet, of an acceptor that
    /// has moved.
    follow_withheld,
    /// Datagrams that were not sent to an address that is not validated yet, of a dialer that has
    /// moved.
    unvalidated_withheld,
    /// Datagrams that were forwarded.
    datagrams_forwarded,
    /// Datagrams that were not forwarded because of the rate of their owner or of all circuits.
    datagrams_over_rate,
    /// Datagrams that were dropped because too many waited for their stream.
    datagrams_not_carried,
    /// Datagrams to a relayed path that has ended.
    datagrams_without_path,
    /// Circuits that have ended because they were idle.
    circuits_idle,
    /// Relayed connections that were probed for a direct path.
    paths_probed,
}

//! Counters of the transport.

/// Counters of the transport since its start, and present numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TransportMetrics {
    // -- present numbers
    /// Incoming handshakes in progress.
    pub handshakes_pending: u64,
    /// Dials in progress.
    pub dials_pending: u64,
    /// Connections whose handshake succeeded.
    pub connections: u64,
    /// Connections that have ended and that QUIC keeps for a moment, to answer late packets.
    pub connections_closing: u64,
    /// Streams of the node protocol.
    pub streams: u64,
    /// Application streams.
    pub application_streams: u64,
    /// Relayed paths of this node.
    pub paths: u64,
    /// Circuits that are forwarded.
    pub circuits: u64,

    // -- totals
    /// Incoming handshakes that were started.
    pub handshakes: u64,
    /// Incoming handshakes that failed.
    pub handshakes_failed: u64,
    /// Incoming handshakes that took longer than `handshake_timeout`.
    pub handshakes_timed_out: u64,
    /// Incoming handshakes that had to validate their address.
    pub handshakes_retried: u64,
    /// Incoming handshakes refused because of `handshake_limit`.
    pub handshakes_refused: u64,
    /// Incoming handshakes refused because of `handshake_network_limit`.
    pub handshakes_refused_network: u64,
    /// Received datagrams that were dropped because of their length.
    pub datagrams_too_long: u64,
    /// Datagrams outside of connections that were not sent, because too many waited for the socket.
    pub unsent_dropped: u64,
    /// Stateless resets that were sent.
    pub resets: u64,
    /// Stateless resets that were not sent because of the limit of their network.
    pub resets_dropped: u64,
    /// Punch datagrams that were sent.
    pub punches: u64,
    /// Punch datagrams that were not sent because the socket has no address of the family.
    pub punches_dropped: u64,
    /// Application streams that were reset because of `application_memory`.
    pub streams_unread: u64,
    /// Peers that were followed to another address.
    pub followed: u64,
    /// Peers that did not answer at the address to which they were followed.
    pub follow_failed: u64,
    /// Datagrams that were not sent to an address that is not validated yet, of an acceptor that
    /// has moved.
    pub follow_withheld: u64,
    /// Datagrams that were not sent to an address that is not validated yet, of a dialer that has
    /// moved.
    pub unvalidated_withheld: u64,
    /// Datagrams that were forwarded.
    pub datagrams_forwarded: u64,
    /// Datagrams that were not forwarded because of the rate of their owner or of all circuits.
    pub datagrams_over_rate: u64,
    /// Datagrams that were dropped because too many waited for their stream.
    pub datagrams_not_carried: u64,
    /// Datagrams to a relayed path that has ended.
    pub datagrams_without_path: u64,
    /// Circuits that have ended because they were idle.
    pub circuits_idle: u64,
    /// Relayed connections that were probed for a direct path.
    pub paths_probed: u64,
}

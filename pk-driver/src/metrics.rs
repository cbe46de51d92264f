//! Counters of the driver.

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
    /// Tasks of this node on the runtime: the pump, and one of quinn per endpoint and connection.
    tasks,
    /// Incoming handshakes in progress.
    handshakes_pending,
    /// Dials in progress.
    dials_pending,
    /// Connections whose handshake succeeded.
    connections,
    /// Streams of the core.
    streams,
    /// Streams of the embedder.
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
    /// Punch datagrams that could not be sent.
    punches_dropped,
    /// Stateless resets sent to peers that used unknown connections.
    resets,
    /// Stateless resets not sent because of the limit per network.
    resets_dropped,
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
    /// Incoming streams that were refused because their acceptor was full or dropped.
    accepts_refused,
}

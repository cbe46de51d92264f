//! The driver's counters.

/// Declares the counters once: the struct, and a listing of names and values for people and monitoring.
macro_rules! metrics {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// What a driver has counted since its node was started, and what it holds now.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
        #[non_exhaustive]
        pub struct DriverMetrics {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl DriverMetrics {
            /// Every counter with its name.
            pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($name), self.$name),)*].into_iter()
            }
        }
    };
}

metrics! {
    // -- what there is now
    /// Tasks of this node on the runtime: the pump, and one of quinn per endpoint and connection.
    tasks,
    /// Incoming handshakes under way.
    handshakes_pending,
    /// Dials under way.
    dials_pending,
    /// Connections whose handshake succeeded.
    connections,
    /// Streams of the core.
    streams,
    /// Streams of the embedder.
    streams_handed_over,

    // -- what has happened
    /// Turns of the pump.
    turns,
    /// Sources that were served.
    served,
    /// Turns that ended because of their budget, with work left.
    budget_exhausted,
    /// Incoming handshakes that were begun.
    handshakes,
    /// Incoming handshakes that failed: no or wrong certificates, broken TLS.
    handshakes_failed,
    /// Incoming handshakes that were not done in time.
    handshakes_timed_out,
    /// Peers that had to show that they receive at their address.
    handshakes_retried,
    /// Incoming handshakes refused because `handshake_limit` were under way.
    handshakes_refused,
    /// Incoming handshakes refused because `handshake_network_limit` of their network were under way.
    handshakes_refused_network,
    /// Punch datagrams that were sent.
    punches,
    /// Punch datagrams that could not be sent.
    punches_dropped,
    /// Signatures made for the core.
    signatures,
    /// Writes that the core wanted.
    writes_begun,
    /// Writes of the core that the store took.
    writes,
    /// Writes of the core that the store did not take.
    writes_failed,
    /// Host names that did not resolve.
    resolutions_failed,
    /// Announcements on the local network that were not made, since this driver was built without mDNS.
    advertisements_ignored,
    /// Announcements on the local network and browses of it that failed.
    mdns_failures,
    /// Times that the local network said more than was listened to, or its thread ended.
    mdns_restarts,
    /// Times that the core was told a new wall clock.
    clock_corrections,
    /// Streams of peers that were refused because their acceptor was full or gone.
    accepts_refused,
}

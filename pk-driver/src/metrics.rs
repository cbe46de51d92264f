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
            /// Counters of the transport.
            pub transport: TransportMetrics,
        }

        impl DriverMetrics {
            /// Returns every counter with its name, those of the transport last.
            pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($name), self.$name),)*].into_iter().chain(self.transport.iter())
            }
        }
    };
}

metrics! {
    // -- current numbers
    /// Tasks and threads of this node: the pump, and those of the store, of the recording and
    /// of renewals.
    tasks,

    // -- totals
    /// Turns of the pump.
    turns,
    /// Sources that were served.
    served,
    /// Turns that ended because their budget was used up.
    budget_exhausted,
    /// Datagrams that were received.
    datagrams_received,
    /// Bytes of these datagrams, without the headers of UDP and IP.
    bytes_received,
    /// Datagrams that were sent.
    datagrams_sent,
    /// Bytes of these datagrams, without the headers of UDP and IP.
    bytes_sent,
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

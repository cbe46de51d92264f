//! Counters of the driver and its transport.

use pk_quic::TransportMetrics;

/// Declares the counters once: the struct, the list of names and values, and the copy of those of
/// the transport, which have the same names there.
macro_rules! metrics {
    (
        driver { $($(#[$own_doc:meta])* $own:ident,)* }
        transport { $($(#[$doc:meta])* $name:ident,)* }
    ) => {
        /// Counters of a driver since the start of its node, and numbers of what exists now.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
        #[non_exhaustive]
        pub struct DriverMetrics {
            $($(#[$own_doc])* pub $own: u64,)*
            $($(#[$doc])* pub $name: u64,)*
        }

        impl DriverMetrics {
            /// Returns every counter with its name.
            pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [
                    $((stringify!($own), self.$own),)*
                    $((stringify!($name), self.$name),)*
                ]
                .into_iter()
            }

            /// Takes over the counters of the transport.
            pub(crate) fn add_transport(&mut self, transport: &TransportMetrics) {
                $(self.$name = transport.$name;)*
            }
        }
    };
}

metrics! {
    driver {
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
    transport {
        // -- current numbers
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
        /// Datagrams outside of connections that were not sent, because too many waited for the
        /// socket.
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
        /// Datagrams that were not sent to an address that is not validated yet, of an acceptor
        /// that has moved.
        follow_withheld,
        /// Datagrams that were not sent to an address that is not validated yet, of a dialer that
        /// has moved.
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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_counter_of_the_transport_is_one_of_the_driver() {
        let of_driver: Vec<_> = DriverMetrics::default().iter().map(|(name, _)| name).collect();
        let of_transport = TransportMetrics::default();
        let missing = of_transport.iter().filter(|(name, _)| !of_driver.contains(name));
        assert_eq!(missing.count(), 0);
    }
}

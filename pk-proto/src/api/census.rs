//! Numbers of entries in every table of a machine, to find leaks in tests, fuzz targets and long
//! runs.

use alloc::collections::BTreeMap;

use crate::types::time::Instant;

/// Declares the tables once: the struct, and the lists of their names and sizes.
macro_rules! census {
    (work { $($(#[$work_doc:meta])* $work:ident,)* } memory { $($(#[$doc:meta])* $memory:ident,)* }) => {
        /// Size of every table of a machine ([`NodeManager::census`](crate::NodeManager::census)).
        #[derive(Debug, Clone, PartialEq, Eq, Default)]
        #[non_exhaustive]
        pub struct Census {
            $($(#[$work_doc])* pub $work: usize,)*
            $($(#[$doc])* pub $memory: usize,)*
            /// Timers by kind: their number, and the time of the first.
            pub timers: BTreeMap<&'static str, (usize, Instant)>,
        }

        impl Census {
            /// Returns the tables of work in progress, by name. All are empty once the driver has
            /// completed everything, every connection has closed, and every deadline has passed.
            pub fn work(&self) -> impl Iterator<Item = (&'static str, usize)> {
                [$((stringify!($work), self.$work),)*].into_iter()
            }

            /// Returns the tables of stored data, by name. Each has a limit.
            pub fn memory(&self) -> impl Iterator<Item = (&'static str, usize)> {
                [$((stringify!($memory), self.$memory),)*].into_iter()
            }
        }
    };
}

census! {
    work {
        /// Requests, their internal sub-requests, and background searches.
        requests,
        /// Searches that can proceed.
        runnable_searches,
        /// Dials in progress.
        dials,
        /// Dial races.
        races,
        /// Name resolutions in progress.
        resolves,
        /// Connections, including those that are closing.
        connections,
        /// Leases.
        leases,
        /// Connections of the RPC layer.
        rpc_connections,
        /// Streams of the core.
        streams,
        /// Calls of this node that have not been answered.
        calls,
        /// Streams that were handed over and have not ended.
        detached,
        /// Exchanges and network claims that peers have started.
        exchanges,
        /// Streams of exchanges that this node has started.
        exchange_streams,
        /// Approvals requested from the embedder.
        approvals,
        /// Pending effects of claims.
        claim_effects,
        /// Claims that are being appended to the local chain.
        appending,
        /// mDNS browses.
        browses,
        /// Reads of the store.
        store_reads,
        /// Writes of links.
        links,
        /// Signatures for signals.
        signatures,
        /// Signalling requests to relays, and to targets on behalf of other nodes.
        signals,
        /// Addresses that are being punched.
        punches,
        /// Circuits that this node forwards, or opens.
        circuits,
        /// Relayed paths that this node is an end of, or opens.
        relayed_paths,
        /// Buckets with a garbage collection round.
        collections,
        /// Requests that wait for a garbage collection round.
        collection_waiters,
        /// Requests that wait for the graph to be written.
        flushes,
        /// Events of the components that have not been passed on.
        events,
        /// Outputs that have not been polled.
        outputs,
        /// Commitments to sign that are being written.
        commitments,
    }
    memory {
        /// Nodes in the graph.
        nodes,
        /// Nodes of the graph that no connection has proved.
        unproven,
        /// Nodes that wait for room in a full bucket.
        pending,
        /// Contacts that do not respond.
        failing,
        /// Contacts that have left because they did not respond.
        lost,
        /// Contacts of which it is known whether they respond to dials.
        reaches,
        /// Nodes that have left the graph because they never responded to a dial.
        silent,
        /// Buckets that were collected, or of which a contact was probed, at least once.
        collected,
        /// Seen signalling requests, stored so that none works twice.
        nonces,
        /// Nodes and networks with a limited rate of signals.
        rates,
        /// Nodes for which this node has forwarded datagrams within a day.
        relayed_volumes,
        /// Application protocols that are accepted.
        protocols,
        /// Nodes on the allow-list.
        allowed,
        /// Unfinished exchanges.
        open_exchanges,
        /// Nodes whose claim this node has answered with a claim of the local chain.
        linked,
    }
}

impl Census {
    /// Returns the tables of work in progress that are not empty.
    pub fn left_over(&self) -> impl Iterator<Item = (&'static str, usize)> {
        self.work().filter(|(_, entries)| *entries > 0)
    }
}

//! Counters: every drop and every refusal is counted here.

use serde::{Deserialize, Serialize};

/// Declares the counters once: the struct, and the list of names and values.
macro_rules! metrics {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Counters of a machine since its creation, and numbers of what exists now.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
        #[non_exhaustive]
        pub struct Metrics {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Metrics {
            /// Returns every counter with its name.
            pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($name), self.$name),)*].into_iter()
            }
        }
    };
}

metrics! {
    // -- current numbers
    /// Contacts in the graph.
    nodes,
    /// Contacts that do not respond; they leave if this continues.
    nodes_failing,
    /// Contacts that have left because they did not respond, and are still dialed sometimes.
    nodes_lost,
    /// Nodes that wait for room in a full bucket.
    nodes_pending,
    /// Accepted connections.
    connections,
    /// Dials and handshakes in progress, and connections that wait for a Hello.
    connections_pending,
    /// Circuits that this node forwards.
    circuits,
    /// Relayed paths that this node is an end of.
    relayed_paths,
    /// Streams of the core.
    streams,
    /// Bytes that peers have sent and the core holds, or that credit was granted for.
    receive_bytes,
    /// Bytes that wait to be sent.
    send_bytes,
    /// Open requests.
    requests_open,
    /// Exchanges that peers have started.
    exchanges,
    /// Unfinished exchanges that are stored.
    exchanges_open,
    /// Timers that are armed.
    timers,
    /// Changes of the graph that are not written yet. After `stop`, all changes that are written
    /// but would not survive a crash count as one.
    unwritten,

    // -- totals
    /// Outputs that were dropped because the phase of the node does not allow them. 0 unless the
    /// core is defective.
    outputs_suppressed,
    /// Requests that were started.
    requests,
    /// Dials that were started.
    dials,
    /// Dials that failed.
    dial_failures,
    /// Connections that were accepted.
    connections_accepted,
    /// Connections that were suspected.
    connections_suspected,
    /// Suspected connections on which something was received again.
    connections_heard,
    /// Suspected connections that were closed because the node has another, live connection.
    connections_silent,
    /// Requests that were retried because their connection was lost or suspected.
    requests_repeated,
    /// Calls that were sent.
    calls,
    /// Calls of peers that were answered.
    answers,
    /// Relays that were asked to signal.
    signals_sent,
    /// Signals forwarded for other nodes.
    signals_relayed,
    /// Addresses punched on request of other nodes.
    punches,
    /// Relays that were asked for a circuit.
    circuits_requested,
    /// Circuits that were opened for other nodes.
    circuits_opened,
    /// Bytes that the ended circuits have carried.
    circuit_bytes,
    /// Connections that were accepted over a relay.
    connections_relayed,
    /// Relayed connections that have become direct.
    connections_upgraded,
    /// Claims that were appended to the local chain.
    claims,
    /// Claims of peers and claims about networks that were signed.
    claims_signed,
    /// Garbage collection rounds.
    collections,
    /// Contacts that were dialed in the background, to keep the graph correct.
    upkeep_dials,
    /// Buckets that were refreshed.
    refreshes,
    /// Timers that fired.
    timeouts,
    /// Claims that were sent to peers.
    claims_served,
    /// Claims of peers that were verified.
    claims_verified,
    /// Signatures of claims that were verified.
    signature_checks,

    // -- refused or dropped
    /// Inputs about something that has ended or never existed.
    late_inputs,
    /// Dials that were delayed because of `dial_limit`.
    dials_delayed,
    /// Connections closed because of `connection_limit`, `connections_per_node`, or the share of
    /// their network.
    connections_refused,
    /// Unused incoming connections that were evicted.
    connections_evicted,
    /// Connections closed because of faults or refused requests.
    connections_faulty,
    /// Requests of peers refused because their node or network has its share.
    shares_refused,
    /// Connections closed because both ends are this node.
    connections_to_self,
    /// Connections closed because the peer belongs to another network, or names none and this node
    /// requires its own.
    connections_of_other_networks,
    /// Requests of peers that were denied before the peer has named its network.
    requests_denied,
    /// Peers that did not send a Hello in time.
    hello_timeouts,
    /// Streams refused because of `streams_per_connection` or `application_streams`.
    streams_refused,
    /// Requests of peers that arrived before their Hello and were held until it.
    early_requests,
    /// Streams of peers refused before their Hello: too many, or with another message than a
    /// request.
    early_refused,
    /// Incoming streams that timed out before a complete message.
    stream_timeouts,
    /// Streams whose peer violated the protocol.
    stream_faults,
    /// Streams with an unsupported message or protocol.
    unsupported,
    /// Streams ended because the peer did not read the answers to its requests.
    send_overflows,
    /// Calls that timed out.
    call_timeouts,
    /// Calls of peers with invalid parameters, answered with an error.
    questions_invalid,
    /// Calls of peers that were not answered in time.
    answers_late,
    /// Nodes and addresses reported by peers that cannot be used: the local id, no port, not
    /// unicast, over a limit.
    told_unusable,
    /// External addresses of peers that were stored in their contacts.
    externals_stored,
    /// External addresses of peers that the peers have withdrawn, and that were removed from their
    /// contacts.
    externals_withdrawn,
    /// External addresses of peers that were not stored: not at the host from which the peer is
    /// connected, not usable, over a limit.
    externals_refused,
    /// Responses of peers to searches whose nodes cannot be the random contacts of a bucket.
    told_implausible,
    /// Nodes whose bucket was full.
    bucket_full,
    /// Pending nodes that were dropped without being admitted.
    pending_dropped,
    /// Contacts that were removed because they did not answer a probe.
    nodes_dead,
    /// Nodes and addresses refused because of the limits per network.
    diversity_refused,
    /// Signals that were not forwarded.
    signals_refused,
    /// Addresses that were not punched.
    punches_refused,
    /// Circuits that were not opened: requests of other nodes, and offers of relays.
    circuits_refused,
    /// Claims that were not signed because of the policy, a limit, or their content.
    signatures_refused,
    /// Claims that became stale before they were appended; they are retried.
    claims_stale,
    /// Peers that violated the rules of a claim exchange.
    claim_faults,
    /// Signatures that the driver did not return.
    signing_failures,
    /// Accepted exchanges that were dropped because their peer has started too many.
    exchanges_forgotten,
    /// Requests for claims refused because of `claims_serve_limit`.
    claims_refused,
    /// Chains of peers that could not be read to their end or are invalid.
    chain_faults,
    /// Failed writes; those of the graph are retried.
    store_failures,
    /// Failed writes with unknown outcome.
    writes_unknown,
}

//! Counters: every drop and every refusal is counted here.

use serde::{Deserialize, Serialize};

/// Declares the counters once: the struct, and a listing of names and values for people and monitoring.
macro_rules! metrics {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// What a machine has counted since it was made, and what it holds now.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
        #[non_exhaustive]
        pub struct Metrics {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Metrics {
            /// Every counter with its name.
            pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($name), self.$name),)*].into_iter()
            }
        }
    };
}

metrics! {
    // -- what there is now
    /// Nodes in the graph.
    nodes,
    /// Nodes that wait for room in a full bucket.
    nodes_pending,
    /// Connections that both sides accepted.
    connections,
    /// Dials and handshakes under way, and connections waiting for a Hello.
    connections_pending,
    /// Streams that the core holds.
    streams,
    /// Bytes that peers have sent and the core holds, or may still send.
    receive_bytes,
    /// Bytes that wait to be sent.
    send_bytes,
    /// Requests that are open.
    requests_open,
    /// Exchanges of claims that peers have begun.
    exchanges,
    /// Exchanges of claims that are remembered because they are not finished.
    exchanges_open,
    /// Timers that are armed.
    timers,
    /// Changes of the graph that are not in the store.
    unwritten,

    // -- what has happened
    /// Requests that were begun.
    requests,
    /// Dials that were begun.
    dials,
    /// Dials that failed.
    dial_failures,
    /// Connections that both sides accepted, ever.
    connections_accepted,
    /// Questions that were asked.
    calls,
    /// Questions that were answered for peers.
    answers,
    /// Relays that were asked to signal.
    signals_sent,
    /// Signals passed on for others.
    signals_relayed,
    /// Addresses punched at for others.
    punches,
    /// Claims that were appended to our chain.
    claims,
    /// Claims of peers and of networks that were signed.
    claims_signed,
    /// Garbage collections of buckets.
    collections,
    /// Buckets that were refreshed.
    refreshes,
    /// Timers that fired.
    timeouts,
    /// Claims that were told to peers.
    claims_served,
    /// Claims of peers that were verified.
    claims_verified,
    /// Signatures of claims that were checked.
    signature_checks,

    // -- what was refused or dropped
    /// Inputs about something that is over or was never there.
    late_inputs,
    /// Times that a dial had to wait because `dial_limit` were under way.
    dials_delayed,
    /// Connections closed because of `connection_limit` or `connections_per_node`.
    connections_refused,
    /// Connections closed because both ends are this node.
    connections_to_self,
    /// Peers that did not send a Hello in time.
    hello_timeouts,
    /// Streams refused because of `streams_per_connection`.
    streams_refused,
    /// Streams of peers that did not bring a whole message in time.
    stream_timeouts,
    /// Streams whose peer broke the protocol.
    stream_faults,
    /// Streams with a message or a protocol that is not supported here.
    unsupported,
    /// Streams ended because the peer did not read what it had asked for.
    send_overflows,
    /// Questions that timed out.
    call_timeouts,
    /// Questions of peers with invalid parameters, answered with an error.
    questions_invalid,
    /// Questions of peers that we did not answer in their time.
    answers_late,
    /// Nodes and addresses told by peers that cannot be used: our own id, no port, not unicast, over a limit.
    told_unusable,
    /// Nodes that came to a full bucket.
    bucket_full,
    /// Nodes that waited for room in vain.
    pending_dropped,
    /// Nodes that left the graph because they did not answer a probe.
    nodes_dead,
    /// Nodes and addresses refused because there are enough of their network.
    diversity_refused,
    /// Signals not passed on.
    signals_refused,
    /// Addresses not punched at.
    punches_refused,
    /// Peers that asked for a signature and did not get it: the policy, a limit, or what they wanted signed.
    signatures_refused,
    /// Claims that another one had overtaken before they were appended; they are made again.
    claims_stale,
    /// Peers that broke the rules of an exchange of claims.
    claim_faults,
    /// Signatures that the holder of our key did not make.
    signing_failures,
    /// Exchanges that we had agreed to and that are forgotten, because their peer has begun so many.
    exchanges_forgotten,
    /// Questions for claims that were refused because of `claims_serve_limit`.
    claims_refused,
    /// Chains of peers that did not end well.
    chain_faults,
    /// Writes that failed; those of the graph are tried again.
    store_failures,
}

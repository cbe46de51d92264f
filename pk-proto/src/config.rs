//! Every duration and every cap of the core, with its default and its range.

use core::time::Duration;

use serde::{Deserialize, Serialize};

use crate::claims::{ClaimPolicy, DigestAlgorithm};

/// The settings of a [`NodeManager`](crate::NodeManager). Start from [`Config::default`]; `NodeManager::new` validates.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Config {
    // -- graph
    /// Nodes per bucket, Kademlia's k. 1 to 255; default 20.
    pub bucket_limit: usize,
    /// Addresses kept per node, the oldest `connected_time` dropped first. 1 to 32; default 5.
    pub address_limit: usize,

    /// Nodes of one /24 (IPv4) or /48 (IPv6) in one bucket, if routed globally; 0 is no limit. Default 2.
    pub bucket_prefix_limit: usize,
    /// The same for the whole graph; 0 is no limit. Default 10.
    pub graph_prefix_limit: usize,
    /// Nodes that wait for room in one full bucket. 1 to 255; default 20.
    pub pending_limit: usize,
    /// Between the beginnings of two garbage collections of one bucket. 0 to 24 h; default 60 s.
    pub collect_interval: Duration,
    /// Whether addresses of the host's own and private networks that a peer tells of are believed.
    pub address_policy: AddressPolicy,
    /// How often a bucket is refreshed (refreshBucketDelayTime); 0 is never. To 30 days; default 1 h.
    pub refresh_delay: Duration,
    /// How much of `refresh_delay` is left to chance, in thousandths (refreshBucketDelayJitter). 0 to 1000; default 500.
    pub refresh_jitter: u32,
    /// How often a node without a connection to the farther half of all ids looks for one (retryConnectionsDelayTime);
    /// 0 is never. To 24 h; default 45 s.
    pub retry_delay: Duration,
    /// How long a change of the graph may wait to be written. 0 to 1 h; default 1 s.
    pub store_delay: Duration,

    // -- searches
    /// Contacts that a search waits for at a time, Kademlia's alpha. 1 to 64; default 3.
    pub find_concurrency: usize,
    /// Connection attempts of one search; failures count, live connections are free. 1 to 1024; default 20.
    pub find_limit: usize,
    /// Candidates that a search remembers, the nearest ones. At least `bucket_limit`, at most 65536; default 256.
    pub find_candidate_limit: usize,
    /// Whether the local network is told of this node and asked for others (mDNS). Default false.
    pub mdns: bool,
    /// How long the local network is asked (nodesConnectionFindLocalTimeoutTime). 1 ms to 1 h; default 1.5 s.
    pub mdns_timeout: Duration,
    /// After this silence a contact of a search no longer holds back the next one; its late answer still counts.
    /// 1 ms to 1 h; default 500 ms.
    pub find_stall_delay: Duration,
    /// Deadline of a request that names none. 1 ms to 24 h; default 60 s.
    pub request_deadline: Duration,
    /// Requests that may be open at a time. 1 to 1,000,000; default 1024.
    pub request_limit: usize,

    // -- connections
    /// From the start of a dial race to an accepted connection (connectionConnectTimeoutTime). 1 ms to 1 h; default 15 s.
    pub connect_timeout: Duration,
    /// Between the starts of two addresses of one race (RFC 8305 section 8). 1 ms to 1 min; default 250 ms.
    pub dial_delay: Duration,
    /// Addresses of one node that one race tries. 1 to 64; default 10.
    pub dial_address_limit: usize,
    /// Dials under way at a time, in all. 1 to 65536; default 256.
    pub dial_limit: usize,
    /// How long an acceptor waits for the peer's Hello. 1 ms to 1 h; default 10 s.
    pub hello_timeout: Duration,
    /// Connections at a time, accepted or not yet. 1 to 1,000,000; default 4096.
    pub connection_limit: usize,
    /// Connections with one node at a time. 1 to 64; default 4.
    pub connections_per_node: usize,
    /// An unused connection closes after this; the primary one later, by distance. 1 s to 24 h; default 60 s.
    pub connection_idle_timeout: Duration,
    /// What the nearest bucket adds to `connection_idle_timeout`, the farthest nothing. 0 to 30 days; default 2 h.
    pub connection_idle_scale: Duration,

    // -- streams
    /// Time for a request of a peer to arrive whole and for our calls to be answered. 1 ms to 1 h; default 15 s.
    pub call_timeout: Duration,
    /// Streams of one connection that the peer may have open. 1 to 4096; default 100.
    pub streams_per_connection: usize,
    /// Bytes of one connection that we may hold unread, over all its streams. 128 KiB to 64 MiB; default 256 KiB.
    pub receive_window: u64,
    /// Bytes of one stream that the transport has not confirmed. 1 KiB to 16 MiB; default 64 KiB.
    pub send_window: u64,
    /// Bytes of one stream that wait for the window to open; more is a fault of the peer that does not read.
    /// 64 KiB to 64 MiB; default 256 KiB.
    pub send_queue_limit: u64,
    /// Faults of a peer on its streams, such as an unfinished message, after which its connection is closed. 1 to
    /// 1,000,000; default 16.
    pub fault_limit: u32,
    /// Application protocols that may be registered. 0 to 4096; default 64.
    pub protocol_limit: usize,

    // -- claims
    /// Who may have claims signed by this node. Default: nobody.
    pub claim_policy: ClaimPolicy,
    /// How the claims of this node digest the one before. BLAKE3 or BLAKE2b-256 (what Polykey 1.x writes); default BLAKE3.
    pub claim_digest: DigestAlgorithm,
    /// How long the embedder has to answer [`ClaimAsked`](crate::Event::ClaimAsked). 1 ms to 1 h; default 30 s.
    pub claim_ask_timeout: Duration,
    /// Before the first of the next attempts of an exchange that another one has overtaken; it doubles with each, half of
    /// it is left to chance. 1 ms to 1 min; default 100 ms.
    pub claim_retry_delay: Duration,
    /// Before an exchange whose claim stands is resumed with a peer that is connected; it doubles to 64 times itself.
    /// 1 s to 24 h; default 15 s.
    pub claim_resume_delay: Duration,
    /// Exchanges that peers have begun, at a time. 1 to 65536; default 256.
    pub exchange_limit: usize,
    /// Exchanges that one peer has begun, at a time, and of those that we have agreed to and that it has not finished, how
    /// many are remembered, the newest ones. 1 to 1024; default 8.
    pub exchanges_per_peer: usize,
    /// Unfinished exchanges that are remembered in all, ours and others'. 1 to 65536; default 1024.
    pub open_exchange_limit: usize,
    /// Nodes on the allow-list. 0 to 1,000,000; default 65536.
    pub allow_list_limit: usize,
    /// Claims of one chain that are taken of a peer in one request. 1 to 10,000,000; default 65,536.
    pub chain_claim_limit: usize,
    /// Bytes of the tokens of one chain that are taken of a peer in one request. 64 KiB to 16 GiB; default 64 MiB.
    pub chain_byte_limit: u64,
    /// Questions of peers for claims that wait for the store at a time. 1 to 4096; default 64.
    pub claims_serve_limit: usize,

    // -- end
    /// `stop` ends by force after this. 0 to 1 min; default 1 s.
    pub stop_timeout: Duration,
}

/// Which addresses told by peers are dialled, punched or passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub enum AddressPolicy {
    /// Loopback, private and link-local ones only if we listen in the same class, or see the peer that tells them there.
    #[default]
    SameClass,
    /// All.
    Any,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            bucket_limit: 20,
            address_limit: 5,
            bucket_prefix_limit: 2,
            graph_prefix_limit: 10,
            pending_limit: 20,
            collect_interval: Duration::from_secs(60),
            address_policy: AddressPolicy::SameClass,
            refresh_delay: Duration::from_secs(60 * 60),
            refresh_jitter: 500,
            retry_delay: Duration::from_secs(45),
            store_delay: Duration::from_secs(1),
            find_concurrency: 3,
            find_limit: 20,
            find_candidate_limit: 256,
            mdns: false,
            mdns_timeout: Duration::from_millis(1500),
            find_stall_delay: Duration::from_millis(500),
            request_deadline: Duration::from_secs(60),
            request_limit: 1024,
            connect_timeout: Duration::from_secs(15),
            dial_delay: Duration::from_millis(250),
            dial_address_limit: 10,
            dial_limit: 256,
            hello_timeout: Duration::from_secs(10),
            connection_limit: 4096,
            connections_per_node: 4,
            connection_idle_timeout: Duration::from_secs(60),
            connection_idle_scale: Duration::from_secs(2 * 60 * 60),
            call_timeout: Duration::from_secs(15),
            streams_per_connection: 100,
            receive_window: 256 * 1024,
            send_window: 64 * 1024,
            send_queue_limit: 256 * 1024,
            fault_limit: 16,
            protocol_limit: 64,
            claim_policy: ClaimPolicy::Refuse,
            claim_digest: DigestAlgorithm::Blake3,
            claim_ask_timeout: Duration::from_secs(30),
            claim_retry_delay: Duration::from_millis(100),
            claim_resume_delay: Duration::from_secs(15),
            exchange_limit: 256,
            exchanges_per_peer: 8,
            open_exchange_limit: 1024,
            allow_list_limit: 65_536,
            chain_claim_limit: 65_536,
            chain_byte_limit: 64 * 1024 * 1024,
            claims_serve_limit: 64,
            stop_timeout: Duration::from_secs(1),
        }
    }
}

impl Config {
    /// Checks every value against its range; the error names the first that is outside.
    pub fn validate(&self) -> Result<(), ConfigError> {
        const MS: Duration = Duration::from_millis(1);
        const SECOND: Duration = Duration::from_secs(1);
        const MINUTE: Duration = Duration::from_secs(60);
        const HOUR: Duration = Duration::from_secs(3600);
        const DAY: Duration = Duration::from_secs(86_400);

        let count = |name, value: usize, min: usize, max: usize| match (min..=max).contains(&value) {
            true => Ok(()),
            false => Err(ConfigError::Count { name, value: value as u64, min: min as u64, max: max as u64 }),
        };
        let bytes = |name, value: u64, min: u64, max: u64| match (min..=max).contains(&value) {
            true => Ok(()),
            false => Err(ConfigError::Count { name, value, min, max }),
        };
        let time = |name, value: Duration, min: Duration, max: Duration| match (min..=max).contains(&value) {
            true => Ok(()),
            false => Err(ConfigError::Time { name, value, min, max }),
        };

        count("bucket_limit", self.bucket_limit, 1, 255)?;
        count("address_limit", self.address_limit, 1, 32)?;
        count("pending_limit", self.pending_limit, 1, 255)?;
        time("collect_interval", self.collect_interval, Duration::ZERO, DAY)?;
        time("refresh_delay", self.refresh_delay, Duration::ZERO, 30 * DAY)?;
        count("refresh_jitter", self.refresh_jitter as usize, 0, 1000)?;
        time("retry_delay", self.retry_delay, Duration::ZERO, DAY)?;
        time("store_delay", self.store_delay, Duration::ZERO, HOUR)?;
        count("find_concurrency", self.find_concurrency, 1, 64)?;
        count("find_limit", self.find_limit, 1, 1024)?;
        count("find_candidate_limit", self.find_candidate_limit, self.bucket_limit, 65_536)?;
        time("mdns_timeout", self.mdns_timeout, MS, HOUR)?;
        time("find_stall_delay", self.find_stall_delay, MS, HOUR)?;
        time("request_deadline", self.request_deadline, MS, DAY)?;
        count("request_limit", self.request_limit, 1, 1_000_000)?;
        time("connect_timeout", self.connect_timeout, MS, HOUR)?;
        time("dial_delay", self.dial_delay, MS, MINUTE)?;
        count("dial_address_limit", self.dial_address_limit, 1, 64)?;
        count("dial_limit", self.dial_limit, 1, 65_536)?;
        time("hello_timeout", self.hello_timeout, MS, HOUR)?;
        count("connection_limit", self.connection_limit, 1, 1_000_000)?;
        count("connections_per_node", self.connections_per_node, 1, 64)?;
        time("connection_idle_timeout", self.connection_idle_timeout, SECOND, DAY)?;
        time("connection_idle_scale", self.connection_idle_scale, Duration::ZERO, 30 * DAY)?;
        time("call_timeout", self.call_timeout, MS, HOUR)?;
        count("streams_per_connection", self.streams_per_connection, 1, 4096)?;
        bytes("receive_window", self.receive_window, 128 * 1024, 64 * 1024 * 1024)?;
        bytes("send_window", self.send_window, 1024, 16 * 1024 * 1024)?;
        bytes("send_queue_limit", self.send_queue_limit, 64 * 1024, 64 * 1024 * 1024)?;
        count("fault_limit", self.fault_limit as usize, 1, 1_000_000)?;
        count("protocol_limit", self.protocol_limit, 0, 4096)?;
        if !matches!(self.claim_digest, DigestAlgorithm::Blake3 | DigestAlgorithm::Blake2b256) {
            return Err(ConfigError::Digest(self.claim_digest));
        }
        time("claim_ask_timeout", self.claim_ask_timeout, MS, HOUR)?;
        time("claim_retry_delay", self.claim_retry_delay, MS, MINUTE)?;
        time("claim_resume_delay", self.claim_resume_delay, SECOND, DAY)?;
        count("exchange_limit", self.exchange_limit, 1, 65_536)?;
        count("exchanges_per_peer", self.exchanges_per_peer, 1, 1024)?;
        count("open_exchange_limit", self.open_exchange_limit, 1, 65_536)?;
        count("allow_list_limit", self.allow_list_limit, 0, 1_000_000)?;
        count("chain_claim_limit", self.chain_claim_limit, 1, 10_000_000)?;
        bytes("chain_byte_limit", self.chain_byte_limit, 64 * 1024, 16 * 1024 * 1024 * 1024)?;
        count("claims_serve_limit", self.claims_serve_limit, 1, 4096)?;
        time("stop_timeout", self.stop_timeout, Duration::ZERO, MINUTE)
    }
}

/// A setting outside its range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A count or a number of bytes.
    #[error("{name} is {value}; it must be {min} to {max}")]
    Count {
        /// The field of [`Config`].
        name: &'static str,
        /// What it was set to.
        value: u64,
        /// Its least value.
        min: u64,
        /// Its greatest value.
        max: u64,
    },
    /// `claim_digest` is one that is only verified.
    #[error("claim_digest is {0:?}; it must be Blake3 or Blake2b256")]
    Digest(DigestAlgorithm),
    /// A duration.
    #[error("{name} is {value:?}; it must be {min:?} to {max:?}")]
    Time {
        /// The field of [`Config`].
        name: &'static str,
        /// What it was set to.
        value: Duration,
        /// Its least value.
        min: Duration,
        /// Its greatest value.
        max: Duration,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid_and_a_bad_value_is_named() {
        assert_eq!(Config::default().validate(), Ok(()));
        let mut config = Config { find_concurrency: 0, ..Config::default() };
        let error = config.validate().unwrap_err();
        assert_eq!(alloc::format!("{error}"), "find_concurrency is 0; it must be 1 to 64");
        config = Config { connect_timeout: Duration::ZERO, ..Config::default() };
        let error = config.validate().unwrap_err();
        assert_eq!(alloc::format!("{error}"), "connect_timeout is 0ns; it must be 1ms to 3600s");
    }
}

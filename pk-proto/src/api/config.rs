//! Settings of the core, with their defaults and ranges.

use core::time::Duration;

use serde::{Deserialize, Serialize};

use super::relay_config::RelayConfig;
use super::search_config::SearchConfig;
use super::upkeep_config::UpkeepConfig;
use crate::claims::{ClaimPolicy, DigestAlgorithm};
use crate::types::network_id::NetworkId;

/// Settings of a [`NodeManager`](crate::NodeManager). Start from [`Config::default`];
/// `NodeManager::new` validates them.
///
/// Times have a resolution of one microsecond. A positive `collect_interval`, `refresh_delay`,
/// `retry_delay` or `store_delay` below 1 ms counts as 1 ms.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Config {
    // -- graph
    /// Contacts per bucket (Kademlia's k). Default 20, range 1–255.
    pub bucket_limit: usize,
    /// Addresses per contact; the one with the oldest `connected_time` is dropped first. Default 5,
    /// range 1–32.
    pub address_limit: usize,

    /// Contacts of one /24 (IPv4) or /48 (IPv6) in one bucket, if globally routable. Default 2,
    /// range 0–`usize::MAX`; 0 disables the limit.
    pub bucket_prefix_limit: usize,
    /// The same for the whole graph. Default 10, any value; 0 disables the limit.
    pub graph_prefix_limit: usize,
    /// Pending nodes of one full bucket. Default 20, range 1–255.
    pub pending_limit: usize,
    /// Shortest interval between the starts of two garbage collection rounds of one bucket, and
    /// between two probes of its contacts for nodes that wait for room. Default 60 s, range 0–24 h.
    pub collect_interval: Duration,
    /// Contacts of one bucket that a garbage collection round probes concurrently. Default 3, range
    /// 1–64.
    pub collect_concurrency: usize,
    /// Delay until the next relay of one race is asked to signal, if the last one is silent.
    /// Default 500 ms, range 1 ms–1 h.
    pub signal_delay: Duration,
    /// Whether loopback, link-local and private addresses reported by peers are accepted. Default
    /// `SameClass`.
    pub address_policy: AddressPolicy,
    /// Interval of refreshes of a bucket (refreshBucketDelayTime). Default 1 h, range 0–30 days; 0
    /// disables.
    pub refresh_delay: Duration,
    /// Random part of `refresh_delay` (refreshBucketDelayJitter), in thousandths. Default 500,
    /// range 0–1000.
    pub refresh_jitter: u32,
    /// Interval at which a node without a connection to the farther half of all ids dials contacts
    /// there (retryConnectionsDelayTime). With a positive value it also keeps one such connection
    /// open, checks its contacts, and removes those that do not respond. Default 45 s, range 0–24
    /// h; 0 disables.
    pub retry_delay: Duration,
    /// How the node keeps its graph correct in the background.
    pub upkeep: UpkeepConfig,
    /// Relaying for other nodes, and by them.
    pub relay: RelayConfig,
    /// Maximum delay until a change of the graph is written. Default 1 s, range 0–1 h.
    pub store_delay: Duration,

    // -- searches
    /// Contacts in progress of one search that were dialed, silent ones included, if its request
    /// does not set a limit; the search chooses fewer as long as contacts answer (`search`). If it
    /// is reached, silent ones end so that others start. Default 64, range 1–256.
    pub find_concurrency: usize,
    /// Connection attempts of one search, including failed ones, if its request does not set a
    /// limit; live connections do not count. A healthy network needs 30, one in which 70 % of the
    /// contacts are dead 160. Default 256, range 1–1024.
    pub find_limit: usize,
    /// Candidates of a search, in addition to those being contacted; the nearest ones are kept.
    /// Default 256, range `bucket_limit`–65,536.
    pub find_candidate_limit: usize,
    /// Whether mDNS advertises this node and discovers others. Default `false`.
    pub mdns: bool,
    /// Duration of an mDNS query (nodesConnectionFindLocalTimeoutTime). Default 1.5 s, range 1 ms–1
    /// h.
    pub mdns_timeout: Duration,
    /// How a search chooses its contacts.
    pub search: SearchConfig,
    /// Deadline of a request without its own. Default 60 s, range 1 ms–24 h.
    pub request_deadline: Duration,
    /// Open requests. Default 1024, range 1–1,000,000.
    pub request_limit: usize,

    // -- connections
    /// Network that this node belongs to: nodes of another one are refused, and leave the graph
    /// (docs/DESIGN.md, Network isolation). Default `None`: a node without a network accepts every
    /// node that accepts it.
    pub network: Option<NetworkId>,
    /// Whether nodes that name no network are refused, too: those without one, and those whose
    /// version does not know networks, such as Polykey 1.15.1. Default `false`; `true` requires
    /// `network`.
    pub network_required: bool,
    /// Time from the start of a dial race to an accepted connection (connectionConnectTimeoutTime).
    /// Default 15 s, range 1 ms–1 h.
    pub connect_timeout: Duration,
    /// Delay between the starts of two addresses of one race (RFC 8305 section 8). Default 250 ms,
    /// range 1 ms–1 min.
    pub dial_delay: Duration,
    /// Addresses of one node that one race tries. Default 10, range 1–64.
    pub dial_address_limit: usize,
    /// Dials in progress. Default 256, range 1–65,536.
    pub dial_limit: usize,
    /// Time that an acceptor waits for the peer's Hello. Default 10 s, range 1 ms–1 h.
    pub hello_timeout: Duration,
    /// Connections, accepted or not yet. Default 4096, range 1–1,000,000.
    pub connection_limit: usize,
    /// Share of `connection_limit` that is reserved for dials, in percent, rounded up; incoming
    /// connections have at least one place. Default 10, range 0–90.
    pub dial_share: u32,
    /// Share of one network (a /24 of IPv4 or a /48 of IPv6) in each table that peers can fill
    /// (incoming connections, exchanges, reads of claims, signals), in percent, rounded up. When a
    /// network has its full share, only its own nodes are refused, or its own unused connections
    /// are evicted. Where no other limit applies, one node may use half of the share of its
    /// network. Loopback and private networks count as well: a quarter of `connection_limit` has
    /// room for 1,024 nodes of one LAN. Default 25, range 1–100; 100 disables the limit.
    pub network_share: u32,
    /// Connections with one node, under any of its ids. A further one from the node takes the place
    /// of an incoming one that is suspected or unused, and is refused if there is none. Default 4,
    /// range 1–64.
    pub connections_per_node: usize,
    /// Time after which an unused connection closes; the primary one closes later, depending on
    /// distance. Default 60 s, range 1 s–24 h.
    pub connection_idle_timeout: Duration,
    /// Time that is added to `connection_idle_timeout` for the nearest bucket; nothing is added for
    /// the farthest. Default 2 h, range 0–30 days.
    pub connection_idle_scale: Duration,

    // -- streams
    /// Time for a request of a peer to arrive completely, and for a call to be answered. Default 15
    /// s, range 1 ms–1 h.
    pub call_timeout: Duration,
    /// Open streams of the peer on one connection, one of which is for the Hello. A stream that was
    /// handed over to an application counts no longer. Default 100, range 2–4096.
    pub streams_per_connection: usize,
    /// Streams of the peer on one connection that were handed over to applications; further ones
    /// are refused. Default 512, range 0–65,536.
    pub application_streams: usize,
    /// Unread bytes of one connection, over all its streams. Default 256 KiB, range 128 KiB–64 MiB.
    pub receive_window: u64,
    /// Unconfirmed bytes of one stream. Default 64 KiB, range 1 KiB–16 MiB.
    pub send_window: u64,
    /// Bytes of one stream that wait for the window to open; a peer that exceeds it does not read,
    /// which is a fault. Default 256 KiB, range 64 KiB–64 MiB.
    pub send_queue_limit: u64,
    /// Faults of a peer on its streams, such as an incomplete message, after which its connection
    /// is closed. An unknown message counts as an eighth of a fault, a refused request as a
    /// sixteenth. Default 16, range 1–1,000,000.
    pub fault_limit: u32,
    /// Time after which one fault of a connection is forgiven. Default 60 s, range 0–24 h; 0
    /// disables forgiving.
    pub fault_decay: Duration,
    /// Accepted application protocols. Default 64, range 0–4096.
    pub protocol_limit: usize,

    // -- claims
    /// Policy for claims that peers ask this node to sign. Default `Refuse`.
    pub claim_policy: ClaimPolicy,
    /// Digest algorithm of the predecessor in claims of this node: BLAKE3, or BLAKE2b-256 as
    /// Polykey 1.x. Default BLAKE3.
    pub claim_digest: DigestAlgorithm,
    /// Time limit for the embedder to answer
    /// [`ClaimApprovalRequested`](crate::Event::ClaimApprovalRequested). Default 30 s, range 1 ms–1
    /// h.
    pub claim_approval_timeout: Duration,
    /// Time that a claim of a peer waits for its turn before it is answered in any case; a turn
    /// takes at most a quarter of it. Default 10 s, range 1 ms–1 min.
    pub claim_wait_timeout: Duration,
    /// Initial backoff before retrying an exchange whose draft became stale; doubles per attempt,
    /// half of it random. Default 100 ms, range 1 ms–1 min.
    pub claim_retry_delay: Duration,
    /// Initial backoff before resuming an exchange whose claim is committed, with a connected peer;
    /// doubles up to 64 times this value. Default 15 s, range 1 s–24 h.
    pub claim_resume_delay: Duration,
    /// Exchanges that peers have started, and claims about networks that they request, in progress.
    /// One network may use `network_share` of them. Default 256, range 1–65,536.
    pub exchange_limit: usize,
    /// The same for one node, on all of its connections and under any of its ids. Also the limit of
    /// its accepted, unfinished exchanges that are stored (the oldest is dropped first), and of
    /// approvals requested for its claims per `claim_approval_timeout` if its connection ends
    /// before the answer. Default 8, range 1–1024.
    pub exchanges_per_peer: usize,
    /// Unfinished exchanges that are stored, local and incoming. Default 1024, range 1–65,536.
    pub open_exchange_limit: usize,
    /// Nodes on the allow-list. Default 65,536, range 0–1,000,000.
    pub allow_list_limit: usize,
    /// Claims accepted from a peer in one request for a chain. Default 65,536, range 1–10,000,000.
    pub chain_claim_limit: usize,
    /// Bytes of tokens accepted from a peer in one request for a chain. Default 64 MiB, range 64
    /// KiB–16 GiB.
    pub chain_byte_limit: u64,
    /// Requests of peers for claims that wait for the store. Default 64, range 1–4096.
    pub claims_serve_limit: usize,

    // -- stop
    /// Time after which `stop` ends by force. Default 1 s, range 0–1 min.
    pub stop_timeout: Duration,
}

/// Which addresses reported by peers are dialed, punched or forwarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub enum AddressPolicy {
    /// Loopback, private and link-local ones only if we listen on, or the reporting peer is
    /// connected from, an address of the same class.
    #[default]
    SameClass,
    /// All unicast addresses.
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
            collect_concurrency: 3,
            signal_delay: Duration::from_millis(500),
            address_policy: AddressPolicy::SameClass,
            refresh_delay: Duration::from_secs(60 * 60),
            refresh_jitter: 500,
            retry_delay: Duration::from_secs(45),
            upkeep: UpkeepConfig::default(),
            relay: RelayConfig::default(),
            store_delay: Duration::from_secs(1),
            find_concurrency: 64,
            find_limit: 256,
            find_candidate_limit: 256,
            mdns: false,
            mdns_timeout: Duration::from_millis(1500),
            search: SearchConfig::default(),
            request_deadline: Duration::from_secs(60),
            request_limit: 1024,
            network: None,
            network_required: false,
            connect_timeout: Duration::from_secs(15),
            dial_delay: Duration::from_millis(250),
            dial_address_limit: 10,
            dial_limit: 256,
            hello_timeout: Duration::from_secs(10),
            connection_limit: 4096,
            dial_share: 10,
            network_share: 25,
            connections_per_node: 4,
            connection_idle_timeout: Duration::from_secs(60),
            connection_idle_scale: Duration::from_secs(2 * 60 * 60),
            call_timeout: Duration::from_secs(15),
            streams_per_connection: 100,
            application_streams: 512,
            receive_window: 256 * 1024,
            send_window: 64 * 1024,
            send_queue_limit: 256 * 1024,
            fault_limit: 16,
            fault_decay: Duration::from_secs(60),
            protocol_limit: 64,
            claim_policy: ClaimPolicy::Refuse,
            claim_digest: DigestAlgorithm::Blake3,
            claim_approval_timeout: Duration::from_secs(30),
            claim_wait_timeout: Duration::from_secs(10),
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
    /// Returns the settings as a machine uses them.
    pub(crate) fn effective(mut self) -> Self {
        let delays = [
            &mut self.collect_interval,
            &mut self.refresh_delay,
            &mut self.retry_delay,
            &mut self.store_delay,
        ];
        for delay in delays.into_iter().filter(|delay| !delay.is_zero()) {
            *delay = (*delay).max(Duration::from_millis(1));
        }
        self
    }

    /// Checks every value against its range, and values that depend on each other. The error names
    /// the first that is invalid.
    pub fn validate(&self) -> Result<(), ConfigError> {
        const MS: Duration = Duration::from_millis(1);
        const SECOND: Duration = Duration::from_secs(1);
        const MINUTE: Duration = Duration::from_secs(60);
        const HOUR: Duration = Duration::from_secs(3600);
        const DAY: Duration = Duration::from_secs(86_400);

        let count = |name, value: usize, min: usize, max: usize| match (min..=max).contains(&value)
        {
            true => Ok(()),
            false => Err(ConfigError::Count {
                name,
                value: value as u64,
                min: min as u64,
                max: max as u64,
            }),
        };
        let bytes = |name, value: u64, min: u64, max: u64| match (min..=max).contains(&value) {
            true => Ok(()),
            false => Err(ConfigError::Count { name, value, min, max }),
        };
        let time = |name, value: Duration, min: Duration, max: Duration| match (min..=max)
            .contains(&value)
        {
            true => Ok(()),
            false => Err(ConfigError::Time { name, value, min, max }),
        };

        count("bucket_limit", self.bucket_limit, 1, 255)?;
        count("address_limit", self.address_limit, 1, 32)?;
        count("pending_limit", self.pending_limit, 1, 255)?;
        time("collect_interval", self.collect_interval, Duration::ZERO, DAY)?;
        count("collect_concurrency", self.collect_concurrency, 1, 64)?;
        time("signal_delay", self.signal_delay, MS, HOUR)?;
        time("refresh_delay", self.refresh_delay, Duration::ZERO, 30 * DAY)?;
        count("refresh_jitter", self.refresh_jitter as usize, 0, 1000)?;
        time("retry_delay", self.retry_delay, Duration::ZERO, DAY)?;
        for (name, value, min, max) in self.upkeep.times() {
            time(name, value, min, max)?;
        }
        for (name, value, min, max) in self.upkeep.counts() {
            count(name, value, min, max)?;
        }
        for (name, value, min, max) in self.relay.times() {
            time(name, value, min, max)?;
        }
        for (name, value, min, max) in self.relay.counts() {
            count(name, value, min, max)?;
        }
        for (name, value, min, max) in self.relay.sizes() {
            bytes(name, value, min, max)?;
        }
        time("store_delay", self.store_delay, Duration::ZERO, HOUR)?;
        count("find_concurrency", self.find_concurrency, 1, 256)?;
        count("find_limit", self.find_limit, 1, 1024)?;
        count("find_candidate_limit", self.find_candidate_limit, 1, 65_536)?;
        if self.find_candidate_limit < self.bucket_limit {
            return Err(ConfigError::Conflict {
                name: "find_candidate_limit",
                value: self.find_candidate_limit as u64,
                other: "bucket_limit",
                least: self.bucket_limit as u64,
            });
        }
        time("mdns_timeout", self.mdns_timeout, MS, HOUR)?;
        time("search.round_trip", self.search.round_trip, MS, MINUTE)?;
        for (name, value, min, max) in self.search.counts() {
            count(name, value as usize, min as usize, max as usize)?;
        }
        time("request_deadline", self.request_deadline, MS, DAY)?;
        count("request_limit", self.request_limit, 1, 1_000_000)?;
        if self.network_required && self.network.is_none() {
            return Err(ConfigError::NoNetwork);
        }
        time("connect_timeout", self.connect_timeout, MS, HOUR)?;
        time("dial_delay", self.dial_delay, MS, MINUTE)?;
        count("dial_address_limit", self.dial_address_limit, 1, 64)?;
        count("dial_limit", self.dial_limit, 1, 65_536)?;
        time("hello_timeout", self.hello_timeout, MS, HOUR)?;
        count("connection_limit", self.connection_limit, 1, 1_000_000)?;
        count("dial_share", self.dial_share as usize, 0, 90)?;
        count("network_share", self.network_share as usize, 1, 100)?;
        count("connections_per_node", self.connections_per_node, 1, 64)?;
        time("connection_idle_timeout", self.connection_idle_timeout, SECOND, DAY)?;
        time("connection_idle_scale", self.connection_idle_scale, Duration::ZERO, 30 * DAY)?;
        time("call_timeout", self.call_timeout, MS, HOUR)?;
        count("streams_per_connection", self.streams_per_connection, 2, 4096)?;
        count("application_streams", self.application_streams, 0, 65_536)?;
        bytes("receive_window", self.receive_window, 128 * 1024, 64 * 1024 * 1024)?;
        bytes("send_window", self.send_window, 1024, 16 * 1024 * 1024)?;
        bytes("send_queue_limit", self.send_queue_limit, 64 * 1024, 64 * 1024 * 1024)?;
        count("fault_limit", self.fault_limit as usize, 1, 1_000_000)?;
        time("fault_decay", self.fault_decay, Duration::ZERO, DAY)?;
        count("protocol_limit", self.protocol_limit, 0, 4096)?;
        if !matches!(self.claim_digest, DigestAlgorithm::Blake3 | DigestAlgorithm::Blake2b256) {
            return Err(ConfigError::Digest(self.claim_digest));
        }
        time("claim_approval_timeout", self.claim_approval_timeout, MS, HOUR)?;
        time("claim_wait_timeout", self.claim_wait_timeout, MS, MINUTE)?;
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
    /// A count or a size in bytes.
    #[error("{name} is {value}; it must be {min} to {max}")]
    Count {
        /// Field of [`Config`].
        name: &'static str,
        /// Value of the setting.
        value: u64,
        /// Smallest valid value.
        min: u64,
        /// Largest valid value.
        max: u64,
    },
    /// Two settings contradict each other.
    #[error("{name} is {value}; it must be at least {other}, which is {least}")]
    Conflict {
        /// Field of [`Config`] that is too small.
        name: &'static str,
        /// Value of the setting.
        value: u64,
        /// Field that it must not be less than.
        other: &'static str,
        /// Value of that field.
        least: u64,
    },
    /// `claim_digest` is an algorithm that is only supported for verification.
    #[error("claim_digest is {0:?}; it must be Blake3 or Blake2b256")]
    Digest(DigestAlgorithm),
    /// `network_required` without a `network`.
    #[error("network_required is true, but network is not set")]
    NoNetwork,
    /// A duration.
    #[error("{name} is {value:?}; it must be {min:?} to {max:?}")]
    Time {
        /// Field of [`Config`].
        name: &'static str,
        /// Value of the setting.
        value: Duration,
        /// Smallest valid value.
        min: Duration,
        /// Largest valid value.
        max: Duration,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_valid_and_a_bad_value_is_named() {
        assert_eq!(Config::default().validate(), Ok(()));
        let mut config = Config { find_concurrency: 0, ..Config::default() };
        let error = config.validate().unwrap_err();
        assert_eq!(alloc::format!("{error}"), "find_concurrency is 0; it must be 1 to 256");
        config = Config { connect_timeout: Duration::ZERO, ..Config::default() };
        let error = config.validate().unwrap_err();
        assert_eq!(alloc::format!("{error}"), "connect_timeout is 0ns; it must be 1ms to 3600s");
        config = Config { find_candidate_limit: 19, ..Config::default() };
        let error = config.validate().unwrap_err();
        assert_eq!(
            alloc::format!("{error}"),
            "find_candidate_limit is 19; it must be at least bucket_limit, which is 20"
        );
        config = Config { network_required: true, ..Config::default() };
        assert_eq!(config.validate(), Err(ConfigError::NoNetwork));
        config.network = "mainnet".parse().ok();
        assert_eq!(config.validate(), Ok(()));
    }

    #[test]
    fn delays_that_repeat_are_off_or_a_millisecond() {
        let tiny = Duration::from_nanos(1);
        let config = Config {
            retry_delay: tiny,
            refresh_delay: Duration::ZERO,
            store_delay: tiny,
            ..Config::default()
        };
        assert_eq!(config.validate(), Ok(()));
        let config = config.effective();
        assert_eq!(
            (config.retry_delay, config.store_delay),
            (Duration::from_millis(1), Duration::from_millis(1))
        );
        assert_eq!(config.refresh_delay, Duration::ZERO);
        assert_eq!(Config::default().effective(), Config::default());
    }
}

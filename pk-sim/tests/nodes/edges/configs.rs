//! Every config that `validate` accepts works: small networks join, find, claim and stop with
//! settings at their limits.

use std::time::Duration;

use pk_proto::claims::ClaimPolicy;
use pk_proto::{Config, FindEnd, FindNodeOptions, Reply, Request, RequestOptions};
use pk_sim::{Cluster, Link};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use crate::common::SECOND;

const MS: Duration = Duration::from_millis(1);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);

/// Settings of which each has its minimum, its maximum or its default, without times and limits
/// that no network can work with.
struct Draw(ChaCha8Rng);

impl Draw {
    fn of<T: Copy>(&mut self, value: &mut T, least: T, greatest: T) {
        match self.0.next_u64() % 3 {
            0 => *value = least,
            1 => *value = greatest,
            _ => {}
        }
    }

    fn config(&mut self) -> Config {
        let mut config = Config::default();
        let c = &mut config;
        self.of(&mut c.bucket_limit, 1, 255);
        self.of(&mut c.address_limit, 1, 32);
        self.of(&mut c.bucket_prefix_limit, 0, 255);
        self.of(&mut c.graph_prefix_limit, 0, 1000);
        self.of(&mut c.pending_limit, 1, 255);
        self.of(&mut c.collect_interval, Duration::ZERO, DAY);
        self.of(&mut c.refresh_delay, 10 * SECOND, 30 * DAY);
        self.of(&mut c.refresh_jitter, 0, 1000);
        self.of(&mut c.retry_delay, 10 * SECOND, DAY);
        self.of(&mut c.store_delay, Duration::ZERO, HOUR);
        self.of(&mut c.find_concurrency, 1, 256);
        self.of(&mut c.find_limit, 4, 1024);
        self.of(&mut c.find_candidate_limit, 1, 65_536);
        self.of(&mut c.mdns, false, true);
        self.of(&mut c.mdns_timeout, MS, HOUR);
        self.of(&mut c.collect_concurrency, 1, 64);
        self.of(&mut c.signal_delay, MS, HOUR);
        self.of(&mut c.search.round_trip, MS, 60 * SECOND);
        self.of(&mut c.search.near, 1, 64);
        self.of(&mut c.search.narrow, 1, 64);
        self.of(&mut c.search.near_dialed, 0, 64);
        self.of(&mut c.search.narrow_dialed, 0, 64);
        self.of(&mut c.search.warm, 0, 64);
        self.of(&mut c.search.near_silent, 0, 16);
        self.of(&mut c.search.hedge, 100, 1000);
        self.of(&mut c.search.hedge_silent, 0, 1000);
        self.of(&mut c.search.stall, 100, 2000);
        self.of(&mut c.search.wide_after, 1, 64);
        self.of(&mut c.search.per_silent, 0, 16);
        self.of(&mut c.search.edge, 0, 16);
        self.of(&mut c.search.plausible, 0, 1000);
        self.of(&mut c.search.doubt_find, 0, 100);
        self.of(&mut c.search.doubt_sparse, 0, 100);
        self.of(&mut c.search.sparse, 100, 1000);
        self.of(&mut c.search.doubt_pace, 1, 64);
        self.of(&mut c.search.doubt_limit, 0, 1000);
        self.of(&mut c.request_deadline, 10 * SECOND, DAY);
        self.of(&mut c.request_limit, 1, 1_000_000);
        self.of(&mut c.connect_timeout, 10 * SECOND, HOUR);
        self.of(&mut c.dial_delay, MS, 60 * SECOND);
        self.of(&mut c.dial_address_limit, 1, 64);
        self.of(&mut c.dial_limit, 1, 65_536);
        self.of(&mut c.hello_timeout, SECOND, HOUR);
        self.of(&mut c.connection_limit, 8, 1_000_000);
        if c.connection_limit > 8 {
            self.of(&mut c.dial_share, 0, 90);
            self.of(&mut c.network_share, 1, 100);
        }
        self.of(&mut c.connections_per_node, 1, 64);
        self.of(&mut c.connection_idle_timeout, SECOND, DAY);
        self.of(&mut c.connection_idle_scale, Duration::ZERO, 30 * DAY);
        self.of(&mut c.call_timeout, SECOND, HOUR);
        self.of(&mut c.streams_per_connection, 2, 4096);
        self.of(&mut c.application_streams, 0, 65_536);
        self.of(&mut c.receive_window, 128 * 1024, 64 << 20);
        self.of(&mut c.send_window, 1024, 16 << 20);
        self.of(&mut c.send_queue_limit, 64 * 1024, 64 << 20);
        self.of(&mut c.fault_limit, 1, 1_000_000);
        self.of(&mut c.fault_decay, Duration::ZERO, DAY);
        self.of(&mut c.protocol_limit, 0, 4096);
        self.of(&mut c.claim_approval_timeout, MS, HOUR);
        self.of(&mut c.claim_wait_timeout, MS, 60 * SECOND);
        self.of(&mut c.claim_retry_delay, MS, 60 * SECOND);
        self.of(&mut c.claim_resume_delay, SECOND, DAY);
        self.of(&mut c.exchange_limit, 1, 65_536);
        self.of(&mut c.exchanges_per_peer, 1, 1024);
        self.of(&mut c.open_exchange_limit, 1, 65_536);
        self.of(&mut c.allow_list_limit, 0, 1_000_000);
        self.of(&mut c.chain_claim_limit, 1, 10_000_000);
        self.of(&mut c.chain_byte_limit, 64 * 1024, 16 << 30);
        self.of(&mut c.claims_serve_limit, 1, 4096);
        self.of(&mut c.stop_timeout, Duration::ZERO, 60 * SECOND);
        config.claim_policy = ClaimPolicy::All;
        config
    }
}

#[test]
fn nodes_work_with_every_valid_config() {
    let (mut valid, mut seed) = (0, 0);
    while valid < 150 {
        seed += 1;
        let config = Draw(ChaCha8Rng::seed_from_u64(seed)).config();
        if config.validate().is_err() {
            continue;
        }
        valid += 1;
        run_network(seed, &config);
    }
    assert!(seed > valid, "what contradicts itself is refused");
}

/// A short run of four nodes. The first is the seed of the others.
fn run_network(seed: u64, settings: &Config) {
    let about = || format!("seed {seed}: {settings:?}");
    let set = |config: &mut Config| config.clone_from(settings);
    let mut cluster = Cluster::quiet().nodes(4).seed(seed).link(Link::ms(1)).config(set).start();
    for node in 1..4 {
        let seeds = vec![cluster.seed_node(0)];
        let join =
            Request::SyncNodeGraph { seeds, blocking: true, options: RequestOptions::default() };
        let joined = cluster.ask(node, join);
        assert!(matches!(joined, Ok(Reply::SyncNodeGraph(_))), "{joined:?} {}", about());
    }
    let target = cluster.id(3);
    let found = cluster.ask(1, Request::FindNode { target, find: FindNodeOptions::default() });
    let Ok(Reply::FindNode(outcome)) = &found else { panic!("{found:?} {}", about()) };
    assert_eq!(outcome.ended, FindEnd::Connected, "{outcome:?} {}", about());
    let claimed = cluster.ask(1, Request::ClaimNode { target, options: RequestOptions::default() });
    assert!(matches!(claimed, Ok(Reply::ClaimNode(_))), "{claimed:?} {}", about());
    let flushed = cluster.ask(1, Request::Flush { options: RequestOptions::default() });
    assert_eq!(flushed, Ok(Reply::Flush), "{}", about());
    cluster.stop_all();
}

//! Real nodes under random faults: requests, kills, partitions, loss, NATs, failing stores,
//! renewals. The checkers detect violations; the test asserts that they have run, and that the
//! network recovers.

use std::time::Duration;

use bytes::Bytes;
use pk_proto::{
    ClosestNodesQuery, ContactMode, FindNodeOptions, NodeContactAddressData, NodeId, Reply,
    Request, RequestId, RequestOptions, Scopes, SetNodeOptions,
};
use pk_sim::{App, AppAction, Cluster, Coverage, Dependence, HostId, Link, NatConfig};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

const NODES: usize = 7;

struct Chaos {
    cluster: Cluster,
    rng: ChaCha8Rng,
    open: Vec<(HostId, RequestId)>,
    renewals: u64,
}

impl Chaos {
    fn new(seed: u64) -> Self {
        let link = Link::ms(20).jitter(Duration::from_millis(30)).loss(50);
        let builder = Cluster::quiet().nodes(NODES).seed(seed).link(link);
        let tight = seed % 2 == 1;
        let mut cluster = builder
            .config(|config| {
                config.bucket_limit = 3;
                // Every other pair of seeds has background work: refreshes, retries, delayed
                // writes.
                if seed % 4 >= 2 {
                    config.refresh_delay = Duration::from_secs(60);
                    config.retry_delay = Duration::from_secs(20);
                    config.store_delay = Duration::from_millis(300);
                    config.mdns = true;
                }
                if tight {
                    config.request_limit = 5;
                    config.connection_limit = 8;
                    config.connections_per_node = 2;
                    config.streams_per_connection = 2;
                    config.dial_limit = 3;
                    config.send_window = 1024;
                    config.receive_window = 128 * 1024;
                    config.send_queue_limit = 64 * 1024;
                }
            })
            .build();
        // Two nodes are behind NATs, the second of which is symmetric; the others are public.
        for (node, mapping) in [(5, Dependence::Nothing), (6, Dependence::AddressAndPort)] {
            let nat = cluster.add_nat(NatConfig::new(mapping, Dependence::AddressAndPort));
            cluster.put_behind(node, nat);
        }
        for node in 0..NODES {
            cluster.host_mut(node).lan = (node < 3).then_some(1);
            cluster.start_node(node);
        }
        cluster.drive(Duration::ZERO);
        for node in 0..NODES {
            cluster.host_mut(node).apps.insert("echo".to_owned(), App::Echo);
            cluster.host_mut(node).store.fail_per_mille = 50;
            // Drivers with an input delay, so that connections end before the machine is informed.
            cluster.host_mut(node).input_delay = Duration::from_millis(seed % 3 * 7);
            cluster.host_mut(node).transport.fin_needs_credit = seed.is_multiple_of(5);
            Self::accept(&mut cluster, node);
        }
        Self { cluster, rng: ChaCha8Rng::seed_from_u64(seed), open: Vec::new(), renewals: 0 }
    }

    fn accept(cluster: &mut Cluster, node: HostId) {
        cluster.call(node, |node, now| node.accept_protocol("echo".to_owned(), now)).unwrap();
    }

    fn below(&mut self, end: u64) -> u64 {
        self.rng.next_u64() % end
    }

    /// A NAT drops its mappings.
    fn reboot(&mut self) {
        let nat = self.below(2) as usize;
        self.cluster.network_mut().reboot_nat(nat);
    }

    fn node(&mut self) -> HostId {
        self.below(NODES as u64) as HostId
    }

    fn random_id(&mut self) -> NodeId {
        if self.below(8) == 0 {
            let mut bytes = [0; 32];
            self.rng.fill_bytes(&mut bytes);
            return NodeId::from_bytes(bytes);
        }
        let node = self.node();
        self.cluster.id(node)
    }

    fn request(&mut self) -> Request {
        let (target, other) = (self.random_id(), self.node());
        let options = RequestOptions {
            deadline: Some(Duration::from_millis(1 + self.below(20_000))),
            connect_timeout: None,
        };
        let address = self.cluster.address(other);
        match self.below(12) {
            0 => Request::FindNode {
                target,
                find: FindNodeOptions { options, ..FindNodeOptions::default() },
            },
            1 => Request::PingNode { target, options },
            2 => Request::PingNodeAddress { target, address, options },
            3 => Request::Connect { target: self.cluster.id(other), address, options },
            4 => Request::AcquireConnection { target, options },
            5 => Request::OpenStream { target, protocol: "echo".to_owned(), options },
            6 => {
                let query = ClosestNodesQuery { known: true, connected: true };
                Request::QueryClosestNodes { via: self.cluster.id(other), target, query, options }
            }
            7 => Request::SyncNodeGraph {
                seeds: vec![self.cluster.seed_node(other)],
                blocking: true,
                options,
            },
            8 => Request::RefreshBucket {
                bucket: pk_proto::BucketIndex(255 - self.below(3) as u8),
                options,
            },
            9 => Request::QueryMdns { target, timeout: options.deadline },
            10 => Request::Flush { options },
            _ => {
                let how = SetNodeOptions {
                    block: self.below(2) == 0,
                    force: self.below(3) == 0,
                    options,
                };
                let connected_time = self.cluster.unix(other);
                let data = NodeContactAddressData {
                    mode: ContactMode::Direct,
                    connected_time,
                    scopes: Scopes::GLOBAL,
                };
                Request::SetNode { node: target, address, data, how }
            }
        }
    }

    fn random_action(&mut self) {
        let node = self.node();
        if self.cluster.machine(node).is_none() {
            self.cluster.start_node(node);
            Self::accept(&mut self.cluster, node);
            return;
        }
        match self.below(40) {
            0 if self.below(2) == 0 => self.cluster.kill(node),
            0 => {
                self.cluster.stop(node);
                self.cluster.restart(node);
                Self::accept(&mut self.cluster, node);
            }
            1 => {
                let (half, rest): (Vec<_>, Vec<_>) = (0..NODES).partition(|_| self.below(2) == 0);
                self.cluster.partition(&[&half, &rest]);
            }
            2..=5 => self.cluster.heal(),
            6 | 7 => {
                let other = self.random_id();
                self.cluster.call(node, |machine, now| machine.disconnect(other, now));
            }
            8 => {
                let other = self.random_id();
                self.cluster.call(node, |machine, now| drop(machine.unset_node(other, now)));
            }
            9 | 10 if !self.open.is_empty() => {
                let index = self.below(self.open.len() as u64) as usize;
                let (node, id) = self.open.swap_remove(index);
                if self.cluster.machine(node).is_some() {
                    self.cluster.cancel(node, id);
                }
            }
            11 => self.cluster.spurious_timeout(node),
            12..=15 => {
                let streams: Vec<_> =
                    self.cluster.app_streams(node).filter(|app| !app.closed && !app.lost).collect();
                let Some(stream) = streams.last().map(|app| app.stream) else { return };
                let action = match self.below(4) {
                    0 => AppAction::Reset(1),
                    1 => AppAction::Stop(2),
                    2 => AppAction::Send(Bytes::new(), true),
                    _ => AppAction::Send(Bytes::from(vec![1; 100_000]), false),
                };
                self.cluster.app(node, stream, action);
            }
            17 => {
                // A renewal cannot be cancelled: its outcome is always reported.
                if self.cluster.begin_renewal(node).is_ok() {
                    self.renewals += 1;
                }
            }
            18 => self.reboot(),
            19 => {
                let failing = self.below(2) * 900;
                self.cluster.host_mut(node).store.fail_per_mille = 50 + failing as u16;
            }
            16 => {
                let skew = self.below(10_000) as i64 - 5000;
                self.cluster.set_clock(node, skew);
            }
            _ => {
                let request = self.request();
                // Refused at once: a target that is the node itself.
                if let Ok(id) = self.cluster.try_request(node, request) {
                    self.open.push((node, id));
                }
            }
        }
    }

    /// Heals everything, waits, and stops.
    fn heal_and_stop(mut self) -> Cluster {
        self.cluster.heal();
        for node in 0..NODES {
            self.cluster.host_mut(node).store.fail_per_mille = 50;
            if self.cluster.machine(node).is_none() {
                self.cluster.start_node(node);
            }
        }
        self.cluster.drive(Duration::from_secs(120));
        for node in 1..NODES {
            let seeds = vec![self.cluster.seed_node(0)];
            let reply = self.cluster.ask(
                node,
                Request::SyncNodeGraph {
                    seeds,
                    blocking: true,
                    options: RequestOptions::default(),
                },
            );
            assert!(matches!(&reply, Ok(Reply::SyncNodeGraph(_))), "{reply:?}");
        }
        self.cluster.stop_all();
        for node in 0..NODES {
            assert_eq!(self.cluster.connections_of(node), 0);
        }
        self.cluster
    }
}

fn run(seed: u64) -> Cluster {
    let mut chaos = Chaos::new(seed);
    for _ in 0..400 {
        chaos.random_action();
        let pause = Duration::from_millis(chaos.below(1000));
        chaos.cluster.drive(pause);
    }
    chaos.heal_and_stop()
}

#[test]
fn nodes_survive_random_faults_without_a_violation() {
    let (mut idle_timeouts, mut retransmissions, mut blocked) = (0, 0, 0);
    let mut seen = Coverage::default();
    for seed in 0..12 {
        let cluster = run(seed);
        seen.add(cluster.coverage());
        let checks = cluster.check_counters();
        assert!(
            checks.requests > 50
                && checks.gauges > 1000
                && checks.nodes > 100
                && checks.timers > 10,
            "{checks:?}"
        );
        assert!(checks.sends > 50 && checks.grants > 50 && checks.searches > 50, "{checks:?}");
        let transport = cluster.transport_counters();
        assert!(transport.handshakes > 20, "{transport:?}");
        retransmissions += transport.retransmissions;
        idle_timeouts += transport.idle_timeouts;
        blocked += transport.blocked;
    }
    assert!(
        idle_timeouts > 0 && retransmissions > 0 && blocked > 0,
        "{idle_timeouts} {retransmissions} {blocked}"
    );
    for word in [
        "Output::Punch",
        "Output::Sign",
        "Output::Browse",
        "Output::CancelBrowse",
        "Output::ReplaceIdentity",
        "Event::IdentityRenewed",
        "Event::LeaseLost",
        "Input::Discovered",
        "Input::Persisted",
    ] {
        assert!(seen.count(word) > 0, "{word} never happened");
    }
}

#[test]
fn random_faults_are_reproducible() {
    assert_eq!(run(3).digest(), run(3).digest());
    assert_ne!(run(3).digest(), run(4).digest());
}

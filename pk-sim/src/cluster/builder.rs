//! Construction of a cluster.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use pk_proto::{Config, UnixMillis};

use super::{Cluster, Kind, Node};
use crate::host::id::HostId;
use crate::host::identity::{Key, genesis};
use crate::host::{EPOCH, Host};
use crate::network::link::Link;
use crate::world::World;
use crate::world::observation::Observation;

/// Settings of a [`Cluster`].
#[derive(Debug)]
pub struct ClusterBuilder {
    nodes: usize,
    scripted_peers: usize,
    seed: u64,
    link: Link,
    config: Config,
    each: BTreeMap<HostId, Config>,
    recorded: Option<usize>,
    observation: Observation,
}

impl Cluster {
    /// Returns a builder with default settings.
    pub fn builder() -> ClusterBuilder {
        ClusterBuilder::new()
    }

    /// Returns a builder for nodes without background activity: no refreshes, no retries, no
    /// delayed writes.
    pub fn quiet() -> ClusterBuilder {
        Self::builder().config(|config| {
            config.refresh_delay = Duration::ZERO;
            config.retry_delay = Duration::ZERO;
            config.store_delay = Duration::ZERO;
        })
    }
}

impl ClusterBuilder {
    fn new() -> Self {
        Self {
            nodes: 2,
            scripted_peers: 0,
            seed: 0,
            link: Link::default(),
            config: Config::default(),
            each: BTreeMap::new(),
            recorded: None,
            observation: Observation::default(),
        }
    }

    /// Sets the number of nodes. Default 2.
    #[must_use]
    pub fn nodes(mut self, nodes: usize) -> Self {
        self.nodes = nodes;
        self
    }

    /// Sets the number of puppets, whose host ids follow those of the nodes. Default 0.
    #[must_use]
    pub fn scripted_peers(mut self, scripted_peers: usize) -> Self {
        self.scripted_peers = scripted_peers;
        self
    }

    /// Sets the seed of all random numbers and keys. Default 0.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Sets the link between any two nodes. Default 10 ms.
    #[must_use]
    pub fn link(mut self, link: Link) -> Self {
        self.link = link;
        self
    }

    /// Changes the settings of every node.
    #[must_use]
    pub fn config(mut self, change: impl FnOnce(&mut Config)) -> Self {
        change(&mut self.config);
        self
    }

    /// Changes the settings of one node; call it after [`config`](Self::config).
    #[must_use]
    pub fn config_of(mut self, node: HostId, change: impl FnOnce(&mut Config)) -> Self {
        change(self.each.entry(node).or_insert_with(|| self.config.clone()));
        self
    }

    /// Records every node, for [`Replay`](pk_proto::Replay). A log that is not taken before it has
    /// `limit` bytes is lost.
    #[must_use]
    pub fn recorded(mut self, limit: usize) -> Self {
        self.recorded = Some(limit);
        self
    }

    /// Sets what is recorded and checked. Default everything.
    #[must_use]
    pub fn observe(mut self, observation: Observation) -> Self {
        self.observation = observation;
        self
    }

    /// Builds the nodes without starting any.
    pub fn build(self) -> Cluster {
        let mut world = World::observed(self.seed, self.observation);
        world.network_mut().set_default_link(self.link);
        let mut cluster = Cluster {
            world,
            nodes: Vec::new(),
            numbers: BTreeMap::new(),
            conspiracy: Arc::default(),
            seed: self.seed,
        };
        for index in 0..self.nodes + self.scripted_peers {
            let config = self.each.get(&index).unwrap_or(&self.config);
            let kind = match index < self.nodes {
                true => Kind::Node(Box::new(config.clone())),
                false => Kind::ScriptedPeer,
            };
            let key = Key::numbered(self.seed, index as u64);
            cluster.add_host_of(kind, key, address(index), self.recorded);
        }
        cluster
    }

    /// Builds the nodes, starts them all, and waits until they are ready.
    pub fn start(self) -> Cluster {
        let mut cluster = self.build();
        for node in 0..cluster.nodes.len() {
            cluster.start_node(node);
        }
        cluster.drive(Duration::ZERO);
        cluster
    }
}

impl Cluster {
    /// Adds a host with a process that does not run yet.
    pub(super) fn add_host_of(
        &mut self,
        kind: Kind,
        key: Key,
        address: SocketAddr,
        recorded: Option<usize>,
    ) -> HostId {
        // A day before the start of the world, so that clocks may differ.
        let identity = genesis(&key, UnixMillis(EPOCH - 86_400_000));
        let (id, identities) = (key.id(), BTreeMap::from([(key.id(), identity.clone())]));
        let mut host = Host::new(vec![address], key, identity);
        host.caps = match &kind {
            Kind::Node(config) if !self.world.observation().checkers.is_empty() => {
                Some((**config).clone())
            }
            _ => None,
        };
        let number = self.world.add_host(host);
        self.numbers.insert(id, number);
        self.nodes.push(Node { id, identities, kind, recorded });
        number
    }
}

/// Each node has its own /24, as nodes on the Internet have.
pub(super) fn address(index: usize) -> SocketAddr {
    let [.., high, middle, low] = (index as u64).to_be_bytes();
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(20 + high, middle, low, 1)), 1314)
}

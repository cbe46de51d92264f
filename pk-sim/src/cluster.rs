//! Many real nodes on one network.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::{Deref, DerefMut};
use std::time::Duration;

use pk_proto::{
    Config, Event, Failure, Instant, NodeAddress, NodeId, NodeManager, Options, Reply, Request, RequestError,
    RequestId, SeedNode, Snapshot, UnixMillis,
};

use crate::HostId;
use crate::host::{EPOCH, Host};
use crate::identity::{Key, genesis};
use crate::link::Link;
use crate::puppet::{Actor, Puppet};
use crate::world::{Boot, World};

/// The longest that anything is waited for, in virtual time.
const PATIENCE: Duration = Duration::from_secs(24 * 60 * 60);

/// Real [`NodeManager`]s, one on each host, named by their numbers, and behind them puppets. Derefs to the [`World`] that they
/// live in; where both have a method of one name, that of the cluster knows that its machines are nodes.
#[derive(Debug)]
pub struct Cluster {
    world: World<Actor>,
    nodes: Vec<Node>,
}

#[derive(Debug)]
struct Node {
    id: NodeId,
    /// `None`: a puppet.
    config: Option<Config>,
}

/// Settings of a [`Cluster`].
#[derive(Debug)]
pub struct ClusterBuilder {
    nodes: usize,
    puppets: usize,
    seed: u64,
    link: Link,
    config: Config,
    each: BTreeMap<HostId, Config>,
}

impl ClusterBuilder {
    /// How many nodes; default 2.
    #[must_use]
    pub fn nodes(mut self, nodes: usize) -> Self {
        self.nodes = nodes;
        self
    }

    /// How many puppets, whose numbers follow those of the nodes; default none.
    #[must_use]
    pub fn puppets(mut self, puppets: usize) -> Self {
        self.puppets = puppets;
        self
    }

    /// What all chance is drawn from, and all keys; default 0.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// The link between any two nodes; default 10 ms.
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

    /// Builds the nodes without starting any.
    pub fn build(self) -> Cluster {
        let mut world = World::new(self.seed);
        world.network_mut().set_default_link(self.link);
        let mut nodes = Vec::new();
        for index in 0..self.nodes + self.puppets {
            let key = Key::numbered(self.seed, index as u64);
            let config = self.each.get(&index).unwrap_or(&self.config).clone();
            let config = (index < self.nodes).then_some(config);
            nodes.push(Node { id: key.id(), config: config.clone() });
            // A day before the world begins, so that clocks may differ.
            let identity = genesis(&key, UnixMillis(EPOCH - 86_400_000));
            let mut host = Host::new(vec![address(index)], key, identity);
            host.caps = config;
            world.add_host(host);
        }
        Cluster { world, nodes }
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
    /// Settings to start from.
    pub fn builder() -> ClusterBuilder {
        ClusterBuilder {
            nodes: 2,
            puppets: 0,
            seed: 0,
            link: Link::default(),
            config: Config::default(),
            each: BTreeMap::new(),
        }
    }

    // -- nodes

    /// How many nodes and puppets there are, running or not.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Who a node is.
    pub fn id(&self, node: HostId) -> NodeId {
        self.nodes[node].id
    }

    /// The number of a node.
    pub fn number(&self, id: NodeId) -> Option<HostId> {
        self.nodes.iter().position(|node| node.id == id)
    }

    /// Where a node listens.
    pub fn address(&self, node: HostId) -> NodeAddress {
        self.host(node).addrs()[0].into()
    }

    /// A node as others are told to start from it.
    pub fn seed_node(&self, node: HostId) -> SeedNode {
        SeedNode { node: self.id(node), address: self.address(node) }
    }

    /// The machine of a node. Fails if it does not run.
    pub fn node(&self, node: HostId) -> &NodeManager {
        self.machine(node).unwrap_or_else(|| self.fail(&format!("node {node} does not run")))
    }

    /// The machine of a node; `None` while it does not run.
    pub fn machine(&self, node: HostId) -> Option<&NodeManager> {
        match self.world.machine(node) {
            Some(Actor::Node(node)) => Some(node),
            _ => None,
        }
    }

    /// Does something to the machine of a node, and takes its outputs. Fails if it does not run.
    pub fn call<R>(&mut self, node: HostId, call: impl FnOnce(&mut NodeManager, Instant) -> R) -> R {
        self.node(node);
        let result = self.world.call(node, |actor, now| match actor {
            Actor::Node(node) => Some(call(node, now)),
            Actor::Puppet(_) => None,
        });
        result.unwrap_or_else(|| self.fail(&format!("host {node} is not a node")))
    }

    /// Starts a node that [`build`](ClusterBuilder::build) left, or that was killed; its store is as it was left.
    pub fn start_node(&mut self, node: HostId) {
        let Some(config) = self.nodes[node].config.clone() else {
            self.world.start(node, |_| Actor::Puppet(Puppet::default()));
            return;
        };
        let mut failure = None;
        let made = |boot: Boot<'_>| {
            let snapshot = snapshot(&boot);
            let made = NodeManager::new(config, &boot.host.identity, snapshot, boot.seed, boot.now, boot.unix);
            made.map_err(|error| failure = Some(error)).map(|node| Actor::Node(Box::new(node))).ok()
        };
        if !self.world.try_start(node, made) {
            self.fail(&format!("node {node} did not start: {failure:?}"));
        }
    }

    /// Kills a node and starts it again at once.
    pub fn restart(&mut self, node: HostId) {
        if self.world.machine(node).is_some() {
            self.kill(node);
        }
        self.start_node(node);
    }

    // -- puppets

    /// A puppet, to see what it heard. Fails if it is none.
    pub fn puppet(&self, host: HostId) -> &Puppet {
        match self.world.machine(host) {
            Some(Actor::Puppet(puppet)) => puppet,
            _ => self.fail(&format!("host {host} is not a puppet")),
        }
    }

    /// Moves a puppet, and does what it says. Fails if it is none.
    pub fn pull<R>(&mut self, host: HostId, pull: impl FnOnce(&mut Puppet) -> R) -> R {
        self.puppet(host);
        let result = self.world.call(host, |actor, _| match actor {
            Actor::Node(_) => None,
            Actor::Puppet(puppet) => Some(pull(puppet)),
        });
        result.unwrap_or_else(|| self.fail(&format!("host {host} is not a puppet")))
    }

    // -- time

    /// Lets things happen until `done` holds, for at most `limit`. Returns whether it holds.
    pub fn drive_until(&mut self, mut done: impl FnMut(&Self) -> bool, limit: Duration) -> bool {
        let end = self.now() + limit;
        while !done(self) {
            if !self.step_by(end) {
                return done(self);
            }
        }
        true
    }

    /// Lets things happen until `done` holds; fails if that takes more than `max_steps`, or if nothing is left to happen.
    pub fn drive_bounded(&mut self, max_steps: u64, mut done: impl FnMut(&Self) -> bool) {
        for _ in 0..max_steps {
            if done(self) {
                return;
            }
            if !self.step() {
                self.fail("nothing is left to happen, and what was waited for has not happened");
            }
        }
        if !done(self) {
            self.fail(&format!("what was waited for has not happened within {max_steps} steps: a livelock?"));
        }
    }

    // -- requests

    /// Begins a request.
    pub fn request(&mut self, node: HostId, request: Request) -> RequestId {
        let begun = self.try_request(node, request);
        begun.unwrap_or_else(|error| self.fail(&format!("node {node} refused a request: {error}")))
    }

    /// Begins a request, if the node takes it.
    pub fn try_request(&mut self, node: HostId, request: Request) -> Result<RequestId, RequestError> {
        self.world.note(node, &request);
        self.node(node);
        self.world.begin(node, |actor, now| match actor {
            Actor::Node(node) => node.request(request, now),
            Actor::Puppet(_) => Err(RequestError::NotReady),
        })
    }

    /// Waits until a request has ended, and says how.
    pub fn await_done(&mut self, node: HostId, id: RequestId) -> Result<Reply, Failure> {
        self.world.drive_until(|world| world.done(node, id).is_some(), PATIENCE);
        match self.world.done(node, id) {
            Some(result) => result.clone(),
            None => self.fail(&format!("request {id} of node {node} has not ended in {PATIENCE:?}")),
        }
    }

    /// Begins a request and waits until it has ended.
    pub fn ask(&mut self, node: HostId, request: Request) -> Result<Reply, Failure> {
        let id = self.request(node, request);
        self.await_done(node, id)
    }

    /// Ends a request early.
    pub fn cancel(&mut self, node: HostId, id: RequestId) {
        self.call(node, |machine, now| machine.cancel(id, now));
    }

    /// Connects a node to another one at its address.
    pub fn connect(&mut self, node: HostId, to: HostId) -> Result<Reply, Failure> {
        let (target, address) = (self.id(to), self.address(to));
        self.ask(node, Request::Connect { target, address, options: Options::default() })
    }

    /// Has every other running node join the network through node 0, one after the other. Fails if one cannot.
    pub fn join_all(&mut self) {
        for node in 1..self.nodes.len() {
            if self.machine(node).is_none() {
                continue;
            }
            let seeds = vec![self.seed_node(0)];
            let request = Request::SyncNodeGraph { seeds, blocking: true, options: Options::default() };
            if let Err(failure) = self.ask(node, request) {
                self.fail(&format!("node {node} could not join: {failure}"));
            }
        }
    }

    /// Stops a node in an orderly way, and waits until it has stopped.
    pub fn stop(&mut self, node: HostId) {
        self.call(node, NodeManager::stop);
        let has_stopped = |cluster: &Self| cluster.machine(node).is_none_or(NodeManager::is_stopped);
        let stopped = self.drive_until(has_stopped, Duration::from_secs(120));
        if !stopped {
            self.fail(&format!("node {node} has not stopped"));
        }
    }

    /// Stops every node that runs, lets what is on its way arrive, and checks the end of the run.
    pub fn stop_all(&mut self) {
        for node in 0..self.nodes.len() {
            if self.machine(node).is_some_and(|machine| !machine.is_stopped()) {
                self.stop(node);
            }
        }
        self.drive(Duration::from_secs(60));
        self.finish();
    }

    /// The events of a node since an earlier look at `events(node).len()`.
    pub fn events_since(&self, node: HostId, from: usize) -> impl Iterator<Item = &Event> {
        self.events(node).iter().skip(from).map(|(_, event): &(Instant, Event)| event)
    }
}

impl Deref for Cluster {
    type Target = World<Actor>;

    fn deref(&self) -> &Self::Target {
        &self.world
    }
}

impl DerefMut for Cluster {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.world
    }
}

/// What a node finds of its earlier life. Nothing yet: the core does not persist its graph before a later landing.
fn snapshot(boot: &Boot<'_>) -> Snapshot {
    let _ = boot;
    Snapshot::default()
}

/// Each node in a /24 of its own, as nodes of the wide world are.
fn address(index: usize) -> SocketAddr {
    let [.., high, middle, low] = (index as u64).to_be_bytes();
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(20 + high, middle, low, 1)), 1314)
}

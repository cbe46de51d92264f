//! Many real nodes on one network.

mod builder;
mod renewal;

pub use builder::ClusterBuilder;

use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};
use std::time::Duration;

use pk_proto::{
    Config, Event, Failure, Identity, Instant, NodeAddress, NodeId, NodeManager, Options, Reply, Request, RequestError,
    RequestId, SeedNode, Snapshot, Start,
};

use crate::HostId;
use crate::checkers::convergence;
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
    seed: u64,
}

#[derive(Debug)]
struct Node {
    /// Who it was when it last started.
    id: NodeId,
    /// Every identity that its driver has a key for, by its newest id.
    identities: BTreeMap<NodeId, Identity>,
    /// `None`: a puppet.
    config: Option<Config>,
    /// Bytes that a recording may grow to between two looks; `None` records nothing.
    recorded: Option<usize>,
}

impl Cluster {
    /// Settings to start from.
    pub fn builder() -> ClusterBuilder {
        ClusterBuilder::new()
    }

    /// Settings to start from, for nodes that do nothing of themselves: no refreshing, no retrying, no waiting to write.
    pub fn quiet() -> ClusterBuilder {
        Self::builder().config(|config| {
            config.refresh_delay = Duration::ZERO;
            config.retry_delay = Duration::ZERO;
            config.store_delay = Duration::ZERO;
        })
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

    /// Who a node is: its newest key.
    pub fn id(&self, node: HostId) -> NodeId {
        self.machine(node).map_or(self.nodes[node].id, NodeManager::own_id)
    }

    /// The number of a node, by any of its ids.
    pub fn number(&self, id: NodeId) -> Option<HostId> {
        (0..self.nodes.len()).find(|node| self.is_of(*node, &id))
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

    /// Starts a node that [`build`](ClusterBuilder::build) left, or that was killed, with what its store holds.
    pub fn start_node(&mut self, node: HostId) {
        self.choose_identity(node);
        let Node { config, recorded, .. } = &self.nodes[node];
        let Some(config) = config.clone() else {
            self.world.start(node, |_| Actor::Puppet(Puppet::default()));
            return;
        };
        let (recorded, mut failure) = (*recorded, None);
        let made = |boot: Boot<'_>| {
            let made = revive(config, recorded, &boot).map_err(|error| failure = Some(error));
            made.map(|node| Actor::Node(Box::new(node))).ok()
        };
        if !self.world.try_start(node, made) {
            self.fail(&format!("node {node} did not start: {failure:?}"));
        }
    }

    /// Kills a node and starts it again at once, with what its store holds.
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

    /// Checks that every running node knows the nearest other ones, and somebody in every bucket that has running nodes: to be
    /// called after calm. Returns how many pairs were looked at.
    pub fn assert_converged(&self) -> u64 {
        let running: Vec<_> = (0..self.nodes.len()).filter_map(|node| self.machine(node)).collect();
        let limit = running.iter().map(|node| node.config().bucket_limit).min().unwrap_or(1);
        let known = |node: &NodeManager| node.graph().iter().map(|(id, _)| id).collect();
        let nodes: Vec<_> = running.into_iter().map(|node| (node.own_id(), known(node))).collect();
        convergence::check(&nodes, limit).unwrap_or_else(|violation| self.fail(&violation.to_string()))
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

/// A node with what it finds of its earlier life, recorded up to so many bytes.
fn revive(config: Config, recorded: Option<usize>, boot: &Boot<'_>) -> Result<NodeManager, String> {
    let Boot { host, seed, now, unix } = *boot;
    let rows = host.store.rows().map(|(table, key, value)| (table, key.clone(), value.clone()));
    let snapshot = Snapshot::from_rows(rows).map_err(|error| error.to_string())?;
    let start = Start { config, identity: host.identity.clone(), snapshot, seed, now, unix };
    let made = match recorded {
        Some(limit) => NodeManager::start_recorded(start, limit),
        None => NodeManager::start(start),
    };
    made.map_err(|error| error.to_string())
}

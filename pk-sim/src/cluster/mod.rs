//! A cluster of nodes on one network.

pub(crate) mod builder;
pub(crate) mod growth;
mod renewal;
pub(crate) mod warm;

use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::Duration;

use pk_proto::{
    Config, Event, Failure, Identity, Instant, NodeAddress, NodeId, NodeManager, Reply, Request,
    RequestError, RequestId, RequestOptions, SeedNode, Snapshot, StartParams,
};

use crate::checkers::convergence;
use crate::host::id::HostId;
use crate::machine::misbehaving::{Conspiracy, MisbehavingPeer, Misbehavior};
use crate::machine::scripted_peer::{Actor, ScriptedPeer};
use crate::world::{Boot, World};

/// Maximum waiting time, in virtual time.
const PATIENCE: Duration = Duration::from_secs(24 * 60 * 60);

/// [`NodeManager`]s, one per host, and after them puppets, identified by number. Derefs to its
/// [`World`]; where both have a method of the same name, that of the cluster knows that its
/// machines are nodes.
#[derive(Debug)]
pub struct Cluster {
    world: World<Actor>,
    nodes: Vec<Node>,
    numbers: BTreeMap<NodeId, HostId>,
    conspiracy: Arc<Conspiracy>,
    seed: u64,
}

#[derive(Debug)]
struct Node {
    /// Id at the last start.
    id: NodeId,
    /// Every identity whose key its driver has, by newest id.
    identities: BTreeMap<NodeId, Identity>,
    kind: Kind,
    /// Maximum size of a recording between two takes, in bytes; `None` records nothing.
    recorded: Option<usize>,
}

/// What runs on a host.
#[derive(Debug, Clone)]
enum Kind {
    Node(Box<Config>),
    ScriptedPeer,
    Misbehaving(Misbehavior),
}

impl Cluster {
    // -- nodes

    /// Returns the number of nodes and puppets, running or not.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Returns whether there are none.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Returns the id of a node: its newest key.
    pub fn id(&self, node: HostId) -> NodeId {
        self.machine(node).map_or(self.nodes[node].id, NodeManager::own_id)
    }

    /// Returns the number of the node with an id, which may be a former one.
    pub fn number(&self, id: NodeId) -> Option<HostId> {
        let first = self.numbers.get(&id).copied();
        first.or_else(|| (0..self.nodes.len()).find(|node| self.is_of(*node, &id)))
    }

    /// Returns the address that a node listens on.
    pub fn address(&self, node: HostId) -> NodeAddress {
        self.host(node).addrs()[0].into()
    }

    /// Returns a node as a seed node.
    pub fn seed_node(&self, node: HostId) -> SeedNode {
        SeedNode { node: self.id(node), address: self.address(node) }
    }

    /// Returns the machine of a node. Fails if it does not run.
    pub fn node(&self, node: HostId) -> &NodeManager {
        self.machine(node).unwrap_or_else(|| self.fail(&format!("node {node} does not run")))
    }

    /// Returns the machine of a node; `None` while it does not run.
    pub fn machine(&self, node: HostId) -> Option<&NodeManager> {
        match self.world.machine(node) {
            Some(Actor::Node(node)) => Some(node),
            _ => None,
        }
    }

    /// Calls the machine of a node, and executes its outputs. Fails if it does not run.
    pub fn call<R>(
        &mut self,
        node: HostId,
        call: impl FnOnce(&mut NodeManager, Instant) -> R,
    ) -> R {
        self.node(node);
        let result = self.world.call(node, |actor, now| match actor {
            Actor::Node(node) => Some(call(node, now)),
            Actor::ScriptedPeer(_) | Actor::Misbehaving(_) => None,
        });
        result.unwrap_or_else(|| self.fail(&format!("host {node} is not a node")))
    }

    /// Starts a node that [`build`](crate::ClusterBuilder::build) left, or that was killed, from
    /// its store.
    pub fn start_node(&mut self, node: HostId) {
        self.start_from(node, None);
    }

    /// Starts a node from a snapshot in place of its store.
    fn start_from(&mut self, node: HostId, snapshot: Option<Snapshot>) {
        self.choose_identity(node);
        let Node { id, kind, recorded, .. } = &self.nodes[node];
        let config = match kind {
            Kind::Node(config) => (**config).clone(),
            Kind::ScriptedPeer => {
                self.world.start(node, |_| Actor::ScriptedPeer(ScriptedPeer::default()));
                return;
            }
            Kind::Misbehaving(behavior) => {
                let seed = self.seed ^ ((node as u64) << 32);
                let conspiracy = self.conspiracy.clone();
                let peer = MisbehavingPeer::new(*id, *behavior, conspiracy, seed);
                self.world.start(node, |_| Actor::Misbehaving(Box::new(peer)));
                return;
            }
        };
        let (recorded, mut failure) = (*recorded, None);
        let made = |boot: Boot<'_>| {
            let made =
                revive(config, recorded, snapshot, &boot).map_err(|error| failure = Some(error));
            made.map(|node| Actor::Node(Box::new(node))).ok()
        };
        if !self.world.try_start(node, made) {
            self.fail(&format!("node {node} did not start: {failure:?}"));
        }
    }

    /// Kills a node and starts it again at once, from its store.
    pub fn restart(&mut self, node: HostId) {
        if self.world.machine(node).is_some() {
            self.kill(node);
        }
        self.start_node(node);
    }

    // -- puppets

    /// Returns a scripted peer. Fails if the host is a node.
    pub fn scripted_peer(&self, host: HostId) -> &ScriptedPeer {
        match self.world.machine(host) {
            Some(Actor::ScriptedPeer(scripted_peer)) => scripted_peer,
            _ => self.fail(&format!("host {host} is not a scripted peer")),
        }
    }

    /// Calls a scripted peer, and executes its outputs. Fails if the host is a node.
    pub fn pull<R>(&mut self, host: HostId, pull: impl FnOnce(&mut ScriptedPeer) -> R) -> R {
        self.scripted_peer(host);
        let result = self.world.call(host, |actor, _| match actor {
            Actor::Node(_) | Actor::Misbehaving(_) => None,
            Actor::ScriptedPeer(scripted_peer) => Some(pull(scripted_peer)),
        });
        result.unwrap_or_else(|| self.fail(&format!("host {host} is not a scripted peer")))
    }

    // -- time

    /// Runs until `done` returns true, for at most `limit`. Returns whether it did.
    pub fn drive_until(&mut self, mut done: impl FnMut(&Self) -> bool, limit: Duration) -> bool {
        let end = self.now() + limit;
        while !done(self) {
            if !self.step_by(end) {
                return done(self);
            }
        }
        true
    }

    /// Runs until `done` returns true; fails after `max_steps`, or if nothing is left to happen.
    pub fn drive_bounded(&mut self, max_steps: u64, mut done: impl FnMut(&Self) -> bool) {
        for _ in 0..max_steps {
            if done(self) {
                return;
            }
            if !self.step() {
                self.fail("nothing is left to happen, and the condition is not met");
            }
        }
        if !done(self) {
            self.fail(&format!("the condition is not met within {max_steps} steps: a livelock?"));
        }
    }

    // -- requests

    /// Starts a request.
    pub fn request(&mut self, node: HostId, request: Request) -> RequestId {
        let begun = self.try_request(node, request);
        begun.unwrap_or_else(|error| self.fail(&format!("node {node} refused a request: {error}")))
    }

    /// Starts a request, if the node accepts it.
    pub fn try_request(
        &mut self,
        node: HostId,
        request: Request,
    ) -> Result<RequestId, RequestError> {
        self.world.note(node, &request);
        self.node(node);
        self.world.begin(node, |actor, now| match actor {
            Actor::Node(node) => node.request(request, now),
            Actor::ScriptedPeer(_) | Actor::Misbehaving(_) => Err(RequestError::NotReady),
        })
    }

    /// Waits until a request has ended, and returns its result.
    pub fn await_done(&mut self, node: HostId, id: RequestId) -> Result<Reply, Failure> {
        self.world.drive_until(|world| world.done(node, id).is_some(), PATIENCE);
        match self.world.done(node, id) {
            Some(result) => result.clone(),
            None => {
                self.fail(&format!("request {id} of node {node} has not ended in {PATIENCE:?}"))
            }
        }
    }

    /// Starts a request and waits until it has ended.
    pub fn ask(&mut self, node: HostId, request: Request) -> Result<Reply, Failure> {
        let id = self.request(node, request);
        self.await_done(node, id)
    }

    /// Cancels a request.
    pub fn cancel(&mut self, node: HostId, id: RequestId) {
        self.call(node, |machine, now| machine.cancel(id, now));
    }

    /// Connects a node to another one at its address.
    pub fn connect(&mut self, node: HostId, to: HostId) -> Result<Reply, Failure> {
        let (target, address) = (self.id(to), self.address(to));
        self.ask(node, Request::Connect { target, address, options: RequestOptions::default() })
    }

    /// Lets every other running node join the network through node 0, sequentially. Fails if one
    /// cannot.
    pub fn join_all(&mut self) {
        for node in 1..self.nodes.len() {
            if self.machine(node).is_none() {
                continue;
            }
            let seeds = vec![self.seed_node(0)];
            let request = Request::SyncNodeGraph {
                seeds,
                blocking: true,
                options: RequestOptions::default(),
            };
            if let Err(failure) = self.ask(node, request) {
                self.fail(&format!("node {node} could not join: {failure}"));
            }
        }
    }

    /// Stops a node, and waits until it has stopped.
    pub fn stop(&mut self, node: HostId) {
        self.call(node, NodeManager::stop);
        let has_stopped =
            |cluster: &Self| cluster.machine(node).is_none_or(NodeManager::is_stopped);
        let stopped = self.drive_until(has_stopped, Duration::from_secs(120));
        if !stopped {
            self.fail(&format!("node {node} has not stopped"));
        }
    }

    /// Stops every running node, delivers what is in flight, and checks the end of the run.
    pub fn stop_all(&mut self) {
        for node in 0..self.nodes.len() {
            if self.machine(node).is_some_and(|machine| !machine.is_stopped()) {
                self.stop(node);
            }
        }
        self.drive(Duration::from_secs(60));
        self.finish();
    }

    /// Checks that every running node has contacts for the nearest running ones, and a contact in
    /// every bucket that has running nodes; to be called after a quiet period. Returns the number
    /// of checked pairs.
    pub fn assert_converged(&self) -> u64 {
        let running: Vec<_> = (0..self.nodes.len()).filter_map(|node| self.machine(node)).collect();
        let limit = running.iter().map(|node| node.config().bucket_limit).min().unwrap_or(1);
        let known = |node: &NodeManager| node.graph().iter().map(|(id, _)| id).collect();
        let nodes: Vec<_> = running.into_iter().map(|node| (node.own_id(), known(node))).collect();
        convergence::check(&nodes, limit)
            .unwrap_or_else(|violation| self.fail(&violation.to_string()))
    }

    /// Checks that running nodes suspect none of their connections with each other, and that both
    /// ends of each pair use the same one; to be called after a quiet period. Returns the number of
    /// checked pairs.
    pub fn assert_primaries_agree(&self) -> u64 {
        let running = (0..self.nodes.len()).filter_map(|node| self.machine(node));
        let nodes: Vec<_> = running.map(|node| (node.own_id(), node.connections())).collect();
        convergence::check_primaries(&nodes)
            .unwrap_or_else(|violation| self.fail(&violation.to_string()))
    }

    /// Returns the events of a node after the first `from`.
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

/// Starts a node from its store, recorded with a limit in bytes.
fn revive(
    config: Config,
    recorded: Option<usize>,
    snapshot: Option<Snapshot>,
    boot: &Boot<'_>,
) -> Result<NodeManager, String> {
    let Boot { host, seed, now, unix } = *boot;
    let snapshot = match snapshot {
        Some(snapshot) => snapshot,
        None => {
            let rows =
                host.store.rows().map(|(table, key, value)| (table, key.clone(), value.clone()));
            Snapshot::from_rows(rows).map_err(|error| error.to_string())?
        }
    };
    let start = StartParams { config, identity: host.identity.clone(), snapshot, seed, now, unix };
    let made = match recorded {
        Some(limit) => NodeManager::start_recorded(start, limit),
        None => NodeManager::start(start),
    };
    made.map_err(|error| error.to_string())
}

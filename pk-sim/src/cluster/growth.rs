//! Nodes that are added later, peers that misbehave, and joins through chosen seeds.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use pk_proto::{
    Config, Failure, Instant, NodeId, Reply, Request, RequestId, RequestOptions, SeedNode,
};

use super::builder::address;
use super::{Cluster, Kind};
use crate::host::id::HostId;
use crate::host::identity::Key;
use crate::machine::directory::Directory;
use crate::machine::misbehaving::{Conspiracy, MisbehavingPeer, Misbehavior, MisbehaviorCounters};
use crate::machine::scripted_peer::Actor;

/// Maximum time that joins are waited for, in virtual time.
const PATIENCE: Duration = Duration::from_secs(600);

/// How a join ended.
#[derive(Debug, Clone)]
pub struct Joined {
    /// Node.
    pub node: HostId,
    /// Time from the request to its end.
    pub took: Duration,
    /// Result.
    pub result: Result<Reply, Failure>,
}

impl Cluster {
    /// Adds a node with its own address. [`start_node`](Self::start_node) starts it.
    pub fn add_node(&mut self, config: Config) -> HostId {
        let index = self.nodes.len();
        let key = Key::numbered(self.seed, index as u64);
        self.add_node_at(config, key, address(index))
    }

    /// Adds a node with this key and address.
    pub fn add_node_at(&mut self, config: Config, key: Key, address: SocketAddr) -> HostId {
        self.add_host_of(Kind::Node(Box::new(config)), key, address, None)
    }

    /// Adds a peer that misbehaves, with its own address. [`start_node`](Self::start_node) starts
    /// it.
    pub fn add_misbehaving(&mut self, behavior: Misbehavior) -> HostId {
        let index = self.nodes.len();
        let key = Key::numbered(self.seed, index as u64);
        self.add_misbehaving_at(behavior, key, address(index))
    }

    /// Adds a peer that misbehaves, with this key and address.
    pub fn add_misbehaving_at(
        &mut self,
        behavior: Misbehavior,
        key: Key,
        address: SocketAddr,
    ) -> HostId {
        self.add_host_of(Kind::Misbehaving(behavior), key, address, None)
    }

    /// Returns whether a host was added as a peer that misbehaves.
    pub fn misbehaves(&self, host: HostId) -> bool {
        matches!(self.nodes[host].kind, Kind::Misbehaving(_))
    }

    /// Informs the peers that misbehave of all running hosts, and of each other. Peers that start
    /// later know the same.
    pub fn conspire(&mut self) {
        let running = |host: &HostId| self.world.host(*host).is_alive();
        let hosts: Vec<_> = (0..self.nodes.len()).filter(running).collect();
        let entry = |host: &HostId| (self.nodes[*host].id, self.world.host(*host).addrs()[0]);
        let accomplices = hosts.iter().filter(|host| self.misbehaves(**host));
        let conspiracy = Arc::new(Conspiracy {
            all: Directory::new(hosts.iter().map(entry)),
            accomplices: Directory::new(accomplices.map(entry)),
        });
        self.conspiracy = conspiracy.clone();
        for host in hosts {
            if self.misbehaves(host) {
                self.instruct(host, |peer, _| peer.inform(conspiracy.clone()));
            }
        }
    }

    /// Calls a peer that misbehaves, and executes its outputs. Fails if the host is none that runs.
    pub fn instruct<R>(
        &mut self,
        host: HostId,
        instruct: impl FnOnce(&mut MisbehavingPeer, Instant) -> R,
    ) -> R {
        let runs = self.world.machine(host).is_some();
        let result = runs.then(|| {
            self.world.call(host, |actor, now| match actor {
                Actor::Misbehaving(peer) => Some(instruct(peer, now)),
                Actor::Node(_) | Actor::ScriptedPeer(_) => None,
            })
        });
        let result = result.flatten();
        result.unwrap_or_else(|| self.fail(&format!("host {host} does not misbehave")))
    }

    /// Returns what a peer that misbehaves has done since its start; zeros if it does not run.
    pub fn misbehavior(&self, host: HostId) -> MisbehaviorCounters {
        match self.world.machine(host) {
            Some(Actor::Misbehaving(peer)) => peer.counters(),
            _ => MisbehaviorCounters::default(),
        }
    }

    /// Returns the ids and addresses of the running nodes, without peers that misbehave.
    pub fn directory(&self) -> Directory {
        let running = (0..self.nodes.len()).filter(|node| self.machine(*node).is_some());
        Directory::new(running.map(|node| (self.id(node), self.host(node).addrs()[0])))
    }

    /// Starts to join the network through these seeds. Returns the request, unless the node refuses
    /// it.
    pub fn begin_join(
        &mut self,
        node: HostId,
        seeds: &[HostId],
    ) -> Result<RequestId, pk_proto::RequestError> {
        let seeds: Vec<SeedNode> = seeds.iter().map(|seed| self.seed_node(*seed)).collect();
        let options = RequestOptions::default();
        self.try_request(node, Request::SyncNodeGraph { seeds, blocking: true, options })
    }

    /// Lets nodes join the network at the same time, each through its seeds, and waits until all
    /// joins have ended, for at most ten minutes.
    pub fn join_through(&mut self, joins: &[(HostId, Vec<HostId>)]) -> Vec<Joined> {
        let begun = self.now();
        let mut open: Vec<(HostId, RequestId)> = Vec::new();
        for (node, seeds) in joins {
            match self.begin_join(*node, seeds) {
                Ok(request) => open.push((*node, request)),
                Err(error) => self.fail(&format!("node {node} refused to join: {error}")),
            }
        }
        let mut joined = Vec::new();
        let end = begun + PATIENCE;
        while !open.is_empty() && self.step_by(end) {
            let now = self.now();
            open.retain(|(node, request)| match self.done(*node, *request) {
                Some(result) => {
                    let took = now.since(begun);
                    joined.push(Joined { node: *node, took, result: result.clone() });
                    false
                }
                None => true,
            });
        }
        joined
    }

    /// Returns the id that a host was started with, or will be.
    pub fn id_of_host(&self, host: HostId) -> NodeId {
        self.nodes[host].id
    }
}

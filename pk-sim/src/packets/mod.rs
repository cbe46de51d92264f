//! The packet level: whole nodes over virtual datagrams, in virtual time.
//!
//! Where a [`World`](crate::World) simulates QUIC at the level of the vocabulary, here every host
//! runs a [`pk_quic::Node`], with TLS, congestion control and all. The network below loses,
//! duplicates, delays and reorders datagrams ([`Link`]), has bandwidths, queues and MTUs
//! ([`PathLimits`]) and NATs ([`NatConfig`]). Hosts roam, freeze, die and restart.
//!
//! ```
//! use std::time::Duration;
//! use pk_sim::{Link, PacketWorld};
//!
//! let mut world = PacketWorld::with_hosts(7, 2);
//! world.network_mut().set_default_link(Link::ms(50).loss(50));
//! world.connect(0, 1);
//! world.roam(1, false); // a new address, which the node does not notice
//! assert!(world.ask(1, 0).is_ok());
//! world.stop_all();
//! ```
//!
//! Two runs with one seed have equal datagrams, byte by byte: TLS draws from the seed, too
//! ([`PacketWorld::digest`]). The checkers of the vocabulary see every input and output of the core
//! of every node; others check the datagrams, the progress of time, and memory.

mod flight;
mod host;
mod path;
mod requests;
mod run;
mod tls_random;

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};
use std::net::SocketAddr;
use std::time::Duration;

use pk_host::{KeyPair, TransportSecret};
use pk_proto::{Instant, NodeId, NodeManager, Snapshot, UnixMillis};
use pk_quic::{Node, NodeSetup, TransportMetrics, TransportSettings};

use self::flight::InFlight;
pub use self::host::{Meter, PROTOCOL, PacketHost, Reader};
use self::path::Paths;
pub use self::path::{PathCounters, PathLimits};
use crate::checkers::violation::{CheckCounters, Violation};
use crate::checkers::{Checkers, convergence};
use crate::host::EPOCH;
use crate::host::id::HostId;
use crate::host::identity::{Key, genesis};
use crate::host::store::Store;
use crate::network::Network;
use crate::network::nat::{NatConfig, NatId};
use crate::rng_streams::RngStreams;
use crate::world::journal::{Entry, Journal};

/// Port of every node.
const PORT: u16 = 1314;

/// A datagram as an observer of the network sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Source address, after NATs.
    pub from: SocketAddr,
    /// Destination.
    pub to: SocketAddr,
    /// The two bits of explicit congestion notification.
    pub ecn: u8,
    /// Payload.
    pub bytes: Vec<u8>,
}

/// Counters of a packet world.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PacketCounters {
    /// Datagrams that nodes have sent.
    pub sent: u64,
    /// Datagrams that nodes have received, copies included.
    pub received: u64,
    /// Datagrams from an address that the host no longer has.
    pub without_source: u64,
}

/// Hosts with whole nodes on a network of virtual datagrams.
///
/// A violation of a checker panics and prints the last inputs and outputs.
#[derive(Debug)]
pub struct PacketWorld {
    /// The moment of [`Instant::ORIGIN`], which quinn-proto needs; nothing depends on it.
    origin: std::time::Instant,
    now: Instant,
    seed: u64,
    hosts: Vec<PacketHost>,
    network: Network,
    paths: Paths,
    in_flight: BinaryHeap<Reverse<InFlight>>,
    sequence: u64,
    rngs: RngStreams,
    checkers: Checkers,
    journal: Journal,
    datagrams: blake3::Hasher,
    counters: PacketCounters,
    observed: Option<Vec<Seen>>,
    /// Buffer of transmits.
    buffer: Vec<u8>,
    /// Number of addresses that hosts have had.
    addresses: u16,
}

impl PacketWorld {
    /// Creates a world without hosts. All random numbers come from `seed`. Links have a latency of
    /// 50 ms in each direction.
    pub fn new(seed: u64) -> Self {
        let mut network = Network::default();
        network.set_default_link(crate::Link::ms(50));
        Self {
            origin: std::time::Instant::now(),
            now: Instant::ORIGIN,
            seed,
            hosts: Vec::new(),
            network,
            paths: Paths::default(),
            in_flight: BinaryHeap::new(),
            sequence: 0,
            rngs: RngStreams::new(seed),
            checkers: Checkers::default(),
            journal: Journal::default(),
            datagrams: blake3::Hasher::new(),
            counters: PacketCounters::default(),
            observed: None,
            buffer: Vec::with_capacity(128 * 1024),
            addresses: 0,
        }
    }

    /// Creates a world with this many public hosts, started, that know no other.
    pub fn with_hosts(seed: u64, hosts: usize) -> Self {
        Self::with_hosts_of(seed, hosts, |_| {})
    }

    /// Like [`with_hosts`](Self::with_hosts), with a change of the settings of every host.
    pub fn with_hosts_of(seed: u64, hosts: usize, change: impl Fn(&mut PacketHost)) -> Self {
        let mut world = Self::new(seed);
        for _ in 0..hosts {
            let id = world.add_stopped(TransportSettings::default(), None);
            change(&mut world.hosts[id]);
            world.start(id);
        }
        world
    }

    // -- hosts

    /// Adds a public host and starts its node.
    pub fn add(&mut self, transport: TransportSettings) -> HostId {
        let id = self.add_stopped(transport, None);
        self.start(id);
        id
    }

    /// Adds a host behind a NAT and starts its node.
    pub fn add_behind(&mut self, nat: NatId, transport: TransportSettings) -> HostId {
        let id = self.add_stopped(transport, Some(nat));
        self.start(id);
        id
    }

    /// Adds a host, public or behind a NAT. Nothing runs on it until [`start`](Self::start).
    pub fn add_stopped(&mut self, transport: TransportSettings, nat: Option<NatId>) -> HostId {
        let id = self.hosts.len();
        let addr = match nat {
            Some(nat) => self.network.put_behind(id, PORT, nat),
            None => self.public_address(id),
        };
        let seed = blake3::derive_key("pk-sim: key of one packet host", &self.place(id, 0));
        self.hosts.push(PacketHost::new(KeyPair::from_seed(&seed), addr, transport));
        self.checkers.add_host();
        id
    }

    /// Adds a NAT.
    pub fn add_nat(&mut self, config: NatConfig) -> NatId {
        self.network.add_nat(config)
    }

    /// Gives a host a public address that no host had.
    fn public_address(&mut self, id: HostId) -> SocketAddr {
        let [high, low] = self.addresses.to_be_bytes();
        self.addresses += 1;
        let addr = SocketAddr::from(([20 + high, 1, low, 1], PORT));
        self.network.add_address(addr, id);
        addr
    }

    fn place(&self, id: HostId, life: u32) -> Vec<u8> {
        [self.seed, id as u64, life.into()].map(u64::to_be_bytes).concat()
    }

    /// Starts the node of a host from its store. Its keys and the secret of its transport are those
    /// of its former processes. Fails if it runs, or refuses its settings.
    pub fn start(&mut self, id: HostId) {
        if self.hosts[id].node.is_some() {
            self.fail(&format!("host {id} runs already"));
        }
        match self.boot(id) {
            Ok(node) => self.hosts[id].node = Some(node),
            Err(error) => self.fail(&format!("host {id} did not start: {error}")),
        }
        self.journal.add(id, self.now, Entry::Started);
        let host = &self.hosts[id];
        self.checkers.started(id, Some(host.config.clone()), &host.store);
        let accepted = self.call(id, |node, now| {
            node.update(now, |manager, now| manager.accept_protocol(PROTOCOL.into(), now))
        });
        if let Err(error) = accepted {
            self.fail(&format!("host {id} accepts no protocol: {error}"));
        }
    }

    fn boot(&self, id: HostId) -> Result<Node, String> {
        let host = &self.hosts[id];
        let rows = host.store.rows().map(|(table, key, value)| (table, key.clone(), value.clone()));
        let text = |error: &dyn std::fmt::Display| error.to_string();
        let snapshot = Snapshot::from_rows(rows).map_err(|error| text(&error))?;
        let place = self.place(id, host.life);
        let setup = NodeSetup {
            config: host.config.clone(),
            transport: host.transport.clone(),
            // Equal in all processes of a host.
            identity: genesis(&Key::from_seed(*host.key.seed()), UnixMillis(EPOCH)),
            secret: TransportSecret::of_key(&host.key),
            key: host.key.clone(),
            snapshot,
            seed: blake3::derive_key("pk-sim: one life of one packet host", &place),
            bound: host.addr,
            origin: self.origin,
            now: self.now,
            unix: self.unix(),
            record: None,
        };
        let seed = blake3::derive_key("pk-sim: TLS of one life of one packet host", &place);
        Node::simulated(setup, tls_random::tls_random(seed)).map_err(|error| text(&error))
    }

    /// Kills the process of a host, as by SIGKILL: no peer is informed.
    pub fn kill(&mut self, id: HostId) {
        self.journal.add(id, self.now, Entry::Killed);
        let host = &mut self.hosts[id];
        host.end();
        host.store.crash(&mut self.rngs.stores);
    }

    /// Kills a node and starts it again at once, from its store.
    pub fn restart(&mut self, id: HostId) {
        self.kill(id);
        self.start(id);
    }

    /// Kills a node and starts it again at once with an empty store.
    pub fn restart_empty(&mut self, id: HostId) {
        self.kill(id);
        self.hosts[id].store = Store::default();
        self.start(id);
    }

    /// Stops the process of a host, as by SIGSTOP: its socket stores what arrives.
    pub fn freeze(&mut self, id: HostId) {
        self.hosts[id].frozen.get_or_insert_default();
    }

    /// Continues a stopped process.
    pub fn thaw(&mut self, id: HostId) {
        let waiting = self.hosts[id].frozen.take().unwrap_or_default();
        self.hosts[id].waiting = 0;
        for datagram in waiting {
            self.receive(id, &datagram);
        }
        self.wake(id);
        self.flush(id);
    }

    /// Gives a host another public address: its node is informed if it `knows`.
    pub fn roam(&mut self, id: HostId, knows: bool) {
        let before = self.hosts[id].addr;
        self.network.remove_address(before);
        let addr = self.public_address(id);
        self.hosts[id].addr = addr;
        if knows {
            self.call(id, |node, now| node.local_changed(now, &[addr.ip()]));
        }
    }

    /// Returns the number of hosts.
    pub fn host_count(&self) -> usize {
        self.hosts.len()
    }

    /// Returns a host.
    pub fn host(&self, id: HostId) -> &PacketHost {
        &self.hosts[id]
    }

    /// Returns a host, to change its settings.
    pub fn host_mut(&mut self, id: HostId) -> &mut PacketHost {
        &mut self.hosts[id]
    }

    /// Returns the node of a host. Fails if it does not run.
    pub fn node(&self, id: HostId) -> &Node {
        let node = self.hosts[id].node.as_ref();
        node.unwrap_or_else(|| self.fail(&format!("host {id} does not run")))
    }

    /// Returns the counters of the transport of a host. Fails if it does not run.
    pub fn metrics(&self, id: HostId) -> TransportMetrics {
        self.node(id).transport().metrics()
    }

    /// Returns the id of the node of a host.
    pub fn id(&self, id: HostId) -> NodeId {
        self.hosts[id].id()
    }

    /// Calls the node of a host, and processes what follows. Fails if it does not run.
    pub fn call<R>(&mut self, id: HostId, call: impl FnOnce(&mut Node, Instant) -> R) -> R {
        let now = self.now;
        self.checkers.called(id, now);
        let result = self.hosts[id].call(|node| call(node, now));
        self.flush(id);
        result.unwrap_or_else(|| self.fail(&format!("host {id} does not run")))
    }

    // -- the network

    /// Returns the network, to change it: links, NATs.
    pub fn network_mut(&mut self) -> &mut Network {
        &mut self.network
    }

    /// Returns the network.
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// Sets the limits of every path without its own.
    pub fn set_paths(&mut self, limits: PathLimits) {
        self.paths.all = limits;
    }

    /// Sets the limits of the path between two hosts.
    pub fn set_path(&mut self, a: HostId, b: HostId, limits: PathLimits) {
        self.paths.set(a, b, limits);
    }

    /// Cuts the path between two hosts, or restores it.
    pub fn set_cut(&mut self, a: HostId, b: HostId, is_cut: bool) {
        self.network.heal_pair(a, b);
        if is_cut {
            self.network.cut(a, b);
            self.network.cut(b, a);
        }
    }

    /// Cuts one direction, and opens the other.
    pub fn set_one_way(&mut self, from: HostId, to: HostId) {
        self.network.heal_pair(from, to);
        self.network.cut(to, from);
    }

    /// Starts to observe the datagrams that are sent.
    pub fn observe(&mut self) {
        self.observed = Some(Vec::new());
    }

    /// Returns the datagrams since [`observe`](Self::observe), and observes no longer.
    pub fn observed(&mut self) -> Vec<Seen> {
        self.observed.take().unwrap_or_default()
    }

    /// Delivers a datagram from a forged source after a time.
    pub fn forge(&mut self, datagram: Seen, after: Duration) {
        let Seen { from, to, ecn, bytes } = datagram;
        let (at, sent) = (self.now + after, self.now);
        self.schedule(InFlight { at, sequence: 0, by: None, sent, from, to, ecn, bytes });
    }

    // -- what happened

    /// Returns the time.
    pub fn now(&self) -> Instant {
        self.now
    }

    /// Returns the wall clock.
    pub fn unix(&self) -> UnixMillis {
        UnixMillis(EPOCH + self.now.as_micros() / 1000)
    }

    /// Returns the counters.
    pub fn counters(&self) -> PacketCounters {
        self.counters
    }

    /// Returns the datagrams that were lost because of limits of paths.
    pub fn path_counters(&self) -> PathCounters {
        self.paths.counters
    }

    /// Returns the bytes that the present process of a host has sent to an address and received
    /// from it.
    pub fn exchanged(&self, id: HostId, with: SocketAddr) -> (u64, u64) {
        self.checkers.exchanged(id, with)
    }

    /// Returns the numbers of checks.
    pub fn check_counters(&self) -> CheckCounters {
        self.checkers.counters
    }

    /// Returns the hash of every datagram with its time, and of every input and output.
    pub fn digest(&self) -> blake3::Hash {
        let mut hasher = self.datagrams.clone();
        hasher.update(self.journal.digest().as_bytes()).finalize()
    }

    /// Stops every running node, and checks the end of the run.
    pub fn stop_all(&mut self) {
        let running: BTreeSet<_> =
            (0..self.hosts.len()).filter(|id| self.hosts[*id].is_running()).collect();
        for id in &running {
            self.call(*id, Node::stop);
        }
        let over = |world: &Self| {
            running.iter().all(|id| world.hosts[*id].node.as_ref().is_none_or(Node::is_over))
        };
        if !self.until(Duration::from_secs(120), over) {
            self.fail("a node has not stopped");
        }
        for id in running {
            let checked = self.checkers.finish(id);
            self.check(id, checked);
        }
    }

    /// Checks that every running node has contacts for the nearest running ones, that nodes suspect
    /// none of their connections, and that both ends of each pair use the same one; to be called
    /// after a quiet period. Returns the number of checked pairs.
    pub fn assert_converged(&self) -> u64 {
        let running: Vec<_> =
            self.hosts.iter().filter_map(PacketHost::node).map(Node::manager).collect();
        let limit = running.iter().map(|node| node.config().bucket_limit).min().unwrap_or(1);
        let known = |node: &NodeManager| node.graph().iter().map(|(id, _)| id).collect();
        let graphs: Vec<_> = running.iter().map(|node| (node.own_id(), known(node))).collect();
        let connections: Vec<_> =
            running.iter().map(|node| (node.own_id(), node.connections())).collect();
        let checked = convergence::check(&graphs, limit).and_then(|pairs| {
            convergence::check_primaries(&connections).map(|primaries| pairs + primaries)
        });
        checked.unwrap_or_else(|violation| self.fail(&violation.to_string()))
    }

    fn check(&self, id: HostId, checked: Result<(), Violation>) {
        if let Err(violation) = checked {
            self.fail(&format!("host {id}: {violation}"));
        }
    }

    /// Ends the run, and prints the last inputs and outputs.
    #[expect(clippy::panic, reason = "a violation ends the test that finds it, with its context")]
    fn fail(&self, what: &str) -> ! {
        let (now, seed, recent) = (self.now, self.seed, self.journal.recent());
        panic!("{what}\nat {now:?}, seed {seed}\n{recent}")
    }
}

//! The world: hosts with machines, virtual time, and the order in which everything happens.

mod effects;
pub(crate) mod journal;
pub(crate) mod observation;
mod run;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;

use pk_proto::{Event, Failure, Input, Instant, Reply, RequestId, UnixMillis};

use crate::checkers::Checkers;
use crate::checkers::violation::{CheckCounters, Violation};
use crate::host::Host;
use crate::host::app::{AppAction, AppStream};
use crate::host::id::HostId;
use crate::machine::Machine;
use crate::machine::coverage::Coverage;
use crate::network::Network;
use crate::network::nat::{NatConfig, NatId};
use crate::transport::{Transport, TransportCounters};
use crate::wire::Wire;
use crate::wire::traffic::Traffic;
use crate::world::journal::{Entry, Journal};
use crate::world::observation::Observation;

/// Hosts with machines on a network, in virtual time.
///
/// After each call of a machine, all its outputs are taken and executed before anything else
/// happens, and each is checked. A violation panics and prints the last entries.
#[derive(Debug)]
pub struct World<M> {
    wire: Wire,
    transport: Transport,
    machines: Vec<Option<M>>,
    timers: BTreeSet<(Instant, HostId)>,
    armed: Vec<Option<Instant>>,
    observation: Observation,
    events: Vec<Vec<(Instant, Event)>>,
    done: BTreeMap<(HostId, RequestId), Result<Reply, Failure>>,
    completed: VecDeque<Completed>,
    dials: Vec<Vec<(Instant, SocketAddr)>>,
    /// Number of inputs and outputs of each machine, over all its restarts.
    io_count: Vec<u64>,
    /// Number of them after which a process dies.
    kill_at: Vec<Option<u64>>,
    /// The machines that died this way.
    killed_machines: Vec<Option<M>>,
    checkers: Checkers,
    journal: Journal,
    coverage: Coverage,
    counters: WorldCounters,
    steps_now: u64,
    seed: u64,
}

/// Counters of a world.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WorldCounters {
    /// Steps.
    pub steps: u64,
    /// Inputs delivered to machines.
    pub inputs: u64,
    /// Outputs of machines.
    pub outputs: u64,
    /// Calls of `handle_timeout`.
    pub timeouts: u64,
    /// Of these, calls before a timer was due. The world itself makes none;
    /// [`World::spurious_timeout`] does.
    pub spurious_timeouts: u64,
}

/// Result of a request.
#[derive(Debug, Clone)]
pub struct Completed {
    /// Time of its end.
    pub at: Instant,
    /// Host of the machine.
    pub host: HostId,
    /// Number of the life of the host in which the request was started; it increases with each
    /// kill.
    pub life: u32,
    /// Request.
    pub request: RequestId,
    /// Result.
    pub result: Result<Reply, Failure>,
}

/// What a machine is created from when its process starts.
#[derive(Debug)]
pub struct Boot<'a> {
    /// Host, with the store that the previous process has left.
    pub host: &'a Host,
    /// Seed of the process.
    pub seed: [u8; 32],
    /// Time.
    pub now: Instant,
    /// Wall clock.
    pub unix: UnixMillis,
}

impl<M: Machine> World<M> {
    /// Creates a world without hosts. All random numbers come from `seed`.
    pub fn new(seed: u64) -> Self {
        Self {
            wire: Wire::new(seed),
            transport: Transport::default(),
            machines: Vec::new(),
            timers: BTreeSet::new(),
            armed: Vec::new(),
            observation: Observation::default(),
            events: Vec::new(),
            done: BTreeMap::new(),
            completed: VecDeque::new(),
            dials: Vec::new(),
            io_count: Vec::new(),
            kill_at: Vec::new(),
            killed_machines: Vec::new(),
            checkers: Checkers::default(),
            journal: Journal::default(),
            coverage: Coverage::default(),
            counters: WorldCounters::default(),
            steps_now: 0,
            seed,
        }
    }

    /// Creates a world that records and checks less, or more.
    pub fn observed(seed: u64, observation: Observation) -> Self {
        Self {
            observation,
            checkers: Checkers::new(observation.checkers),
            journal: Journal::new(observation.digest, observation.recent),
            ..Self::new(seed)
        }
    }

    /// Returns what is recorded and checked.
    pub fn observation(&self) -> Observation {
        self.observation
    }

    // -- hosts

    /// Adds a host. Nothing runs on it until [`start`](Self::start).
    pub fn add_host(&mut self, host: Host) -> HostId {
        let id = self.wire.hosts.len();
        host.addrs.iter().for_each(|addr| self.wire.network.add_address(*addr, id));
        self.wire.hosts.push(host);
        self.wire.traffic.push(Traffic::default());
        self.machines.push(None);
        self.armed.push(None);
        self.events.push(Vec::new());
        self.dials.push(Vec::new());
        self.io_count.push(0);
        self.kill_at.push(None);
        self.killed_machines.push(None);
        self.checkers.add_host();
        id
    }

    /// Starts the process of a host: creates its machine and delivers `Listening`.
    pub fn start(&mut self, id: HostId, make: impl FnOnce(Boot<'_>) -> M) {
        self.try_start(id, |boot| Some(make(boot)));
    }

    /// Like [`start`](Self::start), for a machine that may refuse to start. Returns whether it
    /// started.
    pub fn try_start(&mut self, id: HostId, make: impl FnOnce(Boot<'_>) -> Option<M>) -> bool {
        if self.machines[id].is_some() {
            self.fail(&format!("host {id} runs already"));
        }
        let (now, host) = (self.wire.now, &mut self.wire.hosts[id]);
        let place = [self.seed, id as u64, host.life.into()].map(u64::to_be_bytes).concat();
        let seed = blake3::derive_key("pk-sim: one life of one host", &place);
        let Some(machine) = make(Boot { host, seed, now, unix: host.unix(now) }) else {
            return false;
        };
        self.machines[id] = Some(machine);
        host.begin();
        let addrs = host.addrs.clone();
        self.journal.add(id, now, Entry::Started);
        self.checkers.started(id, host.caps.clone(), &host.store);
        if self.wire.network.is_behind_nat(id) {
            let ips = addrs.iter().map(SocketAddr::ip).collect();
            self.wire.deliver(id, Input::LocalAddresses { ips });
        }
        self.wire.deliver(id, Input::Listening { addrs });
        self.transport.requeue_host(&mut self.wire, id);
        self.drain(id);
        true
    }

    /// Kills the process of a host, as by SIGKILL: peers are not informed, and pending writes may
    /// be lost.
    pub fn kill(&mut self, id: HostId) {
        self.journal.add(id, self.wire.now, Entry::Killed);
        self.machines[id] = None;
        self.arm(id);
        let Wire { hosts, rngs, .. } = &mut self.wire;
        hosts[id].end();
        hosts[id].store.crash(&mut rngs.stores);
        self.transport.crash(&mut self.wire, id);
        let of_host = self.done.range((id, RequestId(0))..=(id, RequestId(u64::MAX)));
        let ended: Vec<_> = of_host.map(|(key, _)| *key).collect();
        ended.into_iter().for_each(|key| drop(self.done.remove(&key)));
    }

    /// Stops the process of a host, as by SIGSTOP: it does nothing and answers nothing until
    /// [`thaw`](Self::thaw).
    pub fn freeze(&mut self, id: HostId) {
        self.wire.hosts[id].frozen = true;
        self.wire.hosts[id].listening = false;
        self.arm(id);
        self.transport.requeue_host(&mut self.wire, id);
    }

    /// Continues a stopped process: its pending inputs arrive now.
    pub fn thaw(&mut self, id: HostId) {
        let host = &mut self.wire.hosts[id];
        if !std::mem::take(&mut host.frozen) {
            return;
        }
        host.listening = true;
        let waiting = std::mem::take(&mut host.thawing);
        waiting.into_iter().for_each(|input| self.wire.deliver(id, input));
        self.transport.requeue_host(&mut self.wire, id);
        self.arm(id);
    }

    /// Kills the process of a host after a number of further inputs and outputs of its machine, in
    /// the middle of whatever it is doing. The machine is then in
    /// [`killed_machine`](Self::killed_machine).
    pub fn kill_after(&mut self, id: HostId, io_count: u64) {
        self.kill_at[id] = Some(self.io_count[id] + io_count);
        self.killed_machines[id] = None;
    }

    /// Cancels [`kill_after`](Self::kill_after).
    pub fn never_kill(&mut self, id: HostId) {
        self.kill_at[id] = None;
    }

    /// Returns the machine that [`kill_after`](Self::kill_after) killed last, in its last state.
    pub fn killed_machine(&self, id: HostId) -> Option<&M> {
        self.killed_machines[id].as_ref()
    }

    /// Returns the number of inputs and outputs of the machine of a host, over all its restarts.
    pub fn io_count(&self, id: HostId) -> u64 {
        self.io_count[id]
    }

    /// Returns the number of hosts.
    pub fn host_count(&self) -> usize {
        self.machines.len()
    }

    /// Returns a host.
    pub fn host(&self, id: HostId) -> &Host {
        &self.wire.hosts[id]
    }

    /// Returns a host, to change its settings.
    pub fn host_mut(&mut self, id: HostId) -> &mut Host {
        &mut self.wire.hosts[id]
    }

    /// Returns the machine of a host; `None` while its process does not run.
    pub fn machine(&self, id: HostId) -> Option<&M> {
        self.machines[id].as_ref()
    }

    /// Calls the machine of a host, and executes its outputs. Fails if it does not run.
    pub fn call<R>(&mut self, id: HostId, call: impl FnOnce(&mut M, Instant) -> R) -> R {
        let now = self.wire.now;
        let Some(machine) = self.machines[id].as_mut() else {
            self.fail(&format!("host {id} does not run"))
        };
        let result = call(machine, now);
        self.drain(id);
        result
    }

    /// Like [`call`](Self::call), for a call that starts a request: the checkers know its id from
    /// now on.
    pub fn begin<E>(
        &mut self,
        id: HostId,
        call: impl FnOnce(&mut M, Instant) -> Result<RequestId, E>,
    ) -> Result<RequestId, E> {
        let now = self.wire.now;
        let Some(machine) = self.machines[id].as_mut() else {
            self.fail(&format!("host {id} does not run"))
        };
        let result = call(machine, now);
        if let Ok(request) = &result {
            let checked = self.checkers.begun(id, *request);
            self.check(id, checked);
        }
        self.drain(id);
        result
    }

    /// Delivers an input that nothing in this world caused.
    pub fn inject(&mut self, id: HostId, input: Input) {
        self.wire.deliver(id, input);
    }

    /// Calls `handle_timeout` even if nothing is due, which is legal.
    pub fn spurious_timeout(&mut self, id: HostId) {
        if self.machines[id].is_some() {
            self.fire(id);
        }
    }

    /// Adds an action of a test to the digest.
    pub fn note(&mut self, id: HostId, what: &impl serde::Serialize) {
        let bytes = postcard::to_allocvec(what).unwrap_or_default();
        self.journal.add(id, self.wire.now, Entry::Note(bytes));
    }

    // -- the network

    /// Returns the network, to change it.
    pub fn network_mut(&mut self) -> &mut Network {
        &mut self.wire.network
    }

    /// Returns the network.
    pub fn network(&self) -> &Network {
        &self.wire.network
    }

    /// Cuts all links between hosts of different groups. Hosts in no group still reach all others.
    pub fn partition(&mut self, groups: &[&[HostId]]) {
        self.wire.network.partition(groups);
        let hosts = groups.iter().flat_map(|group| group.iter().copied());
        self.transport.requeue_hosts(&mut self.wire, hosts);
    }

    /// Cuts one direction: nothing is delivered from one host to the other.
    pub fn cut(&mut self, from: HostId, to: HostId) {
        self.wire.network.cut(from, to);
        self.transport.requeue_host(&mut self.wire, to);
    }

    /// Removes every cut.
    pub fn heal(&mut self) {
        let hosts = self.wire.network.heal();
        self.transport.requeue_hosts(&mut self.wire, hosts);
    }

    /// Adds a NAT with its own public address.
    pub fn add_nat(&mut self, config: NatConfig) -> NatId {
        self.wire.network.add_nat(config)
    }

    /// Moves a host behind a NAT: it has an address there, with its previous port, and no other
    /// one. Call it before the host is started.
    pub fn put_behind(&mut self, id: HostId, nat: NatId) {
        if self.machines[id].is_some() {
            self.fail(&format!("host {id} runs already"));
        }
        let before = std::mem::take(&mut self.wire.hosts[id].addrs);
        before.iter().for_each(|addr| self.wire.network.remove_address(*addr));
        let port = before.first().map_or(1314, std::net::SocketAddr::port);
        self.wire.hosts[id].addrs = vec![self.wire.network.put_behind(id, port, nat)];
    }

    /// Changes the addresses of a host: its machine receives `Listening`, its peers see its new
    /// address.
    pub fn rehome(&mut self, id: HostId, addrs: Vec<SocketAddr>) {
        for addr in std::mem::replace(&mut self.wire.hosts[id].addrs, addrs.clone()) {
            self.wire.network.remove_address(addr);
        }
        addrs.iter().for_each(|addr| self.wire.network.add_address(*addr, id));
        self.transport.moved(&mut self.wire, id);
        self.wire.deliver(id, Input::Listening { addrs });
    }

    /// Sets the offset of a host's wall clock in milliseconds, and reports the time to its machine.
    pub fn set_clock(&mut self, id: HostId, skew: i64) {
        self.wire.hosts[id].clock_skew = skew;
        let unix = self.wire.hosts[id].unix(self.wire.now);
        self.wire.deliver(id, Input::WallClock(unix));
    }

    // -- time

    /// Returns the time.
    pub fn now(&self) -> Instant {
        self.wire.now
    }

    /// Returns a host's wall clock.
    pub fn unix(&self, id: HostId) -> UnixMillis {
        self.wire.hosts[id].unix(self.wire.now)
    }

    // -- what was observed

    /// Returns the events of the machine of a host, over all its restarts.
    pub fn events(&self, id: HostId) -> &[(Instant, Event)] {
        &self.events[id]
    }

    /// Returns the result of a request; `None` while it is open.
    pub fn done(&self, id: HostId, request: RequestId) -> Option<&Result<Reply, Failure>> {
        self.done.get(&(id, request))
    }

    /// Returns the results of requests, in the order of their ends, that ended since the last call.
    /// Empty unless [`Observation::done`] is `false`.
    pub fn take_completed(&mut self) -> VecDeque<Completed> {
        std::mem::take(&mut self.completed)
    }

    /// Counts the dials to an address from now on.
    pub fn watch_dials(&mut self, addr: SocketAddr) {
        self.transport.watched.entry(addr).or_default();
    }

    /// Returns the number of dials to an address since [`watch_dials`](Self::watch_dials).
    pub fn watched_dials(&self, addr: SocketAddr) -> u64 {
        self.transport.watched.get(&addr).copied().unwrap_or_default()
    }

    /// Returns what each host has sent, over all its restarts.
    pub fn traffic(&self) -> Vec<Traffic> {
        self.transport.traffic(&self.wire)
    }

    /// Returns the number of connections of all hosts, handshakes included.
    pub fn connection_count(&self) -> usize {
        self.transport.len()
    }

    /// Returns the dials of the machine of a host, over all its restarts.
    pub fn dials(&self, id: HostId) -> &[(Instant, SocketAddr)] {
        &self.dials[id]
    }

    /// Returns every stream that the machine of a host handed over.
    pub fn app_streams(&self, id: HostId) -> impl Iterator<Item = &AppStream> {
        self.transport.apps.iter().filter(move |stream| stream.host == id)
    }

    /// Executes an action of an application on its stream. Returns whether the stream still belongs
    /// to it.
    pub fn app(&mut self, id: HostId, stream: pk_proto::StreamId, action: AppAction) -> bool {
        self.transport.app_act(&mut self.wire, id, stream, action)
    }

    /// Returns the connections that a host's driver has, handshakes included.
    pub fn connections_of(&self, id: HostId) -> usize {
        self.transport.connections_of(id)
    }

    /// Returns the coverage of the vocabulary.
    pub fn coverage(&self) -> &Coverage {
        &self.coverage
    }

    /// Returns the counters of the world.
    pub fn counters(&self) -> WorldCounters {
        self.counters
    }

    /// Returns the counters of the transport.
    pub fn transport_counters(&self) -> TransportCounters {
        self.transport.counters
    }

    /// Returns the number of checks of each checker.
    pub fn check_counters(&self) -> CheckCounters {
        self.checkers.counters
    }

    /// Returns the hash of all inputs and outputs of all machines.
    pub fn digest(&self) -> blake3::Hash {
        self.journal.digest()
    }

    /// Checks the invariants of the end of a run: every request of a stopped machine has ended.
    pub fn finish(&mut self) {
        for id in 0..self.machines.len() {
            let checked = self.checkers.finish(id);
            self.check(id, checked);
        }
    }

    // -- failing

    pub(super) fn check(&self, id: HostId, checked: Result<(), Violation>) {
        if let Err(violation) = checked {
            self.fail(&format!("host {id}: {violation}"));
        }
    }

    /// Panics with everything that is known about the state of the run. Every failure of a run ends
    /// here.
    #[expect(
        clippy::panic,
        reason = "a violated invariant ends the test that finds it, with its context"
    )]
    pub fn fail(&self, what: &str) -> ! {
        let agenda: String = self
            .wire
            .agenda()
            .take(16)
            .map(|(at, happening)| format!("  {at:?} {happening:?}\n"))
            .collect();
        let timers: Vec<_> = self.timers.iter().take(16).collect();
        panic!(
            "{what}\nat {:?} after {} steps and {} entries; the last entries:\n{}next:\n{agenda}timers: {timers:?}",
            self.wire.now,
            self.counters.steps,
            self.journal.entries(),
            self.journal.recent(),
        )
    }
}

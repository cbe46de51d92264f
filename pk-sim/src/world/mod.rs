//! The world: hosts with machines, virtual time, and the order in which everything happens.

mod run;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use pk_proto::{Event, Failure, Input, Instant, Reply, RequestId, UnixMillis};

use crate::HostId;
use crate::app::{AppAction, AppStream};
use crate::checkers::{CheckCounters, Checkers, Violation};
use crate::coverage::Coverage;
use crate::host::Host;
use crate::journal::{Entry, Journal};
use crate::machine::Machine;
use crate::nat::{NatConfig, NatId};
use crate::network::Network;
use crate::transport::{Transport, TransportCounters};
use crate::wire::Wire;

/// Hosts with machines on a network, in virtual time.
///
/// Whatever is done to a machine, all its outputs are taken and done before anything else happens, and every one of them is
/// checked; a violation panics and tells the last things that happened.
#[derive(Debug)]
pub struct World<M> {
    wire: Wire,
    transport: Transport,
    machines: Vec<Option<M>>,
    timers: BTreeSet<(Instant, HostId)>,
    armed: Vec<Option<Instant>>,
    events: Vec<Vec<(Instant, Event)>>,
    done: BTreeMap<(HostId, RequestId), Result<Reply, Failure>>,
    dials: Vec<Vec<(Instant, SocketAddr)>>,
    /// Inputs and outputs of each machine, in all its lives.
    words: Vec<u64>,
    /// After how many of them a process dies.
    doom: Vec<Option<u64>>,
    /// The machines that died so.
    corpses: Vec<Option<M>>,
    checkers: Checkers,
    journal: Journal,
    coverage: Coverage,
    counters: WorldCounters,
    steps_now: u64,
    seed: u64,
}

/// What has happened in a world.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WorldCounters {
    /// Steps taken.
    pub steps: u64,
    /// Inputs that machines were given.
    pub inputs: u64,
    /// Outputs that machines gave.
    pub outputs: u64,
    /// Calls of `handle_timeout`.
    pub timeouts: u64,
    /// Of these, how many came before a timer was due. The world itself makes none; [`World::poke`] does.
    pub spurious_timeouts: u64,
}

/// What a machine is made from when its process starts.
#[derive(Debug)]
pub struct Boot<'a> {
    /// The host, with its store as the last life left it.
    pub host: &'a Host,
    /// Drawn for this life.
    pub seed: [u8; 32],
    /// The time.
    pub now: Instant,
    /// The time on the wall clock.
    pub unix: UnixMillis,
}

impl<M: Machine> World<M> {
    /// A world without hosts, in which chance is drawn from `seed`.
    pub fn new(seed: u64) -> Self {
        Self {
            wire: Wire::new(seed),
            transport: Transport::default(),
            machines: Vec::new(),
            timers: BTreeSet::new(),
            armed: Vec::new(),
            events: Vec::new(),
            done: BTreeMap::new(),
            dials: Vec::new(),
            words: Vec::new(),
            doom: Vec::new(),
            corpses: Vec::new(),
            checkers: Checkers::default(),
            journal: Journal::default(),
            coverage: Coverage::default(),
            counters: WorldCounters::default(),
            steps_now: 0,
            seed,
        }
    }

    // -- hosts

    /// Adds a host. Nothing runs on it until [`start`](Self::start).
    pub fn add_host(&mut self, host: Host) -> HostId {
        let id = self.wire.hosts.len();
        host.addrs.iter().for_each(|addr| self.wire.network.add_address(*addr, id));
        self.wire.hosts.push(host);
        self.machines.push(None);
        self.armed.push(None);
        self.events.push(Vec::new());
        self.dials.push(Vec::new());
        self.words.push(0);
        self.doom.push(None);
        self.corpses.push(None);
        self.checkers.add_host();
        id
    }

    /// Starts the process of a host: its machine is made, and told that it listens.
    pub fn start(&mut self, id: HostId, make: impl FnOnce(Boot<'_>) -> M) {
        self.try_start(id, |boot| Some(make(boot)));
    }

    /// Like [`start`](Self::start), for a machine that may refuse to start. Returns whether it did start.
    pub fn try_start(&mut self, id: HostId, make: impl FnOnce(Boot<'_>) -> Option<M>) -> bool {
        if self.machines[id].is_some() {
            self.fail(&format!("host {id} runs already"));
        }
        let (now, host) = (self.wire.now, &mut self.wire.hosts[id]);
        let place = [self.seed, id as u64, host.life.into()].map(u64::to_be_bytes).concat();
        let seed = blake3::derive_key("pk-sim: one life of one host", &place);
        let Some(machine) = make(Boot { host, seed, now, unix: host.unix(now) }) else { return false };
        self.machines[id] = Some(machine);
        host.begin();
        let addrs = host.addrs.clone();
        self.journal.add(id, now, Entry::Started);
        self.checkers.started(id, host.caps.clone(), &host.store);
        self.wire.deliver(id, Input::Listening { addrs });
        self.transport.look_around(&mut self.wire);
        self.drain(id);
        true
    }

    /// Kills the process of a host, as by kill −9: nothing is said to anybody, and what was being written may be lost.
    pub fn kill(&mut self, id: HostId) {
        self.journal.add(id, self.wire.now, Entry::Killed);
        self.machines[id] = None;
        self.arm(id);
        let Wire { hosts, dice, .. } = &mut self.wire;
        hosts[id].end();
        hosts[id].store.crash(&mut dice.stores);
        self.transport.crash(&mut self.wire, id);
        self.done.retain(|(host, _), _| *host != id);
    }

    /// Kills the process of a host once its machine has been given and has given so many words more, inputs and outputs: in
    /// the middle of whatever it is doing. What it was is in [`corpse`](Self::corpse) then.
    pub fn kill_after(&mut self, id: HostId, words: u64) {
        self.doom[id] = Some(self.words[id] + words);
        self.corpses[id] = None;
    }

    /// The machine that [`kill_after`](Self::kill_after) has killed last, as it was then.
    pub fn corpse(&self, id: HostId) -> Option<&M> {
        self.corpses[id].as_ref()
    }

    /// How many inputs and outputs the machine of a host has been given and has given, in all its lives.
    pub fn words(&self, id: HostId) -> u64 {
        self.words[id]
    }

    /// How many hosts there are.
    pub fn host_count(&self) -> usize {
        self.machines.len()
    }

    /// A host.
    pub fn host(&self, id: HostId) -> &Host {
        &self.wire.hosts[id]
    }

    /// A host, to change its settings.
    pub fn host_mut(&mut self, id: HostId) -> &mut Host {
        &mut self.wire.hosts[id]
    }

    /// The machine of a host; `None` while its process does not run.
    pub fn machine(&self, id: HostId) -> Option<&M> {
        self.machines[id].as_ref()
    }

    /// Does something to the machine of a host, and takes its outputs. Fails if it does not run.
    pub fn call<R>(&mut self, id: HostId, call: impl FnOnce(&mut M, Instant) -> R) -> R {
        let now = self.wire.now;
        let Some(machine) = self.machines[id].as_mut() else { self.fail(&format!("host {id} does not run")) };
        let result = call(machine, now);
        self.drain(id);
        result
    }

    /// Like [`call`](Self::call), for a call that begins a request: its id is known to the checkers from here on.
    pub fn begin<E>(
        &mut self,
        id: HostId,
        call: impl FnOnce(&mut M, Instant) -> Result<RequestId, E>,
    ) -> Result<RequestId, E> {
        let now = self.wire.now;
        let Some(machine) = self.machines[id].as_mut() else { self.fail(&format!("host {id} does not run")) };
        let result = call(machine, now);
        if let Ok(request) = &result {
            let checked = self.checkers.begun(id, *request);
            self.check(id, checked);
        }
        self.drain(id);
        result
    }

    /// Gives a machine an input that nothing in this world caused.
    pub fn inject(&mut self, id: HostId, input: Input) {
        self.wire.deliver(id, input);
    }

    /// Calls `handle_timeout` although nothing may be due, which is legal.
    pub fn poke(&mut self, id: HostId) {
        if self.machines[id].is_some() {
            self.fire(id);
        }
    }

    /// Puts something that a test did into the digest.
    pub fn note(&mut self, id: HostId, what: &impl serde::Serialize) {
        let bytes = postcard::to_allocvec(what).unwrap_or_default();
        self.journal.add(id, self.wire.now, Entry::Note(bytes));
    }

    // -- the network

    /// Links, names, unreachable addresses.
    pub fn network_mut(&mut self) -> &mut Network {
        &mut self.wire.network
    }

    /// Links and cuts.
    pub fn network(&self) -> &Network {
        &self.wire.network
    }

    /// Cuts every way between hosts of different groups. Hosts in no group still reach everybody.
    pub fn partition(&mut self, groups: &[&[HostId]]) {
        for (i, group) in groups.iter().enumerate() {
            for other in groups.iter().skip(i + 1) {
                let pairs = group.iter().flat_map(|a| other.iter().map(move |b| (*a, *b)));
                pairs.for_each(|(a, b)| {
                    self.wire.network.cut(a, b);
                    self.wire.network.cut(b, a);
                });
            }
        }
        self.transport.look_around(&mut self.wire);
    }

    /// Cuts one direction: nothing gets from the one host to the other.
    pub fn cut(&mut self, from: HostId, to: HostId) {
        self.wire.network.cut(from, to);
        self.transport.look_around(&mut self.wire);
    }

    /// Mends every cut.
    pub fn heal(&mut self) {
        self.wire.network.heal();
        self.transport.look_around(&mut self.wire);
    }

    /// Adds a NAT with an address of its own in the wide world.
    pub fn add_nat(&mut self, config: NatConfig) -> NatId {
        self.wire.network.add_nat(config)
    }

    /// Puts a host behind a NAT: it has an address there, with the port that it had, and no other one any more. To be done
    /// before the host is started.
    pub fn put_behind(&mut self, id: HostId, nat: NatId) {
        if self.machines[id].is_some() {
            self.fail(&format!("host {id} runs already"));
        }
        let before = std::mem::take(&mut self.wire.hosts[id].addrs);
        before.iter().for_each(|addr| self.wire.network.remove_address(*addr));
        let port = before.first().map_or(1314, std::net::SocketAddr::port);
        self.wire.hosts[id].addrs = vec![self.wire.network.put_behind(id, port, nat)];
    }

    /// Gives a host other addresses: its machine hears that it listens there, its peers that it has moved.
    pub fn rehome(&mut self, id: HostId, addrs: Vec<SocketAddr>) {
        for addr in std::mem::replace(&mut self.wire.hosts[id].addrs, addrs.clone()) {
            self.wire.network.remove_address(addr);
        }
        addrs.iter().for_each(|addr| self.wire.network.add_address(*addr, id));
        self.transport.moved(&mut self.wire, id);
        self.wire.deliver(id, Input::Listening { addrs });
    }

    /// Sets a host's wall clock ahead of (or behind) the world's, in milliseconds, and tells its machine.
    pub fn set_clock(&mut self, id: HostId, skew: i64) {
        self.wire.hosts[id].clock_skew = skew;
        let unix = self.wire.hosts[id].unix(self.wire.now);
        self.wire.deliver(id, Input::WallClock(unix));
    }

    // -- time

    /// The time.
    pub fn now(&self) -> Instant {
        self.wire.now
    }

    /// The time on a host's wall clock.
    pub fn unix(&self, id: HostId) -> UnixMillis {
        self.wire.hosts[id].unix(self.wire.now)
    }

    // -- what was observed

    /// What the machine of a host has told, in all its lives.
    pub fn events(&self, id: HostId) -> &[(Instant, Event)] {
        &self.events[id]
    }

    /// How a request ended; `None` while it is open.
    pub fn done(&self, id: HostId, request: RequestId) -> Option<&Result<Reply, Failure>> {
        self.done.get(&(id, request))
    }

    /// Where the machine of a host has dialled, in all its lives.
    pub fn dials(&self, id: HostId) -> &[(Instant, SocketAddr)] {
        &self.dials[id]
    }

    /// Every stream that the machine of a host handed over.
    pub fn app_streams(&self, id: HostId) -> impl Iterator<Item = &AppStream> {
        self.transport.apps.iter().filter(move |stream| stream.host == id)
    }

    /// Has an application do something with its stream. Returns whether the stream is still its own.
    pub fn app(&mut self, id: HostId, stream: pk_proto::StreamId, action: AppAction) -> bool {
        self.transport.app_act(&mut self.wire, id, stream, action)
    }

    /// Connections that a host's driver holds, handshakes included.
    pub fn connections_of(&self, id: HostId) -> usize {
        self.transport.connections_of(id)
    }

    /// Which words of the vocabulary were spoken, and how often.
    pub fn coverage(&self) -> &Coverage {
        &self.coverage
    }

    /// What has happened.
    pub fn counters(&self) -> WorldCounters {
        self.counters
    }

    /// What the transport has done.
    pub fn transport_counters(&self) -> TransportCounters {
        self.transport.counters
    }

    /// How often each checker has looked at something.
    pub fn check_counters(&self) -> CheckCounters {
        self.checkers.counters
    }

    /// Everything that machines were told and said, as one number.
    pub fn digest(&self) -> blake3::Hash {
        self.journal.digest()
    }

    /// Checks what has to hold at the end of a run: every request of a machine that stopped has ended.
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

    /// Ends the run with everything that is known about its state. Every failure of a run ends here.
    #[expect(clippy::panic, reason = "a violated invariant ends the test that finds it, with everything that is known")]
    pub fn fail(&self, what: &str) -> ! {
        let agenda: String =
            self.wire.agenda().take(16).map(|(at, happening)| format!("  {at:?} {happening:?}\n")).collect();
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

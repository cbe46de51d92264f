//! The network at the start of a run.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use pk_proto::claims::ClaimPolicy;
use pk_proto::{Config, Instant};

use super::records::{Measured, Requests};
use super::state::{Interrupted, Options, Runner, seconds};
use crate::checkers::set::CheckerSet;
use crate::cluster::Cluster;
use crate::cluster::warm::Warm;
use crate::host::id::HostId;
use crate::network::Place;
use crate::network::link::Link;
use crate::network::nat::{Dependence, NatConfig};
use crate::rng_streams::RngStream;
use crate::scenario::machine_costs::cpu_s;
use crate::scenario::spec::{ConfigSpec, LinkSpec, NatKind, Scenario, Start};
use crate::world::observation::Observation;

/// Maximum time that the joins of the start may take, in virtual time.
const PATIENCE: Duration = Duration::from_secs(600);

impl NatKind {
    fn config(self) -> NatConfig {
        use Dependence::{Address, AddressAndPort, Nothing};
        match self {
            Self::FullCone => NatConfig::new(Nothing, Nothing),
            Self::Restricted => NatConfig::new(Nothing, Address),
            Self::PortRestricted => NatConfig::new(Nothing, AddressAndPort),
            Self::Symmetric => NatConfig::new(AddressAndPort, AddressAndPort),
        }
    }
}

impl ConfigSpec {
    fn config(&self) -> Config {
        let mut config = Config::default();
        let set = |field: &mut Duration, value: Option<f64>| {
            if let Some(value) = value {
                *field = seconds(value);
            }
        };
        set(&mut config.refresh_delay, self.refresh_delay_s);
        set(&mut config.retry_delay, self.retry_delay_s);
        set(&mut config.collect_interval, self.collect_interval_s);
        set(&mut config.connection_idle_timeout, self.connection_idle_timeout_s);
        config.bucket_limit = self.bucket_limit.unwrap_or(config.bucket_limit);
        if self.sign_claims {
            config.claim_policy = ClaimPolicy::All;
        }
        config
    }
}

pub(super) fn link(spec: &LinkSpec) -> Link {
    Link::ms(spec.latency_ms)
        .jitter(Duration::from_millis(spec.jitter_ms))
        .loss(spec.loss_per_mille)
}

impl<'a> Runner<'a> {
    /// Creates the hosts without starting any.
    pub(super) fn set_up(scenario: &'a Scenario, options: &'a Options, quiet: bool) -> Self {
        let cpu = cpu_s();
        let nodes = options.nodes.unwrap_or(scenario.nodes).max(2);
        let config = scenario.config.config();
        let checkers = if scenario.checkers { CheckerSet::ALL } else { CheckerSet::NONE };
        let recent = if scenario.checkers { 64 } else { 0 };
        let observation = Observation { checkers, recent, ..Observation::LIGHT };
        let of_nodes = config.clone();
        let cluster = Cluster::builder()
            .nodes(nodes)
            .seed(options.seed)
            .link(link(&scenario.link))
            .config(move |config| *config = of_nodes)
            .observe(observation)
            .build();
        let mut runner = Self {
            scenario,
            options,
            quiet,
            duration: seconds(options.hours.unwrap_or(scenario.hours) * 3600.0),
            cluster,
            config,
            die: RngStream::new(options.seed, 20),
            search_die: RngStream::new(options.seed, 21),
            origin: Instant::ORIGIN,
            steps: BTreeMap::new(),
            order: 0,
            running: BTreeSet::new(),
            joined: BTreeSet::new(),
            since: BTreeMap::new(),
            halves: BTreeMap::new(),
            gone: Vec::new(),
            victim: None,
            away: Vec::new(),
            lost_at_return: 0,
            requests: Requests::default(),
            measured: Measured::default(),
            cpu,
            nats: 0,
        };
        for host in 0..nodes {
            runner.place(host);
        }
        runner.put_behind_nats(nodes);
        for peers in &scenario.peers {
            // Their share of all hosts, honest ones included.
            let honest = 100 - scenario.peers.iter().map(|peers| peers.percent).sum::<u32>();
            let count = nodes * peers.percent as usize / honest.max(1) as usize;
            for _ in 0..count {
                let host = runner.cluster.add_misbehaving(peers.behavior);
                runner.place(host);
            }
        }
        runner
    }

    /// Gives a host a random place, if places count.
    pub(super) fn place(&mut self, host: HostId) {
        let side = self.scenario.link.spread_ms * 1000;
        if side > 0 {
            let mut coordinate = || u32::try_from(self.die.below(side)).unwrap_or(u32::MAX);
            let place = Place { x: coordinate(), y: coordinate() };
            self.cluster.network_mut().set_place(host, place);
        }
    }

    /// Puts nodes behind NATs, those with the highest numbers.
    fn put_behind_nats(&mut self, nodes: usize) {
        let Some(nat) = &self.scenario.nat else { return };
        let seeds = self.scenario.join.seeds.min(nodes);
        let count = (nodes * nat.percent as usize / 100).min(nodes - seeds);
        for (index, host) in (nodes - count..nodes).enumerate() {
            self.put_behind(host, index);
        }
    }

    /// Puts a host behind the NAT that is due, the last or a new one.
    pub(super) fn put_behind(&mut self, host: HostId, index: usize) {
        let Some(spec) = &self.scenario.nat else { return };
        if index.is_multiple_of(spec.hosts) {
            let kind = spec.kinds[(index / spec.hosts) % spec.kinds.len()];
            self.cluster.add_nat(kind.config());
            self.nats += 1;
        }
        let nat = self.nats - 1;
        self.cluster.put_behind(host, nat);
    }

    /// Starts all hosts, and waits until the nodes have joined.
    pub(super) fn start(&mut self) -> Result<(), Interrupted> {
        let hosts: Vec<HostId> = (0..self.cluster.len()).collect();
        match self.scenario.start {
            Start::Join => self.start_by_joins(&hosts)?,
            Start::Warm => self.start_warm(&hosts, true)?,
            Start::WarmUnstored => self.start_warm(&hosts, false)?,
        }
        self.cluster.conspire();
        let honest = hosts.into_iter().filter(|host| !self.cluster.misbehaves(*host));
        self.joined = honest.clone().collect();
        self.running = honest.collect();
        let now = self.cluster.now();
        self.drive_to(now)?;
        Ok(())
    }

    /// Starts all hosts with full tables, in parts whose ids begin with the same bits.
    fn start_warm(&mut self, hosts: &[HostId], stored: bool) -> Result<(), Interrupted> {
        let warm = Warm { stored, ..Warm::default() };
        let directory = self.cluster.warm_directory(hosts);
        let parts = hosts.len().div_ceil(self.scenario.warm.at_once).next_power_of_two();
        let part_of = |cluster: &Cluster, host: HostId| {
            let [first, second, ..] = *cluster.id(host).as_bytes();
            (usize::from(u16::from_be_bytes([first, second])) * parts) >> u16::BITS
        };
        let mut in_parts = vec![Vec::new(); parts];
        for host in hosts {
            in_parts[part_of(&self.cluster, *host)].push(*host);
        }
        let mut started = 0;
        for (index, part) in in_parts.into_iter().enumerate() {
            let wait = if index > 0 { self.scenario.warm.every_s } else { 0.0 };
            self.drive_to(self.cluster.now() + seconds(wait))?;
            for host in part {
                self.cluster.start_warm_one(host, &directory, warm);
                started += 1;
                if started % 1000 == 0 {
                    self.report("start");
                    self.drive_to(self.cluster.now())?;
                }
            }
        }
        Ok(())
    }

    fn start_by_joins(&mut self, hosts: &[HostId]) -> Result<(), Interrupted> {
        for host in hosts {
            self.cluster.start_node(*host);
        }
        let now = self.cluster.now();
        self.drive_to(now)?;
        let honest: Vec<_> =
            hosts.iter().copied().filter(|host| !self.cluster.misbehaves(*host)).collect();
        self.running = honest.iter().copied().collect();
        let seeds: Vec<_> = honest[..self.scenario.join.seeds.min(honest.len())].to_vec();
        for pair in seeds.windows(2) {
            self.begin_join(pair[1], &seeds[..1]);
            let until = self.cluster.now() + Duration::from_secs(5);
            self.drive_to(until)?;
        }
        let window = (self.scenario.join.window_s * 1e6) as u64;
        let mut arrivals: Vec<_> = honest[seeds.len()..]
            .iter()
            .map(|host| (self.die.below(window.max(1)), *host))
            .collect();
        arrivals.sort_unstable();
        let base = self.cluster.now();
        for (index, (at, host)) in arrivals.into_iter().enumerate() {
            self.drive_to(base + Duration::from_micros(at))?;
            let through = self.choose(seeds.clone(), 2);
            self.begin_join(host, &through);
            if index % 100 == 99 {
                self.report("start");
            }
        }
        let end = self.cluster.now() + PATIENCE;
        while self.requests.joins_open() > 0 && self.cluster.now() < end {
            let until = self.cluster.now() + Duration::from_secs(1);
            self.drive_to(until)?;
        }
        // Peers that misbehave make themselves known, as a node that joins does.
        let liars: Vec<_> =
            hosts.iter().copied().filter(|host| self.cluster.misbehaves(*host)).collect();
        self.cluster.conspire();
        for liar in liars {
            let known = self.choose(honest.clone(), 20);
            let victims: Vec<_> = known
                .iter()
                .map(|host| (self.cluster.id(*host), self.cluster.host(*host).addrs()[0]))
                .collect();
            self.cluster.instruct(liar, |peer, now| {
                peer.dial_in_turn(victims, now, Duration::from_secs(2));
            });
        }
        Ok(())
    }
}

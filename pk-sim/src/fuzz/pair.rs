//! The target `pair`: two or three nodes on the simulated network, a script, and what holds when
//! the network is quiet again.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::time::Duration;

use bytes::Bytes;
use pk_proto::claims::{ChainVerifier, Claim, ClaimPolicy};
use pk_proto::{
    ClaimsFound, ClaimsQuery, Dialect, Event, Failure, NodeId, NodeManager, RecordedCall, Replay,
    Reply, Request, RequestId, RequestOptions, code,
};

use super::cast::fill;
use super::run::Run;
use super::script::Script;
use crate::cluster::Cluster;
use crate::host::app::{App, AppAction};
use crate::host::id::HostId;
use crate::host::store::CrashPolicy;
use crate::network::link::Link;
use crate::network::nat::{Dependence, NatConfig};

/// Steps of one script.
const STEPS: usize = 120;
/// The longest pause in a script.
const MAX_PAUSE: Duration = Duration::from_secs(300);
/// Time that a quiet network has to complete what was started.
const CALM: Duration = Duration::from_secs(120);
/// Milliseconds by which a clock is behind at most: less than the age of the certificates, so that
/// a node can start.
const MAX_BEHIND: i64 = 40_000_000;
/// Minutes within which two connected nodes must have finished their exchanges.
const SETTLING: usize = 60;
/// Seconds until one of the streams between two nodes is free.
const BUSY: usize = 20;
/// Maximum number of bytes of the recording of one process.
const MAX_RECORDING: usize = 64 * 1024 * 1024;

/// Runs a script on a network of two or three nodes; panics if an invariant is broken. Any bytes
/// are a script.
///
/// At the end every fault is removed, and time passes. Then the nodes must agree on the connection
/// that they use, and on the claims that they have made with each other.
pub fn pair(data: &[u8]) -> Run {
    run(data, Plant::default())
}

/// Number of links between two nodes, by initiator.
type Links = BTreeMap<HostId, usize>;

/// How a request ended.
type RequestResult = Result<Reply, Failure>;

/// What a test changes in what is compared at the end, to show that the comparison detects it.
/// Nothing in a fuzz run.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Plant {
    /// In place of the answer to a ping.
    pub(super) pong: Option<fn(RequestResult) -> RequestResult>,
    /// In place of how many exchanges are not finished.
    pub(super) exchanges: Option<fn(usize) -> usize>,
    /// In place of the connection that the second node uses.
    pub(super) primary: Option<fn(Option<Bytes>) -> Option<Bytes>>,
    /// In place of the links in the chain of the second node.
    pub(super) links: Option<fn(Links) -> Links>,
    /// Whether the network between the first two nodes stays cut.
    pub(super) cut: bool,
    /// In place of a chain.
    pub(super) chain: Option<fn(Vec<Claim>) -> Vec<Claim>>,
}

pub(super) fn run(data: &[u8], plant: Plant) -> Run {
    let mut script = Script::new(data);
    let mut network = Network::new(&mut script, plant);
    for _ in 0..STEPS {
        if script.is_over() {
            break;
        }
        network.step(&mut script);
    }
    network.end()
}

struct Network {
    cluster: Cluster,
    open: Vec<(HostId, RequestId)>,
    renewals: u8,
    run: Run,
    plant: Plant,
}

impl Network {
    fn new(script: &mut Script<'_>, plant: Plant) -> Self {
        let (flags, seed) = (script.byte(), script.byte());
        let nodes = 2 + usize::from(flags & 1);
        let policy = [ClaimPolicy::All, ClaimPolicy::AllowList, ClaimPolicy::Ask, ClaimPolicy::All];
        let policy = policy[usize::from(flags >> 1 & 3)];
        let builder = if flags & 8 == 0 { Cluster::quiet() } else { Cluster::builder() };
        let builder = builder
            .nodes(nodes)
            .seed(seed.into())
            .link(Link::ms(10).jitter(Duration::from_millis(5)));
        let builder = builder.recorded(MAX_RECORDING).config(|config| {
            config.claim_policy = policy;
            config.mdns = true;
            // Few of the seeds, which are otherwise all alike.
            if seed >= 224 {
                config.network = "fuzz".parse().ok();
                config.network_required = seed.is_multiple_of(2);
            }
            if flags & 16 != 0 {
                config.bucket_limit = 1;
                config.request_limit = 5;
                config.connection_limit = 6;
                config.connections_per_node = 2;
                config.streams_per_connection = 3;
                config.dial_limit = 2;
                config.send_window = 1024;
                config.receive_window = 128 * 1024;
                config.send_queue_limit = 64 * 1024;
            }
        });
        let mut cluster = builder.build();
        if flags & 32 != 0 {
            let nat =
                cluster.add_nat(NatConfig::new(Dependence::Nothing, Dependence::AddressAndPort));
            cluster.put_behind(nodes - 1, nat);
        }
        for node in 0..nodes {
            cluster.host_mut(node).lan = (flags & 64 != 0).then_some(1);
            // The old dialect, of which the acceptor's order decides.
            if flags & 128 != 0 {
                cluster.host_mut(node).dialects = vec![Dialect::Polykey];
            }
            cluster.host_mut(node).apps.insert("chat/1".to_owned(), App::Echo);
            cluster.host_mut(node).apps.insert("files/2".to_owned(), App::Stalled);
            cluster.start_node(node);
        }
        cluster.drive(Duration::ZERO);
        let run = Run { started: true, ..Run::default() };
        let mut network = Self { cluster, open: Vec::new(), renewals: 0, run, plant };
        (0..nodes).for_each(|node| network.accept(node));
        network
    }

    fn accept(&mut self, node: HostId) {
        for protocol in ["chat/1", "files/2"] {
            let accepted =
                self.cluster.call(node, |node, now| node.accept_protocol(protocol.to_owned(), now));
            // Not while it stops.
            drop(accepted);
        }
    }

    fn step(&mut self, script: &mut Script<'_>) {
        let nodes = self.cluster.len();
        let (what, node) = (script.byte() % 32, script.below(nodes));
        let other = (node + 1 + script.below(nodes - 1)) % nodes;
        if self.cluster.machine(node).is_none() {
            self.begin(node);
            return;
        }
        let byte = script.byte();
        if self.cluster.host(node).frozen && !matches!(what, 0..=4 | 16) {
            self.cluster.thaw(node);
            return;
        }
        match what {
            0..=4 => self.cluster.drive(script.pause().min(MAX_PAUSE)),
            5..=7 => {
                let (target, address) = (self.cluster.id(other), self.cluster.address(other));
                self.request(
                    node,
                    &Request::Connect { target, address, options: RequestOptions::default() },
                );
            }
            8 | 9 => {
                let target = self.cluster.id(other);
                self.request(
                    node,
                    &Request::ClaimNode { target, options: RequestOptions::default() },
                );
            }
            10..=14 => {
                let ids: Vec<NodeId> = (0..nodes).map(|node| self.cluster.id(node)).collect();
                let who = |number: u8| {
                    ids.get(usize::from(number % 4)).copied().unwrap_or(NodeId::numbered(number))
                };
                let request = script.raw::<Request>().and_then(|request| fill(&request, who));
                // Keys come from the driver, see below.
                if let Some(request) =
                    request.filter(|request| !matches!(request, Request::Renew { .. }))
                {
                    self.request(node, &request);
                }
            }
            15 => self.faults(node, byte, script.byte()),
            16 => {
                let crash = [CrashPolicy::Keep, CrashPolicy::Lose, CrashPolicy::Random];
                self.cluster.host_mut(node).store.crash = crash[usize::from(byte) % 3];
                self.cluster.kill(node);
            }
            17 => self.cluster.kill_after(node, 1 + u64::from(byte)),
            18 if byte & 3 == 0 => self.cluster.stop(node),
            19 => self.cluster.cut(node, other),
            20 => self.cluster.heal(),
            21 => {
                let target = self.cluster.id(other);
                self.cluster.call(node, |machine, now| machine.disconnect(target, now));
            }
            22 if self.renewals < 4 => {
                self.renewals += u8::from(self.cluster.begin_renewal(node).is_ok());
            }
            23 => {
                let skew = (i64::from(byte) - 128) * i64::from(script.byte()).pow(2) * 1000;
                self.cluster.set_clock(node, skew.max(-MAX_BEHIND));
            }
            24 => self.application(node, byte),
            25 => {
                if let Some((node, id)) = self.open.pop()
                    && self.cluster.machine(node).is_some()
                {
                    self.cluster.cancel(node, id);
                }
            }
            26 => {
                let approvals =
                    self.cluster.events(node).iter().rev().find_map(|(_, event)| match event {
                        Event::ClaimApprovalRequested { approval, .. } => Some(*approval),
                        _ => None,
                    });
                if let Some(approval) = approvals {
                    self.cluster.call(node, |machine, now| {
                        machine.resolve_claim_approval(approval, byte & 1 == 0, now);
                    });
                }
            }
            27 => {
                // Only calls that are no events of the simulated network, because the simulator
                // makes those.
                let call = script.raw::<RecordedCall>().filter(|call| {
                    !matches!(
                        call,
                        RecordedCall::Input(_)
                            | RecordedCall::Request(_)
                            | RecordedCall::Timeout
                            | RecordedCall::Stop
                            | RecordedCall::ResolveClaimApproval { .. }
                    )
                });
                if let Some(call) = call {
                    self.cluster.call(node, |machine, now| machine.call(call, now));
                }
            }
            28 if byte & 1 == 0 => self.cluster.spurious_timeout(node),
            28 => self.cluster.freeze(node),
            _ => self.cluster.drive(Duration::from_millis(u64::from(byte) * 4)),
        }
    }

    fn request(&mut self, node: HostId, request: &Request) {
        if let Ok(id) = self.cluster.try_request(node, request.clone()) {
            self.run.coverage.request(request);
            self.open.push((node, id));
        }
    }

    /// Starts a node that does not run.
    fn begin(&mut self, node: HostId) {
        self.open.retain(|(of, _)| *of != node);
        self.cluster.start_node(node);
        self.run.restarts += 1;
        self.cluster.drive(Duration::ZERO);
        if self.cluster.machine(node).is_some() {
            self.accept(node);
        }
    }

    fn faults(&mut self, node: HostId, what: u8, how: u8) {
        let host = self.cluster.host_mut(node);
        match what % 8 {
            0 => host.store.fail_next = u32::from(how % 4),
            1 => host.store.fail_per_mille = u16::from(how) * 2,
            2 => host.store.delay = Duration::from_millis(u64::from(how) * 8),
            3 => host.input_delay = Duration::from_millis(u64::from(how) * 8),
            4 => host.store.unknown_per_mille = u16::from(how) * 2,
            5 => host.store.unreadable = u32::from(how % 4),
            6 => host.sign_delay = (how > 0).then(|| Duration::from_millis(how.into())),
            _ => {
                let link =
                    Link::ms(10).jitter(Duration::from_millis(how.into())).loss(u16::from(how) * 3);
                self.cluster.network_mut().set_default_link(link);
            }
        }
    }

    fn application(&mut self, node: HostId, how: u8) {
        let open = self.cluster.app_streams(node).filter(|app| !app.closed && !app.lost);
        let Some(stream) = open.last().map(|app| app.stream) else { return };
        let action = match how % 4 {
            0 => AppAction::Reset(how.into()),
            1 => AppAction::Stop(how.into()),
            2 => AppAction::Send(Bytes::new(), true),
            _ => AppAction::Send(Bytes::from(vec![how; 40_000]), false),
        };
        self.cluster.app(node, stream, action);
    }

    // -- end of the run

    fn end(mut self) -> Run {
        self.calm();
        for node in 1..self.cluster.len() {
            self.agree(0, node);
        }
        for node in 0..self.cluster.len() {
            self.replay(node);
        }
        self.cluster.stop_all();
        for node in 0..self.cluster.len() {
            if self.cluster.connections_of(node) > 0 {
                self.cluster
                    .fail(&format!("node {node} has stopped, and its driver holds connections"));
            }
        }
        self.run.coverage.add(self.cluster.coverage());
        self.run.checks = self.cluster.check_counters();
        self.run
    }

    /// Removes every fault, and lets time pass.
    fn calm(&mut self) {
        self.cluster.heal();
        self.cluster.network_mut().set_default_link(Link::ms(10));
        for node in 0..self.cluster.len() {
            let stopped = self.cluster.machine(node).is_some_and(NodeManager::is_stopped);
            if stopped {
                self.cluster.kill(node);
            }
            let host = self.cluster.host_mut(node);
            (host.store.fail_next, host.store.fail_per_mille) = (0, 0);
            (host.store.unknown_per_mille, host.store.unreadable, host.store.fail_reads) =
                (0, 0, 0);
            host.store.delay = Duration::from_micros(500);
            host.input_delay = Duration::ZERO;
            host.sign_delay = None;
            host.clock_skew = 0;
            self.cluster.never_kill(node);
            self.cluster.thaw(node);
            if self.cluster.machine(node).is_none() {
                self.begin(node);
            }
            self.cluster.set_clock(node, 0);
        }
        self.cluster.drive(CALM);
        // Requests with longer deadlines may be as many as a node takes.
        for (node, id) in std::mem::take(&mut self.open) {
            self.cluster.cancel(node, id);
        }
    }

    /// Two nodes connect, finish what they have started with each other, and have the same
    /// connection and the same claims.
    fn agree(&mut self, a: HostId, b: HostId) {
        if self.plant.cut {
            self.cluster.cut(a, b);
            self.cluster.cut(b, a);
        }
        let mut settled = false;
        for _ in 0..SETTLING {
            // From behind a NAT outwards.
            if let Err(failure) = self.cluster.connect(b, a) {
                self.cluster
                    .fail(&format!("agree: node {b} cannot connect to node {a}: {failure}"));
            }
            // A connection that was about to close for idleness is used again.
            self.answers(b, a);
            self.cluster.drive(Duration::from_secs(2));
            self.same_primary(a, b);
            self.answers(a, b);
            let exchanges = |node| {
                self.cluster.node(node).exchanges().len()
                    + self.cluster.node(node).unconfirmed_claims().count()
            };
            settled = self.plant.exchanges.unwrap_or(|open| open)(exchanges(a) + exchanges(b)) == 0;
            if settled {
                break;
            }
            self.cluster.drive(Duration::from_secs(58));
        }
        // With a third node they may not be finished.
        if !settled && self.cluster.len() == 2 {
            self.cluster.fail(&format!("agree: exchanges of nodes {a} and {b} do not end"));
        }
        if settled {
            self.same_claims(a, b);
        }
        self.run.agreed += 1;
    }

    /// A node answers another one over the connection that this one uses. While all streams that it
    /// allows are in use, by exchanges that are resumed for example, it refuses further ones. A
    /// handshake that began before a renewal proves the old id, and `Connected` does not say so to
    /// the node that has another one by then: until that connection ends, its peer reaches the node
    /// by the old id.
    fn answers(&mut self, from: HostId, to: HostId) {
        let infos = self.cluster.node(from).connections();
        let proven =
            infos.iter().find(|info| info.primary && self.cluster.number(info.node) == Some(to));
        let target =
            proven.filter(|_| self.renewals > 0).map_or(self.cluster.id(to), |info| info.node);
        for attempt in 0.. {
            let pong = self
                .cluster
                .ask(from, Request::PingNode { target, options: RequestOptions::default() });
            match self.plant.pong.unwrap_or(|pong| pong)(pong) {
                Ok(Reply::PingNode(_)) => return,
                Err(Failure::Aborted(code::LIMIT)) if attempt < BUSY => {
                    self.cluster.drive(Duration::from_secs(1));
                }
                pong => self
                    .cluster
                    .fail(&format!("agree: node {to} does not answer node {from}: {pong:?}")),
            }
        }
    }

    /// A connection whose handshake began before a renewal has another peer than later ones: its
    /// two ends may disagree on which one is in use. All other nodes have to agree.
    fn same_primary(&self, a: HostId, b: HostId) {
        if self.renewals > 0 {
            return;
        }
        let primary = |of: HostId, with: HostId| {
            let with = self.cluster.id(with);
            let infos = self.cluster.node(of).connections();
            infos
                .into_iter()
                .find(|info| info.primary && info.node == with)
                .map(|info| info.shared_id)
        };
        let (ours, theirs) = (primary(a, b), primary(b, a));
        let names = (ours, self.plant.primary.unwrap_or(|theirs| theirs)(theirs));
        if names.0.is_none() || names.0 != names.1 {
            self.cluster
                .fail(&format!("agree: nodes {a} and {b} use different connections: {names:?}"));
        }
    }

    fn same_claims(&mut self, a: HostId, b: HostId) {
        let (ours, theirs) = (self.links(a, a, b), self.links(b, a, b));
        let chains = [ours, self.plant.links.unwrap_or(|theirs| theirs)(theirs)];
        if chains[0] != chains[1] {
            self.cluster
                .fail(&format!("agree: claims of nodes {a} and {b}, by initiator: {chains:?}"));
        }
    }

    /// Returns the number of links between two nodes in the chain of one, by initiator. The chain
    /// must be valid.
    fn links(&mut self, of: HostId, a: HostId, b: HostId) -> Links {
        let mut links = BTreeMap::new();
        for claim in self.chain(of) {
            let Some(link) = claim.link() else { continue };
            let nodes = (self.cluster.number(link.issuer), self.cluster.number(link.subject));
            if let (Some(issuer), Some(subject)) = nodes
                && [(a, b), (b, a)].contains(&(issuer, subject))
            {
                *links.entry(issuer).or_default() += 1;
            }
        }
        links
    }

    fn chain(&mut self, node: HostId) -> Vec<Claim> {
        let query = ClaimsQuery {
            from: Bound::Unbounded,
            to: Bound::Unbounded,
            descending: false,
            limit: 1000,
        };
        let claims = match self
            .cluster
            .ask(node, Request::Claims { query, options: RequestOptions::default() })
        {
            Ok(Reply::Claims(ClaimsFound { claims, more: false })) => claims,
            other => self
                .cluster
                .fail(&format!("agree: the chain of node {node} cannot be read: {other:?}")),
        };
        let claims = self.plant.chain.unwrap_or(|chain| chain)(claims);
        let unix = self.cluster.unix(node).as_secs();
        let owners = pk_proto::cert::verify_client(&self.cluster.host(node).identity.chain, unix);
        let mut verifier =
            ChainVerifier::new(owners.map(|verified| verified.chain).unwrap_or_default());
        for claim in &claims {
            if let Err(fault) = verifier.verify(claim) {
                self.cluster.fail(&format!("agree: the chain of node {node}: {fault}"));
            }
        }
        let head = self.cluster.node(node).chain_head().map(|head| (head.id, head.seq));
        if head != claims.last().map(|claim| (claim.id(), claim.seq())) {
            self.cluster.fail(&format!(
                "agree: the head of node {node} is {head:?}, its chain ends elsewhere"
            ));
        }
        claims
    }

    fn replay(&mut self, node: HostId) {
        let recording = self.cluster.call(node, |machine, now| {
            machine.handle_timeout(now);
            machine.take_recording()
        });
        let Some(recording) = recording else { return };
        let replayed = Replay::new(&recording).and_then(|mut replay| {
            while replay.step()?.is_some() {
                self.run.replayed += 1;
            }
            Ok(())
        });
        if let Err(error) = replayed {
            self.cluster.fail(&format!("replay: node {node}: {error}"));
        }
    }
}

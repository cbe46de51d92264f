//! The target `machine`: one node, a script, and a driver that keeps or breaks the contract.

mod ending;
mod streams;

use std::time::Duration;

use bytes::Bytes;
use pk_proto::claims::ClaimPolicy;
use pk_proto::{
    Config, Connected, ConnectionId, DialFailure, Dialect, DisconnectReason, Input, NodeId,
    RecordedCall, Request, Side,
};

use super::cast::Cast;
use super::driver::{Conn, ConnState, Driver, Effect, Plant};
use super::peers;
use super::run::Run;
use super::script::Script;
use crate::host::store::{CrashPolicy, WriteFault};

/// Steps of one script.
const STEPS: usize = 300;
/// Maximum number of answers that a cooperative environment gives after one step.
const OBLIGING: usize = 64;

/// Runs a script on one machine; panics if an invariant is broken. Any bytes are a script.
///
/// The first bytes choose the driver, the world and the settings. Each step that follows is a byte
/// that chooses what happens, and the bytes of its parameters.
pub fn machine(data: &[u8]) -> Run {
    run(data, Plant::default())
}

pub(super) fn run(data: &[u8], plant: Plant) -> Run {
    let mut script = Script::new(data);
    let flags = script.byte();
    let Some(mut config) = script.raw::<Config>() else { return Run::default() };
    if flags & 1 != 0 {
        crowd(&mut config);
    }
    match flags >> 6 {
        0 => {}
        1 => config.claim_policy = ClaimPolicy::All,
        2 => config.claim_policy = ClaimPolicy::Ask,
        _ => config.claim_policy = ClaimPolicy::AllowList,
    }
    rest(&mut config);
    let Some(driver) = Driver::new(config, flags & 2 == 0, plant) else { return Run::default() };
    let mut play = Play {
        script,
        driver,
        effects: flags & 4 == 0,
        writes: flags & 8 == 0,
        peers: flags & 16 == 0,
    };
    if flags & 32 == 0 {
        play.driver.input(Input::Listening { addrs: vec![([20, 0, 0, 1], 1314).into()] });
    }
    for _ in 0..STEPS {
        if play.script.is_over() {
            break;
        }
        if !play.step() {
            return play.driver.finish();
        }
        play.oblige();
    }
    play.end()
}

/// Periodic work faster than its duration would keep a machine from coming to rest, which `quiet`
/// requires.
fn rest(config: &mut Config) {
    for delay in [&mut config.refresh_delay, &mut config.retry_delay] {
        if !delay.is_zero() {
            *delay = (*delay).max(Duration::from_secs(60));
        }
    }
}

/// Small tables, so that scripts of ordinary length fill them.
fn crowd(config: &mut Config) {
    config.bucket_limit = config.bucket_limit.min(2);
    config.request_limit = config.request_limit.min(6);
    config.connection_limit = config.connection_limit.min(6);
    config.connections_per_node = config.connections_per_node.min(2);
    config.dial_limit = config.dial_limit.min(2);
    config.streams_per_connection = config.streams_per_connection.min(3);
    config.exchange_limit = config.exchange_limit.min(3);
    config.exchanges_per_peer = config.exchanges_per_peer.min(2);
    config.mdns = true;
    // One failure is enough for a contact to leave, and it is dialed soon afterwards.
    config.upkeep.failures = 1;
    config.upkeep.alone = Duration::ZERO;
    config.upkeep.away = Duration::from_secs(86_400);
    config.upkeep.lost_delay = Duration::from_secs(60);
}

/// A script, and what it plays on.
struct Play<'a> {
    script: Script<'a>,
    driver: Driver,
    /// Whether effects are completed at once.
    effects: bool,
    /// Whether sent data is confirmed, and received data is read, at once.
    writes: bool,
    /// Whether peers answer at once.
    peers: bool,
}

impl Play<'_> {
    /// Executes the next step. Returns whether the run continues.
    fn step(&mut self) -> bool {
        match self.script.byte() % 32 {
            0..=2 => {
                let (pause, calls) = (self.script.pause(), 1 + self.script.below(16));
                self.driver.pass(pause, calls);
            }
            3 | 4 => {
                if let Some(due) = self.driver.timeout() {
                    self.driver.now = self.driver.now.max(due);
                }
                self.driver.fire();
            }
            5..=8 => self.request(),
            9 => self.request_of_a_peer(),
            10 => {
                // An input of a driver that keeps the contract has a cause.
                if let Some(call) = self
                    .script
                    .value::<RecordedCall>()
                    .filter(|call| !matches!(call, RecordedCall::Input(_) | RecordedCall::Stop))
                {
                    self.driver.call(call);
                }
            }
            11 | 12 => self.dial_ends(),
            13 => self.incoming(),
            14 => (0..4).for_each(|_| self.incoming()),
            15 | 16 => self.peer_opens(),
            17 => self.peer_claims(),
            18 => self.peer_answers(),
            19 => self.peer_sends(),
            20 | 21 => self.stream_goes_on(),
            22 | 23 => self.effect_ends(),
            24 => self.disconnects(),
            25 => self.address_changes(),
            26 => self.embedder(),
            27 => return self.rarely(),
            _ if self.driver.trusted => self.request(),
            28 => {
                if let Some(input) = self.script.pick(0..self.driver.answered.len()) {
                    let input = self.driver.answered[input].clone();
                    self.driver.input(input);
                }
            }
            _ => {
                if let Some(input) = self.script.value::<Input>() {
                    self.driver.input(input);
                }
            }
        }
        true
    }

    fn request(&mut self) {
        let Some(mut request) = self.script.value::<Request>() else { return };
        if let Request::Renew { identity } = &mut request
            && self.script.below(8) > 0
            && let Some(generation) = Cast::get().generation(&self.driver.node.own_id())
        {
            *identity = Cast::get().identity(generation + 1).clone();
        }
        self.driver.request(&request);
    }

    /// A request about a connected node, which an arbitrary one rarely is.
    fn request_of_a_peer(&mut self) {
        let Some(target) =
            self.live().and_then(|conn| self.driver.conns.get(&conn)).map(|of| of.peer)
        else {
            return;
        };
        let options = self.script.raw().filter(|_| self.script.below(4) == 0).unwrap_or_default();
        self.driver.request(&match self.script.below(7) {
            0 | 1 => Request::ClaimNode { target, options },
            2 => Request::RequestChainData { target, since: None, limit: None, options },
            3 => Request::OpenStream { target, protocol: "chat/1".into(), options },
            4 => Request::AcquireConnection { target, options },
            5 => {
                let relay = target;
                Request::ConnectThrough {
                    target: Cast::get().id(self.script.byte()),
                    relay,
                    options,
                }
            }
            _ => Request::PingNode { target, options },
        });
    }

    // -- connections

    fn dial_ends(&mut self) {
        let dials = self
            .driver
            .conns
            .iter()
            .filter(|(_, of)| matches!(of.state, ConnState::Dialing { .. }));
        let Some(conn) = self.script.pick(dials.map(|(conn, _)| *conn).collect::<Vec<_>>()) else {
            return;
        };
        match self.script.byte() {
            0..=63 => {
                let why = self.script.value().unwrap_or(DialFailure::TimedOut);
                self.dial_fails(conn, why);
            }
            byte => self.dial_succeeds(conn, byte),
        }
    }

    fn dial_fails(&mut self, conn: ConnectionId, why: DialFailure) {
        self.driver.conns.remove(&conn);
        self.driver.input(Input::DialFailed { conn, why });
    }

    fn dial_succeeds(&mut self, conn: ConnectionId, how: u8) {
        let Some(Conn { state: ConnState::Dialing { addr, expect, .. }, .. }) =
            self.driver.conns.get(&conn)
        else {
            return;
        };
        let (remote, matched_id) = (*addr, expect[usize::from(how) % expect.len()]);
        let dialect = if how & 3 == 3 { Dialect::Polykey } else { Dialect::Native };
        // Some peers have renewed their key, and prove the old one.
        let leaf = if how & 12 == 12 { Cast::get().id(1 + (how >> 4) % 7) } else { matched_id };
        self.connected(conn, Side::Dialer, dialect, leaf, Some(matched_id), remote);
    }

    fn incoming(&mut self) {
        let (peer, how) = (self.script.byte(), self.script.byte());
        // A driver whose machine has stopped accepts no connection.
        if self.driver.stopped {
            return;
        }
        let leaf = if peer < 224 { Cast::get().peer(peer).id() } else { Cast::get().id(peer) };
        let former = (how & 12 == 12).then(|| Cast::get().id(how >> 4));
        let dialect = if how & 3 == 3 { Dialect::Polykey } else { Dialect::Native };
        let remote = std::net::SocketAddr::from(([20, 0, peer % 8, 1], 1314 + u16::from(how & 1)));
        let conn = ConnectionId(self.driver.mint());
        self.connected(conn, Side::Acceptor, dialect, leaf, former, remote);
        if dialect == Dialect::Native && how & 16 == 0 {
            let stream = self.peer_stream(conn);
            let hello = peers::hello(&mut self.script);
            self.peer_writes(stream, &hello, false);
        }
    }

    fn connected(
        &mut self,
        conn: ConnectionId,
        side: Side,
        dialect: Dialect,
        leaf: NodeId,
        other: Option<NodeId>,
        remote: std::net::SocketAddr,
    ) {
        let mut chain = vec![leaf];
        chain.extend(other.filter(|other| *other != leaf));
        let matched_id = other.filter(|_| side == Side::Dialer);
        let name = self.driver.mint();
        let shared_id =
            Bytes::copy_from_slice(&name.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
        let local = ([20, 0, 0, 1], 1314).into();
        self.driver
            .conns
            .insert(conn, Conn { state: ConnState::Live, dialect, peer: leaf, suspected: false });
        self.driver.input(Input::Connected(Connected {
            conn,
            side,
            dialect,
            leaf,
            chain,
            matched_id,
            remote,
            local,
            shared_id,
        }));
    }

    fn disconnects(&mut self) {
        let ended = self
            .driver
            .conns
            .iter()
            .filter(|(_, of)| !matches!(of.state, ConnState::Dialing { .. }));
        let Some(conn) = self.script.pick(ended.map(|(conn, _)| *conn).collect::<Vec<_>>()) else {
            return;
        };
        let why = self.script.value().unwrap_or(DisconnectReason::TimedOut);
        self.disconnect(conn, why);
    }

    fn disconnect(&mut self, conn: ConnectionId, why: DisconnectReason) {
        self.driver.conns.remove(&conn);
        self.driver.streams.retain(|_, stream| stream.conn != conn);
        self.driver.input(Input::Disconnected { conn, why });
    }

    fn live(&mut self) -> Option<ConnectionId> {
        let live = self.driver.conns.iter().filter(|(_, of)| of.state == ConnState::Live);
        self.script.pick(live.map(|(conn, _)| *conn).collect::<Vec<_>>())
    }

    // -- effects

    fn effect_ends(&mut self) {
        match self.script.byte() {
            byte @ 0..=127 => {
                // Sets the fault of the next write, which may be requested later, and of the reads
                // of its evidence.
                let (store, unreadable) = (&mut self.driver.store, u32::from(byte >> 3 & 3));
                let fault = match byte & 7 {
                    7 => Some(WriteFault::Refused),
                    6 => Some(WriteFault::Written),
                    5 => Some(WriteFault::Lost),
                    _ => None,
                };
                if let Some(fault) = fault {
                    store.unreadable = unreadable;
                    store.faults.insert(store.writes() + 1, fault);
                }
                store.fail_reads = u32::from(byte & 7 == 4);
                self.store_works();
            }
            byte if !self.driver.effects.is_empty() => {
                let effect =
                    self.driver.effects.remove(self.script.below(self.driver.effects.len()));
                self.answer(effect, byte & 7 == 7);
            }
            _ => {}
        }
    }

    fn store_works(&mut self) -> bool {
        let Some((answer, _)) = self.driver.store.work(&mut self.driver.die) else { return false };
        self.driver.answer(answer);
        true
    }

    fn answer(&mut self, effect: Effect, fails: bool) {
        let error = || "the fuzzer says no".to_owned();
        let input = match effect {
            Effect::Sign { id, key, bytes } => {
                let signature =
                    Cast::get().key(&key).map(|key| key.sign(&bytes)).filter(|_| !fails);
                Input::Signed { id, result: signature.ok_or_else(error) }
            }
            Effect::Resolve { id, port } => {
                let mut addrs: Vec<std::net::SocketAddr> = Vec::new();
                for _ in 0..self.script.below(4) {
                    addrs.extend(self.script.raw::<Input>().into_iter().filter_map(|input| {
                        match input {
                            Input::RemoteAddressChanged { addr, .. } => Some(addr),
                            _ => None,
                        }
                    }));
                    addrs.push(([20, 0, self.script.byte() % 8, 1], port).into());
                }
                Input::Resolved { id, result: if fails { Err(error()) } else { Ok(addrs) } }
            }
            Effect::Browse { id } => {
                let addrs = vec![([10, 0, 0, self.script.byte() % 8], 1314).into()];
                if fails {
                    self.driver.effects.push(Effect::Browse { id });
                }
                Input::Discovered { id, addrs, done: !fails }
            }
            Effect::ReplaceIdentity { id } => {
                Input::IdentityReplaced { id, result: if fails { Err(error()) } else { Ok(()) } }
            }
        };
        self.driver.answer(input);
    }

    // -- the rest

    fn address_changes(&mut self) {
        let inputs = [self.script.byte(), self.script.byte()];
        match inputs[0] % 6 {
            0 => {
                if let (Some(conn), addr) = (self.live(), ([20, 0, inputs[1] % 8, 2], 1314).into())
                {
                    self.driver.input(Input::RemoteAddressChanged { conn, addr });
                }
            }
            1 if inputs[1] >= 192 => self.driver.input(Input::External {
                addr: (inputs[1] > 192).then(|| ([20, 0, 0, 1], inputs[1].into()).into()),
            }),
            1 => self.driver.input(Input::Listening {
                addrs: vec![([20, 0, 0, 1 + inputs[1] % 2], 1314).into()],
            }),
            2 => {
                if let Some(unix) = self.script.raw() {
                    self.driver.input(Input::WallClock(unix));
                }
            }
            3 | 4 => {
                let Some(conn) = self.live() else { return };
                let Some(of) = self.driver.conns.get_mut(&conn) else { return };
                of.suspected = !of.suspected;
                let input =
                    if of.suspected { Input::Suspected { conn } } else { Input::Heard { conn } };
                self.driver.input(input);
            }
            _ => self.driver.call(RecordedCall::AcceptProtocol("chat/1".into())),
        }
    }

    /// The embedder uses a handle.
    fn embedder(&mut self) {
        let yes = self.script.below(2) == 0;
        match self.script.byte() % 3 {
            0 => {
                if let Some(approval) = self.driver.approvals.pop() {
                    self.driver.call(RecordedCall::ResolveClaimApproval { approval, sign: yes });
                }
            }
            1 => {
                if let Some(lease) = self.driver.leases.pop() {
                    self.driver.call(RecordedCall::Release(lease));
                }
            }
            _ => {
                if let Some(id) = self.script.pick(self.driver.requests.clone()) {
                    self.driver.call(RecordedCall::Cancel(id));
                }
            }
        }
    }

    /// Stops, kills or restarts the node, as the script chooses. Returns false if it did not start.
    fn rarely(&mut self) -> bool {
        let crash =
            [CrashPolicy::Keep, CrashPolicy::Lose, CrashPolicy::Random][self.script.below(3)];
        match self.script.byte() % 8 {
            0 => {
                self.driver.call(RecordedCall::Stop);
                return true;
            }
            1 => self.stop(),
            2 | 3 => {}
            _ => return true,
        }
        if !self.driver.restart(crash) {
            return false;
        }
        self.driver.input(Input::Listening { addrs: vec![([20, 0, 0, 1], 1314).into()] });
        true
    }

    /// Actions of a cooperative environment after each step.
    fn oblige(&mut self) {
        for _ in 0..OBLIGING {
            let mut moved = false;
            if self.effects {
                moved |= self.store_works();
                if !self.driver.effects.is_empty() {
                    let effect = self.driver.effects.remove(0);
                    self.answer(effect, false);
                    moved = true;
                }
            }
            let streams: Vec<_> = self.driver.streams.keys().copied().collect();
            for stream in streams {
                if self.writes {
                    moved |= self.confirm(stream, u64::MAX);
                    moved |= self.deliver(stream, usize::MAX);
                }
                if self.peers
                    && let Some((bytes, fin)) =
                        peers::answer(&mut self.script, &mut self.driver, stream)
                {
                    self.peer_writes(stream, &bytes, fin);
                    moved = true;
                }
            }
            if !moved {
                break;
            }
        }
    }
}

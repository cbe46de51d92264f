//! Walk (b): a cross-signed claim, whose initiator is killed at the worst time and finishes after
//! its restart.
//!
//! The initiator sends a singly signed claim, the responder answers with its signature and its own
//! singly signed claim, and the initiator's last message is its signature of that. Each writes
//! before it sends what cannot be revoked.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use pk_proto::{
    Connected, ConnectionId, EffectId, Event, Input, Instant, NodeAddress, NodeId, Output, Side,
    StoreOp, StoreRange, StreamId, Table, UnixMillis,
};
use pk_sim::{Boot, Coverage, CrashPolicy, Host, HostId, Link, Machine, World};
use serde::{Deserialize, Serialize};

use super::kit::{Claim, Kit, Message, Sig, bytes, host, id, signed};

const SECOND: Duration = Duration::from_secs(1);
const MALFORMED: u64 = 4;
const HEAD: Bytes = Bytes::from_static(b"head");

/// A claim as it is stored: its type names the nodes that have signed it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Signed {
    claim: Claim,
    by_issuer: Sig,
    by_subject: Sig,
}

/// State that the initiator must keep: it has signed the peer's claim, and the peer may not have
/// received that.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Record {
    peer: NodeId,
    theirs: Claim,
    last: Sig,
}

/// State that the responder must keep: its answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct RpcResponse {
    theirs: Sig,
    mine: Claim,
    by_me: Sig,
}

/// A node that is an initiator and a responder.
#[derive(Debug)]
struct Node {
    own: NodeId,
    kit: Kit,
    unix: (Instant, UnixMillis),
    peers: BTreeMap<ConnectionId, NodeId>,
    /// The newest claim of the local chain, as in `Table::ClaimHead`.
    head: Option<u64>,
    /// As in `Table::Exchanges`.
    open: BTreeMap<u64, Record>,
    streams: BTreeMap<StreamId, Exchange>,
    effects: BTreeMap<EffectId, StreamId>,
    /// Reads of claims to resume, and their connections.
    resuming: BTreeMap<EffectId, ConnectionId>,
    /// Rows that are being written to end an exchange.
    closing: BTreeMap<EffectId, u64>,
    partner: Option<(NodeId, std::net::SocketAddr)>,
}

/// Both sides of an exchange, step by step; each step has only what is known by then.
#[derive(Debug)]
enum Exchange {
    // -- initiator
    SigningFirst { claim: Claim },
    Asked { claim: Claim, by_me: Sig },
    SigningLast { claim: Claim, by_me: Sig, theirs: Claim, by_peer: Sig },
    PersistingMine { record: Record, jti: u64 },
    Finishing { jti: u64 },
    // -- responder
    LookingUp { claim: Claim },
    SigningTheirs { claim: Claim, mine: Claim },
    SigningMine { claim: Claim, mine: Claim, theirs: Sig },
    PersistingAnswer { answer: RpcResponse },
    Answered { answer: RpcResponse },
    PersistingTheirs,
}

impl Node {
    /// A machine with the state of its last run.
    fn new(own: NodeId, boot: &Boot<'_>, partner: Option<(NodeId, std::net::SocketAddr)>) -> Self {
        let store = &boot.host.store;
        let open = store
            .table(Table::Exchanges)
            .map(|(key, record)| (jti(key), postcard::from_bytes(record).unwrap()));
        Self {
            own,
            kit: Kit::default(),
            unix: (boot.now, boot.unix),
            peers: BTreeMap::new(),
            head: store.get(Table::ClaimHead, &HEAD).map(|value| jti(value)),
            open: open.collect(),
            streams: BTreeMap::new(),
            effects: BTreeMap::new(),
            resuming: BTreeMap::new(),
            closing: BTreeMap::new(),
            partner,
        }
    }

    /// Starts a claim over a live connection.
    fn claim(&mut self, peer: NodeId, now: Instant) {
        self.kit.now = now;
        let Some((conn, _)) = self.peers.iter().find(|(_, node)| **node == peer) else { return };
        let (conn, claim) = (*conn, self.new_claim(peer));
        let id = self.kit.sign(self.own, &claim);
        // A stream on which nothing has been sent is not visible to the peer; it is where the
        // signature will be sent.
        let stream = self.kit.open_silent(conn);
        self.streams.insert(stream, Exchange::SigningFirst { claim });
        self.effects.insert(id, stream);
    }

    fn new_claim(&self, subject: NodeId) -> Claim {
        let iat = self.unix.1.0 + self.kit.now.since(self.unix.0).as_millis() as u64;
        Claim {
            jti: self.head.map_or(iat, |head| iat.max(head + 1)),
            iat,
            issuer: self.own,
            subject,
            previous: self.head,
        }
    }

    fn persist(&mut self, ops: Vec<StoreOp>) -> EffectId {
        let id = self.kit.effect();
        self.kit.output(Output::Persist { id, ops, durable: true });
        id
    }

    /// The local claim, signed by both: the claim and the head of the chain.
    fn append(&mut self, signed: &Signed) -> Vec<StoreOp> {
        let key = key(signed.claim.jti);
        self.head = self.head.max(Some(signed.claim.jti));
        vec![
            StoreOp::Put { table: Table::Claims, key: key.clone(), value: bytes(signed) },
            StoreOp::Put { table: Table::ClaimHead, key: HEAD, value: key },
        ]
    }

    fn connected(&mut self, connected: &Connected) {
        let (conn, node, side) = (connected.conn, connected.leaf, connected.side);
        self.peers.insert(conn, node);
        let address = NodeAddress::from_socket(connected.remote);
        self.kit.event(Event::ConnectionOpened { conn, node, side, address });
        // An unfinished exchange with this peer continues with the same claim, which the peer has
        // received.
        if side == Side::Dialer {
            let open =
                self.open.iter().filter(|(_, record)| record.peer == node).map(|(jti, _)| *jti);
            for jti in open.collect::<Vec<_>>() {
                let id = self.kit.effect();
                let range = StoreRange {
                    table: Table::Claims,
                    from: key(jti),
                    to: Some(key(jti + 1)),
                    descending: false,
                };
                self.kit.output(Output::Load { id, range, max_bytes: 4096 });
                self.resuming.insert(id, conn);
            }
        }
    }

    fn message(&mut self, stream: StreamId, message: Message) {
        let Some(peer) = self.kit.conn(stream).and_then(|conn| self.peers.get(&conn)).copied()
        else {
            return;
        };
        let next = match (self.streams.remove(&stream), message) {
            (None, Message::Half(claim, by_peer)) => {
                let ours = claim.issuer == peer && claim.subject == self.own;
                if !ours || !signed(&peer, &claim, &by_peer) {
                    return self.kit.abort(stream, MALFORMED);
                }
                let (id, jti) = (self.kit.effect(), claim.jti);
                let range = StoreRange {
                    table: Table::Answered,
                    from: key(jti),
                    to: Some(key(jti + 1)),
                    descending: false,
                };
                self.kit.output(Output::Load { id, range, max_bytes: 4096 });
                self.effects.insert(id, stream);
                Exchange::LookingUp { claim }
            }
            (
                Some(Exchange::Asked { claim, by_me }),
                Message::Full(by_subject, theirs, by_peer),
            ) => {
                let right = signed(&peer, &claim, &by_subject) && signed(&peer, &theirs, &by_peer);
                if !right || theirs.issuer != peer || theirs.subject != self.own {
                    return self.kit.abort(stream, MALFORMED);
                }
                let id = self.kit.sign(self.own, &theirs);
                self.effects.insert(id, stream);
                Exchange::SigningLast { claim, by_me, theirs, by_peer: by_subject }
            }
            (Some(Exchange::Answered { answer }), Message::Last(by_subject)) => {
                if !signed(&peer, &answer.mine, &by_subject) {
                    return self.kit.abort(stream, MALFORMED);
                }
                let ops = self.append(&Signed {
                    claim: answer.mine,
                    by_issuer: answer.by_me,
                    by_subject,
                });
                let id = self.persist(ops);
                self.effects.insert(id, stream);
                Exchange::PersistingTheirs
            }
            (state, message) => panic!("{message:?} in {state:?}"),
        };
        self.streams.insert(stream, next);
    }

    fn signed(&mut self, id: EffectId, signature: Sig) {
        let Some(stream) = self.effects.remove(&id) else { return };
        let next = match self.streams.remove(&stream) {
            // -- initiator
            Some(Exchange::SigningFirst { claim }) => {
                self.kit.send(stream, &Message::Half(claim.clone(), signature), false);
                Exchange::Asked { claim, by_me: signature }
            }
            Some(Exchange::SigningLast { claim, by_me, theirs, by_peer }) => {
                let jti = claim.jti;
                let record = Record { peer: claim.subject, theirs, last: signature };
                let mut ops = self.append(&Signed { claim, by_issuer: by_me, by_subject: by_peer });
                ops.push(StoreOp::Put {
                    table: Table::Exchanges,
                    key: key(jti),
                    value: bytes(&record),
                });
                let id = self.persist(ops);
                self.effects.insert(id, stream);
                Exchange::PersistingMine { record, jti }
            }
            // -- responder
            Some(Exchange::SigningTheirs { claim, mine }) => {
                let id = self.kit.sign(self.own, &mine);
                self.effects.insert(id, stream);
                Exchange::SigningMine { claim, mine, theirs: signature }
            }
            Some(Exchange::SigningMine { claim, mine, theirs }) => {
                let answer = RpcResponse { theirs, mine, by_me: signature };
                let row = StoreOp::Put {
                    table: Table::Answered,
                    key: key(claim.jti),
                    value: bytes(&answer),
                };
                let id = self.persist(vec![row]);
                self.effects.insert(id, stream);
                Exchange::PersistingAnswer { answer }
            }
            // The connection ended meanwhile.
            None => return,
            Some(other) => panic!("signed in {other:?}"),
        };
        self.streams.insert(stream, next);
    }

    fn persisted(&mut self, id: EffectId) {
        if let Some(jti) = self.closing.remove(&id) {
            self.open.remove(&jti);
            return;
        }
        let Some(stream) = self.effects.remove(&id) else { return };
        let next = match self.streams.remove(&stream) {
            Some(Exchange::PersistingMine { record, jti }) => {
                self.kit.send(stream, &Message::Last(record.last), true);
                self.open.insert(jti, record);
                Exchange::Finishing { jti }
            }
            Some(Exchange::PersistingAnswer { answer }) => self.answer(stream, answer),
            Some(Exchange::PersistingTheirs) => {
                self.kit.finish(stream);
                self.kit.forget(stream);
                return;
            }
            None => return,
            Some(other) => panic!("persisted in {other:?}"),
        };
        self.streams.insert(stream, next);
    }

    fn answer(&mut self, stream: StreamId, answer: RpcResponse) -> Exchange {
        self.kit.send(
            stream,
            &Message::Full(answer.theirs, answer.mine.clone(), answer.by_me),
            false,
        );
        Exchange::Answered { answer }
    }

    fn loaded(&mut self, id: EffectId, rows: &[(Bytes, Bytes)]) {
        if let Some(conn) = self.resuming.remove(&id) {
            let mine: Signed = postcard::from_bytes(&rows[0].1).unwrap();
            if self.peers.contains_key(&conn) {
                let half = Message::Half(mine.claim.clone(), mine.by_issuer);
                let stream = self.kit.open(conn, &half, false);
                self.streams
                    .insert(stream, Exchange::Asked { claim: mine.claim, by_me: mine.by_issuer });
            }
            return;
        }
        let Some(stream) = self.effects.remove(&id) else { return };
        let Some(Exchange::LookingUp { claim }) = self.streams.remove(&stream) else { return };
        let next = match rows.first() {
            // A repeated request gets the same answer.
            Some((_, answer)) => self.answer(stream, postcard::from_bytes(answer).unwrap()),
            None => {
                let mine = self.new_claim(claim.issuer);
                let id = self.kit.sign(self.own, &claim);
                self.effects.insert(id, stream);
                Exchange::SigningTheirs { claim, mine }
            }
        };
        self.streams.insert(stream, next);
    }

    /// The peer has ended its direction: to an initiator this means that the peer has everything.
    fn ended(&mut self, stream: StreamId) {
        if let Some(Exchange::Finishing { jti }) = self.streams.get(&stream) {
            let jti = *jti;
            let id = self.persist(vec![StoreOp::Delete { table: Table::Exchanges, key: key(jti) }]);
            self.closing.insert(id, jti);
            self.streams.remove(&stream);
            self.kit.forget(stream);
        }
    }

    fn redial(&mut self) {
        if let Some((partner, addr)) = self.partner {
            self.kit.dial(addr, partner, self.kit.now + 15 * SECOND);
        }
    }
}

impl Machine for Node {
    fn handle_input(&mut self, input: Input, now: Instant) {
        self.kit.now = now;
        match input {
            Input::Listening { addrs } => {
                self.kit.event(Event::Ready { addrs });
                self.redial();
            }
            Input::WallClock(unix) => self.unix = (now, unix),
            Input::Connected(connected) => self.connected(&connected),
            Input::DialFailed { .. } => self.kit.set("redial", now + SECOND),
            Input::Disconnected { conn, why } => {
                self.streams.retain(|stream, _| self.kit.conn(*stream) != Some(conn));
                self.kit.forget_connection(conn);
                let node = self.peers.remove(&conn).unwrap();
                self.kit.event(Event::ConnectionClosed { conn, node, why });
                if self.partner.is_some() && !self.peers.values().any(|other| *other == node) {
                    self.kit.set("redial", now + SECOND);
                }
            }
            Input::StreamOpened { conn, stream } => self.kit.opened(conn, stream),
            Input::StreamData { stream, bytes, fin } => {
                for message in self.kit.received(stream, &bytes, fin) {
                    self.message(stream, message);
                    self.kit.grant(stream);
                }
                if fin {
                    self.ended(stream);
                }
            }
            Input::Signed { id, result } => self.signed(id, result.unwrap()),
            Input::Persisted { id, result } => {
                result.unwrap();
                self.persisted(id);
            }
            Input::Loaded { id, result } => self.loaded(id, &result.unwrap().0),
            Input::StreamWritten { .. } => {}
            other => panic!("{other:?}"),
        }
    }

    fn handle_timeout(&mut self, now: Instant) {
        self.kit.now = now;
        while self.kit.pop_due(now).is_some() {
            self.redial();
        }
    }

    fn poll_output(&mut self) -> Option<Output> {
        self.kit.poll_output()
    }

    fn poll_timeout(&self) -> Option<Instant> {
        self.kit.poll_timeout()
    }
}

fn key(jti: u64) -> Bytes {
    Bytes::copy_from_slice(&jti.to_be_bytes())
}

fn jti(key: &[u8]) -> u64 {
    u64::from_be_bytes(key.try_into().unwrap())
}

const INITIATOR: HostId = 0;
const RESPONDER: HostId = 1;

fn start(world: &mut World<Node>, which: HostId) {
    let partner = (which == INITIATOR).then(|| (id(1), world.host(RESPONDER).addrs()[0]));
    world.start(which, |boot| Node::new(id(which as u64), &boot, partner));
}

/// Two nodes, connected, with the initiator's claim started.
fn begin(seed: u64) -> World<Node> {
    let mut world = World::new(seed);
    world.network_mut().set_default_link(Link::ms(25));
    world.add_host(host(0));
    world.add_host(host(1));
    start(&mut world, RESPONDER);
    start(&mut world, INITIATOR);
    world.drive(SECOND);
    // The initiator's clock was slow, and is set right before it claims.
    world.set_clock(INITIATOR, 7000);
    world.drive(SECOND);
    world.call(INITIATOR, |node, now| node.claim(id(1), now));
    world
}

/// The chain of a host: claims signed by both.
fn chain(host: &Host) -> Vec<Signed> {
    let chain: Vec<Signed> = host
        .store
        .table(Table::Claims)
        .map(|(_, row)| postcard::from_bytes(row).unwrap())
        .collect();
    for Signed { claim, by_issuer, by_subject } in &chain {
        assert!(
            signed(&claim.issuer, claim, by_issuer) && signed(&claim.subject, claim, by_subject)
        );
    }
    chain
}

/// The final condition: both have the link or none has, each once, and no exchange is open.
fn settle(mut world: World<Node>, what: &str) -> usize {
    world.drive(120 * SECOND);
    let chains = [INITIATOR, RESPONDER].map(|which| chain(world.host(which)));
    assert_eq!(chains[0].len(), chains[1].len(), "{what}");
    assert!(chains[0].len() <= 1, "{what}");
    assert_eq!(world.host(INITIATOR).store.table(Table::Exchanges).count(), 0, "{what}");
    for (which, chain) in chains.iter().enumerate() {
        assert!(chain.iter().all(|signed| signed.claim.issuer == id(which as u64)), "{what}");
    }
    chains[0].len()
}

/// The walk: killed when the claim is written and the last signature not sent.
pub fn walk(seed: u64) -> (Coverage, blake3::Hash) {
    let mut world = begin(seed);
    let written =
        |world: &World<Node>| world.host(INITIATOR).store.table(Table::Exchanges).count() == 1;
    assert!(world.drive_until(written, 5 * SECOND));
    world.kill(INITIATOR);
    let [mine, theirs] = [INITIATOR, RESPONDER].map(|which| chain(world.host(which)));
    assert_eq!(
        (mine.len(), theirs.len()),
        (1, 0),
        "the initiator has its claim, the responder cannot have"
    );
    let age = world.unix(INITIATOR).0 - mine[0].claim.iat;
    assert_eq!(age, 51, "by the clock that was set right: two trips, a read and two writes ago");
    let answered = world.host(RESPONDER).store.table(Table::Answered).count();
    assert_eq!(answered, 1);

    world.drive(3 * SECOND);
    start(&mut world, INITIATOR);
    world.drive(5 * SECOND);
    assert_eq!(chain(world.host(INITIATOR)), mine, "the same claim, not another one");
    let theirs = chain(world.host(RESPONDER));
    assert_eq!((theirs.len(), theirs[0].claim.subject), (1, id(0)));
    assert_eq!(
        world.host(RESPONDER).store.table(Table::Answered).count(),
        answered,
        "the same answer, not another one"
    );
    let spoken = (world.coverage().clone(), world.digest());
    assert_eq!(settle(world, "the walk"), 1);
    spoken
}

/// Kills either node after any number of steps, with any of the writes in progress lost. Returns
/// how often both had the link, and how often none had.
pub fn sweep() -> (u32, u32) {
    let (mut linked, mut unlinked) = (0, 0);
    for who in [INITIATOR, RESPONDER] {
        for policy in [CrashPolicy::Keep, CrashPolicy::Lose] {
            for steps in 0.. {
                let mut world = begin(7);
                world.host_mut(who).store.crash = policy;
                let ran = (0..steps).take_while(|_| world.next().is_some() && world.step()).count();
                let over = ran < steps;
                world.kill(who);
                start(&mut world, who);
                match settle(world, &format!("host {who} killed after {steps} steps, {policy:?}")) {
                    0 => unlinked += 1,
                    _ => linked += 1,
                }
                if over {
                    break;
                }
            }
        }
    }
    (linked, unlinked)
}

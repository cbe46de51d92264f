//! Walk (a): a node finds another through a relay that both are connected to, by signalling and
//! punching.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use pk_proto::{
    Connected, ConnectionId, ContactMode, DialFailure, EffectId, Event, FindEnd, FindOutcome,
    FindStats, Input, Instant, NodeAddress, NodeContactAddressData, NodeId, Output, Reply,
    RequestId, Scopes, Side, StreamId, UnixMillis,
};
use pk_sim::{Coverage, Link, Machine, World};

use super::kit::{Kit, Message, Sig, host, id, signed};

const SECOND: Duration = Duration::from_secs(1);
const UNSUPPORTED: u64 = 1;

/// A node that searches, relays and is found: every node has all three roles.
#[derive(Debug)]
struct Node {
    own: NodeId,
    ready: bool,
    kit: Kit,
    peers: BTreeMap<ConnectionId, Connected>,
    asked: BTreeMap<StreamId, Asked>,
    signing: BTreeMap<EffectId, Signing>,
    searches: Vec<Search>,
    punching: Option<Punching>,
    /// The hostname of a relay to connect to at the start.
    relay: Option<(&'static str, NodeId)>,
    /// Streams that the peer refused, with the codes of its stop and its reset.
    refused: Vec<(&'static str, u64)>,
}

/// The purpose of a stream of the local node.
#[derive(Debug, Clone, Copy)]
enum Asked {
    Novelty,
    Where(NodeId),
    Signal(NodeId),
    Relay,
}

/// The purpose of a signature.
#[derive(Debug)]
enum Signing {
    Signal {
        relay: ConnectionId,
        target: NodeId,
        nonce: u64,
    },
    Relay {
        asked_on: StreamId,
        target: ConnectionId,
        source: NodeId,
        at: SocketAddr,
        nonce: u64,
        signature: Sig,
    },
}

/// A search by its three strategies.
#[derive(Debug)]
struct Search {
    request: RequestId,
    target: NodeId,
    begun: Instant,
    /// mDNS.
    browse: EffectId,
    /// The address in the local graph.
    direct: ConnectionId,
    /// The dial after the signal.
    signalled: Option<ConnectionId>,
}

#[derive(Debug)]
struct Punching {
    peer: NodeId,
    at: SocketAddr,
    wait: Duration,
    until: Instant,
}

impl Node {
    fn new(own: NodeId, relay: Option<(&'static str, NodeId)>) -> Self {
        Self {
            own,
            ready: false,
            kit: Kit::default(),
            peers: BTreeMap::new(),
            asked: BTreeMap::new(),
            signing: BTreeMap::new(),
            searches: Vec::new(),
            punching: None,
            relay,
            refused: Vec::new(),
        }
    }

    /// Starts a search; `known` is a stale address.
    fn find(&mut self, target: NodeId, known: SocketAddr, now: Instant) -> RequestId {
        self.kit.now = now;
        let browse = self.kit.effect();
        self.kit.output(Output::Browse {
            id: browse,
            node: target,
            deadline: now + Duration::from_millis(1500),
        });
        let direct = self.kit.dial(known, target, now + 15 * SECOND);
        let request = RequestId(self.searches.len() as u64);
        self.searches.push(Search { request, target, begun: now, browse, direct, signalled: None });
        for conn in self.peers.keys().copied().collect::<Vec<_>>() {
            let stream = self.kit.open(conn, &Message::Where(target), true);
            self.asked.insert(stream, Asked::Where(target));
        }
        request
    }

    fn connected(&mut self, connected: Connected) {
        let (conn, leaf, side) = (connected.conn, connected.leaf, connected.side);
        let address = NodeAddress::from_socket(connected.remote);
        self.peers.insert(conn, connected);
        self.kit.event(Event::ConnectionOpened { conn, node: leaf, side, address });
        if self.punching.as_ref().is_some_and(|punching| punching.peer == leaf) {
            self.punching = None;
            self.kit.clear("punch");
        }
        if side == Side::Dialer && self.relay.is_some_and(|(_, relay)| relay == leaf) {
            let stream = self.kit.open(conn, &Message::Novelty, false);
            self.asked.insert(stream, Asked::Novelty);
        }
        self.found(leaf, conn);
        self.keep_primary(leaf);
    }

    /// Several connections with one node: the smallest shared id stays, the dialer of the others
    /// closes them.
    fn keep_primary(&mut self, node: NodeId) {
        let with_node = || self.peers.values().filter(|peer| peer.leaf == node);
        let primary = with_node().map(|peer| peer.shared_id.clone()).min();
        let surplus = with_node().filter(|peer| Some(&peer.shared_id) != primary.as_ref());
        let ours: Vec<_> =
            surplus.filter(|peer| peer.side == Side::Dialer).map(|peer| peer.conn).collect();
        for conn in ours {
            self.kit.output(Output::CloseConnection {
                conn,
                code: 0,
                reason: "not primary".to_owned(),
            });
        }
    }

    /// Ends the searches for a node that is connected now, and cancels their dials.
    fn found(&mut self, node: NodeId, conn: ConnectionId) {
        let Some(at) = self.searches.iter().position(|search| search.target == node) else {
            return;
        };
        let search = self.searches.remove(at);
        self.kit.output(Output::CancelBrowse { id: search.browse });
        self.kit.output(Output::CancelDial { conn: search.direct });
        let mode =
            if Some(conn) == search.signalled { ContactMode::Signal } else { ContactMode::Direct };
        let data =
            NodeContactAddressData { mode, connected_time: UnixMillis(0), scopes: Scopes::GLOBAL };
        let elapsed = self.kit.now.since(search.begun);
        let outcome = FindOutcome {
            found: Some((NodeAddress::from_socket(self.peers[&conn].remote), data)),
            ended: FindEnd::Connected,
            stats: FindStats { elapsed, ..FindStats::default() },
            trace: Vec::new(),
        };
        self.kit.event(Event::Done { id: search.request, result: Ok(Reply::FindNode(outcome)) });
    }

    fn message(&mut self, stream: StreamId, message: Message) {
        let Some(conn) = self.kit.conn(stream) else { return };
        let from = self.peers[&conn].leaf;
        match (message, self.asked.get(&stream).copied()) {
            // -- the relay
            (Message::Where(target), None) => {
                let known = self.peers.values().any(|peer| peer.leaf == target);
                self.kit.send(stream, &Message::Known(known), true);
            }
            (Message::Signal(target, nonce, signature), None) => {
                assert!(signed(&from, &(target, nonce), &signature));
                let Some(to) = self.peers.values().find(|peer| peer.leaf == target) else {
                    return self.kit.abort(stream, UNSUPPORTED);
                };
                let (target, source, at) = (to.conn, from, self.peers[&conn].remote);
                let id = self.kit.sign(self.own, &(source, at, nonce, signature));
                let relay =
                    Signing::Relay { asked_on: stream, target, source, at, nonce, signature };
                self.signing.insert(id, relay);
            }
            // -- the searcher
            (Message::Known(true), Some(Asked::Where(target))) => {
                let nonce = self.kit.now.as_micros();
                let id = self.kit.sign(self.own, &(target, nonce));
                self.signing.insert(id, Signing::Signal { relay: conn, target, nonce });
            }
            (Message::At(addr), Some(Asked::Signal(target))) => {
                let deadline = self.kit.now + 15 * SECOND;
                let dial = self.kit.dial(addr, target, deadline);
                if let Some(search) =
                    self.searches.iter_mut().find(|search| search.target == target)
                {
                    search.signalled = Some(dial);
                }
            }
            // -- the target
            (Message::Relay(source, at, nonce, signature, relayed), None) => {
                assert!(signed(&source, &(self.own, nonce), &signature));
                assert!(signed(&from, &(source, at, nonce, signature), &relayed));
                self.kit.finish(stream);
                let until = self.kit.now + 15 * SECOND;
                self.punching =
                    Some(Punching { peer: source, at, wait: Duration::from_millis(50), until });
                self.punch();
                self.kit.dial(at, source, until);
            }
            (Message::Known(false), _) => {}
            (_, None) => self.kit.abort(stream, UNSUPPORTED),
            (message, asked) => panic!("{message:?} is no answer to {asked:?}"),
        }
    }

    fn signed(&mut self, id: EffectId, signature: Sig) {
        match self.signing.remove(&id).unwrap() {
            Signing::Signal { relay, target, nonce } => {
                let stream = self.kit.open(relay, &Message::Signal(target, nonce, signature), true);
                self.asked.insert(stream, Asked::Signal(target));
            }
            Signing::Relay { asked_on, target, source, at, nonce, signature: of_source } => {
                let relay = Message::Relay(source, at, nonce, of_source, signature);
                let stream = self.kit.open(target, &relay, true);
                self.asked.insert(stream, Asked::Relay);
                let addr = self.peers[&target].remote;
                self.kit.send(asked_on, &Message::At(addr), true);
            }
        }
    }

    /// One datagram, and the next one after twice the time.
    fn punch(&mut self) {
        let Some(Punching { at, wait, until, .. }) = &mut self.punching else { return };
        self.kit.output(Output::Punch { addr: *at, bytes: Bytes::from_static(&[0x1f; 32]) });
        let next = self.kit.now + *wait;
        *wait *= 2;
        if next < *until {
            self.kit.set("punch", next);
        }
    }
}

impl Machine for Node {
    fn handle_input(&mut self, input: Input, now: Instant) {
        self.kit.now = now;
        match input {
            // A change of address: connections survive, and peers report the observed address of
            // the local node.
            Input::Listening { .. } if self.ready => {}
            Input::Listening { addrs } => {
                self.ready = true;
                if let Some((name, _)) = self.relay {
                    let (id, name) = (self.kit.effect(), name.parse().unwrap());
                    self.kit.output(Output::Resolve { id, name, port: 1314 });
                }
                self.kit.output(Output::Advertise { node: self.own, port: Some(addrs[0].port()) });
                self.kit.event(Event::Ready { addrs });
            }
            Input::Resolved { result, .. } => {
                let (_, relay) = self.relay.unwrap();
                self.kit.dial(result.unwrap()[0], relay, now + 15 * SECOND);
            }
            Input::Connected(connected) => self.connected(connected),
            Input::Disconnected { conn, why } => {
                self.kit.forget_connection(conn);
                let node = self.peers.remove(&conn).unwrap().leaf;
                self.kit.event(Event::ConnectionClosed { conn, node, why });
            }
            Input::RemoteAddressChanged { conn, addr } => {
                self.peers.get_mut(&conn).unwrap().remote = addr;
            }
            Input::StreamOpened { conn, stream } => self.kit.opened(conn, stream),
            Input::StreamData { stream, bytes, fin } => {
                for message in self.kit.received(stream, &bytes, fin) {
                    self.message(stream, message);
                    self.kit.grant(stream);
                }
            }
            Input::StreamStopped { code, .. } => self.refused.push(("stopped", code)),
            Input::StreamReset { code, .. } => self.refused.push(("reset", code)),
            Input::Signed { id, result } => self.signed(id, result.unwrap()),
            // The direct strategy's dial, cancelled: nothing depends on it.
            Input::DialFailed { why, .. } => assert_eq!(why, DialFailure::Cancelled),
            Input::Discovered { .. } | Input::StreamWritten { .. } => {}
            other => panic!("{other:?}"),
        }
    }

    fn handle_timeout(&mut self, now: Instant) {
        self.kit.now = now;
        while self.kit.pop_due(now).is_some() {
            self.punch();
        }
    }

    fn poll_output(&mut self) -> Option<Output> {
        self.kit.poll_output()
    }

    fn poll_timeout(&self) -> Option<Instant> {
        self.kit.poll_timeout()
    }
}

const SEARCHER: usize = 0;
const RELAY: usize = 1;
const TARGET: usize = 2;

/// The walk. Returns its inputs and outputs.
pub fn walk(seed: u64) -> (Coverage, blake3::Hash) {
    let mut world = World::new(seed);
    world.network_mut().set_default_link(Link::ms(25).jitter(Duration::from_millis(5)));
    world.network_mut().set_name("relay.example", Ok(vec!["10.0.1.1".parse().unwrap()]));
    for index in [SEARCHER, RELAY, TARGET] {
        world.add_host(host(index as u64));
    }
    world.host_mut(SEARCHER).lan = Some(1);
    world.host_mut(SEARCHER).sign_delay = Some(Duration::from_millis(80)); // A hardware key.
    world.start(RELAY, |_| Node::new(id(1), None));
    for index in [SEARCHER, TARGET] {
        world.start(index, |_| Node::new(id(index as u64), Some(("relay.example", id(1)))));
    }
    world.drive(SECOND);

    // Before the relay is asked, the target moves; its contact in the searcher's graph is stale.
    let (stale, there) = (world.host(TARGET).addrs()[0], "10.0.77.1:4444".parse().unwrap());
    world.rehome(TARGET, vec![there]);
    world.drive(SECOND);
    let request =
        world.begin(SEARCHER, |node, now| Ok::<_, ()>(node.find(id(2), stale, now))).unwrap();
    assert!(world.drive_until(|world| world.done(SEARCHER, request).is_some(), 5 * SECOND));
    world.drive(5 * SECOND);

    // It was found at its present address, and all dials of the search have ended.
    let Some(Ok(Reply::FindNode(outcome))) = world.done(SEARCHER, request) else { panic!() };
    assert_eq!(outcome.found.as_ref().map(|(address, _)| address.clone()), Some(there.into()));
    assert!(outcome.stats.elapsed < SECOND, "{outcome:?}");
    // The target punched before it dialed; the datagrams reached the searcher from the target's
    // new address.
    let punches = world.host(SEARCHER).punches()[&there];
    assert!((1..=5).contains(&punches), "{punches}");
    // Both dialed, both ends agree on which connection stays.
    let [searcher, target] = [SEARCHER, TARGET].map(|host| &world.machine(host).unwrap().peers);
    let between = |peers: &BTreeMap<ConnectionId, Connected>, peer: NodeId| -> Vec<Bytes> {
        peers
            .values()
            .filter(|connected| connected.leaf == peer)
            .map(|connected| connected.shared_id.clone())
            .collect()
    };
    assert_eq!(between(searcher, id(2)), between(target, id(0)));
    assert_eq!((between(searcher, id(2)).len(), world.connections_of(SEARCHER)), (1, 2));
    assert_eq!(
        world.coverage().count("Event::ConnectionClosed"),
        2,
        "the other of the two connections"
    );
    // The relay refused only the unknown message.
    for host in [SEARCHER, TARGET] {
        let refused = &world.machine(host).unwrap().refused;
        assert_eq!(
            refused.iter().filter(|(_, code)| *code == UNSUPPORTED).count(),
            2,
            "{refused:?}"
        );
    }
    (world.coverage().clone(), world.digest())
}

//! Walk (c): a node renews its key while others are connected to it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use pk_proto::{
    Connected, ConnectionId, EffectId, Event, Identity, Input, Instant, NodeAddress,
    NodeGraphSpace, NodeId, Opener, Output, RequestId, StoreOp, StreamId, Table, UnixMillis,
};
use pk_sim::{
    App, AppAction, Boot, Coverage, CrashPolicy, HostId, Key, Link, Machine, World, renew,
};

use super::kit::{Kit, Message, bytes, host, id};

const SECOND: Duration = Duration::from_secs(1);
const LIMIT: u64 = 8;
/// The key of the row of `Table::Meta` with the active space and key.
const ACTIVE: Bytes = Bytes::from_static(b"active");
/// Maximum time in which an old connection finishes its streams.
const GRACE: Duration = Duration::from_secs(30);

/// A node with contacts, connections and application streams that can renew its key.
#[derive(Debug)]
struct Node {
    /// Every id of the local chain, newest first.
    own: Vec<NodeId>,
    kit: Kit,
    port: u16,
    space: NodeGraphSpace,
    contacts: BTreeMap<NodeId, SocketAddr>,
    peers: BTreeMap<ConnectionId, Peer>,
    renewal: Option<Renewal>,
    failed: Vec<StreamId>,
    refused: BTreeSet<StreamId>,
}

#[derive(Debug)]
struct Peer {
    connected: Connected,
    /// Opened before the renewal: it finishes its streams and accepts no new ones.
    old: bool,
    streams: BTreeSet<StreamId>,
}

/// The steps of a renewal.
#[derive(Debug)]
enum Renewal {
    Persisting { id: EffectId, identity: Identity, leaf: NodeId },
    Replacing { id: EffectId, leaf: NodeId },
}

impl Node {
    fn new(own: Vec<NodeId>, boot: &Boot<'_>) -> Self {
        let store = &boot.host.store;
        let space = store.get(Table::Meta, &ACTIVE).map(|row| active(row).0).unwrap_or_default();
        let contacts = store.table(Table::Contacts(space)).map(|(node, addr)| {
            (NodeId::from_bytes(node[..].try_into().unwrap()), postcard::from_bytes(addr).unwrap())
        });
        Self {
            own,
            kit: Kit::default(),
            port: 0,
            space,
            contacts: contacts.collect(),
            peers: BTreeMap::new(),
            renewal: None,
            failed: Vec::new(),
            refused: BTreeSet::new(),
        }
    }

    /// The other space is filled and activated in one transaction; only then is the new key
    /// presented.
    fn renew(&mut self, identity: Identity, leaf: NodeId, now: Instant) {
        self.kit.now = now;
        self.space = match self.space {
            NodeGraphSpace::A => NodeGraphSpace::B,
            NodeGraphSpace::B => NodeGraphSpace::A,
        };
        let table = Table::Contacts(self.space);
        let mut ops = vec![StoreOp::Clear { table }];
        ops.extend(self.contacts.iter().map(|(node, addr)| put(table, node, addr)));
        ops.push(StoreOp::Put {
            table: Table::Meta,
            key: ACTIVE,
            value: bytes(&(self.space, leaf)),
        });
        let id = self.kit.effect();
        self.kit.output(Output::Persist { id, ops, durable: true });
        self.renewal = Some(Renewal::Persisting { id, identity, leaf });
    }

    fn persisted(&mut self, done: EffectId) {
        match self.renewal.take() {
            Some(Renewal::Persisting { id, identity, leaf }) if id == done => {
                let id = self.kit.effect();
                self.kit.output(Output::ReplaceIdentity { id, identity });
                self.renewal = Some(Renewal::Replacing { id, leaf });
            }
            other => self.renewal = other,
        }
    }

    fn replaced(&mut self, done: EffectId) {
        let Some(Renewal::Replacing { id, leaf }) = self.renewal.take() else { panic!() };
        assert_eq!(id, done);
        self.kit.output(Output::Advertise { node: self.own[0], port: None });
        self.kit.output(Output::Advertise { node: leaf, port: Some(self.port) });
        self.own.insert(0, leaf);
        self.peers.values_mut().for_each(|peer| peer.old = true);
        self.kit.set("grace", self.kit.now + GRACE);
        // Known nodes are dialed with the new key; the nearest first, here all.
        let deadline = self.kit.now + 15 * SECOND;
        for (node, addr) in self.contacts.clone() {
            self.kit.dial(addr, node, deadline);
        }
        self.close_unused();
    }

    /// Closes old connections without streams.
    fn close_unused(&mut self) {
        let unused = self.peers.iter().filter(|(_, peer)| peer.old && peer.streams.is_empty());
        for conn in unused.map(|(conn, _)| *conn).collect::<Vec<_>>() {
            self.close(conn);
        }
    }

    fn close(&mut self, conn: ConnectionId) {
        self.kit.output(Output::CloseConnection { conn, code: 0, reason: "renewed".to_owned() });
        // Closed once: what follows is only its end.
        self.peers.get_mut(&conn).unwrap().old = false;
    }

    /// Dials a contact by the id it is known by.
    fn dial(&mut self, node: NodeId, now: Instant) {
        self.kit.now = now;
        let addr = self.contacts[&node];
        self.kit.dial(addr, node, now + 15 * SECOND);
    }

    /// Opens a stream for an application over the oldest connection with a node.
    fn open(&mut self, node: NodeId, request: RequestId, now: Instant) -> StreamId {
        self.kit.now = now;
        let with_node =
            self.peers.iter_mut().find(|(_, peer)| peer.connected.chain.contains(&node));
        let (conn, peer) = with_node.map(|(conn, peer)| (*conn, peer)).unwrap();
        let stream = self.kit.open(conn, &Message::Protocol("file".to_owned()), false);
        peer.streams.insert(stream);
        self.detach(conn, stream, "file", Opener::Us(request));
        stream
    }

    fn detach(&mut self, conn: ConnectionId, stream: StreamId, protocol: &str, opener: Opener) {
        let unread = self.kit.forget(stream);
        let node = self.peers[&conn].connected.leaf;
        self.kit.output(Output::DetachStream {
            conn,
            stream,
            node,
            protocol: protocol.to_owned(),
            opener,
            unread,
        });
    }

    /// A peer is stored under its newest id.
    fn connected(&mut self, connected: Connected) {
        let (conn, node, side) = (connected.conn, connected.leaf, connected.side);
        let address = NodeAddress::from_socket(connected.remote);
        let table = Table::Contacts(self.space);
        let mut ops = Vec::new();
        for former in connected.chain.iter().skip(1) {
            if self.contacts.remove(former).is_some() {
                ops.push(StoreOp::Delete { table, key: Bytes::copy_from_slice(former.as_bytes()) });
                self.kit.event(Event::NodeRemoved { node: *former });
            }
        }
        if self.contacts.insert(node, connected.remote).is_none() {
            ops.push(put(table, &node, &connected.remote));
            self.kit.event(Event::NodeAdded { node });
        }
        if !ops.is_empty() {
            let id = self.kit.effect();
            self.kit.output(Output::Persist { id, ops, durable: true });
        }
        self.peers.insert(conn, Peer { connected, old: false, streams: BTreeSet::new() });
        self.kit.event(Event::ConnectionOpened { conn, node, side, address });
    }

    fn message(&mut self, stream: StreamId, message: Message) {
        let Message::Protocol(protocol) = message else { panic!("{message:?}") };
        let Some(conn) = self.kit.conn(stream) else { return };
        let peer = self.peers.get_mut(&conn).unwrap();
        if peer.old {
            return self.kit.abort(stream, LIMIT);
        }
        peer.streams.insert(stream);
        self.detach(conn, stream, &protocol, Opener::Peer);
    }

    fn stream_over(&mut self, stream: StreamId) {
        for peer in self.peers.values_mut() {
            peer.streams.remove(&stream);
        }
        self.close_unused();
    }
}

impl Machine for Node {
    fn handle_input(&mut self, input: Input, now: Instant) {
        self.kit.now = now;
        match input {
            Input::Listening { addrs } => {
                self.port = addrs[0].port();
                self.kit.output(Output::Advertise { node: self.own[0], port: Some(self.port) });
                self.kit.event(Event::Ready { addrs });
            }
            Input::Connected(connected) => self.connected(connected),
            Input::Disconnected { conn, why } => {
                self.kit.forget_connection(conn);
                let node = self.peers.remove(&conn).unwrap().connected.leaf;
                self.kit.event(Event::ConnectionClosed { conn, node, why });
            }
            Input::StreamOpened { conn, stream } => self.kit.opened(conn, stream),
            Input::StreamData { stream, bytes, fin } => {
                for message in self.kit.received(stream, &bytes, fin) {
                    self.message(stream, message);
                }
            }
            Input::StreamClosed { stream } => self.stream_over(stream),
            Input::OpenFailed { stream } => {
                self.failed.push(stream);
                self.stream_over(stream);
            }
            Input::StreamReset { stream, code: LIMIT }
            | Input::StreamStopped { stream, code: LIMIT } => {
                self.refused.insert(stream);
            }
            Input::Persisted { id, result } => {
                result.unwrap();
                self.persisted(id);
            }
            Input::IdentityReplaced { id, result } => {
                result.unwrap();
                self.replaced(id);
            }
            Input::DialFailed { .. } | Input::StreamWritten { .. } => {}
            other => panic!("{other:?}"),
        }
    }

    fn handle_timeout(&mut self, now: Instant) {
        self.kit.now = now;
        while self.kit.pop_due(now).is_some() {
            let old = self.peers.iter().filter(|(_, peer)| peer.old).map(|(conn, _)| *conn);
            old.collect::<Vec<_>>().into_iter().for_each(|conn| self.close(conn));
        }
    }

    fn poll_output(&mut self) -> Option<Output> {
        self.kit.poll_output()
    }

    fn poll_timeout(&self) -> Option<Instant> {
        self.kit.poll_timeout()
    }
}

fn put(table: Table, node: &NodeId, addr: &SocketAddr) -> StoreOp {
    StoreOp::Put { table, key: Bytes::copy_from_slice(node.as_bytes()), value: bytes(addr) }
}

fn active(row: &[u8]) -> (NodeGraphSpace, NodeId) {
    postcard::from_bytes(row).unwrap()
}

/// Renews its key.
const NODE: HostId = 0;
/// It has an open stream meanwhile.
const FRIEND: HostId = 1;
/// It connects later and has only the old id.
const STRANGER: HostId = 2;

fn new_key() -> Key {
    Key::numbered(42, 100)
}

/// Starts a host with the identity that is active in its store, as its driver would.
fn start(world: &mut World<Node>, which: HostId) {
    let first = id(which as u64);
    let leaf = world.host(which).store.get(Table::Meta, &ACTIVE).map_or(first, |row| active(row).1);
    let own = if leaf == first { vec![first] } else { vec![leaf, first] };
    if leaf != first && world.host(which).identity.chain.len() == 1 {
        world.host_mut(which).identity = new_identity(world);
    }
    world.start(which, |boot| Node::new(own, &boot));
}

fn new_identity(world: &World<Node>) -> Identity {
    renew(
        &world.host(NODE).identity,
        &Key::numbered(42, 0),
        &new_key(),
        UnixMillis(1_767_000_001_000),
    )
}

/// Three nodes with contacts for each other; the friend is connected, the stranger was.
fn begin(seed: u64) -> World<Node> {
    let mut world = World::new(seed);
    world.network_mut().set_default_link(Link::ms(25));
    for which in [NODE, FRIEND, STRANGER] {
        world.add_host(host(which as u64));
        start(&mut world, which);
    }
    world.host_mut(NODE).keys.insert(new_key().id(), new_key());
    let addr = world.host(NODE).addrs()[0];
    for which in [FRIEND, STRANGER] {
        world.call(which, |node, now| {
            node.contacts.insert(id(0), addr);
            node.dial(id(0), now);
        });
    }
    world.drive(SECOND);
    let strangers = *world.machine(STRANGER).unwrap().peers.keys().next().unwrap();
    world.call(STRANGER, |node, _| node.close(strangers));
    world.drive(SECOND);
    world
}

fn begin_renewal(world: &mut World<Node>) {
    let identity = new_identity(world);
    world.call(NODE, |node, now| node.renew(identity, new_key().id(), now));
}

fn with_node(world: &World<Node>, which: HostId) -> Vec<Connected> {
    let peers = &world.machine(which).unwrap().peers;
    peers
        .values()
        .map(|peer| peer.connected.clone())
        .filter(|peer| peer.chain.contains(&id(0)))
        .collect()
}

/// The walk.
pub fn walk(seed: u64) -> (Coverage, blake3::Hash) {
    let (old, new) = (id(0), new_key().id());
    let mut world = begin(seed);
    let script = App::Script { send: Bytes::from_static(b"first half, "), fin: false };
    world.host_mut(FRIEND).apps.insert("file".to_owned(), script);

    // A stream for an application; a second one is over the limit of the peer's transport.
    world.host_mut(NODE).transport.stream_limit = 1;
    let [stream, second] = [0, 1]
        .map(|request| world.call(FRIEND, |node, now| node.open(old, RequestId(request), now)));
    world.drive(SECOND);
    assert_eq!(world.machine(FRIEND).unwrap().failed, [second]);
    world.host_mut(NODE).transport.stream_limit = 100;

    begin_renewal(&mut world);
    world.drive(SECOND);
    assert_eq!(world.machine(NODE).unwrap().own, [new, old]);
    assert_eq!(world.host(NODE).adverts().keys().collect::<Vec<_>>(), [&new]);
    // The friend has the old connection, which finishes its stream, and a new one with the new key.
    let friends = with_node(&world, FRIEND);
    assert_eq!(
        friends.iter().map(|peer| (peer.leaf, peer.chain.len())).collect::<Vec<_>>(),
        [(old, 1), (new, 2)]
    );
    let contacts = &world.machine(FRIEND).unwrap().contacts;
    assert!(contacts.contains_key(&new) && !contacts.contains_key(&old), "moved to the new id");
    // The old one accepts no new streams.
    let late = world.call(FRIEND, |node, now| node.open(old, RequestId(2), now));
    world.drive(SECOND);
    let refused = world.app_streams(FRIEND).last().unwrap();
    assert_eq!(
        (refused.stream, refused.reset, refused.stopped, refused.closed),
        (late, Some(LIMIT), Some(LIMIT), true)
    );

    assert!(world.app(FRIEND, stream, AppAction::Send(Bytes::from_static(b"second half"), true)));
    world.drive(SECOND);
    let received = world.app_streams(NODE).next().unwrap();
    assert_eq!(
        (received.received.as_slice(), received.closed),
        (&b"first half, second half"[..], true)
    );
    assert_eq!(with_node(&world, FRIEND).iter().map(|peer| peer.leaf).collect::<Vec<_>>(), [new]);

    // The stranger was absent when the node dialed all nodes, and dials the old id.
    assert_eq!(with_node(&world, STRANGER).len(), 1);
    world.kill(STRANGER);
    let addr = world.host(NODE).addrs()[0];
    world.start(STRANGER, |boot| {
        let mut node = Node::new(vec![id(2)], &boot);
        node.contacts = BTreeMap::from([(old, addr)]);
        node
    });
    world.call(STRANGER, |node, now| node.dial(old, now));
    world.drive(SECOND);
    let [connected] = &with_node(&world, STRANGER)[..] else { panic!() };
    assert_eq!(
        (connected.matched_id, connected.leaf, &connected.chain[..]),
        (Some(old), new, &[new, old][..])
    );
    assert_eq!(world.machine(STRANGER).unwrap().contacts.keys().collect::<Vec<_>>(), [&new]);
    (world.coverage().clone(), world.digest())
}

/// Killed after any number of steps of its renewal, with the writes in progress kept or lost: one
/// complete key space, one active key, and a node that dials the old id finds it. Returns how often
/// the old and the new key were active after the restart.
pub fn sweep() -> (u32, u32) {
    let (mut old, mut new) = (0, 0);
    for policy in [CrashPolicy::Keep, CrashPolicy::Lose] {
        for steps in 0.. {
            let mut world = begin(3);
            world.host_mut(NODE).store.crash = policy;
            begin_renewal(&mut world);
            let ran = (0..steps).take_while(|_| world.step()).count();
            world.kill(NODE);
            start(&mut world, NODE);
            world.drive(60 * SECOND);
            world.call(STRANGER, |node, now| {
                let known = *node.contacts.keys().next().unwrap();
                node.dial(known, now);
            });
            world.drive(SECOND);
            let found = with_node(&world, STRANGER);
            let node = world.machine(NODE).unwrap();
            assert_eq!(
                found.last().map(|peer| peer.leaf),
                Some(node.own[0]),
                "after {steps} steps"
            );
            assert_eq!(node.contacts.len(), 2, "after {steps} steps");
            *(if node.own.len() == 1 { &mut old } else { &mut new }) += 1;
            if ran < steps {
                break;
            }
        }
    }
    (old, new)
}

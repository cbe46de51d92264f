//! Handles that the embedder keeps and drops, with state machines without IO.

use std::time::Duration;

use pk_host::Clock;
use pk_proto::{
    DisconnectReason, Event, Failure, NodeId, Reply, Request, RequestId, RequestOptions,
};
use pk_quic::{Datagram, Effect, Poll};
use tokio::sync::{broadcast, oneshot};

use super::state_machine;
use crate::config::DriverConfig;
use crate::cx::ready::ReadyQueue;
use crate::cx::{Cx, WakeSource};
use crate::error::NodeError;
use crate::pump::event::NodeEvent;
use crate::pump::handle_registry::{HandleRegistry, Response};
use crate::stream::accept::AcceptQueue;
use crate::stream::shared::SharedNode;

type Answer = oneshot::Receiver<Result<Response, NodeError>>;

/// A node with its registry, and a peer that is only a state machine.
struct Rig {
    cx: Cx,
    clock: Clock,
    registry: HandleRegistry,
    events: broadcast::Receiver<NodeEvent>,
    peer: pk_quic::Node,
    /// Events that the test delivers itself.
    held: Vec<Event>,
    hold: bool,
}

const ADDRS: [&str; 2] = ["10.0.0.1:1314", "10.0.0.2:1314"];

impl Rig {
    fn new() -> Self {
        let (node, clock) = state_machine(1, ADDRS[0].parse().unwrap());
        let (mut peer, _) = state_machine(2, ADDRS[1].parse().unwrap());
        peer.update(clock.now(), |core, now| core.accept_protocol("test/1".to_owned(), now))
            .unwrap();
        let ready = ReadyQueue::new();
        let node = SharedNode::new(node, clock.clone(), ready.waker(WakeSource::Streams));
        let cx = Cx::new(DriverConfig::default(), node, ready, clock.now());
        let (sender, events) = broadcast::channel(64);
        let registry = HandleRegistry::new(sender, oneshot::channel().0);
        Self { cx, clock, registry, events, peer, held: Vec::new(), hold: false }
    }

    /// Exchanges all datagrams, and handles dropped handles.
    fn run(&mut self) {
        for _ in 0..500 {
            self.cx.now = self.clock.now();
            let now = self.cx.now;
            while let Some(source) = self.cx.ready.pop() {
                match source {
                    WakeSource::Request(id) => self.registry.poll_request(&self.cx, id),
                    WakeSource::Lease(id) => self.registry.poll_lease(&self.cx, id),
                    WakeSource::Acceptor(id) => self.registry.poll_acceptor(&self.cx, id),
                    _ => {}
                }
            }
            let mut polls = Default::default();
            self.cx.node.take_polls(&mut polls);
            for poll in polls {
                match poll {
                    Poll::Event(event) if self.hold => self.held.push(event),
                    Poll::Event(event) => self.registry.event(&self.cx, event),
                    Poll::Opened(opened) => self.registry.opened(&mut self.cx, opened),
                    Poll::Effect(effect) => {
                        self.cx.node.with(|node| complete(node, now, effect));
                    }
                    _ => {}
                }
            }
            while let Some(poll) = self.peer.poll() {
                if let Poll::Effect(effect) = poll {
                    complete(&mut self.peer, now, effect);
                }
            }
            let ours: std::net::SocketAddr = ADDRS[0].parse().unwrap();
            let theirs: std::net::SocketAddr = ADDRS[1].parse().unwrap();
            let mut buf = Vec::new();
            while let Some(transmit) =
                self.cx.node.with(|node| node.poll_transmit(now, 1, &mut buf))
            {
                let bytes = &buf[..transmit.size];
                let datagram = Datagram { from: ours, to: Some(theirs.ip()), ecn: 0, bytes };
                self.peer.handle_datagram(now, datagram);
            }
            while let Some(transmit) = self.peer.poll_transmit(now, 1, &mut buf) {
                let bytes = &buf[..transmit.size];
                let datagram = Datagram { from: theirs, to: Some(ours.ip()), ecn: 0, bytes };
                self.cx.node.with(|node| node.handle_datagram(now, datagram));
            }
            self.cx.node.with(|node| node.handle_timeout(now));
            self.peer.handle_timeout(now);
            std::thread::sleep(Duration::from_micros(100));
        }
    }

    fn begin(&mut self, request: Request) -> (RequestId, Answer) {
        let now = self.clock.now();
        let id = self.cx.node.with(|node| node.request(now, request)).unwrap();
        let (caller, answer) = oneshot::channel();
        self.registry.wait(&self.cx, id, caller);
        (id, answer)
    }

    fn target(&self) -> NodeId {
        self.peer.manager().own_id()
    }

    fn connect(&mut self) {
        let (target, address) = (self.target(), ADDRS[1].parse().unwrap());
        let options = RequestOptions::default();
        let (_, mut answer) = self.begin(Request::Connect { target, address, options });
        self.run();
        answer.try_recv().unwrap().unwrap();
    }

    fn lease(&mut self) -> (RequestId, Answer) {
        let (target, options) = (self.target(), RequestOptions::default());
        self.begin(Request::AcquireConnection { target, options })
    }

    /// Whether the connection may be closed for idleness.
    fn is_free(&self) -> bool {
        let connections = self.cx.node.with(|node| node.manager().connections());
        assert_eq!(connections.len(), 1);
        connections[0].idle_in.is_some()
    }
}

fn complete(node: &mut pk_quic::Node, now: pk_proto::Instant, effect: Effect) {
    let mut store = pk_host::MemoryStore::new();
    let answer = effect.run(&mut store).map_or_else(Effect::refuse, Some);
    answer.into_iter().for_each(|answer| node.answer(now, answer));
}

#[test]
fn dropped_request_is_cancelled() {
    let mut rig = Rig::new();
    rig.run();
    let (target, address) = (NodeId::from_bytes([9; 32]), "10.0.0.9:9".parse().unwrap());
    let options = RequestOptions::default();
    let (_, answer) = rig.begin(Request::Connect { target, address, options });
    rig.run();
    assert_eq!(rig.cx.node.with(|node| node.transport().metrics().dials_pending), 1);
    drop(answer);
    rig.run();
    assert_eq!(rig.cx.node.with(|node| node.transport().metrics().dials_pending), 0);
}

#[test]
fn lease_is_released_when_dropped_and_reports_its_loss() {
    let mut rig = Rig::new();
    rig.connect();
    assert!(rig.is_free());
    let (_, mut answer) = rig.lease();
    rig.run();
    let lease = answer.try_recv().unwrap().unwrap().lease;
    assert!(lease.is_some() && !rig.is_free());
    drop(lease);
    rig.run();
    assert!(rig.is_free());

    let (_, mut answer) = rig.lease();
    rig.run();
    let mut lease = answer.try_recv().unwrap().unwrap().lease.unwrap();
    rig.run();
    assert!(lease.try_recv().is_err(), "not lost yet");
    let target = rig.target();
    rig.cx.core(|core, now| core.disconnect(target, now));
    rig.run();
    assert_eq!(lease.try_recv(), Ok(()));
    let mut events = std::iter::from_fn(|| rig.events.try_recv().ok());
    assert!(events.any(
        |event| matches!(event, NodeEvent::Core(Event::LeaseLost { node, .. }) if node == target)
    ));
}

#[test]
fn lease_that_arrives_after_its_request_was_dropped_is_released() {
    for drop_before in [true, false] {
        let mut rig = Rig::new();
        rig.connect();
        rig.hold = true;
        let (id, answer) = rig.lease();
        rig.run();
        let done = rig.held.iter().position(|it| matches!(it, Event::Done { .. })).unwrap();
        assert!(!rig.is_free());
        if drop_before {
            // The pump has completed the request: the cancellation is too late.
            drop(answer);
            rig.registry.poll_request(&rig.cx, id);
        } else {
            // The pump has not completed it.
            drop(answer);
        }
        let event = rig.held.remove(done);
        rig.hold = false;
        rig.registry.event(&rig.cx, event);
        rig.run();
        assert!(rig.is_free(), "{drop_before}");
    }
}

#[test]
fn answer_reaches_only_its_caller() {
    let mut rig = Rig::new();
    rig.run();
    while rig.events.try_recv().is_ok() {}
    let (caller, mut answer) = oneshot::channel();
    let id = RequestId(77);
    rig.registry.wait(&rig.cx, id, caller);
    rig.registry.event(&rig.cx, Event::Done { id, result: Err(Failure::DeadlineExceeded) });
    let answer = answer.try_recv().unwrap();
    assert!(matches!(answer, Err(NodeError::Failure(Failure::DeadlineExceeded))));
    let node = rig.target();
    rig.registry.event(&rig.cx, Event::NodeAdded { node });
    assert_eq!(rig.events.try_recv(), Ok(NodeEvent::Core(Event::NodeAdded { node })));
    assert!(rig.events.try_recv().is_err());
}

#[test]
fn stream_of_a_request_reaches_its_caller_and_ends_with_its_connection() {
    let mut rig = Rig::new();
    rig.connect();
    let (target, options) = (rig.target(), RequestOptions::default());
    let protocol = "test/1".to_owned();
    let (_, mut answer) = rig.begin(Request::OpenStream { target, protocol, options });
    rig.run();
    let answer = answer.try_recv().unwrap().unwrap();
    assert!(matches!(answer.reply, Reply::OpenStream(_)));
    let mut stream = answer.stream.unwrap();
    assert_eq!((stream.node(), stream.protocol()), (target, "test/1"));
    assert!(!rig.is_free(), "a stream uses the connection");
    rig.cx.core(|core, now| core.disconnect(target, now));
    rig.run();
    let read = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let lost = crate::StreamError::ConnectionLost(DisconnectReason::Local);
    assert_eq!(read.block_on(stream.read(&mut [0; 8])), Err(lost.clone()));
    assert_eq!(read.block_on(stream.write(b"x")), Err(lost.clone()));
    assert_eq!(read.block_on(stream.finish_and_wait()), Err(lost));
}

#[test]
fn dropped_acceptor_refuses_further_streams() {
    let mut rig = Rig::new();
    let protocol = || "test/1".to_owned();
    let accept = |rig: &mut Rig| {
        rig.cx.core(|core, now| core.accept_protocol(protocol(), now)).unwrap();
        let (queue, accepted) = AcceptQueue::new(protocol(), 1);
        rig.registry.accept(&rig.cx, protocol(), queue);
        accepted
    };
    let accepted = accept(&mut rig);
    rig.run();
    assert!(rig.registry.accepts("test/1"));
    drop(accepted);
    rig.run();
    assert!(!rig.registry.accepts("test/1"));
    // Dropped and replaced before the pump is woken: the new one stays.
    let first = accept(&mut rig);
    rig.run();
    drop(first);
    let second = accept(&mut rig);
    rig.run();
    assert!(rig.registry.accepts("test/1"));
    drop(second);
}

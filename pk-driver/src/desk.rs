//! The desk between the core and the embedder: who waits for which request, holds which lease, accepts which protocol.
//!
//! The embedder lets go of a thing by dropping it; the drop closes a channel, and that wakes the pump under the thing's
//! key. So nothing has to be sent from a destructor, and nothing can be lost because a queue is full.

use std::collections::HashMap;
use std::convert::Infallible;
use std::fmt;
use std::task::{Context, Waker};

use pk_proto::claims::Claim;
use pk_proto::{DisconnectReason, Event, Failure, Input, LeaseId, Opener, Reply, RequestId, StreamId, code};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{broadcast, mpsc, oneshot};

use crate::core::Core;
use crate::cx::{Cx, Key};
use crate::error::NodeError;
use crate::runtime::BoxFuture;
use crate::stream::Stream;

/// A stream that has come to the embedder; `None` if it ended on the way.
#[derive(Debug)]
pub(crate) struct HandedOver {
    pub(crate) id: StreamId,
    pub(crate) opener: Opener,
    pub(crate) stream: Option<Stream>,
}

/// How a request ended, and what comes with it.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) reply: Reply,
    pub(crate) lease: Option<LeaseToken>,
    pub(crate) stream: Option<Stream>,
    pub(crate) claims: Vec<Claim>,
}

impl Answer {
    fn new(reply: Reply) -> Self {
        Self { reply, lease: None, stream: None, claims: Vec::new() }
    }
}

/// The embedder's end of a lease: dropped, the lease is released; resolved, it is lost.
pub(crate) type LeaseToken = oneshot::Receiver<()>;

/// Where the caller of a request waits.
pub(crate) type Caller = oneshot::Sender<Result<Answer, NodeError>>;

/// All that the embedder holds.
pub(crate) struct Desk {
    requests: HashMap<RequestId, Held<Result<Answer, NodeError>>>,
    /// Requests that are answered but for their stream, and streams whose request is not answered yet.
    awaiting_stream: HashMap<RequestId, (Caller, Reply)>,
    arrived: HashMap<RequestId, Option<Stream>>,
    /// Claims of chains that are being read. The core bounds them.
    claims: HashMap<RequestId, Vec<Claim>>,
    leases: HashMap<LeaseId, Held<()>>,
    streams: HashMap<StreamId, Held<Infallible>>,
    acceptors: HashMap<String, Acceptor>,
    acceptor_names: HashMap<u64, String>,
    next_acceptor: u64,
    events: broadcast::Sender<Event>,
    /// Waits for the node to be ready.
    starter: Option<oneshot::Sender<()>>,
}

/// Our end of something that the embedder holds the other end of.
struct Held<T> {
    end: oneshot::Sender<T>,
    waker: Waker,
}

impl<T> Held<T> {
    /// Wakes the pump under this key when the other end is dropped.
    fn new(cx: &Cx, key: Key, end: oneshot::Sender<T>) -> Self {
        let mut held = Self { end, waker: cx.ready.waker(key) };
        if held.is_dropped() {
            held.waker.wake_by_ref();
        }
        held
    }

    fn is_dropped(&mut self) -> bool {
        self.end.poll_closed(&mut Context::from_waker(&self.waker)).is_ready()
    }
}

struct Acceptor {
    streams: mpsc::Sender<Stream>,
    /// Resolves when the embedder has dropped its end.
    gone: BoxFuture<()>,
    waker: Waker,
}

impl Desk {
    pub(crate) fn new(events: broadcast::Sender<Event>, starter: oneshot::Sender<()>) -> Self {
        Self {
            requests: HashMap::new(),
            awaiting_stream: HashMap::new(),
            arrived: HashMap::new(),
            claims: HashMap::new(),
            leases: HashMap::new(),
            streams: HashMap::new(),
            acceptors: HashMap::new(),
            acceptor_names: HashMap::new(),
            next_acceptor: 0,
            events,
            starter: Some(starter),
        }
    }

    /// Counts what there is.
    pub(crate) fn count(&self, cx: &mut Cx) {
        cx.metrics.streams_handed_over = self.streams.len() as u64;
    }

    // -- what the embedder does

    /// A request was begun for this caller.
    pub(crate) fn wait(&mut self, cx: &Cx, id: RequestId, caller: Caller) {
        self.requests.insert(id, Held::new(cx, Key::Request(id), caller));
    }

    /// The embedder may have let go of a request.
    pub(crate) fn poll_request(&mut self, cx: &Cx, core: &mut impl Core, id: RequestId) {
        let Some(held) = self.requests.get_mut(&id) else { return };
        if held.is_dropped() {
            self.requests.remove(&id);
            self.claims.remove(&id);
            core.cancel(id, cx.now);
        }
    }

    /// The embedder may have let go of a lease.
    pub(crate) fn poll_lease(&mut self, cx: &Cx, core: &mut impl Core, id: LeaseId) {
        let Some(held) = self.leases.get_mut(&id) else { return };
        if held.is_dropped() {
            self.leases.remove(&id);
            core.release(id, cx.now);
        }
    }

    /// The embedder may have let go of a stream, or ended it.
    pub(crate) fn poll_handed(&mut self, cx: &mut Cx, id: StreamId) {
        let Some(held) = self.streams.get_mut(&id) else { return };
        if held.is_dropped() {
            self.streams.remove(&id);
            cx.input(Input::StreamClosed { stream: id });
        }
    }

    /// Whether streams of a protocol are being accepted.
    pub(crate) fn accepts(&self, protocol: &str) -> bool {
        self.acceptors.get(protocol).is_some_and(|acceptor| !acceptor.streams.is_closed())
    }

    /// Streams of a protocol go there from now on.
    pub(crate) fn accept(&mut self, cx: &Cx, protocol: String, streams: mpsc::Sender<Stream>) {
        let id = self.next_acceptor;
        self.next_acceptor += 1;
        let closed = streams.clone();
        let gone = Box::pin(async move { closed.closed().await });
        self.acceptor_names.insert(id, protocol.clone());
        // One that is there already has been dropped by the embedder; its own key finds nothing then.
        self.acceptors.insert(protocol, Acceptor { streams, gone, waker: cx.source(Key::Acceptor(id)) });
        self.acceptor_names.retain(|other, name| *other == id || self.acceptors.contains_key(name));
    }

    /// The embedder may have let go of an acceptor.
    pub(crate) fn poll_acceptor(&mut self, cx: &Cx, core: &mut impl Core, id: u64) {
        let Some(name) = self.acceptor_names.get(&id) else { return };
        let Some(acceptor) = self.acceptors.get_mut(name) else { return };
        if acceptor.gone.as_mut().poll(&mut Context::from_waker(&acceptor.waker)).is_ready() {
            core.refuse_protocol(name, cx.now);
            self.acceptors.remove(name);
            self.acceptor_names.remove(&id);
        }
    }

    // -- what the core says

    pub(crate) fn event(&mut self, cx: &mut Cx, core: &mut impl Core, event: Event) {
        match event {
            // Only for its caller, and never dropped: it is no part of the ring.
            Event::Done { id, result } => self.done(cx, core, id, result),
            Event::ChainData { id, claims } => {
                if self.requests.contains_key(&id) {
                    self.claims.entry(id).or_default().extend(claims);
                }
            }
            event => {
                match &event {
                    Event::LeaseLost { lease, .. } => {
                        if let Some(held) = self.leases.remove(lease) {
                            let _ = held.end.send(());
                        }
                    }
                    Event::Ready { .. } => {
                        if let Some(starter) = self.starter.take() {
                            let _ = starter.send(());
                        }
                    }
                    _ => {}
                }
                // Fails if nobody listens.
                let _ = self.events.send(event);
            }
        }
    }

    fn done(&mut self, cx: &mut Cx, core: &mut impl Core, id: RequestId, result: Result<Reply, Failure>) {
        let arrived = self.arrived.remove(&id);
        let claims = self.claims.remove(&id).unwrap_or_default();
        let Some(held) = self.requests.remove(&id) else {
            // The caller has gone, and what it would have got goes back; a stream that arrived is dropped.
            if let Ok(Reply::AcquireConnection { lease, .. }) = result {
                core.release(lease, cx.now);
            }
            return;
        };
        match result {
            Ok(reply @ Reply::AcquireConnection { lease, .. }) => {
                let (end, token) = oneshot::channel();
                self.leases.insert(lease, Held::new(cx, Key::Lease(lease), end));
                // If the caller has just gone, the token is dropped here and the lease released under its key.
                let _ = held.end.send(Ok(Answer { lease: Some(token), ..Answer::new(reply) }));
            }
            Ok(reply @ Reply::OpenStream(_)) => match arrived {
                Some(stream) => answer_stream(held.end, reply, stream),
                None => {
                    self.awaiting_stream.insert(id, (held.end, reply));
                }
            },
            result => {
                let answer = result.map(|reply| Answer { claims, ..Answer::new(reply) });
                let _ = held.end.send(answer.map_err(NodeError::from));
            }
        }
    }

    /// A stream has come to the embedder.
    pub(crate) fn handed_over(&mut self, cx: &mut Cx, handed: HandedOver) {
        let HandedOver { id, opener, mut stream } = handed;
        match &mut stream {
            Some(stream) => {
                let (end, token) = oneshot::channel();
                self.streams.insert(id, Held::new(cx, Key::Handed(id), end));
                stream.tie(token);
            }
            None => cx.input(Input::StreamClosed { stream: id }),
        }
        match opener {
            Opener::Us(request) => match self.awaiting_stream.remove(&request) {
                Some((caller, reply)) => answer_stream(caller, reply, stream),
                None => drop(self.arrived.insert(request, stream)),
            },
            Opener::Peer => {
                if let Some(stream) = stream {
                    self.offer(cx, stream);
                }
            }
        }
    }

    /// Puts a stream of a peer before its acceptor.
    fn offer(&mut self, cx: &mut Cx, stream: Stream) {
        let (mut stream, code) = match self.acceptors.get(stream.protocol()) {
            Some(acceptor) => match acceptor.streams.try_send(stream) {
                Ok(()) => return,
                Err(TrySendError::Full(stream)) => (stream, code::LIMIT),
                Err(TrySendError::Closed(stream)) => (stream, code::UNSUPPORTED),
            },
            None => (stream, code::UNSUPPORTED),
        };
        cx.metrics.accepts_refused += 1;
        stream.reset(code);
        stream.stop(code);
    }
}

fn answer_stream(caller: Caller, reply: Reply, stream: Option<Stream>) {
    let answer = match stream {
        Some(stream) => Ok(Answer { stream: Some(stream), ..Answer::new(reply) }),
        // The connection ended between the peer's word and ours; its reason has been told as an event.
        None => Err(Failure::ConnectionLost(DisconnectReason::Transport("the stream ended at once".to_owned())).into()),
    };
    let _ = caller.send(answer);
}

impl fmt::Debug for Desk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Desk")
            .field("requests", &self.requests.len())
            .field("leases", &self.leases.len())
            .field("streams", &self.streams.len())
            .finish_non_exhaustive()
    }
}

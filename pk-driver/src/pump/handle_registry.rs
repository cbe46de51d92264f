//! Registry of what the embedder holds: callers of requests, leases, acceptors.
//!
//! The embedder releases a handle by dropping it. The drop closes a channel, which wakes the pump
//! under the key of the handle. Destructors therefore send nothing, and no release is lost because
//! a queue is full.

use std::collections::HashMap;
use std::fmt;
use std::task::{Context, Waker};

use pk_proto::claims::Claim;
use pk_proto::{Event, Failure, LeaseId, Network, Opener, Reply, RequestId, code};
use pk_quic::Opened;
use tokio::sync::{broadcast, oneshot};

use crate::cx::{Cx, WakeSource};
use crate::error::NodeError;
use crate::port_mapping::lease::PortMappingEvent;
use crate::pump::event::NodeEvent;
use crate::stream::Stream;
use crate::stream::accept::{AcceptQueue, NoPlace};
use crate::system::runtime::BoxFuture;

/// Result of a request, with the handle that belongs to it.
#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) reply: Reply,
    pub(crate) lease: Option<LeaseToken>,
    pub(crate) stream: Option<Stream>,
    pub(crate) claims: Vec<Claim>,
}

impl Response {
    fn new(reply: Reply) -> Self {
        Self { reply, lease: None, stream: None, claims: Vec::new() }
    }
}

/// The embedder's end of a lease. Dropping it releases the lease; it resolves when the lease is
/// lost.
pub(crate) type LeaseToken = oneshot::Receiver<()>;

/// Channel to the caller of a request.
pub(crate) type ResponseSender = oneshot::Sender<Result<Response, NodeError>>;

/// Everything that the embedder holds.
pub(crate) struct HandleRegistry {
    requests: HashMap<RequestId, DropWatch<Result<Response, NodeError>>>,
    /// Requests that are complete except for their stream, and streams whose request is not
    /// complete yet.
    awaiting_stream: HashMap<RequestId, (ResponseSender, Reply)>,
    unclaimed_streams: HashMap<RequestId, Stream>,
    /// Claims of the chains that are being read. The core limits them.
    claims: HashMap<RequestId, Vec<Claim>>,
    leases: HashMap<LeaseId, DropWatch<()>>,
    acceptors: HashMap<String, Acceptor>,
    acceptor_names: HashMap<u64, String>,
    next_acceptor: u64,
    events: broadcast::Sender<NodeEvent>,
    /// The caller that waits for the node to be ready.
    starter: Option<oneshot::Sender<()>>,
}

/// The driver's end of a channel whose other end the embedder holds.
struct DropWatch<T> {
    end: oneshot::Sender<T>,
    waker: Waker,
}

impl<T> DropWatch<T> {
    /// Wakes the pump under this key when the other end is dropped.
    fn new(cx: &Cx, key: WakeSource, end: oneshot::Sender<T>) -> Self {
        let mut watch = Self { end, waker: cx.ready.waker(key) };
        if watch.is_dropped() {
            watch.waker.wake_by_ref();
        }
        watch
    }

    fn is_dropped(&mut self) -> bool {
        self.end.poll_closed(&mut Context::from_waker(&self.waker)).is_ready()
    }
}

struct Acceptor {
    queue: AcceptQueue,
    /// Resolves when the embedder has dropped its end.
    gone: BoxFuture<()>,
    waker: Waker,
}

impl HandleRegistry {
    pub(crate) fn new(events: broadcast::Sender<NodeEvent>, starter: oneshot::Sender<()>) -> Self {
        Self {
            requests: HashMap::new(),
            awaiting_stream: HashMap::new(),
            unclaimed_streams: HashMap::new(),
            claims: HashMap::new(),
            leases: HashMap::new(),
            acceptors: HashMap::new(),
            acceptor_names: HashMap::new(),
            next_acceptor: 0,
            events,
            starter: Some(starter),
        }
    }

    // -- actions of the embedder

    /// Registers the caller of a request.
    pub(crate) fn wait(&mut self, cx: &Cx, id: RequestId, caller: ResponseSender) {
        self.requests.insert(id, DropWatch::new(cx, WakeSource::Request(id), caller));
    }

    /// Cancels a request if the embedder has dropped it.
    pub(crate) fn poll_request(&mut self, cx: &Cx, id: RequestId) {
        let Some(watch) = self.requests.get_mut(&id) else { return };
        if watch.is_dropped() {
            self.requests.remove(&id);
            self.claims.remove(&id);
            cx.core(|core, now| core.cancel(id, now));
        }
    }

    /// Releases a lease if the embedder has dropped it.
    pub(crate) fn poll_lease(&mut self, cx: &Cx, id: LeaseId) {
        let Some(watch) = self.leases.get_mut(&id) else { return };
        if watch.is_dropped() {
            self.leases.remove(&id);
            cx.core(|core, now| core.release(id, now));
        }
    }

    /// Returns whether streams of a protocol are accepted.
    pub(crate) fn accepts(&self, protocol: &str) -> bool {
        self.acceptors.get(protocol).is_some_and(|acceptor| !acceptor.queue.is_closed())
    }

    /// Registers the acceptor of a protocol.
    pub(crate) fn accept(&mut self, cx: &Cx, protocol: String, queue: AcceptQueue) {
        let id = self.next_acceptor;
        self.next_acceptor += 1;
        let gone = Box::pin(queue.gone());
        self.acceptor_names.insert(id, protocol.clone());
        // A previous one has been dropped by the embedder; its key then finds nothing.
        self.acceptors
            .insert(protocol, Acceptor { queue, gone, waker: cx.source(WakeSource::Acceptor(id)) });
        self.acceptor_names.retain(|other, name| *other == id || self.acceptors.contains_key(name));
    }

    /// Removes an acceptor if the embedder has dropped it.
    pub(crate) fn poll_acceptor(&mut self, cx: &Cx, id: u64) {
        let Some(name) = self.acceptor_names.get(&id) else { return };
        let Some(acceptor) = self.acceptors.get_mut(name) else { return };
        if acceptor.gone.as_mut().poll(&mut Context::from_waker(&acceptor.waker)).is_ready() {
            cx.core(|core, now| core.refuse_protocol(name, now));
            self.acceptors.remove(name);
            self.acceptor_names.remove(&id);
        }
    }

    // -- events of the core

    pub(crate) fn event(&mut self, cx: &Cx, event: Event) {
        match event {
            // Sent to its caller only, and never dropped: it is not part of the ring.
            Event::Done { id, result } => self.done(cx, id, result),
            Event::ChainData { id, claims } => {
                if self.requests.contains_key(&id) {
                    self.claims.entry(id).or_default().extend(claims);
                }
            }
            event => {
                match &event {
                    Event::LeaseLost { lease, .. } => {
                        if let Some(watch) = self.leases.remove(lease) {
                            let _ = watch.end.send(());
                        }
                    }
                    Event::Ready { .. } => {
                        if let Some(starter) = self.starter.take() {
                            let _ = starter.send(());
                        }
                    }
                    _ => {}
                }
                // Fails if there is no listener.
                let _ = self.events.send(NodeEvent::Core(event));
            }
        }
    }

    /// Sends an event of the port mapping.
    pub(crate) fn port_mapping(&self, event: PortMappingEvent) {
        // Fails if there is no listener.
        let _ = self.events.send(NodeEvent::PortMapping(event));
    }

    fn done(&mut self, cx: &Cx, id: RequestId, result: Result<Reply, Failure>) {
        let unclaimed_streams = self.unclaimed_streams.remove(&id);
        let claims = self.claims.remove(&id).unwrap_or_default();
        let Some(watch) = self.requests.remove(&id) else {
            // The caller is gone: its lease is released, and a stream that arrived is dropped.
            if let Ok(Reply::AcquireConnection { lease, .. }) = result {
                cx.core(|core, now| core.release(lease, now));
            }
            return;
        };
        match result {
            Ok(reply @ Reply::AcquireConnection { lease, .. }) => {
                let (end, token) = oneshot::channel();
                self.leases.insert(lease, DropWatch::new(cx, WakeSource::Lease(lease), end));
                // If the caller is gone now, the token is dropped here and the lease is released
                // under its key.
                let _ = watch.end.send(Ok(Response { lease: Some(token), ..Response::new(reply) }));
            }
            Ok(reply @ Reply::OpenStream(_)) => match unclaimed_streams {
                Some(stream) => respond_with_stream(watch.end, reply, stream),
                None => {
                    self.awaiting_stream.insert(id, (watch.end, reply));
                }
            },
            result => {
                let answer = result.map(|reply| Response { claims, ..Response::new(reply) });
                let _ = watch.end.send(answer.map_err(NodeError::from));
            }
        }
    }

    /// Delivers a stream that was handed over.
    pub(crate) fn opened(&mut self, cx: &mut Cx, opened: Opened) {
        let Opened { stream, node, protocol, opener, network, .. } = opened;
        let stream = Stream::new(cx.node.clone(), stream, node, protocol);
        match (opener, network) {
            (Opener::Us(request), _) => match self.awaiting_stream.remove(&request) {
                Some((caller, reply)) => respond_with_stream(caller, reply, stream),
                None => drop(self.unclaimed_streams.insert(request, stream)),
            },
            (Opener::Peer, Some(network)) => self.offer(cx, stream, network),
            (Opener::Peer, None) => {}
        }
    }

    /// Offers an incoming stream to its acceptor.
    fn offer(&mut self, cx: &mut Cx, stream: Stream, network: Network) {
        let (mut stream, code) = match self.acceptors.get(stream.protocol()) {
            Some(acceptor) => match acceptor.queue.offer(stream, network) {
                None => return,
                Some((stream, NoPlace::Full)) => (stream, code::LIMIT),
                Some((stream, NoPlace::Gone)) => (stream, code::UNSUPPORTED),
            },
            None => (stream, code::UNSUPPORTED),
        };
        cx.metrics.accepts_refused += 1;
        stream.reset(code);
        stream.stop(code);
    }
}

fn respond_with_stream(caller: ResponseSender, reply: Reply, stream: Stream) {
    let _ = caller.send(Ok(Response { stream: Some(stream), ..Response::new(reply) }));
}

impl fmt::Debug for HandleRegistry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HandleRegistry")
            .field("requests", &self.requests.len())
            .field("leases", &self.leases.len())
            .finish_non_exhaustive()
    }
}

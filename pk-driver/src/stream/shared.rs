//! The state machine of a node, shared by the pump and the streams of the embedder.
//!
//! The lock is held during calls of the state machine only: no waker is woken, cloned or dropped
//! under it, nor is anything sent to the embedder. So a stream can be dropped anywhere.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use pk_host::Clock;
use pk_proto::{DisconnectReason, Instant, StreamId};
use pk_quic::{Node, Poll as NodePoll, Read, StreamError};

/// The state machine of a node. Clones share it.
#[derive(Clone)]
pub(crate) struct SharedNode(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    clock: Clock,
    /// Wakes the pump, which executes what the state machine has to do.
    pump: Waker,
}

struct State {
    node: Node,
    /// Streams that the embedder holds.
    streams: BTreeMap<StreamId, Held>,
    /// The pump has ended.
    over: bool,
}

/// What a stream waits for, and how it ended.
#[derive(Default)]
struct Held {
    read: Option<Waker>,
    write: Option<Waker>,
    delivery: Option<Waker>,
    delivered: Option<Result<(), StreamError>>,
    lost: Option<DisconnectReason>,
}

impl Held {
    fn wakers(&mut self) -> impl Iterator<Item = Waker> {
        [self.read.take(), self.write.take(), self.delivery.take()].into_iter().flatten()
    }

    /// Returns the error of a stream as its holder sees it.
    fn error(&self, error: StreamError) -> StreamError {
        match (error, &self.lost) {
            (StreamError::Ended, Some(why)) => StreamError::ConnectionLost(why.clone()),
            (error, _) => error,
        }
    }
}

impl SharedNode {
    /// `pump` is woken when a stream was used.
    pub(crate) fn new(node: Node, clock: Clock, pump: Waker) -> Self {
        let state = State { node, streams: BTreeMap::new(), over: false };
        Self(Arc::new(Shared { state: Mutex::new(state), clock, pump }))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic of the state machine is a defect; its other streams are still ended properly.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls the state machine. `call` must not run code of the embedder.
    pub(crate) fn with<T>(&self, call: impl FnOnce(&mut Node) -> T) -> T {
        call(&mut self.lock().node)
    }

    /// Takes what the state machine reports, and wakes streams.
    pub(crate) fn take_polls(&self, polls: &mut VecDeque<NodePoll>) {
        let mut woken = Vec::new();
        let mut state = self.lock();
        let State { node, streams, over } = &mut *state;
        while let Some(poll) = node.poll() {
            match poll {
                NodePoll::Readable(id) => {
                    woken.extend(streams.get_mut(&id).and_then(|held| held.read.take()));
                }
                NodePoll::Writable(id) => {
                    woken.extend(streams.get_mut(&id).and_then(|held| held.write.take()));
                }
                NodePoll::Delivered { stream, result } => {
                    if let Some(held) = streams.get_mut(&stream) {
                        held.delivered = Some(result);
                        woken.extend(held.delivery.take());
                    }
                }
                NodePoll::Lost { stream, why } => {
                    if let Some(held) = streams.get_mut(&stream) {
                        held.lost = Some(why);
                        woken.extend(held.wakers());
                    }
                }
                NodePoll::Opened(opened) => {
                    let lost = over.then_some(DisconnectReason::Local);
                    streams.insert(opened.stream, Held { lost, ..Held::default() });
                    polls.push_back(NodePoll::Opened(opened));
                }
                other => polls.push_back(other),
            }
        }
        drop(state);
        woken.into_iter().for_each(Waker::wake);
    }

    /// The pump has ended: all streams end.
    pub(crate) fn end(&self) {
        let mut woken = Vec::new();
        let mut state = self.lock();
        state.over = true;
        for held in state.streams.values_mut() {
            held.lost.get_or_insert(DisconnectReason::Local);
            woken.extend(held.wakers());
        }
        drop(state);
        woken.into_iter().for_each(Waker::wake);
    }

    // -- streams of the embedder

    /// Reads at most `max` bytes; `None` at the end of the peer's data.
    pub(crate) fn poll_read(
        &self,
        id: StreamId,
        max: usize,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<Bytes>, StreamError>> {
        let (waker, now) = (cx.waker().clone(), self.0.clock.now());
        let mut state = self.lock();
        let State { node, streams, .. } = &mut *state;
        let read = node.read(now, id, max);
        let Some(held) = streams.get_mut(&id) else { return Poll::Ready(Err(StreamError::Ended)) };
        let (result, before) = match read {
            Ok(Read::Bytes(bytes)) => (Ok(Some(bytes)), Some(waker)),
            Ok(Read::End) => (Ok(None), Some(waker)),
            Err(error) => (Err(held.error(error)), Some(waker)),
            Ok(Read::Blocked) if held.lost.is_some() => {
                (Err(held.error(StreamError::Ended)), Some(waker))
            }
            Ok(Read::Blocked) => {
                let before = held.read.replace(waker);
                drop(state);
                drop(before);
                return Poll::Pending;
            }
        };
        drop(state);
        drop(before);
        self.0.pump.wake_by_ref();
        Poll::Ready(result)
    }

    /// Writes some of the bytes, at least one unless there are none.
    pub(crate) fn poll_write(
        &self,
        id: StreamId,
        bytes: &[u8],
        cx: &mut Context<'_>,
    ) -> Poll<Result<usize, StreamError>> {
        let (waker, now) = (cx.waker().clone(), self.0.clock.now());
        let mut state = self.lock();
        let State { node, streams, .. } = &mut *state;
        let written = node.write(now, id, bytes);
        let Some(held) = streams.get_mut(&id) else { return Poll::Ready(Err(StreamError::Ended)) };
        let written = written.map_err(|error| held.error(error));
        let (poll, before) = match (written, &held.lost) {
            (Ok(0), Some(why)) => {
                (Poll::Ready(Err(StreamError::ConnectionLost(why.clone()))), Some(waker))
            }
            (Ok(0), None) if !bytes.is_empty() => (Poll::Pending, held.write.replace(waker)),
            (result, _) => (Poll::Ready(result), Some(waker)),
        };
        drop(state);
        drop(before);
        self.0.pump.wake_by_ref();
        poll
    }

    /// Waits until the peer has acknowledged everything and the end.
    pub(crate) fn poll_delivered(
        &self,
        id: StreamId,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), StreamError>> {
        let waker = cx.waker().clone();
        let mut state = self.lock();
        let Some(held) = state.streams.get_mut(&id) else {
            return Poll::Ready(Err(StreamError::Ended));
        };
        let (poll, before) = match (&held.delivered, &held.lost) {
            (Some(result), _) => (Poll::Ready(result.clone()), Some(waker)),
            (None, Some(why)) => {
                (Poll::Ready(Err(StreamError::ConnectionLost(why.clone()))), Some(waker))
            }
            (None, None) => (Poll::Pending, held.delivery.replace(waker)),
        };
        drop(state);
        drop(before);
        poll
    }

    /// Calls the state machine for a stream, and wakes the pump.
    pub(crate) fn use_stream(&self, call: impl FnOnce(&mut Node, Instant)) {
        let now = self.0.clock.now();
        call(&mut self.lock().node, now);
        self.0.pump.wake_by_ref();
    }

    /// The embedder has dropped a stream.
    pub(crate) fn forget(&self, id: StreamId) {
        let held = self.lock().streams.remove(&id);
        drop(held);
    }
}

impl fmt::Debug for SharedNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SharedNode(..)")
    }
}

//! What blocks, on threads of its own: the store and the resolver.

use std::net::ToSocketAddrs as _;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};

use mio::Waker;
use pk_host::{RedbStore, Store as _};
use pk_proto::WriteFailure;
use pk_quic::{Effect, Response};

type Failure = Box<dyn std::error::Error>;

/// What ends a wait of the loop, apart from the socket and the timer.
pub(crate) enum Wake {
    /// An effect is completed.
    Completed(Response),
    /// The program is to end.
    Stop,
}

/// Sends to the loop and ends its wait.
#[derive(Clone)]
pub(crate) struct Wakes {
    sender: Sender<Wake>,
    waker: Arc<Waker>,
}

impl Wakes {
    pub(crate) fn new(sender: Sender<Wake>, waker: Arc<Waker>) -> Self {
        Self { sender, waker }
    }

    pub(crate) fn send(&self, wake: Wake) {
        // Both fail only after the loop has ended.
        let _ = self.sender.send(wake);
        let _ = self.waker.wake();
    }
}

/// The threads. Each executes its effects in order.
pub(crate) struct Workers {
    to_store: Sender<Effect>,
    to_resolver: Sender<Effect>,
    store: JoinHandle<Result<(), WriteFailure>>,
}

impl Workers {
    pub(crate) fn start(store: RedbStore, wakes: &Wakes) -> Result<Self, Failure> {
        let (to_store, for_store) = channel();
        let (to_resolver, for_resolver) = channel();
        let wake = wakes.clone();
        let store =
            thread::Builder::new().name("store".into()).spawn(|| keep(store, for_store, wake))?;
        let wake = wakes.clone();
        thread::Builder::new().name("resolver".into()).spawn(|| resolve(for_resolver, wake))?;
        Ok(Self { to_store, to_resolver, store })
    }

    /// Starts an effect. Returns it if no worker executes it.
    pub(crate) fn execute(&self, effect: Effect) -> Option<Effect> {
        let worker = match effect {
            Effect::Persist { .. } | Effect::Load { .. } => &self.to_store,
            Effect::Resolve { .. } => &self.to_resolver,
            other => return Some(other),
        };
        worker.send(effect).err().map(|unsent| unsent.0)
    }

    /// Waits until the store is written and closed.
    pub(crate) fn end(self) -> Result<(), Failure> {
        drop(self.to_store);
        let closed = self.store.join().map_err(|_| "the thread of the store panicked")?;
        Ok(closed?)
    }
}

#[expect(clippy::needless_pass_by_value, reason = "a thread owns what it works with")]
fn keep(mut store: RedbStore, effects: Receiver<Effect>, wakes: Wakes) -> Result<(), WriteFailure> {
    for effect in &effects {
        if let Ok(answer) = effect.run(&mut store) {
            wakes.send(Wake::Completed(answer));
        }
    }
    store.sync()
}

#[expect(clippy::needless_pass_by_value, reason = "a thread owns what it works with")]
fn resolve(effects: Receiver<Effect>, wakes: Wakes) {
    for effect in &effects {
        if let Effect::Resolve { id, name, port } = effect {
            let addrs = (name.as_str(), port).to_socket_addrs();
            let result = addrs.map(Iterator::collect).map_err(|error| error.to_string());
            wakes.send(Wake::Completed(Response::Resolved { id, result }));
        }
    }
}

//! Host names that are being looked up.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::task::{Context, Poll, Waker};

use pk_proto::{EffectId, Hostname, Input, Instant};

use crate::cx::{Cx, Key};
use crate::runtime::{BoxFuture, Runtime};

/// Addresses that are kept of one name.
const MAX_ADDRESSES: usize = 64;

/// Lookups under way. How many there are is up to the core.
pub(crate) struct Resolver<R> {
    runtime: R,
    lookups: HashMap<EffectId, Lookup>,
}

struct Lookup {
    future: BoxFuture<io::Result<Vec<SocketAddr>>>,
    waker: Waker,
    deadline: Instant,
}

impl<R: Runtime> Resolver<R> {
    pub(crate) fn new(runtime: R) -> Self {
        Self { runtime, lookups: HashMap::new() }
    }

    /// The effect `Resolve`.
    pub(crate) fn begin(&mut self, cx: &mut Cx, id: EffectId, name: &Hostname, port: u16) {
        let deadline = cx.now + cx.config.resolve_timeout;
        cx.deadlines.set(deadline, Key::Resolve(id));
        let future = self.runtime.resolve(name.as_str().to_owned(), port);
        self.lookups.insert(id, Lookup { future, waker: cx.source(Key::Resolve(id)), deadline });
    }

    pub(crate) fn poll(&mut self, cx: &mut Cx, id: EffectId) {
        let Some(lookup) = self.lookups.get_mut(&id) else { return };
        let mut context = Context::from_waker(&lookup.waker);
        let Poll::Ready(result) = lookup.future.as_mut().poll(&mut context) else { return };
        let result = result.map_err(|error| error.to_string());
        self.end(cx, id, result);
    }

    pub(crate) fn timed_out(&mut self, cx: &mut Cx, id: EffectId) {
        self.end(cx, id, Err("no answer in time".to_owned()));
    }

    fn end(&mut self, cx: &mut Cx, id: EffectId, mut result: Result<Vec<SocketAddr>, String>) {
        let Some(lookup) = self.lookups.remove(&id) else { return };
        cx.deadlines.cancel(lookup.deadline, Key::Resolve(id));
        match &mut result {
            Ok(addrs) => addrs.truncate(MAX_ADDRESSES),
            Err(_) => cx.metrics.resolutions_failed += 1,
        }
        cx.input(Input::Resolved { id, result });
    }
}

impl<R> fmt::Debug for Resolver<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resolver").field("lookups", &self.lookups.len()).finish_non_exhaustive()
    }
}

//! Resolution of host names.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::task::{Context, Poll, Waker};

use pk_proto::{EffectId, Hostname, Instant};
use pk_quic::Response;

use crate::cx::{Cx, WakeSource};
use crate::system::runtime::{BoxFuture, Runtime};

/// Maximum number of addresses of one name.
const MAX_ADDRESSES: usize = 64;

/// Resolutions in progress. The core limits their number.
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

    /// Executes the effect `Resolve`.
    pub(crate) fn begin(&mut self, cx: &mut Cx, id: EffectId, name: &Hostname, port: u16) {
        let deadline = cx.now + cx.config.resolve_timeout;
        cx.deadlines.set(deadline, WakeSource::Resolve(id));
        let future = self.runtime.resolve(name.as_str().to_owned(), port);
        self.lookups
            .insert(id, Lookup { future, waker: cx.source(WakeSource::Resolve(id)), deadline });
    }

    pub(crate) fn poll(&mut self, cx: &mut Cx, id: EffectId) {
        let Some(lookup) = self.lookups.get_mut(&id) else { return };
        let mut context = Context::from_waker(&lookup.waker);
        let Poll::Ready(result) = lookup.future.as_mut().poll(&mut context) else { return };
        let result = result.map_err(|error| error.to_string());
        self.end(cx, id, result);
    }

    pub(crate) fn timed_out(&mut self, cx: &mut Cx, id: EffectId) {
        self.end(cx, id, Err("time limit exceeded".to_owned()));
    }

    fn end(&mut self, cx: &mut Cx, id: EffectId, result: Result<Vec<SocketAddr>, String>) {
        let Some(lookup) = self.lookups.remove(&id) else { return };
        cx.deadlines.cancel(lookup.deadline, WakeSource::Resolve(id));
        cx.metrics.resolutions_failed += u64::from(result.is_err());
        cx.answer(Response::Resolved { id, result: result.map(bounded) });
    }
}

/// Returns at most `MAX_ADDRESSES` of these, without duplicates. The families alternate, so that
/// many addresses of one do not displace the other; within a family the order of the system is
/// kept.
fn bounded(addrs: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let mut seen = BTreeSet::new();
    let addrs = addrs.into_iter().filter(|addr| seen.insert(*addr));
    let (mut six, mut four): (VecDeque<_>, VecDeque<_>) = addrs.partition(SocketAddr::is_ipv6);
    let mut bounded = Vec::with_capacity(MAX_ADDRESSES.min(six.len() + four.len()));
    while bounded.len() < MAX_ADDRESSES && !(six.is_empty() && four.is_empty()) {
        bounded.extend(six.pop_front());
        bounded.extend(four.pop_front());
    }
    bounded.truncate(MAX_ADDRESSES);
    bounded
}

impl<R> fmt::Debug for Resolver<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resolver").field("lookups", &self.lookups.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_addresses_of_one_family_do_not_displace_the_other() {
        let six = |n: usize| format!("[2001:db8::{n:x}]:1").parse().unwrap();
        let four: SocketAddr = "192.0.2.1:1".parse().unwrap();
        let addrs: Vec<SocketAddr> =
            (1..=100).chain(1..=100).map(six).chain([four, four]).collect();
        let bounded = bounded(addrs);
        assert_eq!(bounded.len(), MAX_ADDRESSES);
        assert_eq!(bounded[..3], [six(1), four, six(2)]);
        assert!(bounded.iter().skip(2).is_sorted());
    }
}

//! Hole-punch signalling: what is signed, and the limits that keep it from being abused (WIRE.md section 8, DESIGN section 5).
//!
//! A source asks a relay that both are connected to. The relay answers with the target's address and tells the target, who
//! punches towards the source. On `pk/1` each request has an expiry and a nonce, and every signature covers them, so that
//! no request works twice; Polykey 1.x has neither ([`SignalTerms`]). What each role does is in `manager/signalling.rs`.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::vec::Vec;
use core::net::{IpAddr, SocketAddr};
use core::time::Duration;

use crate::address::NodeAddress;
use crate::id::NodeId;
use crate::rpc::{Refusal, SignalRequest, SignalTerms};
use crate::time::{Instant, UnixMillis};

/// How far the expiry of a request may lie ahead; clocks may differ by as much.
pub(crate) const VALIDITY: Duration = Duration::from_secs(120);
/// Signals that a bucket holds: what may come at once.
const BURST: u64 = 20;
/// Between two signals in the long run: 10 a second.
const REFILL: Duration = Duration::from_millis(100);
/// Nonces and buckets remembered, the newest.
const MEMORY: usize = 4096;

/// What the source signs.
pub fn request_bytes(source: &NodeId, target: &NodeId, terms: &SignalTerms) -> Vec<u8> {
    let ids = [source.as_bytes().as_slice(), target.as_bytes().as_slice()].concat();
    match terms {
        SignalTerms::Once { expires, nonce } => {
            [b"pk/1 signal request", &ids[..], &expires.0.to_be_bytes(), nonce].concat()
        }
        SignalTerms::Plain => ids,
    }
}

/// What the relay signs: the source's request, and where it sees the source, as [`address_text`] or as it was told.
pub fn relay_bytes(source: &NodeId, address_text: &str, request: &SignalRequest) -> Vec<u8> {
    let (asked, signature) = (request_bytes(source, &request.target, &request.terms), &request.signature.0);
    match request.terms {
        SignalTerms::Once { .. } => [b"pk/1 signal relay", &asked[..], signature, address_text.as_bytes()].concat(),
        SignalTerms::Plain => [&asked[..], address_text.as_bytes(), signature].concat(),
    }
}

/// The text of an address that a relay signs.
pub fn address_text(terms: &SignalTerms, address: &NodeAddress) -> String {
    match terms {
        SignalTerms::Once { .. } => address.contact_key(),
        SignalTerms::Plain => crate::rpc::polykey::write_address(address),
    }
}

/// Which requests have been seen, and how many of whom.
#[derive(Debug, Default)]
pub(crate) struct SignalGuard {
    /// Seen, until they expire.
    nonces: BTreeSet<(UnixMillis, NodeId, [u8; 16])>,
    sources: Limiter,
    targets: Limiter,
}

impl SignalGuard {
    /// Whether a request is fresh: not expired, not expiring too far ahead, not seen before. It is seen from now on. A plain
    /// one is always fresh: what bounds it is how often it may come.
    pub(crate) fn fresh(&mut self, unix: UnixMillis, source: &NodeId, request: &SignalRequest) -> Result<(), Refusal> {
        let SignalTerms::Once { expires, nonce } = request.terms else { return Ok(()) };
        let window = u64::try_from(VALIDITY.as_millis()).unwrap_or(u64::MAX);
        if expires < unix || expires.0 > unix.0.saturating_add(2 * window) {
            return Err(Refusal::Expired);
        }
        while let Some(first) = self.nonces.first().copied()
            && (first.0 < unix)
        {
            self.nonces.remove(&first);
        }
        if self.nonces.len() >= MEMORY {
            return Err(Refusal::Busy);
        }
        if self.nonces.insert((expires, *source, nonce)) { Ok(()) } else { Err(Refusal::Replayed) }
    }

    /// Takes one signal out of the bucket of whom it comes from.
    pub(crate) fn allow_source(&mut self, now: Instant, source: &NodeId) -> Result<(), Refusal> {
        if self.sources.take(now, source) { Ok(()) } else { Err(Refusal::RateLimited) }
    }

    /// Takes one signal out of the bucket of whom it is about.
    pub(crate) fn allow_target(&mut self, now: Instant, target: &NodeId) -> Result<(), Refusal> {
        if self.targets.take(now, target) { Ok(()) } else { Err(Refusal::RateLimited) }
    }
}

/// A token bucket for each node: [`BURST`] at once, one more every [`REFILL`].
#[derive(Debug, Default)]
struct Limiter {
    /// When each bucket will be full again.
    full_at: BTreeMap<NodeId, Instant>,
}

impl Limiter {
    fn take(&mut self, now: Instant, node: &NodeId) -> bool {
        if self.full_at.len() >= MEMORY && !self.full_at.contains_key(node) {
            // Full buckets need no memory.
            self.full_at.retain(|_, full_at| *full_at > now);
            if self.full_at.len() >= MEMORY {
                return false;
            }
        }
        let full_at = self.full_at.entry(*node).or_insert(now);
        let next = (*full_at).max(now) + REFILL;
        let most = REFILL * u32::try_from(BURST).unwrap_or(u32::MAX);
        let allowed = next.since(now) <= most;
        if allowed {
            *full_at = next;
        }
        allowed
    }
}

/// Waits between the datagrams of one punching, the first ones short, doubling up to 15 s in all.
const WAITS_MS: [u64; 8] = [100, 200, 400, 800, 1_600, 3_200, 3_700, 5_000];
/// Punchings of one host at a time.
const PER_HOST: usize = 3;
/// Punchings in all at a time.
const PUNCHES: usize = 64;

/// Addresses that are being punched at.
#[derive(Debug, Default)]
pub(crate) struct Punches {
    /// For whom, and how many datagrams each has had.
    sent: BTreeMap<SocketAddr, (NodeId, usize)>,
}

impl Punches {
    /// Begins to punch at an address for a node; `Ok(false)` if that is under way. The caller sends the first datagram.
    pub(crate) fn begin(&mut self, addr: SocketAddr, node: NodeId) -> Result<bool, Refusal> {
        if self.sent.contains_key(&addr) {
            return Ok(false);
        }
        let host: IpAddr = addr.ip();
        let same_host = self.sent.keys().filter(|known| known.ip() == host).count();
        if same_host >= PER_HOST || self.sent.len() >= PUNCHES {
            return Err(Refusal::Busy);
        }
        self.sent.insert(addr, (node, 0));
        Ok(true)
    }

    /// A datagram was sent: how long until the next one; `None` at the end.
    pub(crate) fn sent(&mut self, addr: &SocketAddr) -> Option<Duration> {
        let (_, sent) = self.sent.get_mut(addr)?;
        let wait = WAITS_MS.get(*sent).map(|ms| Duration::from_millis(*ms));
        *sent += 1;
        if wait.is_none() {
            self.sent.remove(addr);
        }
        wait
    }

    /// Whether an address is being punched at for a node, by any of its ids.
    pub(crate) fn is_for(&self, ids: &[NodeId]) -> bool {
        self.sent.values().any(|(node, _)| ids.contains(node))
    }

    /// Nothing needs to be punched any more for a node: where that was.
    pub(crate) fn end(&mut self, ids: &[NodeId]) -> Vec<SocketAddr> {
        let over: Vec<_> =
            self.sent.iter().filter(|(_, (node, _))| ids.contains(node)).map(|(addr, _)| *addr).collect();
        self.sent.retain(|_, (node, _)| !ids.contains(node));
        over
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::Signature;

    fn id(byte: u8) -> NodeId {
        NodeId::from_bytes([byte; 32])
    }

    fn request(expires: u64, nonce: u8) -> SignalRequest {
        let terms = SignalTerms::Once { expires: UnixMillis(expires), nonce: [nonce; 16] };
        SignalRequest { target: id(2), terms, signature: Signature([0; 64]) }
    }

    #[test]
    fn a_request_works_once_and_only_in_its_time() {
        let mut guard = SignalGuard::default();
        let now = UnixMillis(1_000_000);
        assert_eq!(guard.fresh(now, &id(1), &request(999_999, 1)), Err(Refusal::Expired));
        assert_eq!(guard.fresh(now, &id(1), &request(1_240_001, 1)), Err(Refusal::Expired));
        assert_eq!(guard.fresh(now, &id(1), &request(1_120_000, 1)), Ok(()));
        assert_eq!(guard.fresh(now, &id(1), &request(1_120_000, 1)), Err(Refusal::Replayed));
        assert_eq!(guard.fresh(now, &id(1), &request(1_120_000, 2)), Ok(()));
        assert_eq!(guard.fresh(now, &id(3), &request(1_120_000, 1)), Ok(()));
        let later = UnixMillis(1_120_001);
        assert_eq!(guard.fresh(later, &id(1), &request(1_120_000, 1)), Err(Refusal::Expired));
        assert_eq!(guard.nonces.len(), 3);
        assert_eq!(guard.fresh(later, &id(1), &request(1_200_000, 9)), Ok(()));
        assert_eq!(guard.nonces.len(), 1, "what has expired is forgotten");
    }

    #[test]
    fn memory_is_bounded() {
        let mut guard = SignalGuard::default();
        for n in 0..10_000u64 {
            let mut source = [0; 32];
            source[..8].copy_from_slice(&n.to_be_bytes());
            let source = NodeId::from_bytes(source);
            let _ = guard.fresh(UnixMillis(0), &source, &request(100, 0));
            let _ = guard.allow_source(Instant::ORIGIN, &source);
        }
        assert_eq!(guard.nonces.len(), MEMORY);
        assert_eq!(guard.sources.full_at.len(), MEMORY);
    }

    #[test]
    fn twenty_at_once_then_ten_a_second() {
        let mut limiter = Limiter::default();
        let burst = (0..100).filter(|_| limiter.take(Instant::ORIGIN, &id(1))).count();
        assert_eq!(burst, 20);
        assert!(limiter.take(Instant::ORIGIN, &id(2)), "each node has its own");
        let second = Instant::ORIGIN + Duration::from_secs(1);
        assert_eq!((0..100).filter(|_| limiter.take(second, &id(1))).count(), 10);
    }

    #[test]
    fn punches_last_fifteen_seconds_and_are_few() {
        let mut punches = Punches::default();
        let addr = |port| SocketAddr::from(([10, 0, 0, 1], port));
        let mut begin = |port: u16| punches.begin(addr(port), id(port as u8));
        assert_eq!([1, 2, 3, 4].map(|port| begin(port).is_ok()), [true, true, true, false]);
        assert_eq!(begin(1), Ok(false));
        let waits: Duration = core::iter::from_fn(|| punches.sent(&addr(1))).sum();
        assert_eq!(waits, Duration::from_secs(15));
        assert_eq!(punches.begin(addr(4), id(4)), Ok(true));
        assert!(punches.is_for(&[id(9), id(4)]) && !punches.is_for(&[id(1)]), "over, or never begun");
        assert_eq!((punches.end(&[id(4), id(9)]), punches.end(&[id(4)])), (alloc::vec![addr(4)], alloc::vec![]));
    }
}

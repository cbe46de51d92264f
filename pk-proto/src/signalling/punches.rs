//! Punches in progress.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use core::net::{IpAddr, SocketAddr, SocketAddrV6};
use core::ops::RangeInclusive;
use core::time::Duration;

use crate::shares::{Limits, Shares, Source};
use crate::types::id::NodeId;
use crate::types::refusal::Refusal;

/// Intervals between the datagrams of one punch, doubling up to 15 s in total.
const WAITS_MS: [u64; 8] = [100, 200, 400, 800, 1_600, 3_200, 3_700, 5_000];

/// Maximum number of concurrent punches of one host.
const PER_HOST: usize = 3;

/// Maximum number of concurrent punches, of which a relay and its network have their shares.
const PUNCHES: usize = 256;

/// Addresses that are being punched.
#[derive(Debug, Default)]
pub(crate) struct Punches {
    sent: BTreeMap<SocketAddr, Punching>,
    /// The addresses that are punched for each node.
    of_node: BTreeMap<NodeId, BTreeSet<SocketAddr>>,
    shares: Shares,
}

/// One punch.
#[derive(Debug)]
struct Punching {
    /// Node that is expected to connect.
    node: NodeId,
    /// Number of datagrams sent.
    sent: usize,
    /// Relay that requested it.
    relay: Source,
}

impl Punches {
    /// Starts to punch an address for a node on request of a relay; `Ok(false)` if that is in
    /// progress. The caller sends the first datagram. `share` is `Config::network_share`.
    pub(crate) fn begin(
        &mut self,
        addr: SocketAddr,
        node: NodeId,
        relay: &Source,
        share: u32,
    ) -> Result<bool, Refusal> {
        if self.sent.contains_key(&addr) {
            return Ok(false);
        }
        if self.sent.range(of_host(addr.ip())).take(PER_HOST).count() >= PER_HOST {
            return Err(Refusal::Busy);
        }
        self.shares.take(relay, &Limits::new(PUNCHES, share))?;
        self.sent.insert(addr, Punching { node, sent: 0, relay: *relay });
        self.of_node.entry(node).or_default().insert(addr);
        Ok(true)
    }

    /// A datagram was sent. Returns the time until the next one; `None` at the end.
    pub(crate) fn sent(&mut self, addr: &SocketAddr) -> Option<Duration> {
        let punching = self.sent.get_mut(addr)?;
        let wait = WAITS_MS.get(punching.sent).map(|ms| Duration::from_millis(*ms));
        punching.sent += 1;
        if wait.is_none() {
            self.forget(addr);
        }
        wait
    }

    /// Ends all punches.
    pub(crate) fn clear(&mut self) {
        self.sent.clear();
        self.of_node.clear();
        self.shares = Shares::default();
    }

    /// Returns the number of addresses being punched.
    pub(crate) fn len(&self) -> usize {
        self.sent.len()
    }

    /// Returns whether an address is being punched for a node, under any of its ids.
    pub(crate) fn is_for(&self, ids: &[NodeId]) -> bool {
        ids.iter().any(|id| self.of_node.contains_key(id))
    }

    /// Ends the punches for a node. Returns their addresses.
    pub(crate) fn end(&mut self, ids: &[NodeId]) -> Vec<SocketAddr> {
        let of_node = ids.iter().filter_map(|id| self.of_node.get(id));
        let over: BTreeSet<_> = of_node.flatten().copied().collect();
        over.iter().for_each(|addr| self.forget(addr));
        over.into_iter().collect()
    }

    fn forget(&mut self, addr: &SocketAddr) {
        let Some(Punching { node, relay, .. }) = self.sent.remove(addr) else { return };
        self.shares.give_back(&relay);
        if let Some(addrs) = self.of_node.get_mut(&node) {
            addrs.remove(addr);
            if addrs.is_empty() {
                self.of_node.remove(&node);
            }
        }
    }
}

/// Returns the range of all socket addresses of a host.
fn of_host(host: IpAddr) -> RangeInclusive<SocketAddr> {
    match host {
        IpAddr::V4(_) => SocketAddr::new(host, 0)..=SocketAddr::new(host, u16::MAX),
        IpAddr::V6(ip) => {
            let last = SocketAddrV6::new(ip, u16::MAX, u32::MAX, u32::MAX);
            SocketAddr::new(host, 0)..=last.into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::network::Network;

    fn id(byte: u8) -> NodeId {
        NodeId::from_bytes([byte; 32])
    }

    fn source(byte: u8) -> Source {
        Source { node: id(byte), network: Network::V4([10, 0, byte]) }
    }

    const SHARE: u32 = 25;

    #[test]
    fn punches_last_fifteen_seconds_and_are_few() {
        let mut punches = Punches::default();
        let addr = |port| SocketAddr::from(([10, 0, 0, 1], port));
        let mut begin = |port: u16| punches.begin(addr(port), id(port as u8), &source(1), SHARE);
        assert_eq!([1, 2, 3, 4].map(|port| begin(port).is_ok()), [true, true, true, false]);
        assert_eq!(begin(1), Ok(false));
        let waits: Duration = core::iter::from_fn(|| punches.sent(&addr(1))).sum();
        assert_eq!(waits, Duration::from_secs(15));
        assert_eq!(punches.begin(addr(4), id(4), &source(1), SHARE), Ok(true));
        assert!(
            punches.is_for(&[id(9), id(4)]) && !punches.is_for(&[id(1)]),
            "ended, or never started"
        );
        assert_eq!(
            (punches.end(&[id(4), id(9)]), punches.end(&[id(4)])),
            (alloc::vec![addr(4)], alloc::vec![])
        );
    }

    #[test]
    fn one_relay_cannot_use_all_punches() {
        let mut punches = Punches::default();
        let at = |n: u16| SocketAddr::from(([20, 0, (n >> 8) as u8, n as u8], 1));
        let begun = |punches: &mut Punches, relay: &Source, from: u16| {
            (from..from + 1000)
                .filter(|n| punches.begin(at(*n), id(1), relay, SHARE) == Ok(true))
                .count()
        };
        let limits = Limits::new(PUNCHES, SHARE);
        assert_eq!(begun(&mut punches, &source(1), 0), limits.node);
        assert_eq!(
            begun(&mut punches, &Source { node: id(2), ..source(1) }, 1000),
            limits.node,
            "of its network"
        );
        assert_eq!(begun(&mut punches, &Source { node: id(3), ..source(1) }, 2000), 0);
        assert_eq!(begun(&mut punches, &source(4), 3000), limits.node, "of another one");
        assert_eq!(punches.end(&[id(1)]).len(), 3 * limits.node);
        assert_eq!(begun(&mut punches, &source(1), 0), limits.node);
    }
}

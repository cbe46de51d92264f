//! A dial race: several addresses of one node, started one after the other, the first accepted connection wins (RFC 8305).

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::vec::Vec;
use core::net::SocketAddr;

use crate::address::{ContactMode, Host, Hostname, NodeAddress, NodeContactAddressData, Scopes};
use crate::id::{ConnectionId, EffectId, NodeId, RequestId};
use crate::io::DialFailure;
use crate::time::Instant;

/// Names one race.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct RaceId(pub(super) u64);

/// How an address was learnt, and so how a connection to it is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Learnt {
    pub(crate) mode: ContactMode,
    pub(crate) scopes: Scopes,
}

impl Learnt {
    /// From the graph, a peer, or the embedder.
    pub(crate) const DIRECT: Self = Self { mode: ContactMode::Direct, scopes: Scopes::GLOBAL };
    /// From a relay, which has told the node as well.
    pub(crate) const SIGNALLED: Self = Self { mode: ContactMode::Signal, scopes: Scopes::GLOBAL };
    /// From the local network.
    pub(crate) const LOCAL: Self = Self { mode: ContactMode::Direct, scopes: Scopes::LOCAL };

    /// From the graph: dialled, but learnt as it was. An address of the local network stays one.
    pub(crate) fn known(data: &NodeContactAddressData) -> Self {
        Self { mode: ContactMode::Direct, scopes: data.scopes }
    }
}

/// One race under way.
#[derive(Debug)]
pub(super) struct Race {
    /// Who has to answer.
    pub(super) node: NodeId,
    /// Who is told of the end, and by when it has failed for them; without any the race is called off.
    pub(super) waiters: BTreeMap<RequestId, Instant>,
    /// The embedder waits for it, or did.
    pub(super) urgent: bool,
    /// The next dial begins no earlier, unless one fails (RFC 8305 section 5).
    pub(super) next_at: Instant,
    /// Dials under way.
    pub(super) dialling: BTreeMap<ConnectionId, Dialling>,
    /// Names being resolved.
    pub(super) resolving: BTreeMap<EffectId, (NodeAddress, Learnt)>,
    /// What has failed so far.
    pub(super) failures: Vec<(NodeAddress, DialFailure)>,
    /// Nodes that can signal, to be asked when the addresses are used up.
    pub(super) relays: VecDeque<NodeId>,
    /// Relays that have been asked and have not answered.
    pub(super) signalling: usize,
    /// A relay has told the node where we are.
    pub(super) called: bool,
    /// Not begun yet, in order.
    waiting: VecDeque<(SocketAddr, Learnt)>,
    /// Every address that was ever taken in, so that none is dialled twice.
    seen: BTreeSet<SocketAddr>,
    limit: usize,
}

/// One dial of a race.
#[derive(Debug)]
pub(super) struct Dialling {
    pub(super) addr: SocketAddr,
    pub(super) learnt: Learnt,
    /// What the driver was given.
    pub(super) deadline: Instant,
}

impl Race {
    pub(super) fn new(node: NodeId, now: Instant, limit: usize) -> Self {
        Self {
            node,
            waiters: BTreeMap::new(),
            urgent: false,
            next_at: now,
            dialling: BTreeMap::new(),
            resolving: BTreeMap::new(),
            failures: Vec::new(),
            relays: VecDeque::new(),
            signalling: 0,
            called: false,
            waiting: VecDeque::new(),
            seen: BTreeSet::new(),
            limit,
        }
    }

    /// Takes in addresses; returns the names that have to be resolved. What is known or over the limit is left out, what
    /// cannot be dialled has failed.
    pub(super) fn add(
        &mut self,
        addresses: impl IntoIterator<Item = (NodeAddress, Learnt)>,
    ) -> Vec<(Hostname, NodeAddress, Learnt)> {
        let mut names = Vec::new();
        for (address, learnt) in addresses {
            match (&address.host, address.socket()) {
                (Host::Name(name), _) => {
                    let known = self.resolving.values().any(|(known, _)| *known == address);
                    if !known && self.resolving.len() + names.len() < self.limit {
                        names.push((name.clone(), address, learnt));
                    }
                }
                (_, Some(socket)) => self.add_sockets([socket], learnt),
                (_, None) => {
                    let why = DialFailure::Transport("a zone that is not a number cannot be dialled".into());
                    self.failures.push((address, why));
                }
            }
        }
        names
    }

    /// Takes in addresses, families taking turns (RFC 8305 section 4).
    pub(super) fn add_sockets(&mut self, sockets: impl IntoIterator<Item = SocketAddr>, learnt: Learnt) {
        for socket in sockets {
            if self.seen.len() >= self.limit || !self.seen.insert(socket) {
                continue;
            }
            if is_dialable(&socket) {
                self.waiting.push_back((socket, learnt));
            } else {
                let why = DialFailure::Transport("nobody can have this address".into());
                self.failures.push((NodeAddress::from_socket(socket), why));
            }
        }
        let (mut six, mut four): (VecDeque<_>, VecDeque<_>) =
            self.waiting.drain(..).partition(|(socket, _)| socket.is_ipv6());
        while !(six.is_empty() && four.is_empty()) {
            self.waiting.extend(six.pop_front());
            self.waiting.extend(four.pop_front());
        }
    }

    /// The next address to dial.
    pub(super) fn next(&mut self) -> Option<(SocketAddr, Learnt)> {
        self.waiting.pop_front()
    }

    /// Puts an address back that could not be begun, or whose time was cut short.
    pub(super) fn put_back(&mut self, address: (SocketAddr, Learnt)) {
        self.waiting.push_front(address);
    }

    /// A relay has told the node, which punches towards us: this address is next, also if it was dialled in vain before.
    /// One that is being dialled needs no second dial. Returns whether there is something new to dial.
    pub(super) fn signalled(&mut self, address: &NodeAddress) -> bool {
        self.called = true;
        let Some(socket) = address.socket().filter(is_dialable) else { return false };
        if let Some(dial) = self.dialling.values_mut().find(|dial| dial.addr == socket) {
            dial.learnt = Learnt::SIGNALLED;
            return false;
        }
        self.waiting.retain(|(waiting, _)| *waiting != socket);
        self.waiting.push_front((socket, Learnt::SIGNALLED));
        true
    }

    /// Whether addresses wait to be dialled, or relays to be asked.
    pub(super) fn has_next(&self) -> bool {
        !self.waiting.is_empty() || !self.relays.is_empty()
    }

    /// Whether addresses wait to be dialled.
    pub(super) fn has_address(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// What has failed, once it is over for `why` before all of it has.
    pub(super) fn failures(&self, why: &DialFailure) -> Vec<(NodeAddress, DialFailure)> {
        let dialling = self.dialling.values().map(|dial| (dial.addr, dial.learnt));
        let sockets = dialling.chain(self.waiting.iter().copied());
        let open =
            sockets.map(|(socket, learnt)| (NodeAddress::from_socket(socket), after_signal(learnt, why.clone())));
        let names = self.resolving.values().map(|(address, _)| (address.clone(), why.clone()));
        self.failures.iter().cloned().chain(open).chain(names).collect()
    }

    /// By when it has failed for the last of those who wait for it.
    pub(super) fn last_deadline(&self) -> Instant {
        self.waiters.values().max().copied().unwrap_or_default()
    }

    /// Whether nothing is left that could succeed.
    pub(super) fn is_lost(&self) -> bool {
        !self.has_next() && self.signalling == 0 && self.dialling.is_empty() && self.resolving.is_empty()
    }
}

/// A dial that was signalled and timed out says so: then both NATs are too strict.
pub(super) fn after_signal(learnt: Learnt, why: DialFailure) -> DialFailure {
    match why {
        DialFailure::TimedOut if learnt == Learnt::SIGNALLED => DialFailure::TimedOutAfterSignal,
        why => why,
    }
}

/// Unicast with a port: anything else is nobody's address.
fn is_dialable(socket: &SocketAddr) -> bool {
    let ip = socket.ip();
    let broadcast = matches!(ip, core::net::IpAddr::V4(ip) if ip.is_broadcast());
    socket.port() != 0 && !ip.is_unspecified() && !ip.is_multicast() && !broadcast
}

#[cfg(test)]
mod tests {
    use super::*;

    fn race(addresses: &[&str]) -> Race {
        let mut race = Race::new(NodeId::from_bytes([1; 32]), Instant::ORIGIN, 4);
        race.add(addresses.iter().map(|address| (address.parse().unwrap(), Learnt::DIRECT)));
        race
    }

    fn order(race: &mut Race) -> Vec<alloc::string::String> {
        core::iter::from_fn(|| race.next()).map(|(socket, _)| alloc::format!("{socket}")).collect()
    }

    #[test]
    fn families_take_turns_and_ipv6_begins() {
        let mut race = race(&["10.0.0.1:1", "10.0.0.2:1", "[2001:db8::1]:1"]);
        assert_eq!(order(&mut race), ["[2001:db8::1]:1", "10.0.0.1:1", "10.0.0.2:1"]);
    }

    #[test]
    fn an_address_is_dialled_once_and_the_number_is_bounded() {
        let mut race = race(&["10.0.0.1:1", "10.0.0.1:1", "10.0.0.1:2", "10.0.0.1:3", "10.0.0.1:4", "10.0.0.1:5"]);
        assert_eq!(order(&mut race).len(), 4);
    }

    #[test]
    fn what_is_nobodys_address_is_not_dialled() {
        let mut race = race(&["0.0.0.0:1", "224.0.0.1:1", "255.255.255.255:1", "[::]:1", "[ff02::1]:1"]);
        assert_eq!((order(&mut race).len(), race.failures.len()), (0, 4), "over the limit is the last");
        assert!(race.is_lost());
    }
}

//! A dial race: the addresses of one node are started one after the other; the first accepted
//! connection wins (RFC 8305).

use alloc::collections::btree_map::Entry;
use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::string::ToString;
use alloc::vec::Vec;
use core::net::SocketAddr;

use super::forwarders::Forwarders;
use crate::api::transport::DialFailure;
use crate::machine::dial::AddressOrigin;
use crate::types::address::{Host, Hostname, NodeAddress};
use crate::types::id::{ConnectionId, NodeId, RequestId};
use crate::types::sockets::undialable;
use crate::types::time::Instant;
use crate::wire::dialect::Dialect;

/// Dials of a race after which nodes are asked to signal, each in turn with another dial. Nodes
/// behind a NAT with a mapping per peer are reported with many addresses, none of which responds.
const BEFORE_SIGNALS: u32 = 3;
/// Maximum number of listed addresses that one race did not try.
const FAILURES: usize = 128;

/// A race in progress.
#[derive(Debug)]
pub(super) struct Race {
    /// Target.
    pub(super) node: NodeId,
    pub(super) begun: Instant,
    /// Waiters with their deadlines; a race without waiters is cancelled.
    pub(super) waiters: Waiters,
    /// Whether the embedder waits for it, or did.
    pub(super) foreground: bool,
    /// Earliest time of the next dial, unless one fails (RFC 8305 section 5).
    pub(super) next_at: Instant,
    /// Earliest time at which the next node is asked to signal while addresses wait.
    pub(super) ask_at: Instant,
    /// Dials that were started.
    pub(super) tried: u32,
    /// Dials in progress.
    pub(super) dialing: BTreeMap<ConnectionId, Dialing>,
    /// Name resolutions in progress, in the order in which they started.
    pub(super) resolving: BTreeMap<u32, (NodeAddress, AddressOrigin)>,
    next_name: u32,
    /// Failures so far.
    pub(super) failures: Vec<(NodeAddress, DialFailure)>,
    /// Nodes that can signal.
    pub(super) relays: VecDeque<NodeId>,
    /// Nodes that may relay.
    pub(super) forwarders: Forwarders,
    /// Number of nodes that were asked to relay and have not answered.
    pub(super) opening: usize,
    /// Addresses of the relays behind the addresses of relayed paths.
    relayed: BTreeMap<SocketAddr, NodeAddress>,
    /// Number of relays that were asked and have not answered.
    pub(super) signalling: usize,
    /// Whether a relay has informed the node of our address.
    pub(super) signalled: bool,
    /// Not started yet, in order.
    waiting: VecDeque<(SocketAddr, AddressOrigin)>,
    /// Every address that was added, so that none is dialed twice.
    seen: BTreeSet<SocketAddr>,
    limit: usize,
}

/// Requests that wait for a race, by deadline and by id.
#[derive(Debug, Default)]
pub(super) struct Waiters {
    deadlines: BTreeMap<RequestId, Instant>,
    by_deadline: BTreeSet<(Instant, RequestId)>,
}

impl Waiters {
    /// Adds a waiter, unless it waits already.
    pub(super) fn insert(&mut self, waiter: RequestId, deadline: Instant) {
        if let Entry::Vacant(new) = self.deadlines.entry(waiter) {
            new.insert(deadline);
            self.by_deadline.insert((deadline, waiter));
        }
    }

    /// Removes a waiter; returns whether it waited.
    pub(super) fn remove(&mut self, waiter: RequestId) -> bool {
        let deadline = self.deadlines.remove(&waiter);
        deadline.is_some_and(|deadline| self.by_deadline.remove(&(deadline, waiter)))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.deadlines.is_empty()
    }

    /// Returns the waiters, ordered by id.
    pub(super) fn ids(&self) -> impl Iterator<Item = RequestId> {
        self.deadlines.keys().copied()
    }

    /// Returns the waiters whose deadline is exceeded.
    pub(super) fn late(&self, now: Instant) -> BTreeSet<RequestId> {
        let late = self.by_deadline.iter().take_while(|(deadline, _)| *deadline <= now);
        late.map(|(_, waiter)| *waiter).collect()
    }

    pub(super) fn first_deadline(&self) -> Option<Instant> {
        self.by_deadline.first().map(|(deadline, _)| *deadline)
    }

    pub(super) fn last_deadline(&self) -> Option<Instant> {
        self.by_deadline.last().map(|(deadline, _)| *deadline)
    }
}

/// One dial of a race.
#[derive(Debug)]
pub(super) struct Dialing {
    pub(super) addr: SocketAddr,
    pub(super) origin: AddressOrigin,
    /// Deadline given to the driver.
    pub(super) deadline: Instant,
}

/// What becomes of the other dials of a race that has ended.
///
/// If both ends dial each other, each end has a race. Suppose that A accepts the connection B
/// dialed, while B accepts the one A dialed. If each end then closed the dial that its race has
/// lost, A would close the connection that B uses, B the one that A uses, and none would be left.
/// So an end closes nothing if its race was won by a connection that the peer dialed: there are two
/// connections for a while, both ends choose the same one (`connect/choice.rs`), and the other one
/// closes when it is idle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Losers {
    /// Cancel the dials and close the connections that this node dialed.
    End,
    /// The winner is a connection that the peer dialed, on `pk/1`: close no connection. A dial
    /// whose handshake is not complete is cancelled. The peer cannot have accepted it, because it
    /// has not received the `Hello` of this node on it.
    KeepConnections,
    /// The winner is a connection that the peer dialed, on `quic`: cancel no dial either. There the
    /// peer accepts a connection when its side of the handshake is complete, which is before this
    /// node knows of it, and may use it already.
    KeepAll,
}

impl Losers {
    /// For a race that a connection wins now, which the peer dialed (`theirs`) or not.
    pub(super) fn beside(theirs: bool, dialect: Dialect) -> Self {
        match dialect {
            _ if !theirs => Self::End,
            Dialect::Native => Self::KeepConnections,
            Dialect::Polykey => Self::KeepAll,
        }
    }
}

impl Race {
    pub(super) fn new(node: NodeId, now: Instant, limit: usize) -> Self {
        Self {
            node,
            begun: now,
            waiters: Waiters::default(),
            foreground: false,
            next_at: now,
            ask_at: now,
            tried: 0,
            dialing: BTreeMap::new(),
            resolving: BTreeMap::new(),
            next_name: 0,
            failures: Vec::new(),
            relays: VecDeque::new(),
            forwarders: Forwarders::default(),
            opening: 0,
            relayed: BTreeMap::new(),
            signalling: 0,
            signalled: false,
            waiting: VecDeque::new(),
            seen: BTreeSet::new(),
            limit,
        }
    }

    /// Adds addresses; returns the names to be resolved. Known ones are skipped; those over the
    /// limit, or that cannot be dialed, have failed.
    pub(super) fn add(
        &mut self,
        addresses: impl IntoIterator<Item = (NodeAddress, AddressOrigin)>,
    ) -> Vec<(Hostname, NodeAddress, AddressOrigin)> {
        let (mut names, mut sockets) = (Vec::new(), Vec::new());
        for (address, origin) in addresses {
            match (&address.host, address.socket()) {
                (Host::Name(name), _) => {
                    if self.resolving.values().any(|(known, _)| *known == address) {
                        continue;
                    }
                    if self.resolving.len() + names.len() < self.limit {
                        names.push((name.clone(), address, origin));
                    } else {
                        self.failed(address, DialFailure::NotTried);
                    }
                }
                (_, Some(socket)) => sockets.push((socket, origin)),
                (_, None) => {
                    let why = "a zone that is not numeric cannot be dialed";
                    self.failed(address, DialFailure::Transport(why.into()));
                }
            }
        }
        self.add_sockets(sockets);
        names
    }

    /// Adds addresses with alternating families (RFC 8305 section 4). Only then is the limit
    /// applied, so that many addresses of one family never hide the other.
    pub(super) fn add_sockets(
        &mut self,
        sockets: impl IntoIterator<Item = (SocketAddr, AddressOrigin)>,
    ) {
        for (socket, origin) in take_turns(sockets) {
            if self.seen.contains(&socket) {
                continue;
            }
            // An address that cannot be dialed occupies no place.
            if let Some(why) = undialable(&socket) {
                self.failed(NodeAddress::from_socket(socket), DialFailure::Transport(why.into()));
            } else if self.seen.len() >= self.limit {
                self.failed(NodeAddress::from_socket(socket), DialFailure::NotTried);
            } else {
                self.seen.insert(socket);
                self.waiting.push_back((socket, origin));
            }
        }
        let waiting = core::mem::take(&mut self.waiting);
        self.waiting = take_turns(waiting).collect();
    }

    /// Notes that a name is being resolved. Returns its key in [`resolving`](Self::resolving).
    pub(super) fn resolve(&mut self, address: NodeAddress, origin: AddressOrigin) -> u32 {
        let key = self.next_name;
        self.next_name = self.next_name.saturating_add(1);
        self.resolving.insert(key, (address, origin));
        key
    }

    /// Lists why an address was not dialed, once, up to a limit.
    fn failed(&mut self, address: NodeAddress, why: DialFailure) {
        let failure = (address, why);
        if self.failures.len() < FAILURES && !self.failures.contains(&failure) {
            self.failures.push(failure);
        }
    }

    /// Returns the next address to dial.
    pub(super) fn next(&mut self) -> Option<(SocketAddr, AddressOrigin)> {
        self.waiting.pop_front()
    }

    /// Returns an address that could not be started, or whose time was cut short, to the queue.
    pub(super) fn put_back(&mut self, address: (SocketAddr, AddressOrigin)) {
        self.waiting.push_front(address);
    }

    /// Dials the address of a dial a second time, unless that is done already. Returns whether
    /// there is something new to dial.
    pub(super) fn again(&mut self, conn: ConnectionId) -> bool {
        let Some(dial) = self.dialing.get(&conn) else { return false };
        let (addr, origin) = (dial.addr, dial.origin);
        let dials = self.dialing.values().filter(|dial| dial.addr == addr).count();
        let again = dials == 1 && self.waiting.iter().all(|(waiting, _)| *waiting != addr);
        if again {
            self.put_back((addr, origin));
        }
        again
    }

    /// A relay has informed the node, which punches: this address is next, also if a dial to it has
    /// failed before. One that is being dialed needs no second dial. Returns whether there is
    /// something new to dial.
    pub(super) fn signalled(&mut self, address: &NodeAddress) -> bool {
        self.signalled = true;
        let Some(socket) = address.socket().filter(|socket| undialable(socket).is_none()) else {
            return false;
        };
        if let Some(dial) = self.dialing.values_mut().find(|dial| dial.addr == socket) {
            dial.origin = AddressOrigin::SIGNALLED;
            return false;
        }
        self.waiting.retain(|(waiting, _)| *waiting != socket);
        self.waiting.push_front((socket, AddressOrigin::SIGNALLED));
        true
    }

    /// A relayed path exists, through a node at this address: its address is next.
    pub(super) fn add_path(&mut self, addr: SocketAddr, relay: NodeAddress) {
        self.relayed.insert(addr, relay);
        self.waiting.push_front((addr, AddressOrigin::RELAYED));
    }

    /// Returns an address and a failure as they are reported: those of a relayed path are those of
    /// its relay.
    pub(super) fn failure(
        &self,
        addr: SocketAddr,
        origin: AddressOrigin,
        why: DialFailure,
    ) -> (NodeAddress, DialFailure) {
        match self.relayed.get(&addr) {
            Some(relay) => (relay.clone(), DialFailure::Relay(why.to_string())),
            None => (NodeAddress::from_socket(addr), after_signal(origin, why)),
        }
    }

    /// Returns whether addresses wait to be dialed, or relays to be asked.
    pub(super) fn has_next(&self) -> bool {
        !self.waiting.is_empty() || !self.relays.is_empty()
    }

    /// Returns whether addresses wait to be dialed.
    pub(super) fn has_address(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Returns whether a node may be asked to signal now.
    pub(super) fn may_ask(&self, now: Instant) -> bool {
        !self.relays.is_empty() && self.ask_at <= now
    }

    /// Returns whether a node is asked to signal before the next address is dialed. An address at
    /// which the node expects the dial comes first.
    pub(super) fn asks_first(&self, now: Instant) -> bool {
        let expected = [AddressOrigin::SIGNALLED, AddressOrigin::RELAYED];
        let next = self.waiting.front();
        self.tried >= BEFORE_SIGNALS
            && self.may_ask(now)
            && next.is_none_or(|(_, origin)| !expected.contains(origin))
    }

    /// Returns all failures if the race ends now because of `why`.
    pub(super) fn failures(&self, why: &DialFailure) -> Vec<(NodeAddress, DialFailure)> {
        let dialing = self.dialing.values().map(|dial| (dial.addr, dial.origin));
        let sockets = dialing.chain(self.waiting.iter().copied());
        let open = sockets.map(|(socket, origin)| self.failure(socket, origin, why.clone()));
        let names = self.resolving.values().map(|(address, _)| (address.clone(), why.clone()));
        self.failures.iter().cloned().chain(open).chain(names).collect()
    }

    /// Returns the last deadline of the waiters.
    pub(super) fn last_deadline(&self) -> Instant {
        self.waiters.last_deadline().unwrap_or_default()
    }

    /// Returns whether nothing is left that could succeed.
    pub(super) fn is_lost(&self) -> bool {
        !self.has_next()
            && self.signalling == 0
            && self.opening == 0
            && self.forwarders.is_empty()
            && self.dialing.is_empty()
            && self.resolving.is_empty()
    }
}

/// Converts the timeout of a signalled dial: then both NATs are too strict.
fn after_signal(origin: AddressOrigin, why: DialFailure) -> DialFailure {
    match why {
        DialFailure::TimedOut if origin == AddressOrigin::SIGNALLED => {
            DialFailure::TimedOutAfterSignal
        }
        why => why,
    }
}

/// Alternates the families, IPv6 first; each in its order.
fn take_turns(
    sockets: impl IntoIterator<Item = (SocketAddr, AddressOrigin)>,
) -> impl Iterator<Item = (SocketAddr, AddressOrigin)> {
    let (mut six, mut four): (VecDeque<_>, VecDeque<_>) =
        sockets.into_iter().partition(|(socket, _)| socket.is_ipv6());
    let turn = move || {
        Some([six.pop_front(), four.pop_front()]).filter(|turn| turn.iter().any(Option::is_some))
    };
    core::iter::from_fn(turn).flatten().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn race(addresses: &[&str]) -> Race {
        let mut race = Race::new(NodeId::from_bytes([1; 32]), Instant::ORIGIN, 4);
        race.add(addresses.iter().map(|address| (address.parse().unwrap(), AddressOrigin::DIRECT)));
        race
    }

    fn order(race: &mut Race) -> Vec<alloc::string::String> {
        core::iter::from_fn(|| race.next()).map(|(socket, _)| alloc::format!("{socket}")).collect()
    }

    #[test]
    fn families_alternate_and_ipv6_is_first() {
        let mut race = race(&["10.0.0.1:1", "10.0.0.2:1", "[2001:db8::1]:1"]);
        assert_eq!(order(&mut race), ["[2001:db8::1]:1", "10.0.0.1:1", "10.0.0.2:1"]);
    }

    #[test]
    fn address_is_dialed_once_and_the_number_is_bounded() {
        let mut race = race(&[
            "10.0.0.1:1",
            "10.0.0.1:1",
            "10.0.0.1:2",
            "10.0.0.1:3",
            "10.0.0.1:4",
            "10.0.0.1:5",
        ]);
        assert_eq!(order(&mut race).len(), 4);
    }

    #[test]
    fn undialable_address_is_not_dialed() {
        let mut race =
            race(&["0.0.0.0:1", "224.0.0.1:1", "255.255.255.255:1", "[::]:1", "[ff02::1]:1"]);
        assert_eq!(
            (order(&mut race).len(), race.failures.len()),
            (0, 5),
            "each is named, and none takes a place"
        );
        assert!(race.is_lost());
    }

    #[test]
    fn many_addresses_of_one_family_do_not_delay_the_other() {
        let six = (1..=10).map(|n| alloc::format!("[2001:db8::{n}]:1"));
        let all: Vec<_> = six.chain(["192.0.2.1:1".into()]).collect();
        let all: Vec<_> = all.iter().map(alloc::string::String::as_str).collect();
        let mut race = race(&all);
        assert_eq!(
            order(&mut race),
            ["[2001:db8::1]:1", "192.0.2.1:1", "[2001:db8::2]:1", "[2001:db8::3]:1"]
        );
        let left_out =
            race.failures.iter().filter(|(_, why)| *why == DialFailure::NotTried).count();
        assert_eq!(left_out, 7, "those that are left out are named");
    }
}

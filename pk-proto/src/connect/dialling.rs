//! Running the dial races: from a request for a connection to `RaceEnded`.

use alloc::borrow::ToOwned;
use alloc::collections::BTreeSet;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::net::SocketAddr;
use core::time::Duration;

use super::race::{Dialling, Learnt, Race, RaceId, after_signal};
use super::{ConnectEvent, Connections};
use crate::address::NodeAddress;
use crate::cx::Cx;
use crate::error::ConnectionErrorReason;
use crate::graph::NodeContact;
use crate::id::{ConnectionId, EffectId, NodeId, RequestId};
use crate::io::{DialFailure, Dialect, Output, Role};
use crate::timers::Timer;

/// Relays that one race may ask.
const MAX_RELAYS: usize = 3;

/// What a race is to reach, and by what.
#[derive(Debug, Clone)]
pub(crate) struct Goal {
    pub(crate) node: NodeId,
    /// Where it may be, and how each address was learnt.
    pub(crate) addresses: Vec<(NodeAddress, Learnt)>,
    /// Connected nodes that may signal; asked one after the other when the addresses are used up.
    pub(crate) relays: Vec<NodeId>,
    pub(crate) timeout: Duration,
    /// The embedder waits for it. What goes on in the background leaves it a place among the dials.
    pub(crate) urgent: bool,
}

impl Goal {
    /// A node at addresses that were all learnt in one way.
    pub(crate) fn at(
        node: NodeId,
        addresses: impl IntoIterator<Item = NodeAddress>,
        learnt: Learnt,
        timeout: Duration,
    ) -> Self {
        let addresses = addresses.into_iter().map(|address| (address, learnt)).collect();
        Self { node, addresses, relays: Vec::new(), timeout, urgent: false }
    }

    /// A node at the addresses that the graph has of it.
    pub(crate) fn known(node: NodeId, contact: &NodeContact, timeout: Duration) -> Self {
        let addresses = contact.iter().map(|(address, data)| (address.clone(), Learnt::known(data))).collect();
        Self { node, addresses, relays: Vec::new(), timeout, urgent: false }
    }

    /// The same, and the embedder waits for it.
    pub(crate) fn urgent(self) -> Self {
        Self { urgent: true, ..self }
    }
}

impl Connections {
    /// Has a node dialled, or joins the race that does already. Ends with `RaceEnded`, unless `leave` comes first. The
    /// caller has looked for a live connection before.
    pub(crate) fn dial(&mut self, cx: &mut Cx, waiter: RequestId, goal: Goal) {
        let id = match self.race_of.get(&goal.node) {
            Some(id) => *id,
            None => {
                let id = self.start_race(cx, goal.node);
                self.race_of.insert(goal.node, id);
                id
            }
        };
        self.join(cx, id, waiter, goal);
    }

    /// Has a node dialled at the addresses of `goal` and no others, whatever else goes on.
    pub(crate) fn dial_only(&mut self, cx: &mut Cx, waiter: RequestId, goal: Goal) {
        let id = self.start_race(cx, goal.node);
        self.join(cx, id, waiter, goal);
    }

    /// A request no longer waits for anything.
    pub(crate) fn leave(&mut self, cx: &mut Cx, waiter: RequestId) {
        let mut deserted = Vec::new();
        for (id, race) in &mut self.races {
            if race.waiters.remove(&waiter).is_some() {
                set_deadline(cx, *id, race);
                deserted.extend(race.waiters.is_empty().then_some(*id));
            }
        }
        for id in deserted {
            self.call_off(cx, id);
        }
    }

    fn start_race(&mut self, cx: &Cx, node: NodeId) -> RaceId {
        let id = RaceId(self.next_race);
        self.next_race = self.next_race.saturating_add(1);
        self.races.insert(id, Race::new(node, cx.now, cx.config.dial_address_limit));
        id
    }

    fn join(&mut self, cx: &mut Cx, id: RaceId, waiter: RequestId, goal: Goal) {
        let Some(race) = self.races.get_mut(&id) else { return };
        let fresh = race.waiters.is_empty();
        race.waiters.entry(waiter).or_insert(cx.now + goal.timeout);
        race.urgent |= goal.urgent;
        for relay in goal.relays {
            if race.relays.len() < MAX_RELAYS && !race.relays.contains(&relay) {
                race.relays.push_back(relay);
            }
        }
        for (name, address, learnt) in race.add(goal.addresses) {
            let effect = cx.ids.effect();
            let port = address.port;
            race.resolving.insert(effect, (address, learnt));
            self.resolves.insert(effect, id);
            cx.output(Output::Resolve { id: effect, name, port });
        }
        set_deadline(cx, id, race);
        if fresh {
            self.dial_next(cx, id);
        } else {
            set_next(cx, id, race);
        }
    }

    /// Begins the next dial of a race, or has a relay asked when there is none, and sets the timer for what comes after;
    /// ends the race if nothing is left.
    fn dial_next(&mut self, cx: &mut Cx, id: RaceId) {
        let live = self.open().count();
        let Some(race) = self.races.get_mut(&id) else { return };
        if let Some((addr, learnt)) = race.next() {
            if live >= cx.config.connection_limit {
                // This does not pass as dials do.
                let why = DialFailure::Transport(ConnectionErrorReason::TooMany.to_string());
                race.failures.push((NodeAddress::from_socket(addr), why));
                return self.dial_next(cx, id);
            }
            let room = cx.config.dial_limit.min(cx.config.connection_limit - live);
            let room = if race.urgent { room } else { background_room(room) };
            if self.dials.len() >= room {
                race.put_back((addr, learnt));
                cx.metrics.dials_delayed += 1;
            } else {
                let (conn, deadline) = (cx.ids.connection(), race.last_deadline());
                race.dialling.insert(conn, Dialling { addr, learnt, deadline });
                self.dials.insert(conn, Some(id));
                cx.metrics.dials += 1;
                let expect = BTreeSet::from([race.node]);
                cx.output(Output::Dial { conn, addr, expect, deadline });
            }
            race.next_at = cx.now + cx.config.dial_delay;
        } else if let Some(relay) = race.relays.pop_front() {
            race.signalling += 1;
            // One that is silent does not hold up the next one for long.
            race.next_at = cx.now + cx.config.find_stall_delay;
            self.events.push_back(ConnectEvent::Signal { race: id, node: race.node, relay });
        }
        set_next(cx, id, race);
        if race.is_lost() {
            let failures = core::mem::take(&mut race.failures);
            self.end_race(cx, id, Err(failures));
        }
    }

    /// Whether a race is under way.
    pub(crate) fn is_racing(&self, id: RaceId) -> bool {
        self.races.contains_key(&id)
    }

    /// What came of asking a relay: where the node is, which is dialled after `delay`, or why not.
    pub(crate) fn signalled(
        &mut self,
        cx: &mut Cx,
        id: RaceId,
        result: Result<NodeAddress, (NodeAddress, DialFailure)>,
        delay: Duration,
    ) {
        let Some(race) = self.races.get_mut(&id) else { return };
        race.signalling = race.signalling.saturating_sub(1);
        match result {
            Ok(address) => {
                if race.signalled(&address) {
                    // The node's datagrams should have opened its NAT when our first packet arrives.
                    race.next_at = cx.now + delay;
                }
            }
            Err(failure) => {
                race.failures.push(failure);
                if race.signalling == 0 && !race.has_address() {
                    race.next_at = cx.now;
                }
            }
        }
        if race.is_lost() {
            self.dial_next(cx, id);
        } else {
            set_next(cx, id, race);
        }
    }

    /// Ends a race with its result, and calls off what is still under way.
    pub(super) fn end_race(
        &mut self,
        cx: &mut Cx,
        id: RaceId,
        result: Result<ConnectionId, Vec<(NodeAddress, DialFailure)>>,
    ) {
        let Some(race) = self.races.remove(&id) else { return };
        cx.timers.cancel(Timer::RaceDeadline(id));
        cx.timers.cancel(Timer::RaceNext(id));
        if self.race_of.get(&race.node) == Some(&id) {
            self.race_of.remove(&race.node);
        }
        for effect in race.resolving.keys() {
            self.resolves.remove(effect);
        }
        let winner = result.as_ref().ok().copied();
        let winning = winner.and_then(|conn| self.table.get(&conn));
        let theirs = winning.is_some_and(|conn| conn.role == Role::Acceptor);
        // On `quic` the other side may have accepted a dial that is still under way for us: that one is kept as well.
        let kept = theirs && winning.is_some_and(|conn| conn.dialect == Dialect::Polykey);
        for conn in race.dialling.into_keys().filter(|conn| Some(*conn) != winner) {
            if let Some(connection) = self.table.get_mut(&conn) {
                connection.race = None;
                // Where both sides dial, each would close its own for the other's, and none would be left.
                if !theirs {
                    self.close(cx, conn, ConnectionErrorReason::NotNeeded);
                }
            } else if !kept {
                self.cancel_dial(cx, conn);
            }
        }
        self.race_ended(race.node, race.waiters.into_keys().collect(), result);
    }

    fn cancel_dial(&mut self, cx: &mut Cx, conn: ConnectionId) {
        if let Some(race) = self.dials.get_mut(&conn).filter(|race| race.is_some()) {
            *race = None;
            cx.output(Output::CancelDial { conn });
        }
    }

    /// Cancels every dial that no race waits for any more.
    pub(super) fn cancel_kept(&mut self, cx: &mut Cx) {
        let kept = |race: &Option<RaceId>| race.is_some_and(|race| !self.races.contains_key(&race));
        let conns: Vec<_> = self.dials.iter().filter(|(_, race)| kept(race)).map(|(conn, _)| *conn).collect();
        for conn in conns {
            self.cancel_dial(cx, conn);
        }
    }

    fn race_ended(
        &mut self,
        node: NodeId,
        waiters: BTreeSet<RequestId>,
        result: Result<ConnectionId, Vec<(NodeAddress, DialFailure)>>,
    ) {
        if !waiters.is_empty() {
            self.events.push_back(ConnectEvent::RaceEnded { node, waiters, result });
        }
    }

    /// The dials of a race present an identity that we no longer have: they begin anew.
    pub(super) fn restart(&mut self, cx: &mut Cx, id: RaceId) {
        let Some(race) = self.races.get_mut(&id) else { return };
        for (conn, Dialling { addr, learnt, .. }) in core::mem::take(&mut race.dialling) {
            if let Some(dial) = self.dials.get_mut(&conn) {
                *dial = None;
                cx.output(Output::CancelDial { conn });
            }
            race.put_back((addr, learnt));
        }
        self.dial_next(cx, id);
    }

    pub(super) fn call_off(&mut self, cx: &mut Cx, id: RaceId) {
        let failures = self.races.get(&id).map(|race| race.failures(&DialFailure::Cancelled));
        self.end_race(cx, id, Err(failures.unwrap_or_default()));
    }

    /// A dial of a race failed: the next address begins at once. It is the same one if only those had no more time for it
    /// who waited when it began.
    pub(super) fn dial_lost(&mut self, cx: &mut Cx, id: RaceId, conn: ConnectionId, why: DialFailure) {
        if let Some(race) = self.races.get_mut(&id)
            && let Some(Dialling { addr, learnt, deadline }) = race.dialling.remove(&conn)
        {
            cx.metrics.dial_failures += 1;
            if why == DialFailure::TimedOut && deadline <= cx.now && cx.now < race.last_deadline() {
                race.put_back((addr, learnt));
            } else {
                race.failures.push((NodeAddress::from_socket(addr), after_signal(learnt, why)));
            }
            self.dial_next(cx, id);
        }
    }

    // -- inputs and timers

    pub(crate) fn resolved(&mut self, cx: &mut Cx, effect: EffectId, result: Result<Vec<SocketAddr>, String>) {
        let Some(id) = self.resolves.remove(&effect) else {
            cx.metrics.late_inputs += 1;
            return;
        };
        let Some(race) = self.races.get_mut(&id) else { return };
        let Some((address, learnt)) = race.resolving.remove(&effect) else { return };
        match result {
            Ok(addrs) if addrs.is_empty() => {
                race.failures.push((address, DialFailure::Resolve("the name has no address".to_owned())));
            }
            Ok(addrs) => {
                // Whoever is told of failures knows the name.
                race.failures.push((address, DialFailure::LeadsTo(addrs.clone())));
                race.add_sockets(addrs, learnt);
            }
            Err(why) => race.failures.push((address, DialFailure::Resolve(why))),
        }
        if race.dialling.is_empty() {
            self.dial_next(cx, id);
        } else {
            set_next(cx, id, race);
        }
    }

    pub(crate) fn dial_failed(&mut self, cx: &mut Cx, conn: ConnectionId, why: DialFailure) {
        match self.dials.remove(&conn) {
            Some(Some(race)) => self.dial_lost(cx, race, conn, why),
            Some(None) => {}
            None => cx.metrics.late_inputs += 1,
        }
    }

    /// The race has failed for those whose time is over.
    pub(crate) fn race_deadline(&mut self, cx: &mut Cx, id: RaceId) {
        let Some(race) = self.races.get_mut(&id) else { return };
        let failures = race.failures(&DialFailure::TimedOut);
        let now = cx.now;
        if race.waiters.values().all(|deadline| *deadline <= now) {
            cx.metrics.dial_failures += race.dialling.len() as u64;
            return self.end_race(cx, id, Err(failures));
        }
        let late: BTreeSet<_> =
            race.waiters.iter().filter(|(_, deadline)| **deadline <= now).map(|(waiter, _)| *waiter).collect();
        race.waiters.retain(|waiter, _| !late.contains(waiter));
        set_deadline(cx, id, race);
        let node = race.node;
        self.race_ended(node, late, Err(failures));
    }

    pub(crate) fn race_next(&mut self, cx: &mut Cx, id: RaceId) {
        self.dial_next(cx, id);
    }
}

/// How many of the dials there is room for may be those of nobody who waits: a quarter, but at least one, is left to the
/// embedder, so that dials of the dead, fifteen seconds each, never keep it from a connection.
fn background_room(room: usize) -> usize {
    (room * 3).div_ceil(4).min(room.saturating_sub(1)).max(1)
}

/// Sets the timer for the first of those who wait.
fn set_deadline(cx: &mut Cx, id: RaceId, race: &Race) {
    if let Some(first) = race.waiters.values().min() {
        cx.timers.set(Timer::RaceDeadline(id), *first);
    }
}

/// Sets the timer for what is next, if anything waits.
fn set_next(cx: &mut Cx, id: RaceId, race: &Race) {
    if race.has_next() {
        cx.timers.set(Timer::RaceNext(id), race.next_at.max(cx.now));
    } else {
        cx.timers.cancel(Timer::RaceNext(id));
    }
}

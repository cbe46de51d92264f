//! Dial races, from the request for a connection to `RaceEnded`.

use alloc::borrow::ToOwned;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::net::SocketAddr;
use core::time::Duration;

use super::change::Change;
use super::connection::State;
use super::event::ConnectEvent;
use super::race::{Dialing, Losers, Race};
use super::suspicion::CUT_OFF_DIALS;
use super::table::Connections;
use crate::api::error::{ConnectionErrorReason, code};
use crate::api::output::Output;
use crate::api::transport::{DialFailure, Side};
use crate::machine::cx::Cx;
use crate::machine::dial::{AddressOrigin, DialTarget};
use crate::machine::effects::EffectOwner;
use crate::machine::timer::Timer;
use crate::types::address::NodeAddress;
use crate::types::id::{ConnectionId, NodeId, RaceId, RequestId};

/// Maximum number of nodes that wait to be asked to signal for one race.
const SIGNALS: usize = 3;
/// Dials by relay have one of so many places to themselves. Dials to nodes behind NATs are silent
/// until their deadline, and a search has many of them, while the node at the other end of a
/// circuit has just accepted it.
const RELAYED_PART: usize = 8;

impl Connections {
    /// Dials a node, or joins a running race. Ends with `RaceEnded`, unless `leave` is called
    /// first. The caller has checked for a live connection.
    pub(crate) fn dial(&mut self, cx: &mut Cx, waiter: RequestId, dial_target: DialTarget) {
        let id = match self.races.open_to(&dial_target.node) {
            Some(id) => id,
            None => self.start_race(cx, dial_target.node, true),
        };
        self.join(cx, id, waiter, dial_target);
    }

    /// Dials a node at the addresses of `dial_target` only, independently of other races.
    pub(crate) fn dial_only(&mut self, cx: &mut Cx, waiter: RequestId, dial_target: DialTarget) {
        let id = self.start_race(cx, dial_target.node, false);
        self.join(cx, id, waiter, dial_target);
    }

    /// A request no longer waits for a race.
    pub(crate) fn leave(&mut self, cx: &mut Cx, waiter: RequestId) {
        for id in self.races.of(waiter) {
            self.leave_race(cx, waiter, id);
        }
    }

    /// A request no longer waits for the race to a node that others may join.
    pub(crate) fn leave_node(&mut self, cx: &mut Cx, waiter: RequestId, node: &NodeId) {
        if let Some(id) = self.races.open_to(node) {
            self.leave_race(cx, waiter, id);
        }
    }

    /// Returns the nodes that a request dials with others, and for how long.
    pub(crate) fn dialed_by(&self, cx: &Cx, waiter: RequestId) -> Vec<(NodeId, Duration)> {
        let races = self.races.of(waiter).into_iter();
        let open = races.filter_map(|id| {
            let race = self.races.get(id)?;
            let open = self.races.open_to(&race.node) == Some(id);
            open.then(|| (race.node, cx.now.since(race.begun)))
        });
        open.collect()
    }

    fn leave_race(&mut self, cx: &mut Cx, waiter: RequestId, id: RaceId) {
        if let Some(race) = self.races.leave(id, waiter) {
            set_deadline(cx, id, race);
            if race.waiters.is_empty() {
                self.call_off(cx, id);
            }
        }
    }

    /// Starts a race; `open`: others may join it.
    fn start_race(&mut self, cx: &Cx, node: NodeId, open: bool) -> RaceId {
        self.races.start(Race::new(node, cx.now, cx.config.dial_address_limit), open)
    }

    fn join(&mut self, cx: &mut Cx, id: RaceId, waiter: RequestId, dial_target: DialTarget) {
        if dial_target.foreground {
            let dials = self.races.bring_forward(id);
            self.leave_background(dials.into_iter());
        }
        let joined = self.races.join(id, waiter, cx.now + dial_target.timeout);
        let Some((race, fresh)) = joined else { return };
        for relay in dial_target.relays {
            let relays = dial_target.relayed && cx.config.relay.paths > 0;
            if relays && race.forwarders.add(relay) && race.forwarders.has_asked() {
                cx.timers.set_earlier(Timer::RaceRelay(id), cx.now + cx.config.relay.delay);
            }
            if race.relays.len() < SIGNALS && !race.relays.contains(&relay) {
                race.relays.push_back(relay);
            }
        }
        for (name, address, origin) in race.add(dial_target.addresses) {
            let port = address.port;
            let key = race.resolve(address, origin);
            let effect = cx.effects.begin(EffectOwner::Resolve { race: id, name: key });
            cx.output(Output::Resolve { id: effect, name, port });
        }
        set_deadline(cx, id, race);
        if fresh {
            self.dial_next(cx, id);
        } else {
            set_next(cx, id, race);
        }
    }

    /// Starts the next dial of a race, or asks a relay to signal if its turn has come, and sets the
    /// timer for the next step; ends the race if nothing is left.
    fn dial_next(&mut self, cx: &mut Cx, id: RaceId) {
        let live = self.room().total();
        let Some(race) = self.races.get_mut(id) else { return };
        let next = if race.asks_first(cx.now) { None } else { race.next() };
        if let Some((addr, origin)) = next {
            if live >= cx.config.connection_limit {
                // Only the manager knows which connection could make room.
                race.put_back((addr, origin));
                return self.events.push_back(ConnectEvent::Crowded { race: id });
            }
            let (node, foreground) = (race.node, race.foreground);
            let is_full = self.dial_count() >= self.dial_room(cx, id, origin);
            self.races.set_delayed(id, is_full);
            let Some(race) = self.races.get_mut(id) else { return };
            race.next_at = cx.now + cx.config.dial_delay;
            if is_full {
                race.put_back((addr, origin));
                cx.metrics.dials_delayed += 1;
                if race.may_ask(cx.now) {
                    self.ask_to_signal(cx, id);
                }
                if foreground {
                    self.make_room(cx);
                }
                let Some(race) = self.races.get_mut(id) else { return };
                return set_next(cx, id, race);
            }
            race.tried = race.tried.saturating_add(1);
            let (conn, deadline) = (cx.ids.connection(), race.last_deadline());
            race.dialing.insert(conn, Dialing { addr, origin, deadline });
            cx.metrics.dials += 1;
            self.change(cx, conn, Change::Dial { race: id, expect: node, addr, deadline });
        } else {
            self.ask_to_signal(cx, id);
        }
        let Some(race) = self.races.get_mut(id) else { return };
        set_next(cx, id, race);
        if race.is_lost() {
            let failures = core::mem::take(&mut race.failures);
            self.end_race(cx, id, Err(failures), Losers::End);
        }
    }

    /// Returns how many dials may be in progress if one of a race is to start.
    fn dial_room(&self, cx: &Cx, id: RaceId, origin: AddressOrigin) -> usize {
        let Some(race) = self.races.get(id) else { return 0 };
        let room = cx
            .config
            .dial_limit
            .min(cx.config.connection_limit.saturating_sub(self.room().total()));
        let room = if origin == AddressOrigin::RELAYED { room } else { room - room / RELAYED_PART };
        let room = if race.foreground { room } else { background_room(room) };
        // While the local node seems to be cut off, dials to nodes that it knows to be silent fail;
        // a few are enough to notice that the network is back.
        let suspected = self.is_cut_off(cx) && self.by_node().best(&race.node).is_some();
        if suspected { room.min(CUT_OFF_DIALS) } else { room }
    }

    /// Asks the next node that may signal, if there is one.
    fn ask_to_signal(&mut self, cx: &mut Cx, id: RaceId) {
        let Some(race) = self.races.get_mut(id) else { return };
        let Some(relay) = race.relays.pop_front() else { return };
        race.signalling += 1;
        // A silent relay does not delay the next one for long.
        race.ask_at = cx.now + cx.config.signal_delay;
        race.next_at = cx.now + cx.config.dial_delay;
        if !race.forwarders.is_empty() {
            cx.timers.set_earlier(Timer::RaceRelay(id), cx.now + cx.config.relay.delay);
        }
        self.events.push_back(ConnectEvent::Signal { race: id, node: race.node, relay });
    }

    /// The embedder waits for a dial, and all places are occupied: the newest background dial
    /// returns to its race, unless a place is about to be free.
    fn make_room(&mut self, cx: &mut Cx) {
        if self.has_cancelled_dials() {
            // `use_room` gives the slot of a cancelled dial to the race when the dial ends.
            return;
        }
        let Some(conn) = self.newest_background_dial() else { return };
        let Some(id) = self.state(conn).and_then(State::race) else { return };
        self.cancel_dial(cx, conn);
        if let Some(race) = self.races.get_mut(id)
            && let Some(Dialing { addr, origin, .. }) = race.dialing.remove(&conn)
        {
            race.put_back((addr, origin));
            race.next_at = cx.now + cx.config.dial_delay;
            set_next(cx, id, race);
        }
    }

    /// A cancelled dial has ended: a waiting race of the embedder gets its place at once.
    fn use_room(&mut self, cx: &mut Cx) {
        let waiting = self.races.urgent().find(|(_, race)| race.has_address()).map(|(id, _)| id);
        if let Some(id) = waiting {
            self.dial_next(cx, id);
        }
    }

    /// Fails the waiting addresses of a race, because a full table, unlike the limit of dials, may
    /// last.
    pub(super) fn fail_waiting(&mut self, id: RaceId, why: &ConnectionErrorReason) {
        let Some(race) = self.races.get_mut(id) else { return };
        while let Some((addr, origin)) = race.next() {
            let failure = race.failure(addr, origin, DialFailure::Transport(why.to_string()));
            race.failures.push(failure);
        }
    }

    /// Returns whether a race is in progress.
    pub(crate) fn is_racing(&self, id: RaceId) -> bool {
        self.races.get(id).is_some()
    }

    /// Handles the result of a relay: the address of the node, which is dialed after `delay`, or a
    /// failure.
    pub(crate) fn signalled(
        &mut self,
        cx: &mut Cx,
        id: RaceId,
        result: Result<NodeAddress, (NodeAddress, DialFailure)>,
        delay: Duration,
    ) {
        let Some(race) = self.races.get_mut(id) else { return };
        race.signalling = race.signalling.saturating_sub(1);
        match result {
            Ok(address) => {
                if race.signalled(&address) {
                    // The node's datagrams should have opened its NAT when our first packet
                    // arrives.
                    race.next_at = cx.now + delay;
                }
            }
            Err(failure) => {
                race.failures.push(failure);
                if race.signalling == 0 {
                    race.ask_at = cx.now;
                    if !race.has_address() {
                        race.next_at = cx.now;
                    }
                }
                if race.signalling == 0 && race.relays.is_empty() && !race.forwarders.is_empty() {
                    // Nothing is punched that could succeed first.
                    cx.timers.set_earlier(Timer::RaceRelay(id), cx.now);
                }
            }
        }
        if race.is_lost() {
            self.dial_next(cx, id);
        } else {
            set_next(cx, id, race);
        }
    }

    /// Asks the nearest node that may relay, and sets the timer for the next one.
    pub(crate) fn race_relay(&mut self, cx: &mut Cx, id: RaceId) {
        let Some(race) = self.races.get(id) else { return };
        let round_trip = |relay: &NodeId| {
            let conn = self.by_node().live(relay)?;
            Some(self.connection(conn)?.round_trip)
        };
        let took: BTreeMap<_, _> = race
            .forwarders
            .waiting()
            .map(|relay| (*relay, round_trip(relay).map_or((true, u16::MAX), |took| (false, took))))
            .collect();
        let Some(race) = self.races.get_mut(id) else { return };
        let Some(relay) = race.forwarders.next(|relay| took.get(relay)) else { return };
        race.opening += 1;
        if !race.forwarders.is_empty() {
            cx.timers.set(Timer::RaceRelay(id), cx.now + cx.config.relay.delay);
        }
        self.events.push_back(ConnectEvent::Relay { race: id, node: race.node, relay });
    }

    /// Handles the answer of a node that was asked to relay: the address of the path through it, or
    /// a failure; with the address of the node itself.
    pub(crate) fn relayed(
        &mut self,
        cx: &mut Cx,
        id: RaceId,
        relay: NodeAddress,
        result: Result<SocketAddr, DialFailure>,
    ) {
        let Some(race) = self.races.get_mut(id) else { return };
        race.opening = race.opening.saturating_sub(1);
        match result {
            Ok(addr) => {
                race.add_path(addr, relay);
                self.dial_next(cx, id);
            }
            Err(why) => {
                race.failures.push((relay, why));
                if !race.forwarders.is_empty() {
                    cx.timers.set(Timer::RaceRelay(id), cx.now);
                } else if race.is_lost() {
                    self.dial_next(cx, id);
                }
            }
        }
    }

    /// Ends a race with its result; `losers` says what becomes of its other dials.
    pub(super) fn end_race(
        &mut self,
        cx: &mut Cx,
        id: RaceId,
        result: Result<ConnectionId, Vec<(NodeAddress, DialFailure)>>,
        losers: Losers,
    ) {
        let Some(race) = self.races.remove(id) else { return };
        cx.timers.cancel(Timer::RaceDeadline(id));
        cx.timers.cancel(Timer::RaceNext(id));
        cx.timers.cancel(Timer::RaceRelay(id));
        if !race.resolving.is_empty() {
            cx.effects.forget_race(id);
        }
        self.leave_background(race.dialing.keys().copied());
        let winner = result.as_ref().ok().copied();
        for conn in race.dialing.into_keys().filter(|conn| Some(*conn) != winner) {
            match self.connection(conn).map(|connection| connection.side) {
                // The handshake is complete. A connection that the peer dialed is in the race
                // because it took the place of a dial (`connect/simultaneous.rs`); closing it is up
                // to the peer.
                Some(side) => {
                    self.take_race(conn);
                    if losers == Losers::End && side == Side::Dialer {
                        self.close(cx, conn, ConnectionErrorReason::NotNeeded);
                    }
                }
                None if losers == Losers::KeepAll => {}
                None => self.cancel_dial(cx, conn),
            }
        }
        let took = cx.now.since(race.begun);
        self.race_ended(race.node, took, race.waiters.ids().collect(), result);
    }

    /// Cancels a dial. Its slot is free when the driver reports its end.
    fn cancel_dial(&mut self, cx: &mut Cx, conn: ConnectionId) {
        self.change(cx, conn, Change::CancelDial);
    }

    /// Cancels the dials that their race has left behind; see [`Losers::KeepAll`].
    pub(super) fn cancel_orphaned(&mut self, cx: &mut Cx) {
        let kept = |race: Option<RaceId>| race.is_some_and(|race| self.races.get(race).is_none());
        let conns: Vec<_> =
            self.dials().filter(|(_, race)| kept(*race)).map(|(conn, _)| conn).collect();
        for conn in conns {
            self.cancel_dial(cx, conn);
        }
    }

    fn race_ended(
        &mut self,
        node: NodeId,
        took: Duration,
        waiters: BTreeSet<RequestId>,
        result: Result<ConnectionId, Vec<(NodeAddress, DialFailure)>>,
    ) {
        if !waiters.is_empty() {
            self.events.push_back(ConnectEvent::RaceEnded { node, took, waiters, result });
        }
    }

    /// The dials of a race present a former identity: they are started again.
    pub(super) fn restart(&mut self, cx: &mut Cx, id: RaceId) {
        let Some(race) = self.races.get_mut(id) else { return };
        let dialing = core::mem::take(&mut race.dialing);
        for Dialing { addr, origin, .. } in dialing.values() {
            race.put_back((*addr, *origin));
        }
        for conn in dialing.into_keys() {
            self.cancel_dial(cx, conn);
        }
        self.dial_next(cx, id);
    }

    pub(super) fn call_off(&mut self, cx: &mut Cx, id: RaceId) {
        let failures = self.races.get(id).map(|race| race.failures(&DialFailure::Cancelled));
        self.end_race(cx, id, Err(failures.unwrap_or_default()), Losers::End);
    }

    /// A dial of a race failed: the next address starts at once. The same address is retried if the
    /// dial only failed because its deadline, taken from earlier waiters, was shorter than that of
    /// a current waiter.
    pub(super) fn dial_lost(
        &mut self,
        cx: &mut Cx,
        id: RaceId,
        conn: ConnectionId,
        why: DialFailure,
    ) {
        if let Some(race) = self.races.get_mut(id)
            && let Some(Dialing { addr, origin, deadline }) = race.dialing.remove(&conn)
        {
            cx.metrics.dial_failures += 1;
            if why == DialFailure::TimedOut && deadline <= cx.now && cx.now < race.last_deadline() {
                race.put_back((addr, origin));
            } else {
                let failure = race.failure(addr, origin, why);
                race.failures.push(failure);
            }
            self.dial_next(cx, id);
        }
    }

    /// The peer of a dial of a race is silent after the handshake.
    pub(super) fn dial_again(&mut self, cx: &mut Cx, id: RaceId, conn: ConnectionId) {
        if self.races.get_mut(id).is_some_and(|race| race.again(conn)) {
            self.dial_next(cx, id);
        }
    }

    // -- inputs and timers

    /// A host name of a race was resolved, or could not be.
    pub(crate) fn resolved(
        &mut self,
        cx: &mut Cx,
        id: RaceId,
        name: u32,
        result: Result<Vec<SocketAddr>, String>,
    ) {
        let Some(race) = self.races.get_mut(id) else { return };
        let Some((address, origin)) = race.resolving.remove(&name) else { return };
        match result {
            Ok(addrs) if addrs.is_empty() => {
                race.failures
                    .push((address, DialFailure::Resolve("the name has no address".to_owned())));
            }
            Ok(addrs) => {
                // The receiver of the failures knows the name.
                race.failures.push((address, DialFailure::LeadsTo(addrs.clone())));
                race.add_sockets(addrs.into_iter().map(|addr| (addr, origin)));
            }
            Err(why) => race.failures.push((address, DialFailure::Resolve(why))),
        }
        if race.dialing.is_empty() {
            self.dial_next(cx, id);
        } else {
            set_next(cx, id, race);
        }
    }

    pub(crate) fn dial_failed(&mut self, cx: &mut Cx, conn: ConnectionId, why: DialFailure) {
        let Some(State::Dialing { race }) = self.state(conn) else {
            cx.metrics.late_inputs += 1;
            return;
        };
        let race = *race;
        let why = match why {
            DialFailure::Rejected { code, reason } => rejected(code, reason),
            why => why,
        };
        self.change(cx, conn, Change::DialFailed(&why));
        match race {
            Some(race) => self.dial_lost(cx, race, conn, why),
            None => self.use_room(cx),
        }
    }

    /// The race has failed for the waiters whose deadline is exceeded.
    pub(crate) fn race_deadline(&mut self, cx: &mut Cx, id: RaceId) {
        let Some(race) = self.races.get_mut(id) else { return };
        let failures = race.failures(&DialFailure::TimedOut);
        if race.last_deadline() <= cx.now {
            cx.metrics.dial_failures += race.dialing.len() as u64;
            return self.end_race(cx, id, Err(failures), Losers::End);
        }
        let late = race.waiters.late(cx.now);
        let (node, took) = (race.node, cx.now.since(race.begun));
        for waiter in &late {
            self.races.leave(id, *waiter);
        }
        if let Some(race) = self.races.get_mut(id) {
            set_deadline(cx, id, race);
        }
        self.race_ended(node, took, late, Err(failures));
    }

    pub(crate) fn race_next(&mut self, cx: &mut Cx, id: RaceId) {
        self.dial_next(cx, id);
    }
}

/// Returns how many dials may be background ones: a quarter of the places, at least one, is
/// reserved for the embedder, because a dial to an unreachable node occupies a place for fifteen
/// seconds.
fn background_room(room: usize) -> usize {
    (room * 3).div_ceil(4).min(room.saturating_sub(1)).max(1)
}

/// Sets the timer for the first deadline of the waiters.
fn set_deadline(cx: &mut Cx, id: RaceId, race: &Race) {
    if let Some(first) = race.waiters.first_deadline() {
        cx.timers.set(Timer::RaceDeadline(id), first);
    }
}

/// Sets the timer for the next step, if there is one.
fn set_next(cx: &mut Cx, id: RaceId, race: &Race) {
    if race.has_next() {
        let at = if race.has_address() { race.next_at } else { race.next_at.max(race.ask_at) };
        cx.timers.set(Timer::RaceNext(id), at.max(cx.now));
    } else {
        cx.timers.cancel(Timer::RaceNext(id));
    }
}

/// Returns the failure of a dial whose connection the peer closed with an application code before
/// it accepted it.
pub(super) fn rejected(code: u64, reason: String) -> DialFailure {
    match code {
        code::CONNECTION_NETWORK => DialFailure::OtherNetwork(reason),
        code => DialFailure::Rejected { code, reason },
    }
}

//! Running the dial races: from a request for a connection to `RaceEnded`.

use alloc::borrow::ToOwned;
use alloc::collections::BTreeSet;
use alloc::string::String;
use alloc::vec::Vec;
use core::net::SocketAddr;
use core::time::Duration;

use super::race::{Learnt, Race, RaceId};
use super::{ConnectEvent, Connections};
use crate::address::NodeAddress;
use crate::cx::Cx;
use crate::error::code;
use crate::id::{ConnectionId, EffectId, NodeId, RequestId};
use crate::io::{DialFailure, Output};
use crate::timers::Timer;

/// Relays that one race may ask.
const MAX_RELAYS: usize = 3;

/// What a race is to reach, and by what.
#[derive(Debug, Clone)]
pub(crate) struct Goal {
    pub(crate) node: NodeId,
    pub(crate) addresses: Vec<NodeAddress>,
    pub(crate) learnt: Learnt,
    /// Connected nodes that may signal; asked one after the other when the addresses are used up.
    pub(crate) relays: Vec<NodeId>,
    pub(crate) timeout: Duration,
}

impl Goal {
    /// A node at addresses from the graph, a peer, or the embedder.
    pub(crate) fn direct(node: NodeId, addresses: Vec<NodeAddress>, timeout: Duration) -> Self {
        Self { node, addresses, learnt: Learnt::DIRECT, relays: Vec::new(), timeout }
    }
}

/// A dial that was signalled and timed out says so: then both NATs are too strict.
fn after_signal(learnt: Learnt, why: DialFailure) -> DialFailure {
    match why {
        DialFailure::TimedOut if learnt == Learnt::SIGNALLED => DialFailure::TimedOutAfterSignal,
        why => why,
    }
}

impl Connections {
    /// Has a node dialled, or joins the race that does already. Ends with `RaceEnded`, unless `leave` comes first. The
    /// caller has looked for a live connection before.
    pub(crate) fn dial(&mut self, cx: &mut Cx, waiter: RequestId, goal: Goal) {
        let id = match self.race_of.get(&goal.node) {
            Some(id) => *id,
            None => {
                let id = self.start_race(cx, goal.node, goal.timeout);
                self.race_of.insert(goal.node, id);
                id
            }
        };
        self.join(cx, id, waiter, goal);
    }

    /// Has a node dialled at the addresses of `goal` and no others, whatever else goes on.
    pub(crate) fn dial_only(&mut self, cx: &mut Cx, waiter: RequestId, goal: Goal) {
        let id = self.start_race(cx, goal.node, goal.timeout);
        self.join(cx, id, waiter, goal);
    }

    /// A request no longer waits for anything.
    pub(crate) fn leave(&mut self, cx: &mut Cx, waiter: RequestId) {
        let mut deserted = Vec::new();
        for (id, race) in &mut self.races {
            if race.waiters.remove(&waiter) && race.waiters.is_empty() {
                deserted.push(*id);
            }
        }
        for id in deserted {
            self.call_off(cx, id);
        }
    }

    fn start_race(&mut self, cx: &mut Cx, node: NodeId, timeout: Duration) -> RaceId {
        let id = RaceId(self.next_race);
        self.next_race = self.next_race.saturating_add(1);
        let deadline = cx.now + timeout;
        self.races.insert(id, Race::new(node, deadline, cx.config.dial_address_limit));
        cx.timers.set(Timer::RaceDeadline(id), deadline);
        id
    }

    fn join(&mut self, cx: &mut Cx, id: RaceId, waiter: RequestId, goal: Goal) {
        let Some(race) = self.races.get_mut(&id) else { return };
        race.waiters.insert(waiter);
        // Whoever joins is owed its whole time; what the race has begun already ends when it had to.
        if race.deadline < cx.now + goal.timeout {
            race.deadline = cx.now + goal.timeout;
            cx.timers.set(Timer::RaceDeadline(id), race.deadline);
        }
        for relay in goal.relays {
            if race.relays.len() < MAX_RELAYS && !race.relays.contains(&relay) {
                race.relays.push_back(relay);
            }
        }
        for (name, address) in race.add(goal.addresses, goal.learnt) {
            let effect = cx.ids.effect();
            let port = address.port;
            race.resolving.insert(effect, address);
            self.resolves.insert(effect, id);
            cx.output(Output::Resolve { id: effect, name, port });
        }
        self.carry_on(cx, id);
    }

    /// Something new may be begun: at once if nothing is under way, else in its turn.
    fn carry_on(&mut self, cx: &mut Cx, id: RaceId) {
        let Some(race) = self.races.get(&id) else { return };
        if race.dialling.is_empty() {
            self.dial_next(cx, id);
        } else if race.has_next() && cx.timers.get(Timer::RaceNext(id)).is_none() {
            cx.timers.set(Timer::RaceNext(id), cx.now + cx.config.dial_delay);
        }
    }

    /// Begins the next dial of a race, or has a relay asked when there is none, and sets the timer for what comes after;
    /// ends the race if nothing is left.
    fn dial_next(&mut self, cx: &mut Cx, id: RaceId) {
        let Some(race) = self.races.get_mut(&id) else { return };
        if let Some((addr, learnt)) = race.next() {
            if self.dials.len() >= cx.config.dial_limit {
                race.put_back((addr, learnt));
                cx.metrics.dials_delayed += 1;
            } else {
                let conn = cx.ids.connection();
                race.dialling.insert(conn, (NodeAddress::from_socket(addr), learnt));
                self.dials.insert(conn, Some(id));
                cx.metrics.dials += 1;
                let expect = BTreeSet::from([race.node]);
                cx.output(Output::Dial { conn, addr, expect, deadline: race.deadline });
            }
        } else if !race.signalling
            && let Some(relay) = race.relays.pop_front()
        {
            race.signalling = true;
            self.events.push_back(ConnectEvent::Signal { race: id, node: race.node, relay });
        }
        if race.has_next() {
            cx.timers.set(Timer::RaceNext(id), cx.now + cx.config.dial_delay);
        } else {
            cx.timers.cancel(Timer::RaceNext(id));
        }
        if race.is_lost() {
            let failures = core::mem::take(&mut race.failures);
            self.end_race(cx, id, Err(failures), &DialFailure::Cancelled);
        }
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
        race.signalling = false;
        match result {
            Ok(address) => {
                if race.signalled(&address) {
                    // The node's datagrams should have opened its NAT when our first packet arrives.
                    cx.timers.set(Timer::RaceNext(id), cx.now + delay);
                } else if race.is_lost() {
                    self.dial_next(cx, id);
                }
            }
            Err(failure) => {
                race.failures.push(failure);
                self.carry_on(cx, id);
            }
        }
    }

    /// Ends a race with its result. Dials that are still under way end with `why`.
    pub(super) fn end_race(
        &mut self,
        cx: &mut Cx,
        id: RaceId,
        result: Result<ConnectionId, Vec<(NodeAddress, DialFailure)>>,
        why: &DialFailure,
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
        let mut failures = Vec::new();
        for (conn, (address, learnt)) in race.dialling {
            if Some(conn) == winner {
                continue;
            }
            failures.push((address, after_signal(learnt, why.clone())));
            if self.table.contains_key(&conn) {
                self.close(cx, conn, code::NONE, "");
            } else if let Some(race) = self.dials.get_mut(&conn) {
                *race = None;
                cx.output(Output::CancelDial { conn });
            }
        }
        let result = result.map_err(|mut failed| {
            failed.extend(failures);
            failed.extend(race.resolving.into_values().map(|address| (address, why.clone())));
            failed
        });
        if !race.waiters.is_empty() {
            self.events.push_back(ConnectEvent::RaceEnded { node: race.node, waiters: race.waiters, result });
        }
    }

    /// The dials of a race present an identity that we no longer have: they begin anew.
    pub(super) fn restart(&mut self, cx: &mut Cx, id: RaceId) {
        let Some(race) = self.races.get_mut(&id) else { return };
        let dialling = core::mem::take(&mut race.dialling);
        for (conn, (address, learnt)) in dialling {
            if let (Some(dial), Some(socket)) = (self.dials.get_mut(&conn), address.socket()) {
                *dial = None;
                race.put_back((socket, learnt));
                cx.output(Output::CancelDial { conn });
            }
        }
        self.carry_on(cx, id);
    }

    pub(super) fn call_off(&mut self, cx: &mut Cx, id: RaceId) {
        self.end_race(cx, id, Err(Vec::new()), &DialFailure::Cancelled);
    }

    /// A dial of a race failed: the next address begins at once.
    pub(super) fn dial_lost(&mut self, cx: &mut Cx, id: RaceId, conn: ConnectionId, why: DialFailure) {
        if let Some(race) = self.races.get_mut(&id)
            && let Some((address, learnt)) = race.dialling.remove(&conn)
        {
            cx.metrics.dial_failures += 1;
            race.failures.push((address, after_signal(learnt, why)));
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
        let Some(address) = race.resolving.remove(&effect) else { return };
        match result {
            Ok(addrs) if addrs.is_empty() => {
                race.failures.push((address, DialFailure::Resolve("the name has no address".to_owned())));
            }
            Ok(addrs) => race.add_sockets(addrs, Learnt::DIRECT),
            Err(why) => race.failures.push((address, DialFailure::Resolve(why))),
        }
        self.carry_on(cx, id);
    }

    pub(crate) fn dial_failed(&mut self, cx: &mut Cx, conn: ConnectionId, why: DialFailure) {
        match self.dials.remove(&conn) {
            Some(Some(race)) => self.dial_lost(cx, race, conn, why),
            Some(None) => {}
            None => cx.metrics.late_inputs += 1,
        }
    }

    pub(crate) fn race_deadline(&mut self, cx: &mut Cx, id: RaceId) {
        let Some(race) = self.races.get_mut(&id) else { return };
        let failures = core::mem::take(&mut race.failures);
        cx.metrics.dial_failures += race.dialling.len() as u64;
        self.end_race(cx, id, Err(failures), &DialFailure::TimedOut);
    }

    pub(crate) fn race_next(&mut self, cx: &mut Cx, id: RaceId) {
        self.dial_next(cx, id);
    }
}

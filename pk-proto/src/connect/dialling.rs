//! Running the dial races: from a request for a connection to `RaceEnded`.

use alloc::borrow::ToOwned;
use alloc::collections::BTreeSet;
use alloc::string::String;
use alloc::vec::Vec;
use core::net::SocketAddr;
use core::time::Duration;

use super::race::{Race, RaceId};
use super::{ConnectEvent, Connections};
use crate::address::NodeAddress;
use crate::cx::Cx;
use crate::error::code;
use crate::id::{ConnectionId, EffectId, NodeId, RequestId};
use crate::io::{DialFailure, Output, Role};
use crate::timers::Timer;

impl Connections {
    /// Dials a node at these addresses, or joins the race that does already. Ends with `RaceEnded`, unless `leave` comes
    /// first. The caller has looked for a live connection before.
    pub(crate) fn dial(
        &mut self,
        cx: &mut Cx,
        waiter: RequestId,
        node: NodeId,
        addresses: impl IntoIterator<Item = NodeAddress>,
        timeout: Duration,
    ) {
        let id = match self.race_of.get(&node) {
            Some(id) => *id,
            None => {
                let id = self.start_race(cx, node, timeout);
                self.race_of.insert(node, id);
                id
            }
        };
        self.join(cx, id, waiter, addresses);
    }

    /// Dials a node at this address and no other.
    pub(crate) fn dial_only(
        &mut self,
        cx: &mut Cx,
        waiter: RequestId,
        node: NodeId,
        address: NodeAddress,
        timeout: Duration,
    ) {
        let id = self.start_race(cx, node, timeout);
        self.join(cx, id, waiter, [address]);
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

    fn join(&mut self, cx: &mut Cx, id: RaceId, waiter: RequestId, addresses: impl IntoIterator<Item = NodeAddress>) {
        let Some(race) = self.races.get_mut(&id) else { return };
        let fresh = race.waiters.is_empty();
        race.waiters.insert(waiter);
        for (name, address) in race.add(addresses) {
            let effect = cx.ids.effect();
            let port = address.port;
            race.resolving.insert(effect, address);
            self.resolves.insert(effect, id);
            cx.output(Output::Resolve { id: effect, name, port });
        }
        if fresh {
            self.dial_next(cx, id);
        }
    }

    /// Begins the next dial of a race, and sets the timer for the one after; ends the race if nothing is left.
    fn dial_next(&mut self, cx: &mut Cx, id: RaceId) {
        let Some(race) = self.races.get_mut(&id) else { return };
        if let Some(addr) = race.next() {
            if self.dials.len() >= cx.config.dial_limit {
                race.put_back(addr);
                cx.metrics.dials_delayed += 1;
            } else {
                let conn = cx.ids.connection();
                race.dialling.insert(conn, NodeAddress::from_socket(addr));
                self.dials.insert(conn, Some(id));
                cx.metrics.dials += 1;
                let expect = BTreeSet::from([race.node]);
                cx.output(Output::Dial { conn, addr, expect, deadline: race.deadline });
            }
        }
        if race.has_waiting() {
            cx.timers.set(Timer::RaceNext(id), cx.now + cx.config.dial_delay);
        } else {
            cx.timers.cancel(Timer::RaceNext(id));
        }
        if race.is_lost() {
            let failures = core::mem::take(&mut race.failures);
            self.end_race(cx, id, Err(failures), &DialFailure::Cancelled);
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
        let theirs = winner.and_then(|conn| self.table.get(&conn)).is_some_and(|conn| conn.role == Role::Acceptor);
        let mut failures = Vec::new();
        for (conn, address) in race.dialling {
            if Some(conn) == winner {
                continue;
            }
            failures.push((address, why.clone()));
            if let Some(connection) = self.table.get_mut(&conn) {
                connection.race = None;
                // Where both sides dial, each would close its own for the other's, and none would be left.
                if !theirs {
                    self.close(cx, conn, code::NONE, "");
                }
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

    pub(super) fn call_off(&mut self, cx: &mut Cx, id: RaceId) {
        self.end_race(cx, id, Err(Vec::new()), &DialFailure::Cancelled);
    }

    /// A dial of a race failed: the next address begins at once.
    pub(super) fn dial_lost(&mut self, cx: &mut Cx, id: RaceId, conn: ConnectionId, why: DialFailure) {
        if let Some(race) = self.races.get_mut(&id)
            && let Some(address) = race.dialling.remove(&conn)
        {
            cx.metrics.dial_failures += 1;
            race.failures.push((address, why));
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
            Ok(addrs) => race.add_sockets(addrs),
            Err(why) => race.failures.push((address, DialFailure::Resolve(why))),
        }
        if race.dialling.is_empty() {
            self.dial_next(cx, id);
        } else if race.has_waiting() {
            cx.timers.set(Timer::RaceNext(id), cx.now + cx.config.dial_delay);
        }
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

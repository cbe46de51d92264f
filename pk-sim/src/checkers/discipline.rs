//! The contract of the vocabulary: ids are even and never reused, no output refers to anything that
//! has ended, and the simulator keeps its part of the contract.
//!
//! A machine's outputs are taken before its next input. Once an end was delivered, no output may
//! refer to what ended. If it ended outside of the machine before, outputs about it are late, and
//! legal.

use std::collections::{BTreeMap, BTreeSet};

use pk_proto::{ConnectionId, EffectId, Event, Input, Output, Side, StreamId};

use super::violation::Violation;

#[derive(Debug, Default)]
pub(super) struct Discipline {
    connections: BTreeMap<ConnectionId, Connection>,
    streams: BTreeMap<StreamId, Stream>,
    detached: BTreeMap<StreamId, ConnectionId>,
    /// Circuits that were joined: the other stream of each.
    joined: BTreeMap<StreamId, StreamId>,
    /// Streams that ended by a close, whose connection's end was not reported yet.
    closing_streams: BTreeMap<ConnectionId, u64>,
    effects: BTreeMap<EffectId, Effect>,
    used_connections: BTreeSet<ConnectionId>,
    used_streams: BTreeSet<StreamId>,
    used_effects: BTreeSet<EffectId>,
    /// Connections that are suspected.
    suspected: BTreeSet<ConnectionId>,
    /// Connections that were reported as opened and not yet as closed.
    told: BTreeSet<ConnectionId>,
    stopped: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Connection {
    Dialing { cancelled: bool },
    Live,
    Closing,
}

#[derive(Debug, Clone, Copy)]
struct Stream {
    conn: ConnectionId,
    /// The machine's direction: the end was sent. It is over when the transport has accepted
    /// everything.
    ended: bool,
    unconfirmed: u64,
    /// The machine's direction: reset locally or stopped by the peer.
    aborted: bool,
    /// The peer's direction has ended for the machine.
    read: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Effect {
    Sign,
    Persist,
    Load,
    Resolve,
    Browse { cancelled: bool },
    ReplaceIdentity,
}

/// What exists, according to inputs and outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Held {
    /// Dials in progress.
    pub(super) dialing: u64,
    /// Connections that neither end has closed.
    pub(super) live: u64,
    /// Dials that were cancelled and connections that were closed, whose end was not reported yet.
    pub(super) ending: u64,
    /// Streams that have not ended, and those whose connection is being closed.
    pub(super) streams: u64,
}

type Checked = Result<(), Violation>;

impl Discipline {
    pub(super) fn has_stopped(&self) -> bool {
        self.stopped
    }

    /// Returns what the machine can know to exist.
    pub(super) fn held(&self) -> Held {
        let streams = self.streams.len() as u64 + self.closing_streams.values().sum::<u64>();
        let mut held = Held { streams, ..Held::default() };
        for state in self.connections.values() {
            match state {
                Connection::Dialing { cancelled: false } => held.dialing += 1,
                Connection::Live => held.live += 1,
                Connection::Dialing { cancelled: true } | Connection::Closing => held.ending += 1,
            }
        }
        held
    }

    /// Checks an output before it is executed.
    pub(super) fn output(&mut self, output: &Output) -> Checked {
        ensure(!self.stopped, || format!("after Stopped: {output:?}"))?;
        match output {
            Output::Dial { conn, expect, .. } => {
                ensure(conn.is_ours(), || format!("dial with the odd number {conn}"))?;
                ensure(self.used_connections.insert(*conn), || {
                    format!("connection number {conn} used again")
                })?;
                ensure(!expect.is_empty(), || format!("dial {conn} expects no node"))?;
                self.connections.insert(*conn, Connection::Dialing { cancelled: false });
                Ok(())
            }
            Output::CancelDial { conn } => match self.connections.get_mut(conn) {
                Some(Connection::Dialing { cancelled }) if !*cancelled => {
                    *cancelled = true;
                    Ok(())
                }
                other => wrong(format!("CancelDial of connection {conn}, which is {other:?}")),
            },
            Output::CloseConnection { conn, .. } => {
                self.expect_live(*conn, output)?;
                self.connections.insert(*conn, Connection::Closing);
                let streams = self.forget_streams(*conn);
                self.closing_streams.insert(*conn, streams);
                Ok(())
            }
            Output::OpenStream { conn, stream } => {
                self.expect_live(*conn, output)?;
                ensure(stream.is_ours(), || format!("stream opened with the odd number {stream}"))?;
                self.new_stream(*conn, *stream)
            }
            Output::SendStream { stream, bytes, fin } => {
                let of = self.stream(*stream, output)?;
                ensure(!of.ended && !of.aborted, || {
                    format!("the local direction of stream {stream} is over: {output:?}")
                })?;
                of.ended = *fin;
                of.unconfirmed += bytes.len() as u64;
                self.settle(*stream);
                Ok(())
            }
            Output::ResetStream { stream, .. } => {
                self.stream(*stream, output)?.aborted = true;
                self.settle(*stream);
                Ok(())
            }
            Output::StopStream { stream, .. } => {
                self.stream(*stream, output)?.read = true;
                self.settle(*stream);
                Ok(())
            }
            Output::ReadCredit { stream, .. } => self.stream(*stream, output).map(drop),
            Output::DetachStream { conn, stream, .. } => {
                let of = *self.stream(*stream, output)?;
                ensure(of.conn == *conn, || {
                    format!("stream {stream} is of connection {}: {output:?}", of.conn)
                })?;
                self.streams.remove(stream);
                self.detached.insert(*stream, *conn);
                Ok(())
            }
            Output::AttachCircuit { stream, .. } => self.hand_over(*stream, output),
            Output::JoinCircuit { stream, other, .. } => {
                self.hand_over(*stream, output)?;
                self.hand_over(*other, output)?;
                self.joined.insert(*stream, *other);
                Ok(())
            }
            Output::CloseCircuit { stream } if self.detached.contains_key(stream) => Ok(()),
            Output::CloseCircuit { stream } => self.hand_over(*stream, output),
            Output::ProbePath { conn, .. } => self.expect_live(*conn, output),
            Output::Sign { id, .. } => self.new_effect(*id, Effect::Sign),
            Output::Persist { id, .. } => self.new_effect(*id, Effect::Persist),
            Output::Load { id, .. } => self.new_effect(*id, Effect::Load),
            Output::Resolve { id, .. } => self.new_effect(*id, Effect::Resolve),
            Output::Browse { id, .. } => self.new_effect(*id, Effect::Browse { cancelled: false }),
            Output::ReplaceIdentity { id, .. } => self.new_effect(*id, Effect::ReplaceIdentity),
            Output::CancelBrowse { id } => match self.effects.get_mut(id) {
                Some(Effect::Browse { cancelled }) if !*cancelled => {
                    *cancelled = true;
                    Ok(())
                }
                other => wrong(format!("CancelBrowse of effect {id}, which is {other:?}")),
            },
            Output::Punch { .. } | Output::Advertise { .. } => Ok(()),
            Output::Event(event) => self.event(event),
        }
    }

    /// Checks an output before it is executed, for a machine whose driver does not keep the
    /// contract.
    pub(super) fn output_alone(&mut self, output: &Output) -> Checked {
        ensure(!self.stopped, || format!("after Stopped: {output:?}"))?;
        let fresh = match output {
            Output::Dial { conn, .. } => conn.is_ours() && self.used_connections.insert(*conn),
            Output::OpenStream { stream, .. } => {
                stream.is_ours() && self.used_streams.insert(*stream)
            }
            Output::Sign { id, .. }
            | Output::Persist { id, .. }
            | Output::Load { id, .. }
            | Output::Resolve { id, .. }
            | Output::Browse { id, .. }
            | Output::ReplaceIdentity { id, .. } => self.used_effects.insert(*id),
            Output::Event(event) => {
                self.stopped |= *event == Event::Stopped;
                true
            }
            _ => true,
        };
        ensure(fresh, || format!("a number that is not new: {output:?}"))
    }

    /// Checks an input before it is delivered.
    pub(super) fn input(&mut self, input: &Input) -> Checked {
        match input {
            Input::Connected(connected) => {
                let conn = connected.conn;
                let expected = match connected.side {
                    Side::Dialer => {
                        matches!(self.connections.get(&conn), Some(Connection::Dialing { .. }))
                    }
                    Side::Acceptor => !conn.is_ours() && self.used_connections.insert(conn),
                };
                ensure(expected, || format!("(simulator) unexpected {input:?}"))?;
                self.connections.insert(conn, Connection::Live);
            }
            Input::DialFailed { conn, .. } => {
                let before = self.connections.remove(conn);
                ensure(matches!(before, Some(Connection::Dialing { .. })), || {
                    format!("(simulator) {input:?} of a connection that is {before:?}")
                })?;
            }
            Input::Disconnected { conn, .. } => {
                let before = self.connections.remove(conn);
                ensure(matches!(before, Some(Connection::Live | Connection::Closing)), || {
                    format!("(simulator) {input:?} of a connection that is {before:?}")
                })?;
                self.forget_streams(*conn);
                self.suspected.remove(conn);
                self.closing_streams.remove(conn);
                self.detached.retain(|_, of| of != conn);
            }
            Input::Suspected { conn } => {
                let live = matches!(
                    self.connections.get(conn),
                    Some(Connection::Live | Connection::Closing)
                );
                ensure(live && self.suspected.insert(*conn), || {
                    format!("(simulator) {input:?} in the wrong order")
                })?;
            }
            Input::Heard { conn } => {
                ensure(self.suspected.remove(conn), || {
                    format!("(simulator) {input:?} in the wrong order")
                })?;
            }
            Input::StreamOpened { conn, stream } => {
                ensure(!stream.is_ours(), || format!("(simulator) {input:?} with an even number"))?;
                let live = matches!(
                    self.connections.get(conn),
                    Some(Connection::Live | Connection::Closing)
                );
                ensure(live, || format!("(simulator) {input:?} on a connection that is not live"))?;
                self.new_stream(*conn, *stream)?;
                // Late: the machine has closed it meanwhile.
                if self.connections.get(conn) == Some(&Connection::Closing) {
                    self.streams.remove(stream);
                }
            }
            Input::StreamData { stream, bytes, fin } => {
                // Read with the machine's credit when it handed the stream over: these bytes are
                // lost.
                let lost = !bytes.is_empty() && self.detached.contains_key(stream);
                ensure(!lost, || {
                    format!("stream {stream} was handed over with credit left: lost {bytes:?}")
                })?;
                if let Some(of) = self.streams.get_mut(stream) {
                    of.read |= *fin;
                    self.settle(*stream);
                }
            }
            Input::StreamWritten { stream, bytes } => {
                if let Some(of) = self.streams.get_mut(stream) {
                    let confirmed = of.unconfirmed.checked_sub(*bytes);
                    ensure(confirmed.is_some(), || {
                        format!("(simulator) more than was sent: {input:?}")
                    })?;
                    of.unconfirmed = confirmed.unwrap_or(0);
                    self.settle(*stream);
                }
            }
            Input::StreamReset { stream, .. } => {
                if let Some(of) = self.streams.get_mut(stream) {
                    of.read = true;
                    self.settle(*stream);
                }
            }
            Input::StreamStopped { stream, .. } => {
                if let Some(of) = self.streams.get_mut(stream) {
                    of.aborted = true;
                    self.settle(*stream);
                }
            }
            Input::OpenFailed { stream } => drop(self.streams.remove(stream)),
            Input::StreamClosed { stream } => {
                let known = self.detached.remove(stream).is_some();
                ensure(known, || format!("(simulator) {input:?}, which was not handed over"))?;
            }
            Input::CircuitClosed { stream, .. } => {
                let other = self.joined.remove(stream);
                ensure(other.is_some(), || format!("(simulator) {input:?}, which was not joined"))?;
                for stream in [Some(*stream), other].into_iter().flatten() {
                    self.detached.remove(&stream);
                }
            }
            Input::Signed { id, .. } => self.answer(*id, input, |effect| effect == Effect::Sign)?,
            Input::Persisted { id, .. } => {
                self.answer(*id, input, |effect| effect == Effect::Persist)?;
            }
            Input::Loaded { id, .. } => self.answer(*id, input, |effect| effect == Effect::Load)?,
            Input::Resolved { id, .. } => {
                self.answer(*id, input, |effect| effect == Effect::Resolve)?;
            }
            Input::IdentityReplaced { id, .. } => {
                self.answer(*id, input, |effect| effect == Effect::ReplaceIdentity)?;
            }
            Input::Discovered { id, done, .. } => {
                let browse = matches!(self.effects.get(id), Some(Effect::Browse { .. }));
                ensure(browse, || format!("(simulator) completion without an effect: {input:?}"))?;
                if *done {
                    self.effects.remove(id);
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn event(&mut self, event: &Event) -> Checked {
        match event {
            Event::ConnectionOpened { conn, .. } => {
                self.expect_live(*conn, event)?;
                ensure(self.told.insert(*conn), || format!("reported twice: {event:?}"))
            }
            Event::ConnectionClosed { conn, .. } => ensure(self.told.remove(conn), || {
                format!("closed, but never reported as opened: {event:?}")
            }),
            Event::Stopped => {
                self.stopped = true;
                ensure(self.told.is_empty(), || {
                    format!("stopped, but never reported as closed: {:?}", self.told)
                })
            }
            _ => Ok(()),
        }
    }

    fn expect_live(&self, conn: ConnectionId, what: &impl std::fmt::Debug) -> Checked {
        let state = self.connections.get(&conn);
        ensure(state == Some(&Connection::Live), || {
            format!("connection {conn} is {state:?}: {what:?}")
        })
    }

    fn stream(&mut self, stream: StreamId, output: &Output) -> Result<&mut Stream, Violation> {
        self.streams
            .get_mut(&stream)
            .ok_or_else(|| violation(format!("stream {stream} is unknown or over: {output:?}")))
    }

    /// A stream of the machine is handed over, with everything sent.
    fn hand_over(&mut self, stream: StreamId, output: &Output) -> Checked {
        let of = *self.stream(stream, output)?;
        ensure(!of.ended && !of.aborted && !of.read, || {
            format!("stream {stream} has ended: {output:?}")
        })?;
        self.streams.remove(&stream);
        self.detached.insert(stream, of.conn);
        Ok(())
    }

    fn new_stream(&mut self, conn: ConnectionId, stream: StreamId) -> Checked {
        ensure(self.used_streams.insert(stream), || format!("stream number {stream} used again"))?;
        self.streams.insert(
            stream,
            Stream { conn, ended: false, unconfirmed: 0, aborted: false, read: false },
        );
        Ok(())
    }

    /// Removes a stream whose directions have both ended.
    fn settle(&mut self, stream: StreamId) {
        let over = |of: &Stream| (of.ended && of.unconfirmed == 0 || of.aborted) && of.read;
        if self.streams.get(&stream).is_some_and(over) {
            self.streams.remove(&stream);
        }
    }

    /// Returns the number of removed streams.
    fn forget_streams(&mut self, conn: ConnectionId) -> u64 {
        let before = self.streams.len();
        self.streams.retain(|_, of| of.conn != conn);
        (before - self.streams.len()) as u64
    }

    fn new_effect(&mut self, id: EffectId, effect: Effect) -> Checked {
        ensure(self.used_effects.insert(id), || format!("effect number {id} used again"))?;
        self.effects.insert(id, effect);
        Ok(())
    }

    fn answer(
        &mut self,
        id: EffectId,
        input: &Input,
        fits: impl FnOnce(Effect) -> bool,
    ) -> Checked {
        let fits = self.effects.remove(&id).is_some_and(fits);
        ensure(fits, || format!("(simulator) completion without an effect: {input:?}"))
    }
}

fn ensure(holds: bool, what: impl FnOnce() -> String) -> Checked {
    if holds { Ok(()) } else { Err(violation(what())) }
}

fn wrong(what: String) -> Checked {
    Err(violation(what))
}

fn violation(what: String) -> Violation {
    Violation::new("discipline", what)
}

#[cfg(test)]
#[path = "discipline_tests.rs"]
mod tests;

//! Streams: opened, written, granted, read, handed over, ended.

use bytes::Bytes;
use pk_proto::{ConnectionId, Input, StreamId};

use super::Transport;
use super::connection::{Connection, EndState, Stream};
use super::half::Half;
use crate::host::app::{AppAction, AppStream};
use crate::host::id::HostId;
use crate::wire::Wire;
use crate::wire::packet::{EndIndex, Frame, Packet, StreamKey};

/// What a machine, or the application in its place, does to a stream.
#[derive(Debug)]
pub(crate) enum StreamAction {
    Send(Bytes, bool),
    Reset(u64),
    Stop(u64),
    Credit(u64),
}

impl Transport {
    /// `OpenStream`.
    pub(crate) fn open_stream(
        &mut self,
        wire: &mut Wire,
        host: HostId,
        conn: ConnectionId,
        stream: StreamId,
    ) {
        let place = self.by_number.get(&(host, conn)).copied();
        let open = place.and_then(|(serial, side)| {
            let connection = self.connections.get_mut(&serial)?;
            let limit = wire.hosts[connection.ends[1 - side].host].transport.stream_limit;
            let end = &mut connection.ends[side];
            if end.state != EndState::Open || end.open >= limit {
                return None;
            }
            let key = (side, end.opened);
            end.opened += 1;
            end.open += 1;
            let window =
                |reader: EndIndex| wire.hosts[connection.ends[reader].host].transport.stream_window;
            let halves = [Half::new(window(1)), Half::new(window(0))];
            let mut ids = [None; 2];
            ids[side] = Some(stream);
            let stream = Stream { ids, apps: [None; 2], halves, over: [false; 2] };
            connection.streams.insert(key, Box::new(stream));
            Some((serial, side, key))
        });
        match open {
            Some(place) => {
                self.counters.streams += 1;
                self.by_stream.insert((host, stream), place);
            }
            None => {
                self.counters.streams_failed += 1;
                wire.deliver(host, Input::OpenFailed { stream });
            }
        }
    }

    /// `SendStream`, `ResetStream`, `StopStream`, `ReadCredit`.
    pub(crate) fn act(
        &mut self,
        wire: &mut Wire,
        host: HostId,
        stream: StreamId,
        action: StreamAction,
    ) {
        match self.by_stream.get(&(host, stream)).copied() {
            Some((serial, side, key)) => self.apply(wire, serial, side, key, action),
            None => self.counters.late_outputs += 1,
        }
    }

    /// `DetachStream`.
    pub(crate) fn detach(&mut self, wire: &mut Wire, app: AppStream, unread: Bytes) {
        let (host, stream, index) = (app.host, app.stream, self.apps.len());
        self.apps.push(app);
        let place = self.by_stream.get(&(host, stream)).copied();
        let Some((serial, side, key)) = place else {
            self.counters.late_outputs += 1;
            self.apps[index].lose();
            return;
        };
        let Some(stream) = self.stream(serial, key) else { return };
        stream.apps[side] = Some(index);
        stream.halves[1 - side].revoke();
        // The end may have been read before the hand-over.
        let ended = stream.halves[1 - side].was_read();
        let mut actions = self.apps[index].begin(unread);
        if ended {
            actions.extend(self.apps[index].ended());
        }
        self.perform(wire, serial, side, key, actions);
        self.pump(wire, serial, side, key);
        self.read(wire, serial, side, key);
        self.settle(wire, serial, side, key);
    }

    /// An application's next move on its stream, from outside.
    pub(crate) fn app_act(
        &mut self,
        wire: &mut Wire,
        host: HostId,
        stream: StreamId,
        action: AppAction,
    ) -> bool {
        let Some((serial, side, key)) = self.by_stream.get(&(host, stream)).copied() else {
            return false;
        };
        let owned = self.stream(serial, key).is_some_and(|stream| stream.apps[side].is_some());
        if owned {
            self.perform(wire, serial, side, key, vec![action]);
        }
        owned
    }

    /// A message about a stream reaches an end.
    pub(super) fn frame(
        &mut self,
        wire: &mut Wire,
        serial: u64,
        side: EndIndex,
        key: StreamKey,
        frame: Frame,
    ) {
        let Some(connection) = self.connections.get_mut(&serial) else { return };
        if connection.ends[side].state != EndState::Open {
            return;
        }
        if key.0 != side {
            self.tell_opened(wire, serial, side, key.1);
        }
        let Some(stream) = self.stream(serial, key) else { return };
        let (incoming, outgoing) = (1 - side, side);
        let id = stream.ids[side];
        let ends = matches!(frame, Frame::Reset(_) | Frame::Stop(_));
        if ends && let Some(id) = id {
            let host = self.connections.get(&serial).map(|it| it.ends[side].host);
            if let Some(host) = host.filter(|host| self.carriers.contains_key(&(*host, id))) {
                self.carrier_over(wire, host, id, true);
            }
        }
        let Some(stream) = self.stream(serial, key) else { return };
        match frame {
            Frame::Piece(piece) => {
                stream.halves[incoming].arrive(piece);
                self.read(wire, serial, side, key);
            }
            Frame::Window(bytes) => {
                stream.halves[outgoing].open_window(bytes);
                self.pump(wire, serial, side, key);
            }
            Frame::Reset(code) => {
                if stream.halves[incoming].reset_arrives() {
                    match stream.apps[side] {
                        Some(app) => self.apps[app].reset = Some(code),
                        None => self.tell(wire, serial, side, key, |stream| Input::StreamReset {
                            stream,
                            code,
                        }),
                    }
                }
            }
            Frame::Stop(code) => {
                if stream.halves[outgoing].stopped() {
                    match stream.apps[side] {
                        Some(app) => self.apps[app].stopped = Some(code),
                        None => self.tell(wire, serial, side, key, |stream| Input::StreamStopped {
                            stream,
                            code,
                        }),
                    }
                    // RFC 9000 section 3.5: a stopped sender resets, so that the reader's side ends
                    // too.
                    self.send_frame(wire, serial, side, key, Frame::Reset(code));
                }
            }
        }
        self.settle(wire, serial, side, key);
    }

    fn apply(
        &mut self,
        wire: &mut Wire,
        serial: u64,
        side: EndIndex,
        key: StreamKey,
        action: StreamAction,
    ) {
        let Some(stream) = self.stream(serial, key) else { return };
        match action {
            StreamAction::Send(bytes, fin) => {
                if stream.halves[side].write(bytes, fin) {
                    self.pump(wire, serial, side, key);
                } else {
                    self.counters.late_outputs += 1;
                }
            }
            StreamAction::Reset(code) => {
                if stream.halves[side].reset() {
                    self.send_frame(wire, serial, side, key, Frame::Reset(code));
                }
            }
            StreamAction::Stop(code) => {
                if stream.halves[1 - side].stop() {
                    self.send_frame(wire, serial, side, key, Frame::Stop(code));
                }
            }
            StreamAction::Credit(bytes) => {
                stream.halves[1 - side].grant(bytes);
                self.read(wire, serial, side, key);
            }
        }
        self.settle(wire, serial, side, key);
    }

    /// Executes actions of an application. An action may cause more actions, which are executed
    /// after it.
    fn perform(
        &mut self,
        wire: &mut Wire,
        serial: u64,
        side: EndIndex,
        key: StreamKey,
        actions: Vec<AppAction>,
    ) {
        self.wanted.extend(actions.into_iter().map(|action| (serial, side, key, action)));
        if std::mem::replace(&mut self.performing, true) {
            return;
        }
        while let Some((serial, side, key, action)) = self.wanted.pop_front() {
            let action = match action {
                AppAction::Send(bytes, fin) => StreamAction::Send(bytes, fin),
                AppAction::Read(bytes) => StreamAction::Credit(bytes),
                AppAction::Reset(code) => StreamAction::Reset(code),
                AppAction::Stop(code) => StreamAction::Stop(code),
            };
            self.apply(wire, serial, side, key, action);
        }
        self.performing = false;
    }

    /// Sends the pieces that the window permits, and confirms them.
    fn pump(&mut self, wire: &mut Wire, serial: u64, side: EndIndex, key: StreamKey) {
        let Some(connection) = self.connections.get_mut(&serial) else { return };
        let most = wire.hosts[connection.ends[1 - side].host].transport.piece;
        let Some(stream) = connection.streams.get_mut(&key) else { return };
        let mut taken = 0;
        let mut pieces = Vec::new();
        while let Some(piece) = stream.halves[side].next_piece(most) {
            taken += piece.bytes.len() as u64;
            pieces.push(piece);
        }
        self.counters.blocked += u64::from(stream.halves[side].is_blocked());
        let app = stream.apps[side];
        for piece in pieces {
            self.send_frame(wire, serial, side, key, Frame::Piece(piece));
        }
        if taken > 0 {
            match app {
                Some(app) => {
                    let actions = self.apps[app].sent(taken);
                    self.perform(wire, serial, side, key, actions);
                }
                None => self.tell(wire, serial, side, key, |stream| Input::StreamWritten {
                    stream,
                    bytes: taken,
                }),
            }
        }
    }

    /// Passes the reader the bytes that its credit permits, and opens the writer's window by as
    /// much.
    fn read(&mut self, wire: &mut Wire, serial: u64, side: EndIndex, key: StreamKey) {
        loop {
            let Some(connection) = self.connections.get_mut(&serial) else { return };
            let config = wire.hosts[connection.ends[side].host].transport;
            let Some(stream) = connection.streams.get_mut(&key) else { return };
            let half = &mut stream.halves[1 - side];
            let front = half.front();
            let cut = front > 1 && wire.rngs.transport.happens(config.cut_per_mille);
            let most =
                if cut { 1 + wire.rngs.transport.below(front as u64 - 1) as usize } else { front };
            let Some((bytes, fin)) = half.read(most, config.fin_needs_credit) else { break };
            let free = half.free(config.stream_window);
            self.counters.bytes_read += bytes.len() as u64;
            let app = stream.apps[side];
            if let Some(bytes) = free {
                self.send_frame(wire, serial, side, key, Frame::Window(bytes));
            }
            match app {
                Some(app) => {
                    let mut actions = self.apps[app].received(&bytes);
                    if fin {
                        actions.extend(self.apps[app].ended());
                    }
                    self.perform(wire, serial, side, key, actions);
                }
                None => self.tell(wire, serial, side, key, |stream| Input::StreamData {
                    stream,
                    bytes,
                    fin,
                }),
            }
        }
    }

    /// Ends a stream at an end where both directions are done.
    fn settle(&mut self, wire: &mut Wire, serial: u64, side: EndIndex, key: StreamKey) {
        let Some(stream) = self.stream(serial, key) else { return };
        if stream.over[side]
            || !stream.halves[side].written()
            || !stream.halves[1 - side].was_read()
        {
            return;
        }
        stream.over[side] = true;
        let (id, app, everywhere) = (stream.ids[side], stream.apps[side], stream.over == [true; 2]);
        let Some(connection) = self.connections.get_mut(&serial) else { return };
        if let Some(stream) = id {
            self.by_stream.remove(&(connection.ends[side].host, stream));
            if let Some(app) = app {
                self.apps[app].closed = true;
                wire.deliver(connection.ends[side].host, Input::StreamClosed { stream });
            }
        }
        if key.0 != side {
            connection.send(wire, side, Packet::StreamOver);
        }
        if everywhere {
            connection.streams.remove(&key);
        }
    }

    /// Reports a new stream to its acceptor, together with all streams that were opened before it,
    /// because QUIC opens streams in order (RFC 9000 section 2.1).
    fn tell_opened(&mut self, wire: &mut Wire, serial: u64, side: EndIndex, number: u64) {
        let Some(connection) = self.connections.get_mut(&serial) else { return };
        let Connection { ends, streams, .. } = &mut **connection;
        let end = &mut ends[side];
        let Some(conn) = end.number else { return };
        while end.told <= number {
            let key = (1 - side, end.told);
            end.told += 1;
            let Some(opened) = streams.get_mut(&key) else { continue };
            let stream = wire.hosts[end.host].mint_stream();
            opened.ids[side] = Some(stream);
            self.by_stream.insert((end.host, stream), (serial, side, key));
            wire.deliver(end.host, Input::StreamOpened { conn, stream });
        }
    }

    fn tell(
        &self,
        wire: &mut Wire,
        serial: u64,
        side: EndIndex,
        key: StreamKey,
        input: impl FnOnce(StreamId) -> Input,
    ) {
        let Some(connection) = self.connections.get(&serial) else { return };
        let live = connection.streams.get(&key).filter(|stream| !stream.over[side]);
        if let Some(id) = live.and_then(|stream| stream.ids[side]) {
            wire.deliver(connection.ends[side].host, input(id));
        }
    }

    fn send_frame(
        &self,
        wire: &mut Wire,
        serial: u64,
        side: EndIndex,
        key: StreamKey,
        frame: Frame,
    ) {
        if let Some(connection) = self.connections.get(&serial) {
            connection.send(wire, side, Packet::Stream { key, frame });
        }
    }

    fn stream(&mut self, serial: u64, key: StreamKey) -> Option<&mut Stream> {
        self.connections.get_mut(&serial)?.streams.get_mut(&key).map(|stream| &mut **stream)
    }
}

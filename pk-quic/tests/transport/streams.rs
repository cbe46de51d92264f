//! Streams of the core: credit in both directions, and how streams end.

use std::time::Duration;

use bytes::Bytes;
use pk_proto::{ConnectionId, Input, Output, StreamId};

use crate::rig::{Rig, Setup, pass};

/// Two connected rigs.
pub struct Pair {
    pub a: Rig,
    pub b: Rig,
    pub conn: ConnectionId,
    pub theirs: ConnectionId,
}

pub fn pair() -> Pair {
    pair_of(Setup::new(1), Setup::new(2))
}

pub fn pair_of(a: Setup, b: Setup) -> Pair {
    let (mut a, b) = (a.start(), b.start());
    let (conn, theirs) = a.connect(&b);
    Pair { a, b, conn, theirs }
}

pub const OURS: StreamId = StreamId(0);

pub fn bytes(len: usize) -> Bytes {
    (0..len).map(|i| u8::try_from(i % 251).unwrap()).collect::<Vec<u8>>().into()
}

pub fn send(stream: StreamId, bytes: Bytes, fin: bool) -> Output {
    Output::SendStream { stream, bytes, fin }
}

pub fn credit(stream: StreamId, bytes: u64) -> Output {
    Output::ReadCredit { stream, bytes }
}

impl Pair {
    /// Opens a stream with these first bytes and returns its id at the other end.
    pub fn open(&mut self, first: Bytes, fin: bool) -> StreamId {
        self.a.output(Output::OpenStream { conn: self.conn, stream: OURS });
        let sent = first.len() as u64;
        self.a.output(send(OURS, first, fin));
        if sent > 0 {
            assert_eq!(self.a.input(), Input::StreamWritten { stream: OURS, bytes: sent });
        }
        let Input::StreamOpened { conn, stream } = self.b.input() else { panic!("no stream") };
        assert_eq!(conn, self.theirs);
        assert!(!stream.is_ours());
        stream
    }
}

/// Collects the received bytes of a stream until its end or until `len` bytes.
pub fn receive(rig: &Rig, stream: StreamId, len: usize) -> (Vec<u8>, bool) {
    let mut all = Vec::new();
    while all.len() < len {
        match rig.input() {
            Input::StreamData { stream: of, bytes, fin } if of == stream => {
                all.extend_from_slice(&bytes);
                if fin {
                    return (all, true);
                }
            }
            other => panic!("{other:?}"),
        }
    }
    (all, false)
}

#[test]
fn nothing_is_read_without_credit() {
    let mut pair = pair();
    let theirs = pair.open(bytes(1000), true);
    pair.b.silence();
    pair.b.output(credit(theirs, 300));
    assert_eq!(receive(&pair.b, theirs, 300), (bytes(1000)[..300].to_vec(), false));
    pair.b.silence();
    pair.b.output(credit(theirs, 5000));
    assert_eq!(receive(&pair.b, theirs, 700), (bytes(1000)[300..].to_vec(), true));
}

#[test]
fn end_is_received_with_the_last_bytes_or_without_credit() {
    let mut pair = pair();
    let theirs = pair.open(bytes(10), true);
    pair.b.output(credit(theirs, 10));
    let expected = Input::StreamData { stream: theirs, bytes: bytes(10), fin: true };
    assert_eq!(pair.b.input(), expected);
    // An empty answer: only an end. The other end has given no credit.
    pair.b.output(send(theirs, Bytes::new(), true));
    assert_eq!(pair.a.input(), Input::StreamData { stream: OURS, bytes: Bytes::new(), fin: true });
    pair.a.metrics(|metrics| metrics.streams == 0);
    pair.b.metrics(|metrics| metrics.streams == 0);
    pair.a.silence();
}

#[test]
fn unread_stream_blocks_its_writer() {
    let mut setup = Setup::new(2);
    setup.settings.stream_window = 16 * 1024;
    let mut pair = pair_of(Setup::new(1), setup);
    let theirs = pair.open(bytes(16 * 1024), false);
    pair.a.output(send(OURS, bytes(40 * 1024), true));
    pair.a.silence();
    // The rest is sent as it is read, and every byte is confirmed.
    pair.b.output(credit(theirs, 1 << 20));
    let (all, fin) = receive(&pair.b, theirs, usize::MAX);
    assert_eq!((all.len(), fin), (56 * 1024, true));
    let mut sent = 0;
    while sent < 40 * 1024 {
        let Input::StreamWritten { bytes, .. } = pair.a.input() else { panic!("not sent") };
        sent += bytes;
    }
    assert_eq!(sent, 40 * 1024);
}

#[test]
fn reset_is_reported_once() {
    let mut pair = pair();
    let theirs = pair.open(bytes(100), false);
    pair.b.output(credit(theirs, 100));
    receive(&pair.b, theirs, 100);
    // All credit is used up.
    pair.a.output(Output::ResetStream { stream: OURS, code: 7 });
    assert_eq!(pair.b.input(), Input::StreamReset { stream: theirs, code: 7 });
    pair.b.output(credit(theirs, 1000));
    pair.b.silence();
    // The other direction is not affected.
    pair.b.output(send(theirs, bytes(5), true));
    assert_eq!(pair.b.input(), Input::StreamWritten { stream: theirs, bytes: 5 });
    pair.a.output(credit(OURS, 10));
    assert_eq!(pair.a.input(), Input::StreamData { stream: OURS, bytes: bytes(5), fin: true });
    pair.a.metrics(|metrics| metrics.streams == 0);
    pair.b.metrics(|metrics| metrics.streams == 0);
}

#[test]
fn stop_is_reported_without_writing_and_answered_with_a_reset() {
    let mut pair = pair();
    let theirs = pair.open(bytes(1), false);
    pair.b.output(credit(theirs, 10));
    assert_eq!(receive(&pair.b, theirs, 1).0.len(), 1);
    pair.b.output(Output::StopStream { stream: theirs, code: 3 });
    assert_eq!(pair.a.input(), Input::StreamStopped { stream: OURS, code: 3 });
    // Later sends have no effect, and the peer's direction is not affected.
    pair.a.output(send(OURS, bytes(9), true));
    pair.a.silence();
    pair.b.output(Output::ResetStream { stream: theirs, code: 4 });
    pair.a.output(credit(OURS, 10));
    assert_eq!(pair.a.input(), Input::StreamReset { stream: OURS, code: 4 });
    pair.a.metrics(|metrics| metrics.streams == 0);
    pair.b.metrics(|metrics| metrics.streams == 0);
}

#[test]
fn stop_is_reported_to_a_blocked_writer() {
    let mut setup = Setup::new(2);
    setup.settings.stream_window = 64 * 1024;
    let mut pair = pair_of(Setup::new(1), setup);
    let theirs = pair.open(bytes(64 * 1024), false);
    pair.a.output(send(OURS, bytes(10), false));
    pair.a.silence();
    pair.b.output(Output::StopStream { stream: theirs, code: 9 });
    assert_eq!(pair.a.input(), Input::StreamStopped { stream: OURS, code: 9 });
}

#[test]
fn stream_waits_until_the_peer_allows_it() {
    let mut setup = Setup::new(2);
    setup.settings.streams = 2;
    let mut pair = pair_of(Setup::new(1), setup);
    let theirs = pair.open(bytes(1), true);
    // A stream that stays open.
    let held = StreamId(100);
    pair.a.output(Output::OpenStream { conn: pair.conn, stream: held });
    pair.a.output(send(held, bytes(1), false));
    assert_eq!(pair.a.input(), Input::StreamWritten { stream: held, bytes: 1 });
    assert!(matches!(pair.b.input(), Input::StreamOpened { .. }));
    for (number, len) in [(2, 2), (4, 4), (6, 6)] {
        let stream = StreamId(number);
        pair.a.output(Output::OpenStream { conn: pair.conn, stream });
        pair.a.output(send(stream, bytes(len), true));
    }
    // A stream is reset before it is open: the peer never receives it.
    pair.a.output(Output::ResetStream { stream: StreamId(4), code: 0 });
    pair.a.output(Output::StopStream { stream: StreamId(4), code: 0 });
    pair.a.silence();
    let mut theirs = theirs;
    for (number, len) in [(2, 2), (6, 6)] {
        pair.b.output(credit(theirs, 100));
        receive(&pair.b, theirs, usize::MAX);
        pair.b.output(send(theirs, Bytes::new(), true));
        pair.a.output(credit(OURS, 1));
        // The end of the previous stream, then what was sent on the next one.
        let mut inputs = vec![pair.a.input(), pair.a.input()];
        inputs.sort_by_key(|input| matches!(input, Input::StreamWritten { .. }));
        assert!(matches!(&inputs[0], Input::StreamData { fin: true, .. }), "{inputs:?}");
        assert_eq!(inputs[1], Input::StreamWritten { stream: StreamId(number), bytes: len as u64 });
        let Input::StreamOpened { stream, .. } = pair.b.input() else { panic!("no stream") };
        theirs = stream;
    }
    pair.b.silence();
}

#[test]
fn data_received_before_the_end_of_a_connection_is_read() {
    let mut pair = pair();
    let theirs = pair.open(bytes(1), false);
    pair.b.output(credit(theirs, 1000));
    receive(&pair.b, theirs, 1);
    let (conn, their_conn) = (pair.conn, pair.theirs);
    pair.a.output(send(OURS, bytes(50), true));
    pair.a.input();
    // Data that is not sent before the close is lost.
    pass(Duration::from_millis(50));
    pair.a.output(Output::CloseConnection { conn, code: 0, reason: String::new() });
    assert_eq!(receive(&pair.b, theirs, usize::MAX), (bytes(50).to_vec(), true));
    let Input::Disconnected { conn, .. } = pair.b.input() else { panic!("not over") };
    assert_eq!(conn, their_conn);
    pair.b.metrics(|metrics| metrics.streams == 0 && metrics.connections == 0);
    // Late outputs have no effect.
    pair.b.output(send(theirs, bytes(5), true));
    pair.b.output(Output::OpenStream { conn, stream: StreamId(0) });
    pair.b.silence();
}

#[test]
fn stream_and_close_received_at_once_are_both_delivered() {
    let pair = pair();
    pair.b.grant(1000);
    // The stream, its bytes and the close, in datagrams that arrive at one instant.
    pair.a.output(Output::OpenStream { conn: pair.conn, stream: OURS });
    pair.a.output(send(OURS, bytes(50), true));
    assert!(matches!(pair.a.input(), Input::StreamWritten { .. }));
    pair.a.output(Output::CloseConnection { conn: pair.conn, code: 0, reason: String::new() });
    let Input::StreamOpened { stream, .. } = pair.b.input() else { panic!("no stream") };
    assert_eq!(pair.b.input(), Input::StreamData { stream, bytes: bytes(50), fin: true });
    assert!(matches!(pair.b.input(), Input::Disconnected { .. }));
}

//! Streams of the core: credit in both directions, and how streams end.

use std::time::Duration;

use bytes::Bytes;
use pk_proto::{ConnectionId, Event, Input, Opener, Output, Reply, RequestId, StreamId};
use tokio::sync::oneshot;

use super::{Rig, Setup};
use pk_quic::StreamError;

use crate::error::NodeError;
use crate::pump::handle_registry::Response;
use crate::stream::Stream;
use crate::stream::accept::{AcceptQueue, StreamAcceptor};

/// Two connected rigs.
struct Pair {
    a: Rig,
    b: Rig,
    conn: ConnectionId,
    theirs: ConnectionId,
}

async fn pair() -> Pair {
    pair_of(Setup::new(1), Setup::new(2)).await
}

async fn pair_of(a: Setup, b: Setup) -> Pair {
    let (mut a, mut b) = (a.start().await, b.start().await);
    let (conn, theirs) = a.connect(&mut b).await;
    Pair { a, b, conn, theirs }
}

const OURS: StreamId = StreamId(0);

fn bytes(len: usize) -> Bytes {
    (0..len).map(|i| u8::try_from(i % 251).unwrap()).collect::<Vec<u8>>().into()
}

fn send(stream: StreamId, bytes: Bytes, fin: bool) -> Output {
    Output::SendStream { stream, bytes, fin }
}

fn credit(stream: StreamId, bytes: u64) -> Output {
    Output::ReadCredit { stream, bytes }
}

impl Pair {
    /// Opens a stream with these first bytes and returns its id at the other end.
    async fn open(&mut self, first: Bytes, fin: bool) -> StreamId {
        self.a.output(Output::OpenStream { conn: self.conn, stream: OURS }).await;
        let sent = first.len() as u64;
        self.a.output(send(OURS, first, fin)).await;
        if sent > 0 {
            assert_eq!(self.a.input().await, Input::StreamWritten { stream: OURS, bytes: sent });
        }
        let Input::StreamOpened { conn, stream } = self.b.input().await else {
            panic!("no stream")
        };
        assert_eq!(conn, self.theirs);
        assert!(!stream.is_ours());
        stream
    }
}

/// Collects what arrives on a stream until its end or until `len` bytes.
async fn receive(rig: &mut Rig, stream: StreamId, len: usize) -> (Vec<u8>, bool) {
    let mut all = Vec::new();
    while all.len() < len {
        match rig.input().await {
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

#[tokio::test]
async fn nothing_is_read_without_credit() {
    let mut pair = pair().await;
    let theirs = pair.open(bytes(1000), true).await;
    pair.b.silence().await;
    pair.b.output(credit(theirs, 300)).await;
    assert_eq!(receive(&mut pair.b, theirs, 300).await, (bytes(1000)[..300].to_vec(), false));
    pair.b.silence().await;
    pair.b.output(credit(theirs, 5000)).await;
    assert_eq!(receive(&mut pair.b, theirs, 700).await, (bytes(1000)[300..].to_vec(), true));
}

#[tokio::test]
async fn the_end_comes_with_the_last_bytes_or_without_credit() {
    let mut pair = pair().await;
    let theirs = pair.open(bytes(10), true).await;
    pair.b.output(credit(theirs, 10)).await;
    let expected = Input::StreamData { stream: theirs, bytes: bytes(10), fin: true };
    assert_eq!(pair.b.input().await, expected);
    // An empty answer: only an end. The other end has given no credit.
    pair.b.output(send(theirs, Bytes::new(), true)).await;
    assert_eq!(
        pair.a.input().await,
        Input::StreamData { stream: OURS, bytes: Bytes::new(), fin: true }
    );
    pair.a.metrics(|metrics| metrics.streams == 0).await;
    pair.b.metrics(|metrics| metrics.streams == 0).await;
    pair.a.silence().await;
}

#[tokio::test]
async fn an_unread_stream_blocks_its_writer() {
    let mut setup = Setup::new(2);
    setup.driver.stream_window = 16 * 1024;
    let mut pair = pair_of(Setup::new(1), setup).await;
    let theirs = pair.open(bytes(16 * 1024), false).await;
    pair.a.output(send(OURS, bytes(40 * 1024), true)).await;
    pair.a.silence().await;
    // The rest is sent as it is read, and every byte is confirmed.
    pair.b.output(credit(theirs, 1 << 20)).await;
    let (all, fin) = receive(&mut pair.b, theirs, usize::MAX).await;
    assert_eq!((all.len(), fin), (56 * 1024, true));
    let mut sent = 0;
    while sent < 40 * 1024 {
        let Input::StreamWritten { bytes, .. } = pair.a.input().await else { panic!("not sent") };
        sent += bytes;
    }
    assert_eq!(sent, 40 * 1024);
}

#[tokio::test]
async fn a_reset_is_told_once() {
    let mut pair = pair().await;
    let theirs = pair.open(bytes(100), false).await;
    pair.b.output(credit(theirs, 100)).await;
    receive(&mut pair.b, theirs, 100).await;
    // All credit is used up.
    pair.a.output(Output::ResetStream { stream: OURS, code: 7 }).await;
    assert_eq!(pair.b.input().await, Input::StreamReset { stream: theirs, code: 7 });
    pair.b.output(credit(theirs, 1000)).await;
    pair.b.silence().await;
    // The other direction is not affected.
    pair.b.output(send(theirs, bytes(5), true)).await;
    assert_eq!(pair.b.input().await, Input::StreamWritten { stream: theirs, bytes: 5 });
    pair.a.output(credit(OURS, 10)).await;
    assert_eq!(
        pair.a.input().await,
        Input::StreamData { stream: OURS, bytes: bytes(5), fin: true }
    );
    pair.a.metrics(|metrics| metrics.streams == 0).await;
    pair.b.metrics(|metrics| metrics.streams == 0).await;
}

#[tokio::test]
async fn a_stop_is_told_without_writing_and_answered_with_a_reset() {
    let mut pair = pair().await;
    let theirs = pair.open(bytes(1), false).await;
    pair.b.output(credit(theirs, 10)).await;
    assert_eq!(receive(&mut pair.b, theirs, 1).await.0.len(), 1);
    pair.b.output(Output::StopStream { stream: theirs, code: 3 }).await;
    assert_eq!(pair.a.input().await, Input::StreamStopped { stream: OURS, code: 3 });
    // Later sends have no effect, and the peer's direction is not affected.
    pair.a.output(send(OURS, bytes(9), true)).await;
    pair.a.silence().await;
    pair.b.output(Output::ResetStream { stream: theirs, code: 4 }).await;
    pair.a.output(credit(OURS, 10)).await;
    assert_eq!(pair.a.input().await, Input::StreamReset { stream: OURS, code: 4 });
    pair.a.metrics(|metrics| metrics.streams == 0).await;
    pair.b.metrics(|metrics| metrics.streams == 0).await;
}

#[tokio::test]
async fn a_blocked_writer_hears_the_stop() {
    let mut pair = pair().await;
    let theirs = pair.open(bytes(64 * 1024), false).await;
    pair.a.output(send(OURS, bytes(10), false)).await;
    pair.a.silence().await;
    pair.b.output(Output::StopStream { stream: theirs, code: 9 }).await;
    assert_eq!(pair.a.input().await, Input::StreamStopped { stream: OURS, code: 9 });
}

#[tokio::test]
async fn a_stream_waits_until_the_peer_allows_it() {
    let mut setup = Setup::new(2);
    setup.streams = 1;
    let mut pair = pair_of(Setup::new(1), setup).await;
    let theirs = pair.open(bytes(1), true).await;
    for (number, len) in [(2, 2), (4, 4), (6, 6)] {
        let stream = StreamId(number);
        pair.a.output(Output::OpenStream { conn: pair.conn, stream }).await;
        pair.a.output(send(stream, bytes(len), true)).await;
    }
    // One is reset before it is open: the peer never receives it.
    pair.a.output(Output::ResetStream { stream: StreamId(4), code: 0 }).await;
    pair.a.output(Output::StopStream { stream: StreamId(4), code: 0 }).await;
    pair.a.silence().await;
    let mut theirs = theirs;
    for (number, len) in [(2, 2), (6, 6)] {
        pair.b.output(credit(theirs, 100)).await;
        receive(&mut pair.b, theirs, usize::MAX).await;
        pair.b.output(send(theirs, Bytes::new(), true)).await;
        pair.a.output(credit(OURS, 1)).await;
        // The end of the previous stream, then what was sent on the next one.
        let mut inputs = vec![pair.a.input().await, pair.a.input().await];
        inputs.sort_by_key(|input| matches!(input, Input::StreamWritten { .. }));
        assert!(matches!(&inputs[0], Input::StreamData { fin: true, .. }), "{inputs:?}");
        assert_eq!(inputs[1], Input::StreamWritten { stream: StreamId(number), bytes: len as u64 });
        let Input::StreamOpened { stream, .. } = pair.b.input().await else { panic!("no stream") };
        theirs = stream;
    }
    pair.b.silence().await;
}

#[tokio::test]
async fn data_received_before_the_end_of_a_connection_is_read() {
    let mut pair = pair().await;
    let theirs = pair.open(bytes(1), false).await;
    pair.b.output(credit(theirs, 1000)).await;
    receive(&mut pair.b, theirs, 1).await;
    let (conn, their_conn) = (pair.conn, pair.theirs);
    pair.a.output(send(OURS, bytes(50), true)).await;
    pair.a.input().await;
    // Data that is not sent before the close is lost.
    tokio::time::sleep(Duration::from_millis(50)).await;
    pair.a.output(Output::CloseConnection { conn, code: 0, reason: String::new() }).await;
    assert_eq!(receive(&mut pair.b, theirs, usize::MAX).await, (bytes(50).to_vec(), true));
    let Input::Disconnected { conn, .. } = pair.b.input().await else { panic!("not over") };
    assert_eq!(conn, their_conn);
    pair.b.metrics(|metrics| metrics.streams == 0 && metrics.connections == 0).await;
    // Late outputs have no effect.
    pair.b.output(send(theirs, bytes(5), true)).await;
    pair.b.output(Output::OpenStream { conn, stream: StreamId(0) }).await;
    pair.b.silence().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_stream_and_the_end_of_its_connection_come_at_once() {
    let mut pair = pair().await;
    pair.b.handle.call(|_, _, core| core.credit = 1000).await.unwrap();
    // While b takes no turns everything arrives: the stream, its bytes, and the close.
    let looking_away = {
        let handle = pair.b.handle.clone();
        tokio::spawn(async move {
            handle.call(|_, _, _| std::thread::sleep(Duration::from_millis(300))).await
        })
    };
    tokio::time::sleep(Duration::from_millis(50)).await;
    pair.a.output(Output::OpenStream { conn: pair.conn, stream: OURS }).await;
    pair.a.output(send(OURS, bytes(50), true)).await;
    assert!(matches!(pair.a.input().await, Input::StreamWritten { .. }));
    tokio::time::sleep(Duration::from_millis(50)).await;
    pair.a
        .output(Output::CloseConnection { conn: pair.conn, code: 0, reason: String::new() })
        .await;
    looking_away.await.unwrap().unwrap();
    let Input::StreamOpened { stream, .. } = pair.b.input().await else { panic!("no stream") };
    assert_eq!(pair.b.input().await, Input::StreamData { stream, bytes: bytes(50), fin: true });
    assert!(matches!(pair.b.input().await, Input::Disconnected { .. }));
}

/// A stream that is being handed over at both ends: here as the result of a request, there to an
/// acceptor.
struct Detaching {
    answer: oneshot::Receiver<Result<Response, NodeError>>,
    accepted: StreamAcceptor,
}

impl Detaching {
    async fn ours(&mut self) -> Stream {
        (&mut self.answer).await.unwrap().unwrap().stream.unwrap()
    }

    async fn theirs(&mut self) -> Stream {
        self.accepted.accept().await.unwrap()
    }
}

async fn detach(pair: &mut Pair, theirs: StreamId, unread: Bytes) -> Detaching {
    let protocol = || "test/1".to_owned();
    let (streams, accepted) = AcceptQueue::new(protocol(), 1);
    pair.b
        .handle
        .call(move |registry, cx, _| registry.accept(cx, protocol(), streams))
        .await
        .unwrap();
    let (a, b, request) = (pair.a.id, pair.b.id, RequestId(0));
    let (caller, answer) = oneshot::channel();
    pair.a.handle.call(move |registry, cx, _| registry.wait(cx, request, caller)).await.unwrap();
    let (conn, opener) = (pair.conn, Opener::Us(request));
    let ours = Output::DetachStream {
        conn,
        stream: OURS,
        node: b,
        protocol: protocol(),
        opener,
        unread: Bytes::new(),
    };
    pair.a.output(ours).await;
    let done = Event::Done { id: request, result: Ok(Reply::OpenStream(OURS)) };
    pair.a.output(Output::Event(done)).await;
    let (conn, opener) = (pair.theirs, Opener::Peer);
    pair.b
        .output(Output::DetachStream {
            conn,
            stream: theirs,
            node: a,
            protocol: protocol(),
            opener,
            unread,
        })
        .await;
    Detaching { answer, accepted }
}

#[tokio::test]
async fn a_stream_that_is_handed_over_keeps_every_byte() {
    let mut pair = pair().await;
    // The core at b has read ten bytes, of which four were not for it; six more wait in QUIC.
    let theirs = pair.open(bytes(16), false).await;
    pair.b.output(credit(theirs, 10)).await;
    receive(&mut pair.b, theirs, 10).await;
    let mut detaching = detach(&mut pair, theirs, bytes(10).slice(6..)).await;
    let (mut ours, mut accepted) = (detaching.ours().await, detaching.theirs().await);
    assert_eq!(
        (ours.node(), accepted.node(), accepted.protocol()),
        (pair.b.id, pair.a.id, "test/1")
    );
    ours.write_all(b"more").await.unwrap();
    ours.finish().unwrap();
    assert_eq!(ours.write(b"x").await, Err(StreamError::Ended));
    let all = accepted.read_to_end(100).await.unwrap();
    assert_eq!(all, [&bytes(16)[6..], b"more"].concat());
    assert_eq!(accepted.read(&mut [0; 8]).await, Ok(0), "the end stays the end");
    let answer = async {
        accepted.write_all(&vec![5; 200_000]).await.unwrap();
        accepted.finish().unwrap();
    };
    let (all, ()) = tokio::join!(ours.read_to_end(1 << 20), answer);
    assert_eq!(all.unwrap().len(), 200_000);
    // Both directions have ended, so that the stream is closed although its handles exist.
    assert_eq!(pair.b.input().await, Input::StreamClosed { stream: theirs });
    assert_eq!(pair.a.input().await, Input::StreamClosed { stream: OURS });
    drop((ours, accepted));
    pair.a.silence().await;
}

#[tokio::test]
async fn a_dropped_stream_is_aborted_and_told() {
    let mut pair = pair().await;
    let theirs = pair.open(bytes(1), false).await;
    let mut detaching = detach(&mut pair, theirs, Bytes::new()).await;
    let (ours, mut accepted) = (detaching.ours().await, detaching.theirs().await);
    drop(ours);
    assert_eq!(pair.a.input().await, Input::StreamClosed { stream: OURS });
    assert_eq!(accepted.read_to_end(100).await, Err(StreamError::Reset(0)));
    assert_eq!(
        accepted.read(&mut [0; 8]).await,
        Err(StreamError::Reset(0)),
        "a reset never becomes an end"
    );
    assert_eq!(accepted.write_all(&vec![0; 1 << 20]).await, Err(StreamError::Stopped(0)));
    assert_eq!(pair.b.input().await, Input::StreamClosed { stream: theirs });
}

#[tokio::test]
async fn a_handed_over_stream_is_flushed_first() {
    let mut setup = Setup::new(2);
    setup.driver.stream_window = 16 * 1024;
    let mut pair = pair_of(Setup::new(1), setup).await;
    let theirs = pair.open(bytes(16 * 1024), false).await;
    // The window is full: these bytes wait in the driver when the stream is handed over.
    pair.a.output(send(OURS, bytes(1000), false)).await;
    let mut detaching = detach(&mut pair, theirs, Bytes::new()).await;
    let mut accepted = detaching.theirs().await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(detaching.answer.try_recv().is_err(), "ours came before it was flushed");
    let mut all = vec![0; 17_384];
    let mut len = 0;
    while len < all.len() {
        len += accepted.read(&mut all[len..]).await.unwrap();
    }
    assert_eq!(all, [bytes(16 * 1024), bytes(1000)].concat());
    let mut ours = detaching.ours().await;
    ours.write_all(b"application").await.unwrap();
    ours.finish().unwrap();
    assert_eq!(accepted.read_to_end(100).await.unwrap(), b"application");
}

#[tokio::test]
async fn a_full_or_missing_acceptor_refuses() {
    let mut pair = pair().await;
    let theirs = pair.open(bytes(1), false).await;
    let (node, conn) = (pair.a.id, pair.theirs);
    let protocol = "nobody/1".to_owned();
    let detach = Output::DetachStream {
        conn,
        stream: theirs,
        node,
        protocol,
        opener: Opener::Peer,
        unread: Bytes::new(),
    };
    pair.b.output(detach).await;
    assert_eq!(pair.b.input().await, Input::StreamClosed { stream: theirs });
    let mut seen = [pair.a.input().await, pair.a.input().await];
    seen.sort_by_key(|input| matches!(input, Input::StreamReset { .. }));
    assert_eq!(seen[0], Input::StreamStopped { stream: OURS, code: 1 });
    assert_eq!(seen[1], Input::StreamReset { stream: OURS, code: 1 });
    pair.b.metrics(|metrics| metrics.accepts_refused == 1).await;
}

//! Detached streams.

use bytes::Bytes;
use pk_proto::{DisconnectReason, Input, Network, Opener, Output, RequestId, StreamId};
use pk_quic::{Opened, Read, StreamError, TransportEvent};

use crate::rig::{Rig, Setup, pass};
use crate::streams::{OURS, Pair, bytes, credit, pair, pair_of, receive, send};

fn detach(pair: &Pair, theirs: StreamId, unread: Bytes) {
    let protocol = || "test/1".to_owned();
    pair.a.output(Output::DetachStream {
        conn: pair.conn,
        stream: OURS,
        node: pair.b.id,
        protocol: protocol(),
        opener: Opener::Us(RequestId(0)),
        unread: Bytes::new(),
    });
    pair.b.output(Output::DetachStream {
        conn: pair.theirs,
        stream: theirs,
        node: pair.a.id,
        protocol: protocol(),
        opener: Opener::Peer,
        unread,
    });
    for (rig, other, stream) in [(&pair.a, &pair.b, OURS), (&pair.b, &pair.a, theirs)] {
        let TransportEvent::Opened(opened) = rig.event() else { panic!("not handed over") };
        let network = Some(Network::of(other.addr.ip()));
        assert_eq!((opened.stream, opened.node, opened.network), (stream, other.id, network));
        assert_eq!(opened.protocol, "test/1");
    }
}

/// Takes events until one satisfies a condition.
fn event(rig: &Rig, mut is_it: impl FnMut(&TransportEvent) -> bool) -> TransportEvent {
    for _ in 0..100 {
        let event = rig.event();
        if is_it(&event) {
            return event;
        }
    }
    panic!("the event does not come");
}

#[test]
fn detached_stream_keeps_every_byte() {
    let mut pair = pair();
    // The core at b has read ten bytes, of which four were not for it; six more wait in QUIC.
    let theirs = pair.open(bytes(16), false);
    pair.b.output(credit(theirs, 10));
    receive(&pair.b, theirs, 10);
    detach(&pair, theirs, bytes(10).slice(6..));
    assert_eq!(pair.a.write(OURS, b"more"), Ok(4));
    pair.a.finish(OURS);
    assert_eq!(pair.a.write(OURS, b"x"), Err(StreamError::Ended));
    assert_eq!(pair.b.read_to_end(theirs).unwrap(), [&bytes(16)[6..], b"more"].concat());
    let delivered = TransportEvent::Delivered { stream: OURS, result: Ok(()) };
    event(&pair.a, |event| *event == delivered);
    assert_eq!(pair.b.write(theirs, &vec![5; 200_000]), Ok(200_000));
    pair.b.finish(theirs);
    assert_eq!(pair.a.read_to_end(OURS).unwrap().len(), 200_000);
    // Both directions have ended and are acknowledged.
    assert_eq!(pair.b.input(), Input::StreamClosed { stream: theirs });
    assert_eq!(pair.a.input(), Input::StreamClosed { stream: OURS });
    pair.a.metrics(|metrics| metrics.application_streams + metrics.streams == 0);
    pair.a.silence();
}

#[test]
fn aborted_stream_is_reported() {
    let mut pair = pair();
    let theirs = pair.open(bytes(1), false);
    detach(&pair, theirs, Bytes::new());
    pair.a.abort(OURS, 0);
    assert_eq!(pair.a.input(), Input::StreamClosed { stream: OURS });
    assert_eq!(pair.b.read(theirs), Ok(Read::Bytes(bytes(1))));
    assert_eq!(pair.b.read_to_end(theirs), Err(StreamError::Reset(0)));
    assert_eq!(pair.b.write(theirs, &[0; 8]), Err(StreamError::Stopped(0)));
    assert_eq!(pair.b.input(), Input::StreamClosed { stream: theirs });
}

#[test]
fn end_of_a_stream_is_kept_until_its_holder_reads_it() {
    let mut pair = pair();
    let theirs = pair.open(bytes(1), false);
    detach(&pair, theirs, Bytes::new());
    // The peer ends both directions before anything is read or written here.
    pair.a.finish(OURS);
    pair.a.call(|transport, now| transport.stop(now, OURS, 7));
    pass(std::time::Duration::from_secs(1));
    assert_eq!(pair.b.read_to_end(theirs).unwrap(), bytes(1));
    pair.b.silence();
    assert_eq!(pair.b.write(theirs, b"x"), Err(StreamError::Stopped(7)));
    assert_eq!(pair.b.input(), Input::StreamClosed { stream: theirs });
}

#[test]
fn stopped_finished_direction_counts_as_not_delivered() {
    let mut setup = Setup::new(2);
    setup.settings.stream_window = 16 * 1024;
    let mut pair = pair_of(Setup::new(1), setup);
    let theirs = pair.open(bytes(1), false);
    detach(&pair, theirs, Bytes::new());
    let mut written = 0;
    while written < 400_000 {
        match pair.a.write(OURS, &[1; 10_000]).unwrap() {
            0 => break,
            some => written += some,
        }
    }
    pair.a.finish(OURS);
    pass(std::time::Duration::from_millis(50));
    pair.b.call(|transport, now| transport.stop(now, theirs, 9));
    let delivered = event(&pair.a, |it| matches!(it, TransportEvent::Delivered { .. }));
    // What was in flight may have been acknowledged before the stop.
    let stopped = Err(StreamError::Stopped(9));
    assert!(
        matches!(&delivered, TransportEvent::Delivered { result, .. } if *result == stopped || result.is_ok()),
        "{delivered:?}"
    );
}

#[test]
fn detached_stream_is_flushed_first() {
    let mut setup = Setup::new(2);
    setup.settings.stream_window = 16 * 1024;
    let mut pair = pair_of(Setup::new(1), setup);
    let theirs = pair.open(bytes(16 * 1024), false);
    // The window is full: these bytes are queued in the transport when the stream is detached.
    pair.a.output(send(OURS, bytes(1000), false));
    detach(&pair, theirs, Bytes::new());
    assert_eq!(pair.a.write(OURS, b"application"), Ok(0), "before it was flushed");
    event(&pair.a, |event| *event == TransportEvent::Writable(OURS));
    assert_eq!(pair.a.write(OURS, b"application"), Ok(11));
    pair.a.finish(OURS);
    let all = pair.b.read_to_end(theirs).unwrap();
    assert_eq!(all, [&bytes(16 * 1024)[..], &bytes(1000), b"application"].concat());
}

#[test]
fn stream_of_a_lost_connection_can_still_be_read() {
    let mut pair = pair();
    let theirs = pair.open(bytes(10), true);
    detach(&pair, theirs, Bytes::new());
    pass(std::time::Duration::from_millis(50));
    pair.a.output(Output::CloseConnection { conn: pair.conn, code: 5, reason: String::new() });
    let why = DisconnectReason::Peer { code: 5, reason: String::new() };
    let lost = TransportEvent::Lost { stream: theirs, why: why.clone() };
    event(&pair.b, |event| *event == lost);
    assert_eq!(pair.b.write(theirs, b"x"), Err(StreamError::ConnectionLost(why)));
    assert_eq!(pair.b.read_to_end(theirs).unwrap(), bytes(10));
    let lost = TransportEvent::Lost { stream: OURS, why: DisconnectReason::Local };
    event(&pair.a, |event| *event == lost);
}

#[test]
fn stream_that_ended_before_its_detach_reaches_its_requester() {
    let mut pair = pair();
    let theirs = pair.open(bytes(1), false);
    pair.a.output(Output::CloseConnection { conn: pair.conn, code: 0, reason: String::new() });
    assert!(matches!(pair.a.input(), Input::Disconnected { .. }));
    assert!(matches!(pair.b.input(), Input::Disconnected { .. }));
    let detach = |opener, stream| Output::DetachStream {
        conn: pair.conn,
        stream,
        node: pair.b.id,
        protocol: "test/1".to_owned(),
        opener,
        unread: bytes(3),
    };
    pair.a.output(detach(Opener::Us(RequestId(4)), OURS));
    let opened = event(&pair.a, |event| matches!(event, TransportEvent::Opened(_)));
    assert!(matches!(opened, TransportEvent::Opened(Opened { network: None, .. })));
    event(&pair.a, |event| matches!(event, TransportEvent::Lost { stream: OURS, .. }));
    assert_eq!(pair.a.read(OURS), Ok(Read::Bytes(bytes(3))));
    assert!(matches!(pair.a.read(OURS), Err(StreamError::ConnectionLost(_))));
    assert_eq!(pair.a.input(), Input::StreamClosed { stream: OURS });
    // No caller waits for a stream of a peer.
    pair.b.output(detach(Opener::Peer, theirs));
    assert_eq!(pair.b.input(), Input::StreamClosed { stream: theirs });
}

//! Application streams: protocols, ends, limits.

use pk_driver::{NodeError, Stream, StreamError, TransportSettings};
use pk_proto::{Failure, RequestError, RequestOptions, code};
use pk_tests::Rt;
use pk_tests::node::{connect, exchange, shutdown, start, start_with};
use pk_tests::wait::{soon, try_within, until};
use std::time::Duration;

pk_tests::cases!(
    full_acceptor_resets_new_streams,
    streams_of_one_network_leave_room_for_others,
    protocol_has_one_acceptor_until_it_is_dropped,
    stream_directions_end_independently,
    unread_stream_blocks_only_its_writer,
);

async fn full_acceptor_resets_new_streams<R: Rt>(runtime: R) {
    let a = start_with(&runtime, 1, |config| config.driver.accept_limit = 2).await;
    let b = start(&runtime, 2).await;
    let mut acceptor = a.accept_streams("few/1").await.unwrap();
    connect(&runtime, &b, &a).await;
    let mut open = Vec::new();
    let mut refused = 0;
    for _ in 0..5 {
        // The peer's reset may or may not overtake its acceptance of the protocol.
        match soon(&runtime, "open", b.open_stream(a.own_id(), "few/1", RequestOptions::default()))
            .await
        {
            Ok(stream) => open.push(stream),
            Err(NodeError::Failure(Failure::Aborted(code::LIMIT))) => refused += 1,
            Err(error) => panic!("{error:?}"),
        }
    }
    until(&runtime, "three refusals", async || a.driver_metrics().accepts_refused == 3).await;
    for mut stream in open.split_off(2) {
        let end = soon(&runtime, "the reset", stream.read(&mut [0; 1])).await;
        assert_eq!(end, Err(StreamError::Reset(code::LIMIT)));
        until(&runtime, "the stop", async || {
            stream.write(b"x").await == Err(StreamError::Stopped(code::LIMIT))
        })
        .await;
        refused += 1;
    }
    assert_eq!(refused, 3);
    // The accepted streams are served.
    for stream in &mut open {
        let waits =
            try_within(&runtime, Duration::from_millis(200), stream.read(&mut [0; 1])).await;
        assert_eq!(waits, None, "a stream that found room");
        let mut accepted = soon(&runtime, "accept", acceptor.accept()).await.unwrap();
        stream.write_all(b"hello").await.unwrap();
        stream.finish().unwrap();
        assert_eq!(soon(&runtime, "read", accepted.read_to_end(10)).await.unwrap(), b"hello");
    }
    let stream = soon(
        &runtime,
        "there is room again",
        b.open_stream(a.own_id(), "few/1", RequestOptions::default()),
    );
    drop(stream.await.unwrap());
    shutdown(&runtime, &[&a, &b]).await;
}

async fn streams_of_one_network_leave_room_for_others<R: Rt>(runtime: R) {
    let a = start_with(&runtime, 1, |config| config.driver.accept_limit = 2).await;
    let (loud, beside) = (start(&runtime, 2).await, start(&runtime, 3).await);
    let other =
        start_with(&runtime, 4, |config| config.listen = "127.0.1.1:0".parse().unwrap()).await;
    let mut acceptor = a.accept_streams("few/1").await.unwrap();
    for node in [&loud, &beside, &other] {
        connect(&runtime, node, &a).await;
    }
    // For the second node of the network the share of both is used up.
    let mut open = Vec::new();
    for node in [&loud, &loud, &beside, &other, &other] {
        let stream = soon(
            &runtime,
            "open",
            node.open_stream(a.own_id(), "few/1", RequestOptions::default()),
        )
        .await;
        open.push(stream);
        until(&runtime, "all that has come is handed over or refused", async || {
            let metrics = a.driver_metrics();
            metrics.transport.application_streams + metrics.accepts_refused >= open.len() as u64
        })
        .await;
    }
    let mut from = Vec::new();
    for _ in 0..4 {
        from.push(soon(&runtime, "accept", acceptor.accept()).await.unwrap().node());
    }
    assert_eq!(from, [loud.own_id(), loud.own_id(), other.own_id(), other.own_id()]);
    assert_eq!(a.driver_metrics().accepts_refused, 1);
    shutdown(&runtime, &[&a, &loud, &beside, &other]).await;
}

async fn protocol_has_one_acceptor_until_it_is_dropped<R: Rt>(runtime: R) {
    let (a, b) = (start(&runtime, 1).await, start(&runtime, 2).await);
    connect(&runtime, &b, &a).await;
    let open = async || {
        soon(&runtime, "open", b.open_stream(a.own_id(), "once/1", RequestOptions::default())).await
    };
    let unsupported = |ended: Result<Stream, NodeError>| {
        assert!(matches!(ended, Err(NodeError::Failure(Failure::Unsupported))), "{ended:?}");
    };
    unsupported(open().await);
    let acceptor = a.accept_streams("once/1").await.unwrap();
    let again = a.accept_streams("once/1").await;
    assert!(matches!(&again, Err(NodeError::ProtocolTaken(name)) if name == "once/1"), "{again:?}");
    let mut waiting = open().await.unwrap();
    drop(acceptor);
    let aborted = soon(&runtime, "the abort of what waited", waiting.read(&mut [0; 1])).await;
    assert!(matches!(aborted, Err(StreamError::Reset(_))), "{aborted:?}");
    until(&runtime, "the refusal", async || open().await.is_err()).await;
    unsupported(open().await);
    let mut acceptor = a.accept_streams("once/1").await.unwrap();
    let _ours = open().await.unwrap();
    assert_eq!(soon(&runtime, "accept", acceptor.accept()).await.unwrap().node(), b.own_id());
    for name in ["", "\u{7f}", "ü", &"x".repeat(65)] {
        let refused = a.accept_streams(name).await;
        assert!(
            matches!(refused, Err(NodeError::Request(RequestError::Protocol))),
            "{name:?}: {refused:?}"
        );
        let refused = b.open_stream(a.own_id(), name, RequestOptions::default()).await;
        assert!(
            matches!(refused, Err(NodeError::Request(RequestError::Protocol))),
            "{name:?}: {refused:?}"
        );
    }
    shutdown(&runtime, &[&a, &b]).await;
}

async fn stream_directions_end_independently<R: Rt>(runtime: R) {
    let (a, b) = (start(&runtime, 1).await, start(&runtime, 2).await);
    connect(&runtime, &b, &a).await;
    let mut acceptor = a.accept_streams("ends/1").await.unwrap();
    let mut pair = async || {
        let ours =
            soon(&runtime, "open", b.open_stream(a.own_id(), "ends/1", RequestOptions::default()))
                .await
                .unwrap();
        (ours, soon(&runtime, "accept", acceptor.accept()).await.unwrap())
    };
    // A half-closed stream continues in the other direction.
    let (mut ours, mut theirs) = pair().await;
    ours.write_all(b"question").await.unwrap();
    ours.finish().unwrap();
    assert_eq!(soon(&runtime, "read", theirs.read_to_end(100)).await.unwrap(), b"question");
    theirs.write_all(b"answer").await.unwrap();
    soon(&runtime, "the acknowledgement", theirs.finish_and_wait()).await.unwrap();
    assert_eq!(soon(&runtime, "read", ours.read_to_end(100)).await.unwrap(), b"answer");
    assert_eq!(ours.write(b"x").await, Err(StreamError::Ended));
    // Codes are received and kept.
    let (mut ours, mut theirs) = pair().await;
    ours.reset(77);
    assert_eq!(
        soon(&runtime, "reset", theirs.read(&mut [0; 1])).await,
        Err(StreamError::Reset(77))
    );
    assert_eq!(theirs.read(&mut [0; 1]).await, Err(StreamError::Reset(77)));
    ours.stop(78);
    until(&runtime, "stop", async || theirs.write(b"x").await == Err(StreamError::Stopped(78)))
        .await;
    // Dropping aborts.
    let (ours, mut theirs) = pair().await;
    drop(ours);
    assert_eq!(soon(&runtime, "drop", theirs.read(&mut [0; 1])).await, Err(StreamError::Reset(0)));
    until(&runtime, "no stream is held", async || {
        b.driver_metrics().transport.application_streams == 0
    })
    .await;
    shutdown(&runtime, &[&a, &b]).await;
}

async fn unread_stream_blocks_only_its_writer<R: Rt>(runtime: R) {
    let (a, b) = (start(&runtime, 1).await, start(&runtime, 2).await);
    pk_tests::node::echo(&runtime, &a, "echo/1").await;
    let mut acceptor = a.accept_streams("unread/1").await.unwrap();
    connect(&runtime, &b, &a).await;
    // The window, and the bytes that the driver reads before the application does.
    let window = TransportSettings::default().stream_window as usize;
    let most = window + TransportSettings::APPLICATION_BUFFER;
    let mut ours =
        soon(&runtime, "open", b.open_stream(a.own_id(), "unread/1", RequestOptions::default()))
            .await
            .unwrap();
    let theirs = soon(&runtime, "accept", acceptor.accept()).await.unwrap();
    let mut written = 0;
    while let Some(len) =
        try_within(&runtime, Duration::from_millis(500), ours.write(&[0; 4096])).await
    {
        written += len.unwrap();
        assert!(
            written <= most,
            "{written} bytes were accepted that are not read, more than {most}"
        );
    }
    // The few bytes that opened the stream have used up some of it.
    assert!(written > window - 1024, "only {written} bytes");
    exchange(&runtime, &b, a.own_id(), "echo/1", 100_000).await;
    soon(&runtime, "ping", b.ping_node(a.own_id(), RequestOptions::default())).await.unwrap();
    drop((ours, theirs));
    shutdown(&runtime, &[&a, &b]).await;
}

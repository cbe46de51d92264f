//! A node that is killed sends nothing more.

use std::time::{Duration, Instant};

use pk_driver::{EventOrLag, NodeError};
use pk_proto::DisconnectReason;
use pk_proto::{Event, Failure, FindEnd, FindStepEnd, RequestOptions};
use pk_tests::Rt;
use pk_tests::child::{Child, seed_node_of};
use pk_tests::node::{connect, find, options, seed, shutdown, start, start_with};
use pk_tests::wait::{sleep, soon, until, within};
use smol::future::zip;

use crate::NODE;

pk_tests::cases!(
    killed_node_is_detected_in_bounded_time,
    write_to_an_application_stream_detects_a_killed_peer,
);

/// Idle timeout; its minimum is one second.
const IDLE: Duration = Duration::from_secs(3);
/// Tolerance of a deadline on a busy machine.
const SLACK: Duration = Duration::from_secs(5);

async fn killed_node_is_detected_in_bounded_time<R: Rt>(runtime: R) {
    let impatient = |config: &mut pk_driver::NodeConfig| {
        config.driver.transport.idle_timeout = IDLE;
        config.driver.transport.keep_alive = IDLE / 4;
    };
    let a = start_with(&runtime, 2, impatient).await;
    let mut child = Child::start::<R>(NODE, &["node", "key=1", "idle_timeout=60000"]);
    let killed = seed_node_of(&child.line(&runtime, "start of the child").await);
    child.ask(&runtime, &format!("join {}", seed(&a))).await;
    let mut lease =
        soon(&runtime, "acquire", a.acquire_connection(killed.node, RequestOptions::default()))
            .await
            .unwrap();
    let mut events = a.events();

    child.kill();
    let begun = Instant::now();
    // A node that never connected to it: A still returns it, and it does not answer.
    let searcher = start(&runtime, 3).await;
    connect(&runtime, &searcher, &a).await;
    let searches = async {
        let begun = Instant::now();
        let limits = options(Duration::from_secs(4), Duration::from_secs(1));
        let found = within(
            &runtime,
            limits.deadline.unwrap() + SLACK,
            "find",
            searcher.find_node(killed.node, find(limits)),
        );
        let found = found.await.unwrap();
        assert_eq!((&found.found, found.ended), (&None, FindEnd::Exhausted), "{found:?}");
        let step = found.trace.iter().find(|step| step.node == killed.node).expect("it was dialed");
        assert!(matches!(&step.end, FindStepEnd::Unreachable(why) if !why.is_empty()), "{step:?}");
        let ping = within(
            &runtime,
            limits.deadline.unwrap() + SLACK,
            "ping",
            searcher.ping_node(killed.node, limits),
        )
        .await;
        let error = ping.unwrap_err();
        assert!(
            matches!(&error, NodeError::Failure(Failure::NotFound(why)) if !why.is_empty()),
            "{error:?}"
        );
        assert!(error.to_string().contains("was not found"), "{error}");
        println!("{}: a searcher: {error}, both searches in {:?}", R::NAME, begun.elapsed());
        // The deadline precedes the failure of the dial.
        let limits = options(Duration::from_millis(300), Duration::from_secs(60));
        let found = within(&runtime, SLACK, "find", searcher.find_node(killed.node, find(limits)))
            .await
            .unwrap();
        assert_eq!((&found.found, found.ended), (&None, FindEnd::Deadline), "{found:?}");
        let ping = within(&runtime, SLACK, "ping", searcher.ping_node(killed.node, limits)).await;
        assert!(matches!(ping, Err(NodeError::Failure(Failure::DeadlineExceeded))), "{ping:?}");
    };
    // A node that was connected to it.
    let peer = async {
        let pinged = soon(
            &runtime,
            "a ping of the dead",
            a.ping_node(killed.node, RequestOptions::default()),
        )
        .await;
        assert!(
            // The silent connection was suspected, and the node was dialed again.
            matches!(&pinged, Err(NodeError::Failure(Failure::NotFound(why))) if !why.is_empty()),
            "{pinged:?}"
        );
        let gone = async {
            loop {
                match events.next().await {
                    Some(EventOrLag::Event(Event::ConnectionClosed { node, why, .. }))
                        if node == killed.node =>
                    {
                        return why;
                    }
                    Some(_) => {}
                    None => panic!("the node has ended"),
                }
            }
        };
        let why = within(&runtime, IDLE + SLACK, "it is reported gone", gone).await;
        println!("{}: a peer: {why} after {:?}", R::NAME, begun.elapsed());
        assert_eq!(why, DisconnectReason::TimedOut);
        soon(&runtime, "the loss of the lease", lease.lost()).await;
        let left = a.connections().await.unwrap();
        assert!(left.iter().all(|connection| connection.node != killed.node), "{left:?}");
    };
    zip(searches, peer).await;

    // It restarts with the same id and address, and is found.
    let port = format!("port={}", killed.address.port);
    let again = Child::start::<R>(NODE, &["node", "key=1", &port]);
    assert_eq!(seed_node_of(&again.line(&runtime, "start of the child").await), killed);
    let found = soon(
        &runtime,
        "find",
        searcher.find_node(killed.node, pk_proto::FindNodeOptions::default()),
    )
    .await
    .unwrap();
    assert!(found.found.is_some(), "{found:?}");
    shutdown(&runtime, &[&a, &searcher]).await;
}

/// Time in which a connection is suspected after a byte was sent to a dead peer.
const SUSPECTED: Duration = Duration::from_secs(2);

async fn write_to_an_application_stream_detects_a_killed_peer<R: Rt>(runtime: R) {
    let a = start(&runtime, 2).await;
    let mut child = Child::start::<R>(NODE, &["node", "key=1"]);
    let killed = seed_node_of(&child.line(&runtime, "start of the child").await);
    child.ask(&runtime, "echo held/1").await;
    soon(&runtime, "connect", a.connect(killed.node, killed.address, RequestOptions::default()))
        .await
        .unwrap();
    let opened = a.open_stream(killed.node, "held/1", RequestOptions::default());
    let mut stream = soon(&runtime, "open a stream", opened).await.unwrap();
    stream.write_all(b"x").await.unwrap();
    assert_eq!(soon(&runtime, "echo", stream.read(&mut [0; 1])).await, Ok(1));
    let suspected =
        async || a.connections().await.unwrap().iter().any(|connection| connection.suspected);
    // Long enough that all checks have ended.
    sleep(&runtime, Duration::from_secs(2)).await;
    assert!(!suspected().await, "an idle stream sends nothing");

    child.kill();
    stream.write_all(b"x").await.unwrap();
    let begun = Instant::now();
    until(&runtime, "a suspicion", suspected).await;
    println!("{}: suspected after {:?}", R::NAME, begun.elapsed());
    assert!(begun.elapsed() < SUSPECTED, "{:?}", begun.elapsed());
    shutdown(&runtime, &[&a]).await;
}

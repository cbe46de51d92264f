//! Times that round to zero, and the maximum time.

use std::time::Duration;

use pk_proto::{Input, Instant, Request, RequestOptions, UnixMillis};

use crate::common::{Bare, address, hello, ms};

const TINY: Duration = Duration::from_nanos(1);

#[test]
fn delay_under_a_microsecond_does_not_prevent_the_end_of_a_call() {
    let mut bare = Bare::starting(|config| {
        config.retry_delay = TINY;
        config.refresh_delay = TINY;
        config.store_delay = TINY;
        config.collect_interval = TINY;
        config.connection_idle_scale = TINY;
    });
    bare.input(Input::Listening { addrs: vec!["192.0.2.1:1314".parse().unwrap()] });
    let conn = bare.accept(Bare::peer(1));
    bare.node.disconnect(Bare::peer(1), bare.now);
    bare.input(Input::Disconnected { conn, why: pk_proto::DisconnectReason::Local });
    for _ in 0..10 {
        bare.suspend(Duration::from_secs(1));
        // Repeated timers are due later, so that a driver can wait between two calls.
        let next = bare.node.poll_timeout().unwrap();
        assert!(next > bare.now, "{next:?}");
    }
    let repeats = bare.node.metrics().timeouts;
    bare.pass(Duration::from_secs(1));
    assert!(bare.node.metrics().timeouts - repeats < 5000);
}

#[test]
fn stop_with_the_minimal_timeout_stops_at_once() {
    let mut bare = Bare::new(|config| config.stop_timeout = TINY);
    bare.accept(Bare::peer(1));
    bare.node.stop(bare.now);
    bare.pass(Duration::from_micros(1));
    assert!(bare.node.is_stopped());
}

#[test]
fn node_survives_the_maximum_time() {
    for now in
        [Instant::FAR_FUTURE, Instant::from_micros(u64::MAX - 1), Instant::FAR_FUTURE - ms(1)]
    {
        let mut bare = Bare::new(|config| {
            config.retry_delay = Duration::from_secs(1);
            config.refresh_delay = Duration::from_secs(1);
        });
        bare.accept(Bare::peer(1));
        bare.input(Input::WallClock(UnixMillis(u64::MAX)));
        bare.now = now;
        bare.node.handle_timeout(now);
        bare.drain();
        let address = address("192.0.2.9:1");
        bare.request(Request::Connect {
            target: Bare::peer(3),
            address,
            options: RequestOptions::default(),
        });
        bare.node.handle_timeout(now);
        bare.node.stop(now);
        bare.drain();
        bare.node.handle_timeout(Instant::FAR_FUTURE);
    }
}

#[test]
fn hello_timeout_is_independent_of_the_call_timeout() {
    let mut bare = Bare::new(|config| {
        config.call_timeout = ms(100);
        config.hello_timeout = Duration::from_secs(10);
    });
    let conn = pk_proto::ConnectionId(bare.next_id());
    let remote = "198.51.100.1:1314".parse().unwrap();
    bare.connected(conn, pk_proto::Side::Acceptor, Bare::peer(1), remote, 9);
    let control = bare.opened(conn);
    bare.pass(Duration::from_secs(9));
    bare.feed(control, &hello(), false);
    assert_eq!((bare.node.connections().len(), bare.node.metrics().stream_timeouts), (1, 0));
    // From then on the timeout of calls applies to a stream.
    bare.opened(conn);
    bare.pass(ms(100));
    assert_eq!(bare.node.metrics().stream_timeouts, 1);
}

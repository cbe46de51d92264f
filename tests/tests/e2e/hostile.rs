//! Misbehaving peers with a valid identity: each is disconnected in bounded time, is counted, and
//! uses bounded memory.
//!
//! The victim runs in a process of its own under a counting allocator (`pk-test-node`), so that the
//! measurement contains all memory of the node and none of the peers. The tests limit the peak of
//! allocated bytes, relative to the same node before, per peer.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use pk_driver::DriverConfig;
use pk_proto::native::V1;
use pk_proto::{Config, RequestOptions, RpcRequest, SeedNode};
use pk_tests::Rt;
use pk_tests::certs::Presented;
use pk_tests::child::{Child, number, seed_node_of};
use pk_tests::node::{key, shutdown, start};
use pk_tests::raw;
use pk_tests::wait::{SOON, all, seen_within, sleep, soon, try_within, within};
use quinn::{Connection, RecvStream, SendStream, TransportConfig, VarInt};
use serde_json::Value;
use smol::future::{or, zip};

use crate::NODE;

pk_tests::cases!(
    peer_that_sends_nothing_is_disconnected,
    peer_that_opens_a_stream_and_sends_a_byte_is_disconnected,
    peer_that_sends_garbage_is_disconnected,
    peer_that_announces_a_frame_over_the_limit_is_disconnected,
    peer_that_sends_a_request_before_hello_is_disconnected,
    peer_that_sends_hello_a_byte_at_a_time_is_disconnected,
    peer_with_silent_streams_is_disconnected,
    peer_with_endless_streams_uses_bounded_memory,
    peer_that_fills_every_window_is_disconnected,
    peer_that_never_reads_is_disconnected,
    peer_that_resets_streams_uses_bounded_memory,
    peer_that_connects_repeatedly_uses_bounded_memory,
    closed_connections_release_their_memory,
);

pk_tests::cases!(
    flood_of_first_packets_is_limited,
    flood_of_closed_first_packets_is_limited,
    flood_of_junk_does_not_prevent_service
);

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;

/// Peers that attack at a time.
const PEERS: u64 = 8;

/// Memory of a connection without its streams, during its handshake and after.
const CONNECTION: u64 = 64 * KIB;

/// Memory of a stream without its bytes.
const STREAM: u64 = 3 * KIB;

/// Streams that a peer may have open at a time.
const STREAMS: u64 = 100;

/// Memory that a node keeps, such as capacity of tables, after all peers have disconnected.
const LEFT: u64 = 128 * KIB;

/// The timeouts of the victim are short, so that the cases are short.
const SETTINGS: [&str; 6] = [
    "node",
    "hello_timeout=1500",
    "call_timeout=1500",
    "handshake_timeout=2000",
    "idle_timeout=5000",
    "keep_alive=1000",
];

/// Limit for each of the timeouts above on a busy machine.
const DROPPED: Duration = Duration::from_secs(12);

/// A node to attack, in a process of its own.
struct Victim<R> {
    runtime: R,
    child: Child,
    at: SeedNode,
    base: Value,
}

impl<R: Rt> Victim<R> {
    async fn start(runtime: &R) -> Self {
        let child = Child::start::<R>(NODE, &SETTINGS);
        let at = seed_node_of(&child.line(runtime, "start of the victim").await);
        let mut victim = Self { runtime: runtime.clone(), child, at, base: Value::Null };
        // Memory that is allocated at the first use does not count.
        victim.assert_serves().await;
        victim.base = victim.wait_until_idle().await;
        victim.child.ask(runtime, "reset").await;
        victim
    }

    async fn metrics(&mut self) -> Value {
        self.child.ask(&self.runtime, "metrics").await
    }

    /// Waits until it has no connections, also in QUIC, and no tasks for them. Returns its counters
    /// then.
    async fn wait_until_idle(&mut self) -> Value {
        let runtime = self.runtime.clone();
        seen_within(&runtime, DROPPED, "a victim that rests", async || {
            let metrics = self.metrics().await;
            // The pump.
            let rests = number(&metrics, "/driver/tasks") == 1
                && number(&metrics, "/driver/connections") == 0
                && number(&metrics, "/driver/connections_closing") == 0
                && number(&metrics, "/driver/handshakes_pending") == 0;
            rests.then_some(metrics)
        })
        .await
    }

    /// Fails if an honest node is not served.
    async fn assert_serves(&self) {
        let runtime = &self.runtime;
        let honest = start(runtime, 2).await;
        let limits = RequestOptions { deadline: None, connect_timeout: Some(SOON) };
        let connected =
            soon(runtime, "connect", honest.connect(self.at.node, self.at.address.clone(), limits))
                .await;
        connected.unwrap_or_else(|error| panic!("an honest node is not served: {error}"));
        soon(runtime, "ping", honest.ping_node(self.at.node, limits)).await.unwrap();
        shutdown(runtime, &[&honest]).await;
    }

    /// Returns the growth of a memory counter since the start.
    fn growth_since_start(&self, now: &Value, what: &str) -> u64 {
        number(now, what).saturating_sub(number(&self.base, "/bytes"))
    }
}

/// Expected result of an attack by one peer.
struct Expected {
    /// The code of the close by the victim.
    code: u64,
    /// A counter, and the least that it counts for each peer.
    counter: (&'static str, u64),
    /// The most memory for each peer, in bytes, beside [`CONNECTION`].
    bytes: u64,
}

/// The code of a connection that broke the protocol.
const FAULT: u64 = 16;

/// [`PEERS`] peers attack a victim until they are dropped.
async fn attacked<R: Rt>(
    runtime: &R,
    what: &str,
    transport: fn() -> TransportConfig,
    attack: impl AsyncFn(&Connection),
    expected: Expected,
) {
    let mut victim = Victim::start(runtime).await;
    let ends = all((0..PEERS).map(|n| {
        let presented = Presented::valid(&key(100 + n as u8));
        let (attack, addr) = (&attack, victim.at.address.socket().unwrap());
        async move {
            let endpoint = raw::endpoint(runtime, None);
            let config = raw::client(Some(&presented), &[raw::NATIVE], transport());
            let connection =
                soon(runtime, "dial", raw::dial(&endpoint, config, addr)).await.unwrap();
            let begun = Instant::now();
            let ended = or(
                async {
                    attack(&connection).await;
                    // The attacker has done its part, and stays connected.
                    connection.closed().await
                },
                connection.closed(),
            );
            (within(runtime, DROPPED, what, ended).await, begun.elapsed())
        }
    }))
    .await;
    let slowest = ends.iter().map(|(_, took)| *took).max().unwrap();
    for (end, _) in &ends {
        assert_eq!(raw::close_code(end), Some(expected.code), "{what}: {end}");
    }
    let after = victim.wait_until_idle().await;
    let (name, least) = expected.counter;
    let counted = number(&after, name) - number(&victim.base, name);
    let (peak, left) =
        (victim.growth_since_start(&after, "/peak"), victim.growth_since_start(&after, "/bytes"));
    let bound = PEERS * (CONNECTION + expected.bytes);
    println!(
        "{}: {what}: dropped within {slowest:?}; {} KiB by peer at the peak, of {} KiB allowed; {} KiB left; {counted} {name}",
        R::NAME,
        peak / PEERS / KIB,
        bound / PEERS / KIB,
        left / KIB,
    );
    assert!(counted >= PEERS * least, "{name} has counted {counted}");
    assert!(peak <= bound, "{peak} bytes, more than {bound}");
    assert!(left <= LEFT, "{left} bytes are left");
    victim.assert_serves().await;
}

/// Maximum memory for bytes that the peer sends: the windows of QUIC, and the buffers of the core.
fn received() -> u64 {
    u64::from(DriverConfig::default().transport.receive_window) + Config::default().receive_window
}

/// A stream with these bytes on it. The caller must keep both halves.
async fn stream_with(connection: &Connection, bytes: &[u8]) -> Option<(SendStream, RecvStream)> {
    let (mut send, recv) = connection.open_bi().await.ok()?;
    send.write_all(bytes).await.ok()?;
    Some((send, recv))
}

async fn peer_that_sends_nothing_is_disconnected<R: Rt>(runtime: R) {
    let expected = Expected { code: FAULT, counter: ("/core/hello_timeouts", 1), bytes: 0 };
    attacked(&runtime, "silence", raw::transport, async |_| (), expected).await;
}

async fn peer_that_opens_a_stream_and_sends_a_byte_is_disconnected<R: Rt>(runtime: R) {
    let expected = Expected { code: FAULT, counter: ("/core/hello_timeouts", 1), bytes: 0 };
    let byte = async |connection: &Connection| {
        let _open = stream_with(connection, &[0]).await;
        connection.closed().await;
    };
    attacked(&runtime, "a byte", raw::transport, byte, expected).await;
}

async fn peer_that_sends_garbage_is_disconnected<R: Rt>(runtime: R) {
    let expected = Expected { code: FAULT, counter: ("/core/stream_faults", 1), bytes: 16 * KIB };
    let garbage = async |connection: &Connection| {
        // The length of a frame that is complete and has no content.
        let mut bytes = vec![0xa5; 4096];
        bytes[..4].copy_from_slice(&1000u32.to_be_bytes());
        let _open = stream_with(connection, &bytes).await;
        connection.closed().await;
    };
    attacked(&runtime, "garbage", raw::transport, garbage, expected).await;
}

async fn peer_that_announces_a_frame_over_the_limit_is_disconnected<R: Rt>(runtime: R) {
    let expected = Expected { code: FAULT, counter: ("/core/stream_faults", 1), bytes: 0 };
    let oversized = async |connection: &Connection| {
        let _open = stream_with(connection, &u32::MAX.to_be_bytes()).await;
        connection.closed().await;
    };
    attacked(&runtime, "an oversized frame", raw::transport, oversized, expected).await;
}

async fn peer_that_sends_a_request_before_hello_is_disconnected<R: Rt>(runtime: R) {
    let expected =
        Expected { code: FAULT, counter: ("/core/early_refused", 1), bytes: 20 * STREAM };
    let asks = async |connection: &Connection| {
        let mut open = Vec::new();
        for _ in 0..20 {
            open.push(stream_with(connection, &ping()).await);
        }
        connection.closed().await;
    };
    attacked(&runtime, "questions before Hello", raw::transport, asks, expected).await;
}

async fn peer_that_sends_hello_a_byte_at_a_time_is_disconnected<R: Rt>(runtime: R) {
    let expected = Expected { code: FAULT, counter: ("/core/hello_timeouts", 1), bytes: 0 };
    let tasks = runtime.clone();
    let slowly = async |connection: &Connection| {
        let Some((mut send, _recv)) = stream_with(connection, &[]).await else { return };
        for byte in raw::hello() {
            if send.write_all(&[byte]).await.is_err() {
                return;
            }
            sleep(&tasks, Duration::from_millis(300)).await;
        }
    };
    attacked(&runtime, "a slow Hello", raw::transport, slowly, expected).await;
}

async fn peer_with_silent_streams_is_disconnected<R: Rt>(runtime: R) {
    let expected =
        Expected { code: FAULT, counter: ("/core/stream_timeouts", 16), bytes: STREAMS * STREAM };
    let silent = async |connection: &Connection| {
        let Ok(_control) = raw::greet(connection).await else { return };
        let mut open = Vec::new();
        // As many as allowed, and one more as soon as it is allowed.
        while let Some(stream) = stream_with(connection, &[0, 0]).await {
            open.push(stream);
        }
    };
    attacked(&runtime, "silent streams", raw::transport, silent, expected).await;
}

async fn peer_that_fills_every_window_is_disconnected<R: Rt>(runtime: R) {
    let expected = Expected {
        code: FAULT,
        counter: ("/core/stream_timeouts", 16),
        bytes: STREAMS * STREAM + received(),
    };
    let greedy = async |connection: &Connection| {
        let Ok(_control) = raw::greet(connection).await else { return };
        // Frames without their last byte, on all streams, as far as the windows of QUIC allow.
        let mut frame = vec![0; 4 + 65_535];
        frame[..4].copy_from_slice(&65_536u32.to_be_bytes());
        let streams = Config::default().streams_per_connection - 1;
        all((0..streams).map(|_| async {
            let open = stream_with(connection, &frame).await;
            connection.closed().await;
            drop(open);
        }))
        .await;
    };
    attacked(&runtime, "full windows", raw::transport, greedy, expected).await;
}

async fn peer_that_never_reads_is_disconnected<R: Rt>(runtime: R) {
    let expected =
        Expected { code: FAULT, counter: ("/core/send_overflows", 16), bytes: STREAMS * STREAM };
    // Windows for the Hello of the victim, and for very little on any stream.
    let narrow = || {
        let mut transport = raw::transport();
        transport.stream_receive_window(VarInt::from_u32(1)).receive_window(VarInt::from_u32(1));
        transport
    };
    let tasks = runtime.clone();
    let deaf = async |connection: &Connection| {
        let mut open = vec![stream_with(connection, &raw::hello()).await];
        // More requests before the Hello than are held would be another fault.
        sleep(&tasks, Duration::from_millis(300)).await;
        loop {
            match connection.open_bi().await {
                Ok((mut send, recv)) => {
                    if send.write_all(&ping()).await.is_err() || send.finish().is_err() {
                        continue;
                    }
                    open.push(Some((send, recv)));
                }
                Err(_) => return,
            }
        }
    };
    attacked(&runtime, "never reads", narrow, deaf, expected).await;
}

fn ping() -> Bytes {
    raw::frame(V1::Call { deadline_ms: 10_000, request: RpcRequest::Ping { nonce: 1 } })
}

/// For a second a peer ends one stream after the other in a way that is no fault. The memory does
/// not grow with the number of streams.
async fn assert_bounded_cost<R: Rt>(
    runtime: &R,
    what: &str,
    least: u64,
    stream: impl AsyncFn(SendStream, RecvStream),
) {
    let mut victim = Victim::start(runtime).await;
    let endpoint = raw::endpoint(runtime, None);
    let config = raw::valid_client(&Presented::valid(&key(100)));
    let addr = victim.at.address.socket().unwrap();
    let connection = soon(runtime, "dial", raw::dial(&endpoint, config, addr)).await.unwrap();
    let control = soon(runtime, "greet", raw::greet(&connection)).await.unwrap();
    let mut streams = 0;
    let all_the_time = async {
        while let Ok((send, recv)) = connection.open_bi().await {
            soon(runtime, what, stream(send, recv)).await;
            streams += 1;
        }
    };
    let dropped = try_within(runtime, Duration::from_secs(1), all_the_time).await;
    let during = victim.metrics().await;
    victim.assert_serves().await;
    drop((control, connection));
    let after = victim.wait_until_idle().await;
    let (peak, left) =
        (victim.growth_since_start(&after, "/peak"), victim.growth_since_start(&after, "/bytes"));
    println!(
        "{}: {what}: {streams} streams, {}; {} KiB at the peak, {} KiB left",
        R::NAME,
        dropped.map_or("the peer stays", |()| "then the peer was dropped"),
        peak / KIB,
        left / KIB,
    );
    assert!(streams > least, "only {streams} streams");
    assert!(number(&during, "/core/streams") <= STREAMS, "{during}");
    // The peer, its streams and bytes, and the honest node that is served beside it.
    let bound = 2 * CONNECTION + STREAMS * STREAM + received();
    assert!(peak <= bound, "{peak} bytes, more than {bound}");
    assert!(left <= LEFT, "{left} bytes are left");
}

async fn peer_that_resets_streams_uses_bounded_memory<R: Rt>(runtime: R) {
    assert_bounded_cost(&runtime, "reset streams", 100, async |mut send, mut recv| {
        let _ = send.write_all(&ping()[..6]).await;
        let _ = (send.reset(VarInt::from_u32(9)), recv.stop(VarInt::from_u32(9)));
    })
    .await;
}

async fn peer_with_endless_streams_uses_bounded_memory<R: Rt>(runtime: R) {
    assert_bounded_cost(&runtime, "endless streams", 20, async |mut send, _recv| {
        // A request, and then further bytes until the stream is stopped.
        let _ = send.write_all(&ping()).await;
        while send.write_all(&[0xa5; 4096]).await.is_ok() {}
    })
    .await;
}

async fn peer_that_connects_repeatedly_uses_bounded_memory<R: Rt>(runtime: R) {
    let mut victim = Victim::start(&runtime).await;
    let endpoint = raw::endpoint(&runtime, None);
    let presented = Presented::valid(&key(100));
    let addr = victim.at.address.socket().unwrap();
    let mut held = Vec::new();
    for _ in 0..20 {
        let config = raw::valid_client(&presented);
        let connection = soon(&runtime, "dial", raw::dial(&endpoint, config, addr)).await.unwrap();
        let control = soon(&runtime, "greet", raw::greet(&connection)).await.unwrap();
        held.push((connection, control));
    }
    // Each connection over the limit replaces the least recently used one.
    let limit = Config::default().connections_per_node;
    let (gone, kept) = held.split_at(held.len() - limit);
    for (connection, _) in gone {
        let end = soon(&runtime, "the end", connection.closed()).await;
        assert_eq!(raw::close_code(&end), Some(0), "{end}");
    }
    assert!(kept.iter().all(|(connection, _)| connection.close_reason().is_none()));
    let during = victim.metrics().await;
    assert_eq!(number(&during, "/core/connections_evicted"), gone.len() as u64);
    assert_eq!(number(&during, "/core/connections"), limit as u64);
    drop(held);
    let after = victim.wait_until_idle().await;
    let left = victim.growth_since_start(&after, "/bytes");
    println!(
        "{}: 20 connections of one peer: {} KiB at the peak",
        R::NAME,
        victim.growth_since_start(&after, "/peak") / KIB
    );
    assert!(left <= LEFT, "{left} bytes are left");
    victim.assert_serves().await;
}

/// Memory that is not released would accumulate over the rounds.
async fn closed_connections_release_their_memory<R: Rt>(runtime: R) {
    // Until tables and buffers have the size that these rounds need.
    const WARM_UP: usize = 20;
    const ROUNDS: usize = 20;
    let mut victim = Victim::start(&runtime).await;
    let addr = victim.at.address.socket().unwrap();
    let endpoint = raw::endpoint(&runtime, None);
    let mut left = Vec::new();
    for _ in 0..=WARM_UP + ROUNDS {
        all((0..PEERS).map(|n| {
            let (runtime, endpoint) = (&runtime, &endpoint);
            let config = raw::valid_client(&Presented::valid(&key(100 + n as u8)));
            async move {
                let connection =
                    soon(runtime, "dial", raw::dial(endpoint, config, addr)).await.unwrap();
                let Ok(_control) = soon(runtime, "greet", raw::greet(&connection)).await else {
                    return;
                };
                for _ in 0..8 {
                    let Some((mut send, mut recv)) = stream_with(&connection, &ping()).await else {
                        return;
                    };
                    let _ = send.finish();
                    soon(runtime, "answer", recv.read_to_end(1000)).await.unwrap();
                }
                let mut held = Vec::new();
                for n in 0..8 {
                    held.push(stream_with(&connection, &ping()[..n]).await);
                }
                match n % 4 {
                    0 => connection.close(VarInt::from_u32(0), b""),
                    1 => connection.close(VarInt::from_u32(77), &[0xa5; 1000]),
                    2 => drop(stream_with(&connection, &u32::MAX.to_be_bytes()).await),
                    // Dropped without a close.
                    _ => {}
                }
            }
        }))
        .await;
        left.push(number(&victim.wait_until_idle().await, "/bytes"));
    }
    let left = left.split_off(WARM_UP);
    let grown = growth(&left);
    println!(
        "{}: {ROUNDS} rounds of {PEERS} peers: {grown} bytes more a round, of {left:?}",
        R::NAME
    );
    assert!(grown <= 50 * PEERS as i64, "{grown} bytes are left of {PEERS} peers: {left:?}");
}

/// Growth of the memory per round: the median, since a table that doubles grows once, but a leak
/// grows in every round.
fn growth(left: &[u64]) -> i64 {
    let mut steps: Vec<_> = left.windows(2).map(|pair| pair[1] as i64 - pair[0] as i64).collect();
    steps.sort_unstable();
    steps[steps.len() / 2]
}

#[test]
fn leak_is_distinguished_from_a_table_that_doubles() {
    let rounds = |leak: u64| {
        (0..13).map(move |n| 3_000_000 + n * leak + (n % 3) * 300 + if n > 6 { 9000 } else { 0 })
    };
    assert!(growth(&rounds(0).collect::<Vec<_>>()) <= 50 * PEERS as i64);
    assert!(growth(&rounds(60 * PEERS).collect::<Vec<_>>()) > 50 * PEERS as i64);
}

// -- before a handshake has completed

/// Sends `each` first packets from each of these networks, whose senders never answer.
async fn flooded<R: Rt>(runtime: &R, networks: u8, each: usize, pending_bound: u64) {
    let mut victim = Victim::start(runtime).await;
    let addr = victim.at.address.socket().unwrap();
    let config = raw::valid_client(&Presented::valid(&key(100)));
    let mut dials = Vec::new();
    let mut endpoints = Vec::new();
    for network in 0..networks {
        let endpoint = raw::deaf_endpoint(runtime, Ipv4Addr::new(127, 0, network, 1).into());
        for _ in 0..each {
            dials.push(endpoint.connect_with(config.clone(), addr, "polykey").unwrap());
        }
        endpoints.push(endpoint);
    }
    let all = dials.len() as u64;
    let mut pending = 0;
    let what = "the victim sees the flood";
    seen_within(runtime, SOON, what, async || {
        let metrics = victim.metrics().await;
        let now = number(&metrics, "/driver/handshakes_pending");
        assert!(
            now <= pending_bound,
            "{now} handshakes are in progress, more than {pending_bound}"
        );
        pending = pending.max(now);
        let seen = [
            "handshakes",
            "handshakes_retried",
            "handshakes_refused",
            "handshakes_refused_network",
        ];
        let seen: u64 = seen.iter().map(|name| number(&metrics, &format!("/driver/{name}"))).sum();
        (seen >= all).then_some(())
    })
    .await;
    // An honest node of the flooding network connects nevertheless: it answers the Retry.
    victim.assert_serves().await;
    seen_within(runtime, DROPPED, "the victim gives up those that began", async || {
        let metrics = victim.metrics().await;
        let now = number(&metrics, "/driver/handshakes_pending");
        assert!(
            now <= pending_bound,
            "{now} handshakes are in progress, more than {pending_bound}"
        );
        (number(&metrics, "/driver/handshakes_timed_out") >= pending_bound).then_some(())
    })
    .await;
    drop((dials, endpoints));
    let after = victim.wait_until_idle().await;
    let (peak, left) =
        (victim.growth_since_start(&after, "/peak"), victim.growth_since_start(&after, "/bytes"));
    let retried = number(&after, "/driver/handshakes_retried");
    println!(
        "{}: {all} first packets: {pending} handshakes at a time, {retried} retries; {} KiB at the peak, {} KiB left",
        R::NAME,
        peak / KIB,
        left / KIB
    );
    assert_eq!(pending, pending_bound, "the flood was not one");
    assert!(retried > 0, "no peer was asked to retry");
    // Four that were abandoned a short while ago count as one.
    assert!(peak <= (4 * pending_bound + 2) * CONNECTION + MIB, "{peak} bytes");
    assert!(left <= 4 * LEFT, "{left} bytes are left");
}

/// From one network, and concurrently (with another victim) from many.
async fn flood_of_first_packets_is_limited<R: Rt>(runtime: R) {
    let config = DriverConfig::default().transport;
    zip(
        flooded(&runtime, 1, 200, config.handshake_network_limit as u64 / 2),
        flooded(&runtime, 16, 16, config.handshake_limit as u64 / 2),
    )
    .await;
}

/// A first packet and a second that closes, both of which may have a forged sender. QUIC keeps
/// closed connections for some time, and the limits count them.
async fn flood_of_closed_first_packets_is_limited<R: Rt>(runtime: R) {
    let mut victim = Victim::start(&runtime).await;
    let addr = victim.at.address.socket().unwrap();
    let config = raw::valid_client(&Presented::valid(&key(100)));
    let endpoint = raw::deaf_endpoint(&runtime, Ipv4Addr::LOCALHOST.into());
    let (begun, mut sent, mut tasks) = (Instant::now(), 0u64, 0);
    while begun.elapsed() < Duration::from_secs(2) {
        let dials: Vec<_> = (0..20)
            .map(|_| endpoint.connect_with(config.clone(), addr, "polykey").unwrap())
            .collect();
        sent += dials.len() as u64;
        sleep(&runtime, Duration::from_millis(20)).await;
        drop(dials);
        tasks = tasks.max(number(&victim.metrics().await, "/driver/tasks"));
    }
    victim.assert_serves().await;
    drop(endpoint);
    let after = victim.wait_until_idle().await;
    let peak = victim.growth_since_start(&after, "/peak");
    println!(
        "{}: {sent} first packets taken back: {tasks} tasks at a time, {} KiB at the peak",
        R::NAME,
        peak / KIB
    );
    let half = DriverConfig::default().transport.handshake_network_limit as u64 / 2;
    assert!(sent > 4 * half, "only {sent} packets");
    // The pump, the endpoint, and one of each handshake; four that failed count as one.
    assert!(tasks <= 2 + 4 * half, "{tasks} tasks");
    assert!(peak <= (4 * half + 2) * CONNECTION + MIB, "{peak} bytes");
}

/// Datagrams that are not QUIC, or only look like it.
async fn flood_of_junk_does_not_prevent_service<R: Rt>(runtime: R) {
    let mut victim = Victim::start(&runtime).await;
    let addr = victim.at.address.socket().unwrap();
    let socket = std::net::UdpSocket::bind(pk_tests::socket::loopback()).unwrap();
    let mut junk = [0u8; 1400];
    let mut state = 1u64;
    for n in 0..20_000usize {
        for byte in &mut junk[..24] {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            *byte = (state >> 56) as u8;
        }
        if n % 2 == 0 {
            // A long header of version 1.
            junk[..5].copy_from_slice(&[0xc0, 0, 0, 0, 1]);
        }
        // A full buffer drops it, as a network can.
        let _ = socket.send_to(&junk[..1 + n % 1400], addr);
    }
    victim.assert_serves().await;
    let after = victim.wait_until_idle().await;
    let (peak, left) =
        (victim.growth_since_start(&after, "/peak"), victim.growth_since_start(&after, "/bytes"));
    println!(
        "{}: 20000 datagrams of junk: {} KiB at the peak, {} KiB left",
        R::NAME,
        peak / KIB,
        left / KIB
    );
    assert_eq!(
        number(&after, "/driver/handshakes"),
        number(&victim.base, "/driver/handshakes") + 1
    );
    // The honest node that was served last.
    assert!(peak <= 2 * CONNECTION, "{peak} bytes");
    assert!(left <= LEFT, "{left} bytes are left");
}

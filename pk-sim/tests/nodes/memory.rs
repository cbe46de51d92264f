//! The memory of a node: little when idle, and never more than its limits, whatever a peer does.

use std::collections::{BTreeSet, VecDeque};
use std::net::SocketAddr;

use pk_proto::native::{self, Message, V1};
use pk_proto::{
    ActiveConnection, ActiveNode, ClosestNodes, ClosestNodesQuery, ConnectionId, DisconnectReason,
    Event, FindNodeOptions, Input, MAX_FRAME, NodeContact, NodeContactAddressData, NodeId, Output,
    Request, RpcRequest, RpcResponse, Scopes, Side, StreamId, UnixMillis,
};

use crate::common::*;

const KIB: u64 = 1024;

/// Runs an action. Returns the growth of the allocated bytes after it, and at its peak.
fn measured<T>(work: impl FnOnce() -> T) -> (T, u64, u64) {
    let mut result = None;
    let info = allocation_counter::measure(|| result = Some(work()));
    (result.unwrap(), u64::try_from(info.bytes_current).unwrap_or(0), info.bytes_max)
}

fn message(message: V1) -> Vec<u8> {
    native::encode(&Message::V1(message)).unwrap().to_vec()
}

fn call(question: RpcRequest) -> Vec<u8> {
    message(V1::Call { deadline_ms: 1000, request: question })
}

/// Drops the outputs of the machine, whose memory belongs to the test.
fn quiet(bare: &mut Bare) {
    bare.take();
    bare.outputs.shrink_to_fit();
    bare.credit.clear();
}

fn id(number: u64) -> NodeId {
    let mut bytes = [0xa5; 32];
    bytes[..8].copy_from_slice(&number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
    NodeId::from_bytes(bytes)
}

fn data() -> NodeContactAddressData {
    NodeContactAddressData {
        mode: pk_proto::ContactMode::Direct,
        connected_time: UnixMillis(1),
        scopes: Scopes::GLOBAL,
    }
}

/// No bucket is ever full, so that none is collected.
fn without_collection(config: &mut pk_proto::Config) {
    config.bucket_limit = 200;
}

#[test]
fn idle_node_uses_little_memory() {
    let (mut bare, empty, _) = measured(|| {
        let mut bare = Bare::new(without_collection);
        quiet(&mut bare);
        bare
    });
    println!("a node that knows no other node: {empty} bytes of heap");
    assert!(empty <= 4 * KIB, "{empty}");

    let ((), connected, _) = measured(|| {
        for number in 0..100 {
            let conn = ConnectionId(bare.next_id());
            let remote = SocketAddr::from(([198, 51, 100, number as u8], 1));
            bare.connected(conn, Side::Acceptor, id(number), remote, number as u8);
            let control = bare.opened(conn);
            bare.feed(control, &hello(), false);
            bare.take();
            // The transport accepts the Hello of the local node.
            bare.input(Input::StreamWritten { stream: control, bytes: 100 });
        }
        quiet(&mut bare);
    });
    println!("100 connections, their nodes in the graph: {} bytes each", connected / 100);
    // Of these 30 say how a contact can be reached, and 16 whether the peer has an external
    // address.
    assert!(connected <= 100 * 3136, "{connected}");

    // After their close only the graph is left, and queues with room for a few outputs.
    let nodes = bare.node.graph().len() as u64;
    let (again, graph, _) = measured(|| bare.node.graph().clone());
    assert_eq!(again.len() as u64, nodes);
    println!("a graph of {nodes}: {} bytes each", graph / nodes);
    drop(again);
    let (mut bare, rest, _) = measured(|| {
        let mut bare = Bare::new(without_collection);
        for number in 0..100 {
            let conn = ConnectionId(bare.next_id());
            let remote = SocketAddr::from(([198, 51, 100, number as u8], 1));
            bare.connected(conn, Side::Acceptor, id(number), remote, number as u8);
            let control = bare.opened(conn);
            bare.feed(control, &hello(), false);
            bare.take();
            bare.input(Input::Disconnected { conn, why: DisconnectReason::TimedOut });
            bare.take();
        }
        // Their contacts are written.
        bare.pass(SECOND);
        for output in bare.take() {
            if let Output::Persist { id, .. } = output {
                bare.input(Input::Persisted { id, result: Ok(()) });
            }
        }
        quiet(&mut bare);
        bare
    });
    assert_eq!(
        (bare.node.connections().len(), bare.node.metrics().timers, bare.take().len()),
        (0, 0, 0)
    );
    // Contacts are in the memory of their bucket, which has room for more. A clone has none.
    let graph = graph + graph / 4;
    // And how each can be reached, with the room of its map.
    let graph = graph + 30 * nodes;
    assert!(rest <= empty + graph + 12 * KIB, "{rest}: {empty} and {graph}");
}

#[test]
fn long_messages_use_at_most_the_receive_window() {
    for window in [128 * KIB, 256 * KIB, 1024 * KIB] {
        let mut bare = Bare::new(|config| config.receive_window = window);
        let conn = bare.accept(Bare::peer(0));
        quiet(&mut bare);
        let frame = frame(MAX_FRAME as u32, &vec![0xff; MAX_FRAME]);
        // Every stream receives as much as it may, without its last byte.
        let (mut streams, held, most) = measured(|| {
            let mut streams: Vec<(StreamId, usize)> =
                (0..99).map(|_| (bare.opened(conn), 0)).collect();
            for _ in 0..4 {
                for (stream, at) in &mut streams {
                    let rest = bare.feed(*stream, &frame[*at..frame.len() - 1], false).len();
                    *at = frame.len() - 1 - rest;
                    bare.take();
                }
            }
            quiet(&mut bare);
            streams
        });
        let metrics = bare.node.metrics();
        println!(
            "window {window}: {held} bytes held, {most} at most, {} by its own account",
            metrics.receive_bytes
        );
        assert!(
            metrics.receive_bytes <= window && metrics.receive_bytes > window / 2,
            "{metrics:?}"
        );
        // The buffer of a message grows by doubling; a stream uses further memory; the test holds
        // one message.
        assert!(most <= 2 * window + 99 * KIB + 2 * MAX_FRAME as u64, "{most}");
        assert!(held <= window + window / 2 + 99 * KIB, "{held}");
        streams.clear();
        // It times out and is dropped.
        let before = bare.node.metrics().connections;
        bare.pass(16 * SECOND);
        let closed =
            bare.take().into_iter().any(|output| matches!(output, Output::CloseConnection { .. }));
        assert!(before == 1 && closed);
        assert_eq!((bare.node.metrics().receive_bytes, bare.node.metrics().streams), (0, 0));
    }
}

#[test]
fn endless_streams_use_at_most_the_memory_of_their_limit() {
    let (mut bare, base, _) = measured(|| {
        let mut bare = Bare::new(|config| config.fault_limit = 1_000_000);
        bare.accept(Bare::peer(0));
        quiet(&mut bare);
        bare
    });
    let conn = bare.node.connections()[0].conn;
    let mut levels = Vec::new();
    for round in 0..5 {
        let ((), held, most) = measured(|| {
            for _ in 0..2000 {
                bare.opened(conn);
                bare.take();
            }
            quiet(&mut bare);
        });
        if round > 0 {
            assert!(held <= KIB, "round {round}: {held}");
        }
        levels.push((held, most));
    }
    println!("99 streams: {} bytes each; then {:?}", levels[0].0 / 99, &levels[1..]);
    assert!(levels[0].0 <= 99 * KIB && base < 16 * KIB, "{levels:?}");
    assert_eq!(
        (bare.node.metrics().streams, bare.node.metrics().streams_refused),
        (100, 10_000 - 99)
    );
}

#[test]
fn unread_answers_are_kept_once_per_stream_and_dropped_at_their_timeout() {
    let mut bare = Bare::new(|config| config.send_window = 1024);
    // A graph with long contacts, so that answers are as long as they get.
    for number in 0..60 {
        for host in 0..5u8 {
            let address = format!("[2001:db8:{number:x}::{host}]:1").parse().unwrap();
            bare.request(Request::SetNode {
                node: id(number),
                address,
                data: data(),
                how: pk_proto::SetNodeOptions::default(),
            });
        }
        let conn = ConnectionId(bare.next_id());
        bare.connected(
            conn,
            Side::Acceptor,
            id(number),
            "[2001:db8::1]:7".parse().unwrap(),
            number as u8,
        );
        let control = bare.opened(conn);
        bare.feed(control, &hello(), false);
    }
    let conn = bare.accept(Bare::peer(0));
    quiet(&mut bare);
    let before = bare.node.metrics();
    let query = ClosestNodesQuery { known: true, connected: true };
    let question = call(RpcRequest::Closest { target: Bare::peer(9), query });
    let ((), held, most) = measured(|| {
        for _ in 0..99 {
            let stream = bare.opened(conn);
            bare.feed(stream, &question, true);
            bare.take();
        }
        quiet(&mut bare);
    });
    let metrics = bare.node.metrics();
    let answer = (metrics.send_bytes - before.send_bytes) / 99;
    println!("an answer of {answer} bytes: {} held by each stream, {most} at most", held / 99);
    assert!(metrics.answers == 99 && answer > 2 * KIB, "{metrics:?}");
    assert!(held <= 99 * (answer + KIB), "{held}");
    assert!(most <= held + 64 * KIB, "{most}");
    bare.pass(16 * SECOND);
    quiet(&mut bare);
    assert_eq!(
        bare.node.metrics().send_bytes,
        before.send_bytes / 61 * 60,
        "with their connection, and its Hello"
    );
}

#[test]
fn flood_of_requests_leaves_no_memory() {
    let mut bare = Bare::new(|_| {});
    let conn = bare.accept(Bare::peer(0));
    let question = call(RpcRequest::Ping { nonce: 1 });
    let mut flood = |count: usize| {
        for _ in 0..count {
            let stream = bare.opened(conn);
            bare.feed(stream, &question, true);
            let sent: u64 = bare
                .take()
                .into_iter()
                .map(|output| match output {
                    Output::SendStream { bytes, .. } => bytes.len() as u64,
                    _ => 0,
                })
                .sum();
            bare.input(Input::StreamWritten { stream, bytes: sent });
            bare.credit.clear();
        }
        quiet(&mut bare);
        bare.node.metrics()
    };
    flood(100);
    let (metrics, held, most) = measured(|| flood(20_000));
    println!("20,000 questions: {held} bytes more, {most} at most");
    assert!(held <= KIB && most <= 16 * KIB, "{held}, {most}");
    assert_eq!((metrics.answers, metrics.streams, metrics.late_inputs), (20_100, 1, 0));
}

#[test]
fn endless_connections_use_at_most_the_memory_of_their_limit() {
    let mut bare = Bare::new(|config| (config.connection_limit, config.dial_share) = (50, 0));
    // Each from one of eight networks: those that came first make room.
    let flood = |bare: &mut Bare, count: u64| {
        for number in 0..count {
            let conn = ConnectionId(bare.next_id());
            let remote =
                SocketAddr::from(([198, 51, (number % 8) as u8, 7], 1 + (number % 60_000) as u16));
            bare.connected(conn, Side::Acceptor, id(number), remote, number as u8);
            for output in bare.take() {
                if let Output::CloseConnection { conn, .. } = output {
                    bare.input(Input::Disconnected { conn, why: DisconnectReason::Local });
                }
            }
            bare.credit.clear();
        }
        quiet(bare);
    };
    flood(&mut bare, 100);
    let ((), held, most) = measured(|| flood(&mut bare, 5000));
    println!("5,000 connections over the limit: {held} bytes more, {most} at most");
    assert!(held <= KIB && most <= 16 * KIB, "{held}, {most}");
    let metrics = bare.node.metrics();
    assert_eq!(
        (metrics.connections_pending, metrics.connections_evicted, metrics.connections_refused),
        (50, 5050, 0)
    );
    // Those that never send Hello are closed at the timeout.
    bare.pass(11 * SECOND);
    assert_eq!(
        (bare.node.metrics().hello_timeouts, bare.node.metrics().connections_pending),
        (50, 0)
    );
}

#[test]
fn search_among_false_answers_uses_bounded_memory() {
    // Every node reports twenty new nodes with as many addresses as fit, without end.
    let mut bare = Bare::new(|_| {});
    let peer = Bare::peer(0);
    let conn = bare.accept(peer);
    quiet(&mut bare);
    let find =
        FindNodeOptions { limit: Some(1024), concurrency: Some(64), ..FindNodeOptions::default() };
    let mut next = 0;
    let mut lies = || {
        let local = (0..20).map(|_| {
            next += 1;
            let contact: NodeContact = (0..8u8)
                .map(|i| {
                    (format!("[2001:db8:{:x}::{i}]:1", next % 65_536).parse().unwrap(), data())
                })
                .collect();
            (id(next), contact)
        });
        let local: Vec<_> = local.collect();
        let active = local.iter().map(|(node, _)| {
            let connections = (0..8u8).map(|i| ActiveConnection {
                shared_id: vec![i; 32].into(),
                address: format!("203.0.113.{i}:1").parse().unwrap(),
                primary: i == 0,
                idle_in_ms: None,
            });
            ActiveNode { node: *node, connections: connections.collect() }
        });
        let active = active.collect();
        message(V1::Answer(RpcResponse::Closest(ClosestNodes { known: local, connected: active })))
    };
    let mut answers = 0;
    let (request, held, most) = measured(|| {
        let request = bare.request(Request::FindNode { target: id(0), find });
        let (mut queue, mut greeted) = (VecDeque::from(bare.take()), BTreeSet::new());
        while answers < 400 {
            let Some(output) = queue.pop_front() else { break };
            match output {
                // Every dialed node answers at once, and falsely.
                Output::Dial { conn, expect, addr, .. } => {
                    let peer = *expect.first().unwrap();
                    bare.connected(conn, Side::Dialer, peer, addr, 1);
                }
                Output::OpenStream { stream, conn: of } => {
                    // The question follows the Hello at once.
                    let greeting = of != conn && greeted.insert(of);
                    let bytes = if greeting { hello().to_vec() } else { lies() };
                    answers += usize::from(!greeting);
                    bare.feed(stream, &bytes, !greeting);
                }
                Output::Event(Event::Done { .. }) => break,
                _ => {}
            }
            queue.extend(bare.take());
        }
        drop(queue);
        quiet(&mut bare);
        request
    });
    let metrics = bare.node.metrics();
    println!(
        "{answers} lies of 40 nodes: {held} bytes held, {most} at most, {} connections",
        metrics.connections
    );
    assert!(answers >= 20, "{answers}");
    // 256 candidates with 10 addresses, and the connections.
    assert!(held <= 256 * 10 * 100 + metrics.connections * 4 * KIB, "{held}");
    assert!(most <= held + 512 * KIB, "{most}");
    bare.node.cancel(request, bare.now);
}

//! Streams: bytes in order, credit both ways, ends, applications.

use bytes::Bytes;
use pk_proto::{ConnectionId, Input, NodeId, Opener, Output, RequestId, StreamId};
use pk_sim::{App, AppAction, AppStream, Host, HostId, Link, ScriptedPeer, World};

use crate::{SECOND, connect, id, ms, scripted_peer, scripted_peers};

const WINDOW: usize = 64 * 1024;

fn output(world: &mut World<ScriptedPeer>, host: HostId, output: Output) {
    world.call(host, |scripted_peer, _| scripted_peer.say(output));
}

/// A connection from 0 to 1 with a stream on which 0 has sent `bytes`, and the stream's number at
/// 1.
fn stream(world: &mut World<ScriptedPeer>, bytes: &[u8], fin: bool) -> (StreamId, StreamId) {
    let (conn, _) = match scripted_peer(world, 0).connected() {
        Some(connected) => (connected.conn, ConnectionId(1)),
        None => connect(world, 0, 1),
    };
    let bytes = bytes.to_vec();
    let here = world.call(0, |scripted_peer, _| {
        let stream = scripted_peer.open(conn);
        scripted_peer.send(stream, bytes, fin);
        stream
    });
    world.drive(SECOND);
    (here, scripted_peer(world, 1).opened().unwrap())
}

fn grant(world: &mut World<ScriptedPeer>, host: HostId, stream: StreamId, bytes: u64) {
    world.call(host, |scripted_peer, _| scripted_peer.grant(stream, bytes));
    world.drive(SECOND);
}

fn detach(
    world: &mut World<ScriptedPeer>,
    host: HostId,
    stream: StreamId,
    protocol: &str,
    unread: &[u8],
) {
    let conn = scripted_peer(world, host).connected().unwrap().conn;
    let node: NodeId = id(1 - host);
    let opener = if stream.is_ours() { Opener::Us(RequestId(0)) } else { Opener::Peer };
    let unread = Bytes::copy_from_slice(unread);
    output(
        world,
        host,
        Output::DetachStream { conn, stream, node, protocol: protocol.into(), opener, unread },
    );
}

fn app(world: &World<ScriptedPeer>, host: HostId) -> AppStream {
    world.app_streams(host).last().unwrap().clone()
}

/// The names of what a host received on a stream.
fn names(world: &World<ScriptedPeer>, host: HostId, of: StreamId) -> Vec<&'static str> {
    let name = |input: &Input| match input {
        Input::StreamOpened { stream, .. } if *stream == of => Some("opened"),
        Input::StreamData { stream, fin: false, .. } if *stream == of => Some("data"),
        Input::StreamData { stream, fin: true, .. } if *stream == of => Some("fin"),
        Input::StreamWritten { stream, .. } if *stream == of => Some("sent"),
        Input::StreamReset { stream, .. } if *stream == of => Some("reset"),
        Input::StreamStopped { stream, .. } if *stream == of => Some("stopped"),
        Input::OpenFailed { stream } if *stream == of => Some("failed"),
        Input::StreamClosed { stream } if *stream == of => Some("closed"),
        _ => None,
    };
    scripted_peer(world, host).inputs().filter_map(name).collect()
}

#[test]
fn stream_is_reported_with_its_first_byte_and_read_by_credit() {
    let mut world = scripted_peers(2, 1);
    let (conn, _) = connect(&mut world, 0, 1);
    let here = world.call(0, |scripted_peer, _| scripted_peer.open(conn));
    world.drive(SECOND);
    assert_eq!(scripted_peer(&world, 1).opened(), None);

    world.call(0, |scripted_peer, _| scripted_peer.send(here, "hello", false));
    world.drive(SECOND);
    let there = scripted_peer(&world, 1).opened().unwrap();
    assert_eq!((there, names(&world, 1, there)), (StreamId(1), vec!["opened"]));
    assert_eq!(scripted_peer(&world, 0).sent(here), 5, "the transport has it");
    grant(&mut world, 1, there, 2);
    assert_eq!(scripted_peer(&world, 1).read(there), (b"he".to_vec(), false));
    grant(&mut world, 1, there, 100);
    assert_eq!(scripted_peer(&world, 1).read(there), (b"hello".to_vec(), false));

    // The other way, with the end.
    world.host_mut(0).transport.fin_needs_credit = true;
    world.call(1, |scripted_peer, _| scripted_peer.send(there, "world", true));
    grant(&mut world, 0, here, 5);
    assert_eq!(
        scripted_peer(&world, 0).read(here),
        (b"world".to_vec(), false),
        "no credit to look for the end"
    );
    grant(&mut world, 0, here, 1);
    assert_eq!(scripted_peer(&world, 0).read(here), (b"world".to_vec(), true));
}

#[test]
fn streams_are_reported_in_the_order_of_their_opening() {
    let mut world = scripted_peers(2, 1);
    let (conn, _) = connect(&mut world, 0, 1);
    let [_, second] =
        world.call(0, |scripted_peer, _| [scripted_peer.open(conn), scripted_peer.open(conn)]);
    world.call(0, |scripted_peer, _| scripted_peer.send(second, "2", false));
    world.drive(SECOND);
    let opened: Vec<_> = scripted_peer(&world, 1)
        .inputs()
        .filter(|input| matches!(input, Input::StreamOpened { .. }))
        .collect();
    assert_eq!(opened.len(), 2, "the first is seen when the second has bytes, as in QUIC");
    grant(&mut world, 1, StreamId(3), 9);
    assert_eq!(scripted_peer(&world, 1).read(StreamId(3)), (b"2".to_vec(), false));
}

#[test]
fn unread_stream_blocks_its_writer_and_no_other() {
    let mut world = scripted_peers(2, 1);
    let (slow, slow_there) = stream(&mut world, &vec![7; 3 * WINDOW], true);
    assert_eq!(scripted_peer(&world, 0).sent(slow), WINDOW as u64);
    let (quick, quick_there) = stream(&mut world, b"quick", true);
    grant(&mut world, 1, quick_there, 9);
    assert_eq!(
        (scripted_peer(&world, 0).sent(quick), scripted_peer(&world, 1).read(quick_there).1),
        (5, true)
    );
    assert!(world.transport_counters().blocked > 0);

    grant(&mut world, 1, slow_there, 1000);
    assert_eq!(
        scripted_peer(&world, 0).sent(slow),
        WINDOW as u64,
        "a little room is not worth a packet"
    );
    grant(&mut world, 1, slow_there, 9000);
    let sent = scripted_peer(&world, 0).sent(slow) as usize;
    assert!((WINDOW + 8192..=WINDOW + 10_000).contains(&sent), "{sent}");
    grant(&mut world, 1, slow_there, 4 * WINDOW as u64);
    world.drive(10 * SECOND);
    let (bytes, fin) = scripted_peer(&world, 1).read(slow_there);
    assert_eq!(
        (bytes.len(), fin, scripted_peer(&world, 0).sent(slow)),
        (3 * WINDOW, true, 3 * WINDOW as u64)
    );
}

#[test]
fn bytes_stay_in_order_on_any_link() {
    for seed in 0..10 {
        let mut world = scripted_peers(2, seed);
        world.network_mut().set_default_link(Link::ms(10).jitter(ms(40)).loss(200));
        let bytes: Vec<u8> = (0..50_000u32).map(|i| (i * 31 % 251) as u8).collect();
        let (_, there) = stream(&mut world, &bytes, true);
        world.partition(&[&[0], &[1]]);
        grant(&mut world, 1, there, 25_000);
        world.heal();
        grant(&mut world, 1, there, 50_000);
        world.drive(120 * SECOND);
        assert_eq!(scripted_peer(&world, 1).read(there), (bytes, true), "seed {seed}");
    }
}

#[test]
fn reset_drops_unread_bytes() {
    let mut world = scripted_peers(2, 1);
    let (here, there) = stream(&mut world, b"secret", false);
    output(&mut world, 0, Output::ResetStream { stream: here, code: 4 });
    world.drive(SECOND);
    grant(&mut world, 1, there, 100);
    assert_eq!(names(&world, 1, there), ["opened", "reset"]);

    // The other direction still works.
    world.call(1, |scripted_peer, _| scripted_peer.send(there, "answer", true));
    grant(&mut world, 0, here, 100);
    assert_eq!(scripted_peer(&world, 0).read(here), (b"answer".to_vec(), true));
}

#[test]
fn stop_sending_is_reported_once_and_the_answer_still_arrives() {
    let mut world = scripted_peers(2, 1);
    let (here, there) = stream(&mut world, &vec![1; 2 * WINDOW], false);
    output(&mut world, 1, Output::StopStream { stream: there, code: 1 });
    world.drive(SECOND);
    assert_eq!(names(&world, 0, here), ["sent", "stopped"]);
    world.call(1, |scripted_peer, _| scripted_peer.send(there, "no", true));
    grant(&mut world, 0, here, 100);
    assert_eq!(scripted_peer(&world, 0).read(here), (b"no".to_vec(), true));
    assert_eq!(
        names(&world, 1, there),
        ["opened", "sent"],
        "the reset that answers a stop is below the vocabulary"
    );

    // No stop is sent for a direction that has arrived completely.
    let (here, there) = stream(&mut world, b"whole", true);
    output(&mut world, 1, Output::StopStream { stream: there, code: 0 });
    world.drive(SECOND);
    assert_eq!(names(&world, 0, here), ["sent"]);
}

#[test]
fn stream_cannot_be_opened_over_the_limit_or_without_a_connection() {
    let mut world = scripted_peers(2, 1);
    world.host_mut(1).transport.stream_limit = 2;
    let (first, first_there) = stream(&mut world, b"1", true);
    let (second, _) = stream(&mut world, b"2", true);
    let conn = scripted_peer(&world, 0).connected().unwrap().conn;
    let third = world.call(0, |scripted_peer, _| scripted_peer.open(conn));
    world.drive(SECOND);
    assert_eq!(names(&world, 0, third), ["failed"]);

    // There is room again when a stream has ended at the peer.
    grant(&mut world, 1, first_there, 9);
    output(&mut world, 1, Output::ResetStream { stream: first_there, code: 0 });
    world.drive(SECOND);
    assert_eq!(
        (names(&world, 0, first), names(&world, 0, second)),
        (vec!["sent", "reset"], vec!["sent"])
    );
    let fourth = world.call(0, |scripted_peer, _| scripted_peer.open(conn));
    world.drive(SECOND);
    assert_eq!(names(&world, 0, fourth), [""; 0]);

    // The transport detects the end of the connection before the machine.
    world.host_mut(0).input_delay = ms(50);
    let there = scripted_peer(&world, 1).connected().unwrap().conn;
    output(&mut world, 1, Output::CloseConnection { conn: there, code: 0, reason: String::new() });
    world.drive(ms(15));
    let fifth = world.call(0, |scripted_peer, _| scripted_peer.open(conn));
    world.drive(SECOND);
    let last: Vec<_> = scripted_peer(&world, 0).inputs().rev().take(2).collect();
    assert!(
        matches!(last[..], [Input::OpenFailed { stream }, Input::Disconnected { .. }] if *stream == fifth),
        "{last:?}"
    );
}

#[test]
fn end_of_a_connection_ends_its_streams_silently() {
    let mut world = scripted_peers(2, 1);
    let (here, there) = stream(&mut world, b"abc", false);
    detach(&mut world, 1, there, "any", b"");
    let conn = scripted_peer(&world, 0).connected().unwrap().conn;
    output(&mut world, 0, Output::CloseConnection { conn, code: 0, reason: String::new() });
    world.drive(SECOND);
    assert_eq!((names(&world, 0, here), names(&world, 1, there)), (vec!["sent"], vec!["opened"]));
    let app = app(&world, 1);
    assert!(app.lost && !app.closed);
}

#[test]
fn detached_stream_belongs_to_an_application() {
    let mut world = scripted_peers(2, 1);
    world.host_mut(1).apps.insert("echo".to_owned(), App::Echo);
    let (here, there) = stream(&mut world, b"head and ", false);
    grant(&mut world, 1, there, 4);
    detach(&mut world, 1, there, "echo", b"head");
    detach(&mut world, 0, here, "sink", b"");
    world.drive(SECOND);
    assert!(world.app(0, here, AppAction::Send(Bytes::from_static(b"body"), true)));
    world.drive(SECOND);

    let (sink, echo) = (app(&world, 0), app(&world, 1));
    assert_eq!(
        (sink.received.as_slice(), echo.received.as_slice()),
        (&b"head and body"[..], &b"head and body"[..])
    );
    assert!(sink.ended && sink.closed && echo.ended && echo.closed);
    assert_eq!((echo.sent, echo.protocol.as_str(), echo.opener), (13, "echo", Opener::Peer));
    assert_eq!(names(&world, 0, here), ["sent", "closed"]);
    assert_eq!(names(&world, 1, there), ["opened", "data", "closed"]);
    assert!(!world.app(0, here, AppAction::Stop(0)));
}

#[test]
fn unread_application_stream_blocks_its_peer_and_echo_is_not_faster_than_its_reader() {
    for (app_of_peer, taken) in
        [(App::Stalled, WINDOW), (App::Echo, 2 * WINDOW), (App::Sink, 5 * WINDOW)]
    {
        let mut world = scripted_peers(2, 1);
        world.host_mut(1).apps.insert("x".to_owned(), app_of_peer);
        let (here, there) = stream(&mut world, &vec![3; 5 * WINDOW], false);
        detach(&mut world, 1, there, "x", b"");
        world.drive(10 * SECOND);
        // The writer reads none of the returned bytes.
        let sent = scripted_peer(&world, 0).sent(here);
        assert!((taken..=taken + WINDOW).contains(&(sent as usize)), "{sent}");
    }
}

#[test]
fn scripted_application_sends_and_aborts() {
    let mut world = scripted_peers(2, 1);
    let script = App::Script { send: Bytes::from_static(b"greeting"), fin: true };
    world.host_mut(1).apps.insert("greet".to_owned(), script);
    let (here, there) = stream(&mut world, b"x", false);
    detach(&mut world, 1, there, "greet", b"");
    grant(&mut world, 0, here, 100);
    assert_eq!(scripted_peer(&world, 0).read(here), (b"greeting".to_vec(), true));
    assert!(world.app(1, there, AppAction::Stop(9)));
    world.drive(SECOND);
    assert_eq!(names(&world, 0, here).last(), Some(&"stopped"));
    assert!(app(&world, 1).closed);

    let (here, there) = stream(&mut world, b"x", false);
    detach(&mut world, 1, there, "stalled by default", b"");
    output(&mut world, 0, Output::ResetStream { stream: here, code: 5 });
    world.drive(SECOND);
    assert_eq!(app(&world, 1).reset, Some(5));
    assert!(world.app(1, there, AppAction::Reset(6)));
    world.drive(SECOND);
    assert_eq!(names(&world, 0, here), ["sent", "reset"]);
}

#[test]
fn host_without_a_process_is_not_alive() {
    let host: Host = crate::host(0);
    assert!(!host.is_alive() && host.punches().is_empty() && host.adverts().is_empty());
}

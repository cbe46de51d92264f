#![allow(
    clippy::result_large_err,
    reason = "each test returns the result of the checker, whose error is a whole violation"
)]

use super::*;
use bytes::Bytes;
use pk_proto::{
    Connected, DialFailure, Dialect, DisconnectReason, Instant, NodeAddress, NodeId, Opener,
    Signature,
};

const CONN: ConnectionId = ConnectionId(0);
const STREAM: StreamId = StreamId(0);
const NODE: NodeId = NodeId::from_bytes([7; 32]);

fn dial(conn: u64) -> Output {
    let (addr, deadline) = ("10.0.0.1:1".parse().unwrap(), Instant::FAR_FUTURE);
    Output::Dial { conn: ConnectionId(conn), addr, expect: BTreeSet::from([NODE]), deadline }
}

fn connected(conn: u64, side: Side) -> Input {
    let addr = "10.0.0.1:1".parse().unwrap();
    let (leaf, chain, matched_id) = (NODE, vec![NODE], None);
    let (dialect, shared_id) = (Dialect::Native, Bytes::new());
    let conn = ConnectionId(conn);
    Input::Connected(Connected {
        conn,
        side,
        dialect,
        leaf,
        chain,
        matched_id,
        remote: addr,
        local: addr,
        shared_id,
    })
}

fn send(fin: bool) -> Output {
    Output::SendStream { stream: STREAM, bytes: Bytes::from_static(b"x"), fin }
}

fn close() -> Output {
    Output::CloseConnection { conn: CONN, code: 0, reason: String::new() }
}

fn gone() -> Input {
    Input::Disconnected { conn: CONN, why: DisconnectReason::Local }
}

fn opened() -> Output {
    let address: NodeAddress = "10.0.0.1:1".parse().unwrap();
    Output::Event(Event::ConnectionOpened { conn: CONN, node: NODE, side: Side::Dialer, address })
}

fn closed() -> Output {
    Output::Event(Event::ConnectionClosed { conn: CONN, node: NODE, why: DisconnectReason::Local })
}

fn sign(id: u64) -> Output {
    Output::Sign { id: EffectId(id), key: NODE, bytes: Bytes::new() }
}

fn browse(id: u64) -> Output {
    Output::Browse { id: EffectId(id), node: NODE, deadline: Instant::FAR_FUTURE }
}

fn detach(conn: u64) -> Output {
    Output::DetachStream {
        conn: ConnectionId(conn),
        stream: STREAM,
        node: NODE,
        protocol: "p".into(),
        opener: Opener::Peer,
        unread: Bytes::new(),
    }
}

/// Outputs (`Ok`) and inputs (`Err`) of a machine.
type Story = Vec<Result<Output, Input>>;

/// A connection with an open stream.
fn begin() -> Story {
    let open = Output::OpenStream { conn: CONN, stream: STREAM };
    vec![Ok(dial(0)), Err(connected(0, Side::Dialer)), Ok(open)]
}

fn check_story(story: Story) -> Result<Discipline, (usize, Violation)> {
    let mut discipline = Discipline::default();
    for (step, event) in story.into_iter().enumerate() {
        let checked = match event {
            Ok(output) => discipline.output(&output),
            Err(input) => discipline.input(&input),
        };
        checked.map_err(|violation| (step, violation))?;
    }
    Ok(discipline)
}

#[test]
fn valid_run_passes() {
    let mut story = begin();
    let data = |fin| Err(Input::StreamData { stream: STREAM, bytes: Bytes::new(), fin });
    story.extend([
        Ok(opened()),
        Ok(Output::ReadCredit { stream: STREAM, bytes: 9 }),
        Ok(send(false)),
        data(false),
        Ok(send(true)),
        data(true),
        // The end is not accepted while bytes before it are not.
        Ok(Output::ReadCredit { stream: STREAM, bytes: 9 }),
        Err(Input::StreamWritten { stream: STREAM, bytes: 2 }),
        Err(Input::StreamStopped { stream: STREAM, code: 0 }),
        Ok(sign(0)),
        Err(Input::Signed { id: EffectId(0), result: Ok(Signature([0; 64])) }),
        Ok(browse(1)),
        Ok(Output::CancelBrowse { id: EffectId(1) }),
        Err(Input::Discovered { id: EffectId(1), addrs: Vec::new(), done: true }),
        Ok(dial(2)),
        Ok(Output::CancelDial { conn: ConnectionId(2) }),
        Err(Input::DialFailed { conn: ConnectionId(2), why: DialFailure::Cancelled }),
        Ok(close()),
        Err(gone()),
        Ok(closed()),
        Ok(Output::Event(Event::Stopped)),
    ]);
    assert!(check_story(story).unwrap().has_stopped());
}

/// Each story ends with a planted bug, which is caught at its last step.
#[test]
fn planted_bugs_of_a_machine_are_caught() {
    let after = |more: Vec<Result<Output, Input>>| [begin(), more].concat();
    let sent = |bytes| Err(Input::StreamWritten { stream: STREAM, bytes });
    let read = || Err(Input::StreamData { stream: STREAM, bytes: Bytes::new(), fin: true });
    let fin_both = || vec![Ok(send(true)), sent(1), read()];
    let open = |stream| Ok(Output::OpenStream { conn: CONN, stream: StreamId(stream) });
    let credit = || Ok(Output::ReadCredit { stream: STREAM, bytes: 1 });
    let cancel = |conn| Ok(Output::CancelDial { conn: ConnectionId(conn) });
    let mut absent = dial(0);
    if let Output::Dial { expect, .. } = &mut absent {
        expect.clear();
    }
    let stories: Vec<(&str, Story)> = vec![
        ("odd number", vec![Ok(dial(1))]),
        ("used again", vec![Ok(dial(0)), Ok(dial(0))]),
        ("expects no node", vec![Ok(absent)]),
        ("CancelDial", vec![cancel(0)]),
        ("CancelDial", vec![Ok(dial(0)), cancel(0), cancel(0)]),
        ("CancelDial", after(vec![cancel(0)])),
        ("Dialing", vec![Ok(dial(0)), Ok(close())]),
        ("Closing", after(vec![Ok(close()), Ok(close())])),
        ("None", after(vec![Err(gone()), Ok(close())])),
        ("Closing", after(vec![Ok(close()), open(2)])),
        ("odd number", after(vec![open(1)])),
        ("used again", after(vec![open(0)])),
        ("unknown or over", after(vec![Ok(close()), Ok(send(false))])),
        ("unknown or over", after(vec![Err(gone()), credit()])),
        (
            "unknown or over",
            after(vec![Err(Input::OpenFailed { stream: STREAM }), Ok(send(false))]),
        ),
        ("direction", after(vec![Ok(send(true)), Ok(send(false))])),
        (
            "direction",
            after(vec![Ok(Output::ResetStream { stream: STREAM, code: 0 }), Ok(send(false))]),
        ),
        (
            "direction",
            after(vec![Err(Input::StreamStopped { stream: STREAM, code: 0 }), Ok(send(false))]),
        ),
        ("unknown or over", after([fin_both(), vec![credit()]].concat())),
        (
            "unknown or over",
            after([fin_both(), vec![Ok(Output::StopStream { stream: STREAM, code: 0 })]].concat()),
        ),
        ("is of connection 0", after(vec![Ok(detach(4))])),
        ("unknown or over", after(vec![Ok(detach(0)), Ok(send(false))])),
        (
            "handed over with credit left",
            after(vec![
                Ok(detach(0)),
                Err(Input::StreamData {
                    stream: STREAM,
                    bytes: Bytes::from_static(b"x"),
                    fin: false,
                }),
            ]),
        ),
        ("used again", vec![Ok(sign(0)), Ok(browse(0))]),
        ("CancelBrowse", vec![Ok(sign(0)), Ok(Output::CancelBrowse { id: EffectId(0) })]),
        ("reported twice", after(vec![Ok(opened()), Ok(opened())])),
        ("never reported as opened", after(vec![Err(gone()), Ok(closed())])),
        ("never reported as closed", after(vec![Ok(opened()), Ok(Output::Event(Event::Stopped))])),
        ("after Stopped", vec![Ok(Output::Event(Event::Stopped)), Ok(sign(0))]),
    ];
    for (expected, story) in stories {
        let last = story.len() - 1;
        let (step, violation) = check_story(story.clone()).expect_err(expected);
        assert_eq!(step, last, "{expected}: {violation}");
        assert!(violation.what.contains(expected), "{expected}: {violation}");
    }
}

#[test]
fn planted_bugs_of_the_simulator_are_caught() {
    let stories: Vec<Story> = vec![
        vec![Err(connected(0, Side::Dialer))],
        vec![Err(connected(2, Side::Acceptor))],
        vec![Err(connected(1, Side::Acceptor)), Err(connected(1, Side::Acceptor))],
        vec![Err(gone())],
        vec![Ok(dial(0)), Err(gone())],
        vec![Err(Input::DialFailed { conn: CONN, why: DialFailure::TimedOut })],
        vec![Err(Input::StreamOpened { conn: CONN, stream: StreamId(1) })],
        vec![Err(Input::StreamClosed { stream: STREAM })],
        [begin(), vec![Ok(send(false)), Err(Input::StreamWritten { stream: STREAM, bytes: 2 })]]
            .concat(),
        vec![Ok(sign(0)), Err(Input::Persisted { id: EffectId(0), result: Ok(()) })],
        vec![Err(Input::Discovered { id: EffectId(0), addrs: Vec::new(), done: false })],
    ];
    for story in stories {
        let last = story.len() - 1;
        let (step, violation) = check_story(story.clone()).unwrap_err();
        assert_eq!(step, last, "{violation}");
        assert!(violation.what.contains("(simulator)"), "{violation}");
    }
}

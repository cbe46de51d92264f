//! Every public call in every phase of a node: nothing before Ready, nothing new while stopping, no
//! output after Stopped.

use std::time::Duration;

use bytes::Bytes;
use pk_proto::claims::ClaimContent;
use pk_proto::{
    ApprovalId, BucketIndex, ClaimsQuery, ClosestNodesQuery, Config, Connected, ConnectionId,
    ContactMode, DialFailure, Dialect, DisconnectReason, EffectId, Event, FindNodeOptions,
    GestaltQuery, Identity, Input, LeaseId, NodeContactAddressData, Output, Phase, RecordedCall,
    Request, RequestError, RequestId, RequestOptions, Scopes, SeedNode, SetNodeOptions, Side,
    StreamId, UnixMillis,
};
use pk_sim::{Key, genesis, renew};

use crate::common::{Bare, address, ms};

const PHASES: [Phase; 4] = [Phase::Starting, Phase::Running, Phase::Stopping, Phase::Stopped];
const START: UnixMillis = UnixMillis(1_767_225_600_000);

/// A node in a phase. It has a contact, and has, or had, a connection with another node.
fn in_phase(phase: Phase, change: impl FnOnce(&mut Config)) -> Bare {
    let mut bare = Bare::starting(|config| {
        config.mdns = true;
        config.stop_timeout = Duration::from_secs(60);
        change(config);
    });
    if phase > Phase::Starting {
        bare.input(Input::Listening { addrs: vec!["192.0.2.1:1314".parse().unwrap()] });
        bare.request(set_node());
        let conn = bare.accept(Bare::peer(1));
        if phase > Phase::Running {
            bare.node.stop(bare.now);
            bare.persist_all();
        }
        if phase == Phase::Stopped {
            bare.input(Input::Disconnected { conn, why: DisconnectReason::Local });
            bare.persist_all();
        }
    }
    bare.take();
    assert_eq!(bare.node.phase(), phase);
    bare
}

fn set_node() -> Request {
    let data = NodeContactAddressData {
        mode: ContactMode::Direct,
        connected_time: START,
        scopes: Scopes::GLOBAL,
    };
    Request::SetNode {
        node: Bare::peer(2),
        address: address("198.51.100.7:1"),
        data,
        how: SetNodeOptions::default(),
    }
}

/// One request of every kind.
fn requests() -> Vec<Request> {
    let (target, options) = (Bare::peer(2), RequestOptions::default());
    let content = ClaimContent {
        typ: "ClaimLinkIdentity".into(),
        issuer: Some(Key::numbered(77, 0).id().to_string()),
        subject: None,
        members: "{}".into(),
    };
    let seed = SeedNode { node: target, address: address("198.51.100.7:1") };
    let all = vec![
        Request::FindNode { target, find: FindNodeOptions::default() },
        Request::PingNode { target, options },
        Request::PingNodeAddress { target, address: seed.address.clone(), options },
        Request::Connect { target, address: address("name.example:1"), options },
        Request::ConnectThrough { target, relay: Bare::peer(1), options },
        Request::AcquireConnection { target, options },
        Request::OpenStream { target: Bare::peer(1), protocol: "echo".into(), options },
        Request::QueryClosestNodes {
            via: Bare::peer(1),
            target,
            query: ClosestNodesQuery { known: true, connected: true },
            options,
        },
        Request::SyncNodeGraph { seeds: vec![seed], blocking: true, options },
        set_node(),
        Request::RefreshBucket { bucket: BucketIndex(255), options },
        Request::Renew { identity: renewed() },
        Request::ClaimNode { target: Bare::peer(1), options },
        Request::AddClaim { content: content.clone(), options },
        Request::ClaimNetwork { target: Bare::peer(1), content, options },
        Request::AllowClaim { node: target, allowed: true, options },
        Request::QueryMdns { target, timeout: None },
        Request::RequestChainData { target: Bare::peer(1), since: None, limit: None, options },
        Request::Claims { query: ClaimsQuery::default(), options },
        Request::Gestalt { node: target, query: GestaltQuery::default(), options },
        Request::Flush { options },
        Request::FindClosest { target, count: 20, find: FindNodeOptions::default() },
    ];
    let mut kinds: Vec<_> = all.iter().map(number).collect();
    kinds.dedup();
    assert_eq!(kinds, (0..22).collect::<Vec<_>>(), "every kind, once");
    all
}

/// A new request does not compile without a number, and its number is checked above.
fn number(request: &Request) -> usize {
    match request {
        Request::FindNode { .. } => 0,
        Request::PingNode { .. } => 1,
        Request::PingNodeAddress { .. } => 2,
        Request::Connect { .. } => 3,
        Request::ConnectThrough { .. } => 4,
        Request::AcquireConnection { .. } => 5,
        Request::OpenStream { .. } => 6,
        Request::QueryClosestNodes { .. } => 7,
        Request::SyncNodeGraph { .. } => 8,
        Request::SetNode { .. } => 9,
        Request::RefreshBucket { .. } => 10,
        Request::Renew { .. } => 11,
        Request::ClaimNode { .. } => 12,
        Request::AddClaim { .. } => 13,
        Request::ClaimNetwork { .. } => 14,
        Request::AllowClaim { .. } => 15,
        Request::QueryMdns { .. } => 16,
        Request::RequestChainData { .. } => 17,
        Request::Claims { .. } => 18,
        Request::Gestalt { .. } => 19,
        Request::Flush { .. } => 20,
        Request::FindClosest { .. } => 21,
    }
}

fn renewed() -> Identity {
    let key = Key::numbered(77, 0);
    renew(&genesis(&key, START), &key, &Key::numbered(77, 1 << 40), START)
}

fn connected(conn: u64, side: Side) -> Input {
    Input::Connected(Connected {
        conn: ConnectionId(conn),
        side,
        dialect: Dialect::Native,
        leaf: Bare::peer(3),
        chain: vec![Bare::peer(3)],
        matched_id: None,
        remote: "198.51.100.9:1".parse().unwrap(),
        local: "192.0.2.1:1314".parse().unwrap(),
        shared_id: Bytes::from_static(b"shared"),
    })
}

/// One input of every kind, with valid and invalid ids.
fn inputs() -> Vec<Input> {
    let mut inputs = vec![
        Input::Listening { addrs: vec!["192.0.2.2:1315".parse().unwrap()] },
        Input::LocalAddresses { ips: vec!["10.0.0.7".parse().unwrap()] },
        Input::WallClock(UnixMillis(START.0 + 3_600_000)),
        Input::External { addr: Some("203.0.113.7:1314".parse().unwrap()) },
        connected(101, Side::Acceptor),
        connected(0, Side::Dialer),
    ];
    for n in 0..6 {
        let (conn, stream, id) = (ConnectionId(n), StreamId(n), EffectId(n));
        inputs.extend([
            Input::DialFailed { conn, why: DialFailure::TimedOut },
            Input::RemoteAddressChanged { conn, addr: "198.51.100.9:2".parse().unwrap() },
            Input::StreamOpened { conn, stream: StreamId(201 + 2 * n) },
            Input::StreamData { stream, bytes: Bytes::from_static(b"\0\0\0\x01\0"), fin: true },
            Input::StreamWritten { stream, bytes: 1 },
            Input::StreamReset { stream, code: 0 },
            Input::StreamStopped { stream, code: 0 },
            Input::OpenFailed { stream },
            Input::StreamClosed { stream },
            Input::CircuitClosed { stream, bytes: 1 },
            Input::Signed { id, result: Err("no".into()) },
            Input::Persisted { id, result: Ok(()) },
            Input::Loaded { id, result: Ok((Vec::new(), false)) },
            Input::Resolved { id, result: Ok(Vec::new()) },
            Input::Discovered { id, addrs: vec!["198.51.100.9:2".parse().unwrap()], done: true },
            Input::IdentityReplaced { id, result: Ok(()) },
        ]);
    }
    inputs
}

/// Every public call.
fn calls() -> Vec<RecordedCall> {
    let other = [
        RecordedCall::Timeout,
        RecordedCall::Cancel(RequestId(0)),
        RecordedCall::Release(LeaseId(0)),
        RecordedCall::Disconnect(Bare::peer(1)),
        RecordedCall::UnsetNode(Bare::peer(2)),
        RecordedCall::AcceptProtocol("echo".into()),
        RecordedCall::RefuseProtocol("echo".into()),
        RecordedCall::SetRefreshDelay { bucket: BucketIndex(255), delay: ms(1), lazy: false },
        RecordedCall::ResolveClaimApproval { approval: ApprovalId(0), sign: true },
        RecordedCall::ResetBuckets,
        RecordedCall::Stop,
    ];
    let calls = inputs()
        .into_iter()
        .map(RecordedCall::Input)
        .chain(requests().into_iter().map(RecordedCall::Request))
        .chain(other);
    calls.collect()
}

/// A node with all background work.
fn with_background_work(config: &mut Config) {
    config.refresh_delay = Duration::from_secs(60);
    config.retry_delay = ms(200);
    config.store_delay = ms(10);
}

fn starts_work(output: &Output) -> bool {
    matches!(
        output,
        Output::Dial { .. }
            | Output::OpenStream { .. }
            | Output::DetachStream { .. }
            | Output::AttachCircuit { .. }
            | Output::JoinCircuit { .. }
            | Output::ProbePath { .. }
            | Output::Sign { .. }
            | Output::Load { .. }
            | Output::Resolve { .. }
            | Output::Browse { .. }
            | Output::Punch { .. }
            | Output::Advertise { port: Some(_), .. }
    )
}

#[test]
fn after_stopped_every_call_is_silent() {
    for call in calls() {
        let mut bare = in_phase(Phase::Stopped, with_background_work);
        bare.node.call(call.clone(), bare.now);
        assert_eq!((bare.take(), bare.node.poll_timeout()), (vec![], None), "{call:?}");
        bare.suspend(Duration::from_secs(100_000));
        assert_eq!((bare.take(), bare.node.poll_timeout()), (vec![], None), "{call:?}, and time");
    }
}

#[test]
fn nothing_new_starts_while_stopping() {
    for call in calls() {
        let mut bare = in_phase(Phase::Stopping, with_background_work);
        bare.node.call(call.clone(), bare.now);
        bare.pass(Duration::from_secs(59));
        let outputs = bare.take();
        assert!(!outputs.iter().any(starts_work), "{call:?}: {outputs:?}");
        assert_eq!(bare.node.metrics().outputs_suppressed, 0, "{call:?}");
        bare.pass(Duration::from_secs(2));
        assert_eq!(bare.node.phase(), Phase::Stopped, "{call:?}");
    }
}

#[test]
fn nothing_is_dialed_sent_or_written_before_ready() {
    for call in calls() {
        let mut bare = in_phase(Phase::Starting, with_background_work);
        bare.node.call(call.clone(), bare.now);
        if bare.node.phase() == Phase::Starting {
            bare.pass(Duration::from_secs(100_000));
            let outputs = bare.take();
            let closes = |output: &Output| matches!(output, Output::CloseConnection { .. });
            assert!(outputs.iter().all(closes), "{call:?}: {outputs:?}");
            assert_eq!(
                outputs.len(),
                usize::from(call == RecordedCall::Input(connected(101, Side::Acceptor))),
                "{call:?}"
            );
        } else {
            assert!(
                matches!(call, RecordedCall::Stop | RecordedCall::Input(Input::Listening { .. })),
                "{call:?}"
            );
            let first = bare.take().into_iter().next();
            assert!(
                matches!(first, Some(Output::Event(Event::Ready { .. } | Event::Stopped))),
                "{first:?}"
            );
        }
        assert_eq!(bare.node.metrics().outputs_suppressed, 0, "{call:?}");
    }
}

#[test]
fn call_that_its_phase_does_not_allow_returns_an_error() {
    for phase in PHASES {
        let refusal = match phase {
            Phase::Starting => Some(RequestError::NotReady),
            Phase::Running => None,
            Phase::Stopping | Phase::Stopped => Some(RequestError::Stopping),
        };
        for request in requests() {
            let mut bare = in_phase(phase, |_| {});
            assert_eq!(
                bare.node.request(request.clone(), bare.now).err(),
                refusal,
                "{phase:?}: {request:?}"
            );
        }
        let mut bare = in_phase(phase, |_| {});
        let now = bare.now;
        assert_eq!(bare.node.reset_buckets(now).err(), refusal);
        assert_eq!(bare.node.set_refresh_delay(BucketIndex(255), ms(1), false, now).err(), refusal);
        assert_eq!(bare.node.unset_node(Bare::peer(2), now).err(), refusal);
        let accepted = bare.node.accept_protocol("echo".into(), now).err();
        assert_eq!(
            accepted,
            refusal.filter(|_| phase > Phase::Running),
            "an embedder may be first"
        );
        assert_eq!(bare.node.disconnect(Bare::peer(1), now), usize::from(phase == Phase::Running));
    }
}

#[test]
fn stopping_node_does_not_wait_for_work_that_has_not_started() {
    let mut bare = in_phase(Phase::Running, with_background_work);
    bare.node.stop(bare.now);
    bare.persist_all();
    // The peer's connection takes half a second to close; the retry timer would have fired
    // meanwhile.
    bare.pass(ms(500));
    assert!(!bare.take().iter().any(starts_work));
    bare.input(Input::Disconnected { conn: ConnectionId(1), why: DisconnectReason::Local });
    bare.persist_all();
    assert_eq!(bare.node.phase(), Phase::Stopped);
}

#[test]
fn connection_before_ready_is_closed_and_the_node_starts() {
    let mut bare = in_phase(Phase::Starting, |_| {});
    let conn = ConnectionId(101);
    bare.input(connected(101, Side::Acceptor));
    assert!(
        matches!(bare.take()[..], [Output::CloseConnection { conn: closed, .. }] if closed == conn)
    );
    bare.input(Input::Listening { addrs: vec!["192.0.2.1:1314".parse().unwrap()] });
    bare.input(Input::Disconnected { conn, why: DisconnectReason::Local });
    assert!(
        !bare
            .take()
            .iter()
            .any(|output| matches!(output, Output::Event(Event::ConnectionClosed { .. })))
    );
    bare.accept(Bare::peer(1));
}

#[test]
fn node_that_listens_elsewhere_advertises_its_new_port() {
    let mut bare = in_phase(Phase::Running, |_| {});
    let listening = |port: u16| Input::Listening { addrs: vec![([192, 0, 2, 1], port).into()] };
    bare.input(listening(1314));
    assert_eq!(bare.take(), vec![], "nothing has changed");
    bare.input(listening(2000));
    let node = bare.node.own_id();
    assert_eq!(
        bare.take(),
        vec![Output::Advertise { node, port: Some(2000) }],
        "Ready is said once"
    );
    bare.node.stop(bare.now);
    assert!(bare.take().contains(&Output::Advertise { node, port: None }));
}

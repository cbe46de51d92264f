//! Same seed and inputs, same outputs, byte for byte; and recordings that are replayed with the
//! same outputs.

use pk_proto::{
    ClosestNodesQuery, Config, ConfigError, FindNodeOptions, NodeManager, RecordedCall, Replay,
    ReplayError, Request, Snapshot, StartError, StartParams,
};
use pk_sim::{Actor, App, AppAction, Boot, Cluster, Link};

use crate::common::*;

const NODES: usize = 12;
const LIMIT: usize = 1 << 20;

/// A busy network, with a recording of node 0. Returns both.
fn busy(seed: u64, stop: bool) -> (Cluster, Vec<u8>) {
    let link = Link::ms(20).jitter(ms(30)).loss(40);
    let mut cluster = Cluster::quiet().nodes(NODES).seed(seed).link(link).build();
    let recorded = |boot: Boot<'_>| {
        let (config, identity, snapshot) =
            (Config::default(), boot.host.identity.clone(), Snapshot::default());
        let start = StartParams {
            config,
            identity,
            snapshot,
            seed: boot.seed,
            now: boot.now,
            unix: boot.unix,
        };
        NodeManager::start_recorded(start, LIMIT).ok().map(|node| Actor::Node(Box::new(node)))
    };
    assert!(cluster.try_start(0, recorded));
    (1..NODES).for_each(|node| cluster.start_node(node));
    cluster.drive(SECOND);
    for node in 0..NODES {
        cluster.host_mut(node).apps.insert("echo".into(), App::Echo);
        cluster.call(node, |node, now| node.accept_protocol("echo".into(), now)).unwrap();
    }
    cluster.join_all();
    let mut recording = cluster.call(0, |node, _| node.take_recording()).unwrap();

    // Every kind of call into the recorded node.
    let query = ClosestNodesQuery { known: true, connected: true };
    let mut leases = Vec::new();
    for round in 0..10u64 {
        let (to, other) =
            (1 + round as usize % (NODES - 1), 1 + (round as usize + 5) % (NODES - 1));
        let (target, address) = (cluster.id(to), cluster.address(to));
        let requests = [
            Request::FindNode { target: absent(round), find: FindNodeOptions::default() },
            Request::PingNode { target, options: NO },
            Request::PingNodeAddress { target, address, options: by(ms(80)) },
            Request::OpenStream { target, protocol: "echo".into(), options: NO },
            Request::QueryClosestNodes { via: cluster.id(other), target, query, options: NO },
            Request::AcquireConnection { target, options: NO },
        ];
        let ids: Vec<_> = requests.into_iter().map(|request| cluster.request(0, request)).collect();
        cluster.drive(ms(15));
        cluster.cancel(0, ids[0]);
        assert!(
            cluster
                .try_request(0, Request::PingNode { target: cluster.id(0), options: NO })
                .is_err()
        );
        cluster.drive(2 * SECOND);
        if let Some(Ok(pk_proto::Reply::AcquireConnection { lease, .. })) = cluster.done(0, ids[5])
        {
            leases.push(*lease);
        }
        let streams: Vec<_> =
            cluster.app_streams(0).filter(|app| !app.lost).map(|app| app.stream).collect();
        for stream in streams {
            cluster.app(0, stream, AppAction::Send(vec![7; 5000].into(), round % 2 == 0));
        }
        match round {
            1 => cluster.kill(3),
            2 => cluster.partition(&[&[0, 1, 2], &[5, 6]]),
            3 => cluster.heal(),
            4 => cluster.start_node(3),
            _ => {
                let id = cluster.id(other);
                cluster.call(0, |node, now| node.disconnect(id, now));
                cluster.call(0, |node, now| node.unset_node(id, now).unwrap());
            }
        }
        cluster.spurious_timeout(0);
        cluster.drive(10 * SECOND);
        recording.extend(cluster.call(0, |node, _| node.take_recording()).unwrap());
    }
    for lease in leases {
        cluster.call(0, |node, now| node.release(lease, now));
    }
    cluster.call(0, |node, now| node.refuse_protocol("echo", now));
    cluster.drive(100 * SECOND);
    if stop {
        cluster.stop_all();
    }
    recording.extend(cluster.call(0, |node, _| node.take_recording()).unwrap());
    (cluster, recording)
}

/// Replays to the end. Returns the number of calls.
fn replay(recording: &[u8]) -> Result<usize, ReplayError> {
    let mut replay = Replay::new(recording)?;
    let mut calls = 0;
    while replay.step()?.is_some() {
        calls += 1;
    }
    Ok(calls)
}

/// The ranges of the bytes of each record; the first is the start.
fn records(recording: &[u8]) -> Vec<std::ops::Range<usize>> {
    let (mut at, mut records) = (5, Vec::new());
    while at < recording.len() {
        let length = u32::from_be_bytes(recording[at..at + 4].try_into().unwrap()) as usize;
        records.push(at + 4..at + 4 + length);
        at += 4 + length;
    }
    assert_eq!(at, recording.len());
    records
}

/// The same recording with one record replaced.
fn replaced(recording: &[u8], number: usize, bytes: &[u8]) -> Vec<u8> {
    let place = records(recording).swap_remove(number);
    let length = (bytes.len() as u32).to_be_bytes();
    [&recording[..place.start - 4], &length, bytes, &recording[place.end..]].concat()
}

#[test]
fn same_seed_gives_the_same_run_and_the_same_recording() {
    let ((first, one), (second, two)) = (busy(5, true), busy(5, true));
    assert_eq!(first.digest(), second.digest());
    assert_eq!(first.counters(), second.counters());
    assert!(one == two, "byte for byte");
    let (third, three) = busy(6, true);
    assert_ne!(first.digest(), third.digest());
    assert!(one != three);
    assert!(first.counters().outputs > 2000, "{:?}", first.counters());
}

#[test]
fn recording_is_replayed_to_its_end() {
    for stop in [false, true] {
        let (cluster, recording) = busy(7, stop);
        let mut replay = Replay::new(&recording).unwrap();
        let (mut calls, mut outputs, mut kinds) = (0, 0, std::collections::BTreeSet::new());
        while let Some(step) = replay.step().unwrap() {
            calls += 1;
            assert_eq!(step.record, calls);
            outputs += step.outputs.len();
            kinds.insert(match step.call {
                RecordedCall::Input(_) => "input",
                RecordedCall::Timeout => "timeout",
                RecordedCall::Request(_) => "request",
                RecordedCall::Cancel(_) => "cancel",
                RecordedCall::Release(_) => "release",
                RecordedCall::Disconnect(_) => "disconnect",
                RecordedCall::UnsetNode(_) => "unset",
                RecordedCall::AcceptProtocol(_) => "accept",
                RecordedCall::RefuseProtocol(_) => "refuse",
                RecordedCall::SetRefreshDelay { .. } => "refresh delay",
                RecordedCall::ResolveClaimApproval { .. } => "answer",
                RecordedCall::ResetBuckets => "reset",
                RecordedCall::Stop => "stop",
            });
        }
        assert_eq!(kinds.len(), 9 + usize::from(stop), "every kind of call: {kinds:?}");
        assert_eq!(calls + 1, records(&recording).len());
        assert!(calls > 400 && outputs > 500, "{calls} calls, {outputs} outputs");
        // The replayed machine has the same state as the recorded one.
        let (desk, field) = (replay.machine(), cluster.node(0));
        assert_eq!((desk.metrics(), desk.own_id()), (field.metrics(), field.own_id()));
        assert!(desk.graph() == field.graph() && desk.connections() == field.connections());
        assert_eq!((desk.poll_timeout(), desk.is_stopped()), (field.poll_timeout(), stop));
    }
}

#[test]
fn truncated_recording_ends_at_its_last_complete_record() {
    let (_, recording) = busy(8, false);
    let records = records(&recording);
    for cut in [
        records[0].end,
        records[0].end + 3,
        records[10].start,
        records[10].end - 1,
        recording.len() - 1,
    ] {
        let whole = records.iter().filter(|place| place.end <= cut).count() - 1;
        assert_eq!(replay(&recording[..cut]), Ok(whole));
    }
    assert_eq!(replay(&recording[..records[0].end - 1]), Err(ReplayError::Damaged(0)));
    assert_eq!(replay(&recording[..5]), Err(ReplayError::Damaged(0)));
}

#[test]
fn other_files_and_other_versions_are_refused() {
    for bytes in [&b""[..], b"PKT", b"PKTR", b"hello, this is a file", b"\x7fELF\x02\x01\x01"] {
        assert_eq!(replay(bytes), Err(ReplayError::NotARecording));
    }
    let (_, mut recording) = busy(8, false);
    for version in [0, 1, 2, 3, 4, 5, 6, 255] {
        recording[4] = version;
        let error = replay(&recording).unwrap_err();
        assert_eq!(error, ReplayError::Version(version));
        let text = format!("the recording has format {version}; this program supports format 8");
        assert_eq!(error.to_string(), text);
    }
}

#[test]
fn changed_recording_diverges_at_the_change_or_later() {
    let (_, recording) = busy(9, false);
    let places = records(&recording);
    let start: StartParams = postcard::from_bytes(&recording[places[0].clone()]).unwrap();
    let doctored = |change: fn(&mut StartParams)| {
        let mut start = start.clone();
        change(&mut start);
        replay(&replaced(&recording, 0, &postcard::to_allocvec(&start).unwrap()))
    };
    assert_eq!(doctored(|_| {}), Ok(places.len() - 1), "taken apart and put together");
    let diverged =
        |result: &Result<usize, ReplayError>| matches!(result, Err(ReplayError::Diverged { .. }));
    // Another seed draws other nonces; another setting waits for another time; an earlier clock
    // signs other times.
    for change in [
        (|start| start.seed[0] ^= 1) as fn(&mut StartParams),
        |start| start.config.find_concurrency = 1,
        |start| start.config.connect_timeout /= 2,
        |start| start.unix.0 += 5000,
    ] {
        let result = doctored(change);
        assert!(diverged(&result), "{result:?}");
    }
    let invalid = doctored(|start| start.config.find_concurrency = 0);
    assert!(
        matches!(invalid, Err(ReplayError::Start(StartError::Config(ConfigError::Count { .. })))),
        "{invalid:?}"
    );
    let absent = doctored(|start| start.identity.chain.clear());
    assert!(matches!(absent, Err(ReplayError::Start(StartError::Identity(_)))), "{absent:?}");

    // A missing call.
    let mut found = 0;
    for number in (1..places.len()).step_by(11) {
        let place = &places[number];
        let without = [&recording[..place.start - 4], &recording[place.end..]].concat();
        match replay(&without) {
            Err(ReplayError::Diverged { record, .. }) => {
                assert!(record >= number, "record {number} is missing, and {record} diverges");
                found += 1;
            }
            // A confirmation of the last bytes has no effect.
            Ok(calls) => assert_eq!(calls, places.len() - 2),
            other => panic!("{other:?}"),
        }
    }
    assert!(found > 20, "{found}");

    // The hash of the outputs.
    let number = places.len() / 2;
    let mut bytes = recording[places[number].clone()].to_vec();
    let digest = postcard::take_from_bytes::<(u64, u64)>(&bytes)
        .map(|(_, rest)| bytes.len() - rest.len())
        .unwrap();
    bytes[digest] ^= 1;
    match replay(&replaced(&recording, number, &bytes)) {
        Err(ReplayError::Diverged { record, now }) => {
            assert_eq!(record, number);
            assert!(now > start.now);
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn damaged_recording_is_an_error_or_diverges() {
    let (_, recording) = busy(10, false);
    let places = records(&recording);
    for number in [1, places.len() / 2, places.len() - 1] {
        let noise = vec![0xff; places[number].len()];
        assert_eq!(
            replay(&replaced(&recording, number, &noise)),
            Err(ReplayError::Damaged(number))
        );
        assert_eq!(replay(&replaced(&recording, number, &[])), Err(ReplayError::Damaged(number)));
        // An invalid length.
        let mut damaged = recording.clone();
        damaged[places[number].start - 4] = 0xff;
        assert_eq!(replay(&damaged), Err(ReplayError::Damaged(number)));
    }
    let (mut diverged, mut broken) = (0, 0);
    for i in 0..450 {
        let mut flipped = recording.clone();
        let at = 5 + (i * 7919) % (recording.len() - 5);
        flipped[at] ^= 1 << (i % 8);
        match replay(&flipped) {
            Err(ReplayError::Diverged { .. }) => diverged += 1,
            Err(ReplayError::Damaged(_)) => broken += 1,
            Ok(_) | Err(ReplayError::Start(_)) => {}
            other => panic!("{other:?}"),
        }
    }
    assert!(diverged > 50 && broken > 3, "{diverged} diverged, {broken} were damaged");
}

#[test]
fn recording_over_its_limit_is_dropped_and_the_node_continues() {
    let key = pk_sim::Key::numbered(1, 1);
    let unix = pk_proto::UnixMillis(1_767_225_600_000);
    let now = pk_proto::Instant::ORIGIN;
    let start = StartParams {
        config: Config::default(),
        identity: pk_sim::genesis(&key, unix),
        snapshot: Snapshot::default(),
        seed: [0; 32],
        now,
        unix,
    };
    let mut node = NodeManager::start_recorded(start.clone(), 4096).unwrap();
    node.handle_input(pk_proto::Input::Listening { addrs: vec![] }, now);
    let taken = node.take_recording().unwrap();
    assert_eq!(replay(&taken), Ok(1));
    // Taken in time, the recording has no size limit.
    for _ in 0..100 {
        node.handle_timeout(now);
        assert!(node.take_recording().is_some());
    }
    for _ in 0..200 {
        node.handle_timeout(now);
    }
    assert_eq!(node.take_recording(), None);
    assert!(node.find_node(absent(0), FindNodeOptions::default(), now).is_ok());
    assert_eq!(node.take_recording(), None, "it has a hole");
    // A node that is not recorded has no recording.
    let mut node = NodeManager::start(start).unwrap();
    assert_eq!(node.take_recording(), None);
}

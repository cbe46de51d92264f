//! Each invariant of the targets detects a planted bug. `tests/simulator/fuzz.rs` shows that
//! correct machines pass the same scripts.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use pk_proto::{Event, Failure, Instant, Output, StoreOp, Table, code};

use super::driver::Plant;
use super::{machine, pair};

/// Scripts that are tried until one meets the bug.
const SCRIPTS: u64 = 400;

/// Pseudorandom bytes.
fn noise(seed: u64) -> Vec<u8> {
    let mut noise = vec![0; 600];
    blake3::Hasher::new().update(&seed.to_be_bytes()).finalize_xof().fill(&mut noise);
    noise
}

fn message(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<String>().cloned();
    text.or_else(|| payload.downcast_ref::<&str>().map(|text| (*text).to_owned()))
        .unwrap_or_default()
}

/// Checks that one of the scripts fails, with this text, or one of those that " or " separates, in
/// the first line of the message.
fn assert_caught(expected: &str, scripts: u64, mut run: impl FnMut(&[u8])) {
    for seed in 0..scripts {
        let Err(payload) = catch_unwind(AssertUnwindSafe(|| run(&noise(seed)))) else { continue };
        let message = message(&*payload);
        let first = message.lines().next().unwrap_or_default();
        let mut any = expected.split(" or ");
        assert!(
            any.any(|text| first.contains(text)),
            "script {seed}: {first}, instead of {expected}"
        );
        return;
    }
    panic!("no script has met the planted bug: {expected}");
}

fn assert_machine_catches(expected: &str, plant: Plant) {
    assert_caught(expected, SCRIPTS, |data| drop(machine::run(data, plant)));
}

fn on_output(expected: &str, plant: fn(Output) -> Vec<Output>) {
    assert_machine_catches(expected, Plant { output: Some(plant), ..Plant::default() });
}

#[test]
fn panic_is_caught() {
    on_output("planted", |output| match output {
        Output::Dial { .. } => panic!("planted"),
        output => vec![output],
    });
}

#[test]
fn request_that_does_not_end_or_ends_twice_is_caught() {
    on_output("has not ended", |output| match output {
        Output::Event(Event::Done { .. }) => vec![],
        output => vec![output],
    });
    on_output("ended twice", |output| match output {
        Output::Event(Event::Done { .. }) => vec![output.clone(), output],
        output => vec![output],
    });
}

#[test]
fn dial_that_never_ends_is_caught() {
    on_output("a dial until", |output| match output {
        Output::Dial { conn, addr, expect, .. } => {
            vec![Output::Dial { conn, addr, expect, deadline: Instant::FAR_FUTURE }]
        }
        output => vec![output],
    });
    let census = |mut census: pk_proto::Census| {
        census.dials += 1;
        census
    };
    assert_machine_catches("(\"dials\", ", Plant { census: Some(census), ..Plant::default() });
}

#[test]
fn timer_without_progress_is_caught() {
    let stuck = |_: &pk_proto::NodeManager| Some(Instant::ORIGIN);
    assert_machine_catches("checker `timers`", Plant { timeout: Some(stuck), ..Plant::default() });
}

#[test]
fn table_over_its_limit_is_caught() {
    let plant = |mut metrics: pk_proto::Metrics| {
        metrics.requests_open = 2_000_000;
        metrics
    };
    assert_machine_catches("checker `caps`", Plant { metrics: Some(plant), ..Plant::default() });
}

#[test]
fn credit_over_the_window_is_caught() {
    on_output("checker `windows`", |output| match output {
        Output::ReadCredit { stream, .. } => vec![Output::ReadCredit { stream, bytes: 1 << 40 }],
        output => vec![output],
    });
}

#[test]
fn closest_nodes_without_a_node_are_caught() {
    let plant = |mut closest: Vec<pk_proto::NodeId>| {
        closest.pop();
        closest
    };
    assert_machine_catches("checker `graph`", Plant { closest: Some(plant), ..Plant::default() });
}

#[test]
fn output_after_stopped_is_caught() {
    on_output("after Stopped", |output| match output {
        Output::Event(Event::Stopped) => {
            let node = pk_proto::NodeId::numbered(0);
            vec![output, Output::Advertise { node, port: None }]
        }
        output => vec![output],
    });
}

#[test]
fn stream_used_after_its_end_is_caught() {
    on_output("checker `discipline`", |output| match output {
        Output::ResetStream { stream, .. } => {
            vec![output, Output::SendStream { stream, bytes: bytes::Bytes::new(), fin: true }]
        }
        output => vec![output],
    });
}

#[test]
fn missing_write_of_a_row_is_caught() {
    on_output("checker `stored`", |output| match output {
        Output::Persist { id, mut ops, durable } => {
            ops.retain(|op| !matches!(op, StoreOp::Put { table: Table::Contacts(_), .. }));
            vec![Output::Persist { id, ops, durable }]
        }
        output => vec![output],
    });
}

#[test]
fn missing_read_of_a_row_is_caught() {
    let plant = |mut snapshot: pk_proto::Snapshot| {
        snapshot.contacts.clear();
        snapshot
    };
    assert_machine_catches(
        "restart: or the store and the graph:",
        Plant { snapshot: Some(plant), ..Plant::default() },
    );
}

#[test]
fn entry_that_stays_in_a_table_is_caught() {
    let plant = |mut census: pk_proto::Census| {
        census.calls += 1;
        census
    };
    assert_machine_catches("(\"calls\", 1)", Plant { census: Some(plant), ..Plant::default() });
}

#[test]
fn different_replay_is_caught() {
    // The last record is that of a timeout: a tag of one byte after the digest of the outputs.
    let plant = |mut recording: Vec<u8>| {
        if let Some(byte) = recording.iter_mut().nth_back(1) {
            *byte ^= 1;
        }
        recording
    };
    assert_machine_catches("replay:", Plant { recording: Some(plant), ..Plant::default() });
}

#[test]
fn disagreement_of_two_nodes_is_caught() {
    let pair_catches =
        |expected: &str, plant| assert_caught(expected, 30, |data| drop(pair::run(data, plant)));
    let busy = |_| Err(Failure::Aborted(code::LIMIT));
    pair_catches("cannot connect to node", pair::Plant { cut: true, ..pair::Plant::default() });
    pair_catches("does not answer", pair::Plant { pong: Some(busy), ..pair::Plant::default() });
    pair_catches("do not end", pair::Plant { exchanges: Some(|_| 1), ..pair::Plant::default() });
    pair_catches(
        "use different connections",
        pair::Plant { primary: Some(|_| None), ..pair::Plant::default() },
    );
    let links = |mut links: std::collections::BTreeMap<usize, usize>| {
        links.entry(0).and_modify(|count| *count += 1);
        links
    };
    pair_catches("claims of nodes", pair::Plant { links: Some(links), ..pair::Plant::default() });
    let chain = |mut chain: Vec<pk_proto::claims::Claim>| {
        chain.pop();
        chain
    };
    pair_catches("the head of node", pair::Plant { chain: Some(chain), ..pair::Plant::default() });
    let fork = |mut chain: Vec<pk_proto::claims::Claim>| {
        chain.extend(chain.last().cloned());
        chain
    };
    pair_catches("the chain of node", pair::Plant { chain: Some(fork), ..pair::Plant::default() });
}

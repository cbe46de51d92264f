//! A process is killed at any step of an exchange, on either side: after both have restarted and
//! connected, each has its claim, once.
//!
//! Every scenario is run once without a crash, to count the steps of each side: all inputs and
//! outputs of its machine. Then each side is killed after each of its steps, with the writes in
//! progress applied and not applied.
//!
//! The same with each of its writes failing, and the store not knowing whether it was applied: with
//! and without a crash at each output after it.

use std::collections::BTreeSet;
use std::time::Duration;

use pk_proto::claims::{ClaimPolicy, ClaimStep};
use pk_proto::{Dialect, Event, Reply, Request, RequestOptions, Table};
use pk_sim::{Cluster, CrashPolicy, HostId, WriteFault};

use super::kit::*;
use crate::common::{SECOND, ms};

/// Which nodes claim each other, all at the same time.
type Pairs = &'static [(HostId, HostId)];

/// The exchanges that are in progress when a process is killed.
struct Scenario {
    name: &'static str,
    /// In the end, each of these pairs has its claim.
    pairs: Pairs,
    /// Whether the embedder approves requested claims.
    asks: bool,
    /// Prepares the cluster; crashes happen only afterwards.
    before: fn(Dialect) -> Cluster,
    /// Starts the exchanges.
    begin: fn(&mut Cluster, Pairs),
}

const SCENARIOS: [Scenario; 6] = [
    Scenario {
        name: "one claims",
        pairs: &[(0, 1)],
        asks: false,
        before: cluster_that_allows_claims,
        begin: claim_all,
    },
    Scenario {
        name: "one claims, the other asks",
        pairs: &[(0, 1)],
        asks: true,
        before: cluster_with_approvals,
        begin: claim_all,
    },
    Scenario {
        name: "both claim",
        pairs: &[(0, 1), (1, 0)],
        asks: false,
        before: cluster_that_allows_claims,
        begin: claim_all,
    },
    Scenario {
        name: "busy chains",
        pairs: &[(0, 1)],
        asks: false,
        before: cluster_that_allows_claims,
        begin: claim_while_busy,
    },
    Scenario {
        name: "the responder resumes",
        pairs: &[(0, 1)],
        asks: false,
        before: unfinished_at_the_initiator,
        begin: connect_again,
    },
    Scenario {
        name: "the responder recalls",
        pairs: &[(0, 1)],
        asks: false,
        before: unfinished_at_the_responder,
        begin: connect_again,
    },
];

fn two(policy: ClaimPolicy, dialect: Dialect) -> Cluster {
    let mut cluster = started(2, 11, |config| config.claim_policy = policy);
    for node in [0, 1] {
        let host = cluster.host_mut(node);
        host.dialects = vec![dialect];
        // Every effect has a delay, so that a crash can hit every step.
        host.sign_delay = Some(ms(2));
        host.store.delay = ms(3);
    }
    connect(&mut cluster, 0, 1);
    cluster
}

fn cluster_that_allows_claims(dialect: Dialect) -> Cluster {
    two(ClaimPolicy::All, dialect)
}

fn cluster_with_approvals(dialect: Dialect) -> Cluster {
    two(ClaimPolicy::Ask, dialect)
}

fn claim_all(cluster: &mut Cluster, pairs: Pairs) {
    for (from, to) in pairs {
        let request = claim(cluster, *to);
        request_if_running(cluster, *from, request);
    }
}

/// When a claim is drafted, the chain is being written: that of the initiator at once, that of the
/// responder 30 ms later.
fn claim_while_busy(cluster: &mut Cluster, pairs: Pairs) {
    let own = own_claim(cluster, 0);
    request_if_running(cluster, 0, own);
    cluster.drive(ms(3));
    claim_all(cluster, pairs);
    // While the claim waits, another claim is added.
    cluster.drive(ms(1));
    let target = cluster.id(1);
    request_if_running(
        cluster,
        0,
        Request::PingNode { target, options: RequestOptions::default() },
    );
    cluster.drive(ms(28));
    let own = own_claim(cluster, 1);
    request_if_running(cluster, 1, own);
}

/// The initiator's claim is written, and its last signature has not arrived at the responder; the
/// two are not connected.
fn unfinished_at_the_initiator(dialect: Dialect) -> Cluster {
    let mut cluster = cluster_that_allows_claims(dialect);
    claim_all(&mut cluster, &[(0, 1)]);
    let written = |cluster: &Cluster| cluster.host(0).store.table(Table::Exchanges).count() == 1;
    assert!(cluster.drive_until(written, SECOND));
    restart_initiator(cluster)
}

/// The responder's claim is written, and the initiator has not received its confirmation.
fn unfinished_at_the_responder(dialect: Dialect) -> Cluster {
    let mut cluster = cluster_that_allows_claims(dialect);
    claim_all(&mut cluster, &[(0, 1)]);
    let written = |cluster: &Cluster| cluster.host(1).store.table(Table::Answered).count() == 1;
    assert!(cluster.drive_until(written, SECOND));
    restart_initiator(cluster)
}

/// The initiator connects again.
fn connect_again(cluster: &mut Cluster, _: Pairs) {
    let (target, address) = (cluster.id(1), cluster.address(1));
    request_if_running(
        cluster,
        0,
        Request::Connect { target, address, options: RequestOptions::default() },
    );
}

fn request_if_running(cluster: &mut Cluster, node: HostId, request: Request) {
    if cluster.machine(node).is_some() {
        cluster.request(node, request);
    }
}

/// The initiator is killed and restarted.
fn restart_initiator(mut cluster: Cluster) -> Cluster {
    cluster.kill(0);
    cluster.drive(60 * SECOND);
    cluster.start_node(0);
    cluster.drive(Duration::ZERO);
    let doubts = |event: &Event| matches!(event, Event::ClaimUnconfirmed { .. }).then_some(());
    assert_eq!(events(&cluster, 0, doubts).len(), 1);
    cluster
}

/// Runs the network; if `asks`, embedders approve every claim.
fn drive(cluster: &mut Cluster, asks: bool, seconds: u32, mut done: impl FnMut(&Cluster) -> bool) {
    let end = cluster.now() + seconds * SECOND;
    let mut seen = [0, 1].map(|node| cluster.events(node).len());
    while !done(cluster) && cluster.step_by(end) {
        for node in [0, 1] {
            let new = cluster.events_since(node, seen[node]).filter_map(|event| match event {
                Event::ClaimApprovalRequested { approval, .. } if asks => Some(*approval),
                _ => None,
            });
            let new: Vec<_> = new.collect();
            seen[node] = cluster.events(node).len();
            for approval in new {
                if cluster.machine(node).is_none() {
                    break;
                }
                cluster
                    .call(node, |machine, now| machine.resolve_claim_approval(approval, true, now));
            }
        }
    }
}

/// Both nodes run and connect; a node without a claim or an unconfirmed one requests it again, as
/// its embedder would.
fn recover(cluster: &mut Cluster, scenario: &Scenario, failed: bool) {
    for node in [0, 1] {
        let store = &mut cluster.host_mut(node).store;
        (store.fail_reads, store.unreadable) = (0, 0);
        store.faults.clear();
        if cluster.machine(node).is_none() {
            cluster.start_node(node);
        }
    }
    // A node whose peer was killed detects that.
    drive(cluster, scenario.asks, 100, |_| false);
    assert!(matches!(cluster.connect(0, 1), Ok(Reply::Connect(_))));
    drive(cluster, scenario.asks, 100, |_| false);
    for (from, to) in scenario.pairs {
        if count(cluster, *from, *from, *to) == 0 {
            let requests = begin(cluster, &[(*from, *to)]);
            drive(cluster, scenario.asks, 100, |cluster| {
                cluster.done(*from, requests[0].1).is_some()
            });
            claimed(cluster.await_done(*from, requests[0].1));
        }
    }
    drive(cluster, scenario.asks, 10, |_| false);
    // After a failed write, the row of a completed exchange may remain: after the next start the
    // node asks the peer once more.
    for node in [0, 1].into_iter().filter(|_| failed) {
        if unfinished(cluster, node) > 0 {
            cluster.restart(node);
            cluster.drive(SECOND);
            connect(cluster, 0, 1);
            drive(cluster, scenario.asks, 100, |_| false);
        }
    }
    for (from, to) in scenario.pairs {
        assert_linked(cluster, *from, *to, 1);
    }
    for node in [0, 1] {
        let links = chain(cluster, node).iter().filter(|claim| claim.link().is_some()).count();
        assert_eq!(links, scenario.pairs.len());
        assert_settled(cluster, node);
        assert_eq!(unfinished(cluster, node), 0);
    }
}

/// Exchanges that a node has started and that are not complete in its store.
fn unfinished(cluster: &Cluster, node: HostId) -> usize {
    cluster.host(node).store.table(Table::Exchanges).filter(|(key, _)| key[0] == 0).count()
}

/// A fault at one side.
#[derive(Debug, Clone, Copy)]
struct Mishap {
    victim: HostId,
    /// It is killed after this many steps, and its store keeps or loses the writes in progress.
    crash: Option<(u64, CrashPolicy)>,
    /// The write of this number fails in this way, and then this many reads fail.
    fault: Option<(u64, WriteFault, u32)>,
}

/// Runs a scenario with a fault. Returns the steps in which the victim was killed; `None` if it was
/// not.
fn run(scenario: &Scenario, dialect: Dialect, mishap: Mishap) -> Option<Vec<ClaimStep>> {
    let Mishap { victim, crash, fault } = mishap;
    let mut cluster = (scenario.before)(dialect);
    let store = &mut cluster.host_mut(victim).store;
    if let Some((number, fault, unreadable)) = fault {
        store.unreadable = unreadable;
        store.faults.insert(store.writes() + number, fault);
    }
    if let Some((io_count, policy)) = crash {
        store.crash = policy;
        cluster.kill_after(victim, io_count);
    }
    (scenario.begin)(&mut cluster, scenario.pairs);
    drive(&mut cluster, scenario.asks, 20, |cluster| cluster.machine(victim).is_none());
    let steps = match cluster.killed_machine(victim) {
        Some(pk_sim::Actor::Node(killed_machine)) => {
            Some(killed_machine.exchanges().into_iter().map(|exchange| exchange.step).collect())
        }
        _ => None,
    };
    if steps.is_none() {
        // It has made fewer outputs than without the fault, and continues to run.
        cluster.kill_after(victim, u64::MAX / 2);
    }
    drive(&mut cluster, scenario.asks, 2, |_| false);
    recover(&mut cluster, scenario, fault.is_some());
    steps
}

/// What a side does in a scenario without faults.
struct Operations {
    /// Number of its inputs and outputs.
    io_count: u64,
    /// Inputs and outputs that precede each of its writes.
    writes: Vec<u64>,
}

/// Runs a scenario without faults. Returns what each side does.
fn count_operations(scenario: &Scenario, dialect: Dialect) -> [Operations; 2] {
    let mut calm = (scenario.before)(dialect);
    let count =
        |calm: &Cluster| [0, 1].map(|node| (calm.io_count(node), calm.host(node).store.writes()));
    let before = count(&calm);
    let mut last = before;
    let mut writes = [Vec::new(), Vec::new()];
    let mut note = |calm: &Cluster| {
        let now = count(calm);
        for node in [0, 1] {
            let new = now[node].1 - last[node].1;
            writes[node].extend((0..new).map(|_| last[node].0 - before[node].0));
        }
        last = now;
    };
    (scenario.begin)(&mut calm, scenario.pairs);
    drive(&mut calm, scenario.asks, 10, |calm| {
        note(calm);
        let settled = |node| {
            let machine = calm.node(node);
            let metrics = machine.metrics();
            metrics.requests_open == 0
                && metrics.exchanges == 0
                && machine.unconfirmed_claims().next().is_none()
        };
        settled(0) && settled(1)
    });
    note(&calm);
    let after = count(&calm);
    for (from, to) in scenario.pairs {
        assert_linked(&mut calm, *from, *to, 1);
    }
    let mut io_counts = [0, 1].map(|node| after[node].0 - before[node].0).into_iter();
    writes.map(|writes| Operations { io_count: io_counts.next().unwrap(), writes })
}

#[test]
fn unknown_write_outcome_neither_forks_nor_loses_nor_duplicates_claims() {
    test_unknown_outcomes(Dialect::Native);
}

#[test]
fn unknown_write_outcome_neither_forks_nor_loses_nor_duplicates_claims_over_quic() {
    test_unknown_outcomes(Dialect::Polykey);
}

/// Each write of each side fails in each way, without a crash and with one at each output after it.
fn test_unknown_outcomes(dialect: Dialect) {
    let (mut runs, mut crashes) = (0, 0);
    for scenario in &SCENARIOS {
        for (victim, operations) in count_operations(scenario, dialect).into_iter().enumerate() {
            for (write, io_before) in (1..).zip(operations.writes) {
                for fault in [WriteFault::Written, WriteFault::Lost] {
                    // The outcome is known at once, or after the store was unreadable for half a
                    // minute.
                    for unreadable in [0, 6] {
                        run(
                            scenario,
                            dialect,
                            Mishap { victim, crash: None, fault: Some((write, fault, unreadable)) },
                        );
                        runs += 1;
                    }
                    for word in io_before + 1..=operations.io_count {
                        let policy =
                            if word % 2 == 0 { CrashPolicy::Keep } else { CrashPolicy::Lose };
                        let mishap = Mishap {
                            victim,
                            crash: Some((word, policy)),
                            fault: Some((write, fault, 3)),
                        };
                        crashes += u32::from(run(scenario, dialect, mishap).is_some());
                    }
                }
            }
        }
    }
    println!("{runs} uncertain writes, {crashes} of them with a crash");
    assert!(runs > 60 && crashes > 500, "{runs} {crashes}");
}

#[test]
fn crash_at_any_output_of_either_side_neither_loses_nor_duplicates_claims() {
    test_crashes(Dialect::Native);
}

#[test]
fn crash_at_any_output_of_either_side_neither_loses_nor_duplicates_claims_over_quic() {
    test_crashes(Dialect::Polykey);
}

fn test_crashes(dialect: Dialect) {
    let (mut runs, mut died_in) = (0, BTreeSet::new());
    for scenario in &SCENARIOS {
        for (victim, operations) in count_operations(scenario, dialect).into_iter().enumerate() {
            let io_count = operations.io_count;
            assert!(io_count > 20, "{}: {io_count} words of node {victim}", scenario.name);
            for policy in [CrashPolicy::Keep, CrashPolicy::Lose] {
                for word in 1..=io_count {
                    let steps = run(
                        scenario,
                        dialect,
                        Mishap { victim, crash: Some((word, policy)), fault: None },
                    );
                    let steps = steps
                        .unwrap_or_else(|| panic!("{}: {victim} {word} {policy:?}", scenario.name));
                    died_in.extend(steps);
                    runs += 1;
                }
            }
        }
    }
    assert!(runs > 500, "{runs} crashes");
    // Exhaustive: a new step must be added here, and a crash must hit it.
    for step in ALL {
        match step {
            // Over `pk/1` the responder repeats its answer; over `quic` the initiator first reads
            // the chain of the responder.
            ClaimStep::Checking => assert_eq!(died_in.contains(&step), dialect == Dialect::Polykey),
            ClaimStep::Recalling => assert_eq!(died_in.contains(&step), dialect == Dialect::Native),
            ClaimStep::Waiting
            | ClaimStep::SigningFirst
            | ClaimStep::Asked
            | ClaimStep::HalfAnswered
            | ClaimStep::SigningLast
            | ClaimStep::Persisting
            | ClaimStep::Finishing
            | ClaimStep::Pausing
            | ClaimStep::Loading
            | ClaimStep::LookingUp
            | ClaimStep::Deciding
            | ClaimStep::SigningTheirs
            | ClaimStep::WaitingToDraft
            | ClaimStep::SigningMine
            | ClaimStep::Agreeing
            | ClaimStep::Answered
            | ClaimStep::Appending => {
                assert!(died_in.contains(&step), "no node died in {step:?}: {died_in:?}");
            }
        }
    }
}

const ALL: [ClaimStep; 19] = [
    ClaimStep::Waiting,
    ClaimStep::SigningFirst,
    ClaimStep::Asked,
    ClaimStep::HalfAnswered,
    ClaimStep::SigningLast,
    ClaimStep::Persisting,
    ClaimStep::Finishing,
    ClaimStep::Pausing,
    ClaimStep::Checking,
    ClaimStep::Loading,
    ClaimStep::LookingUp,
    ClaimStep::Recalling,
    ClaimStep::Deciding,
    ClaimStep::SigningTheirs,
    ClaimStep::WaitingToDraft,
    ClaimStep::SigningMine,
    ClaimStep::Agreeing,
    ClaimStep::Answered,
    ClaimStep::Appending,
];

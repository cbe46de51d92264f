//! A process may die at any moment of an exchange, on either side: when both run again and have met, each has its claim, once.
//!
//! Every scenario is run once without a crash, to count the words of each side: all inputs and outputs of its machine. Then
//! each side is killed after each of its words, with the writes under way applied and not applied.

use std::collections::BTreeSet;

use pk_proto::claims::{ClaimPolicy, ClaimStep};
use pk_proto::{Event, RequestId};
use pk_sim::{Cluster, CrashPolicy, HostId};

use crate::common::{SECOND, ms};
use crate::kit::*;

/// Who claims with whom, from the same moment on.
type Pairs = &'static [(HostId, HostId)];

/// A scenario up to the moment at which a crash may happen; it ends there.
struct Scenario {
    name: &'static str,
    pairs: Pairs,
    /// Says yes to whatever the embedder is asked.
    asks: bool,
    begin: fn() -> (Cluster, Vec<(HostId, RequestId)>),
}

const SCENARIOS: [Scenario; 5] = [
    Scenario { name: "one claims", pairs: &[(0, 1)], asks: false, begin: plain },
    Scenario { name: "one claims, the other asks", pairs: &[(0, 1)], asks: true, begin: asking },
    Scenario { name: "both claim", pairs: &[(0, 1), (1, 0)], asks: false, begin: both },
    Scenario { name: "resumed before the other has its claim", pairs: &[(0, 1)], asks: false, begin: resuming },
    Scenario { name: "resumed after the other has its claim", pairs: &[(0, 1)], asks: false, begin: recalling },
];

fn two(policy: ClaimPolicy) -> Cluster {
    let mut cluster = started(2, 11, |config| config.claim_policy = policy);
    for node in [0, 1] {
        let host = cluster.host_mut(node);
        // Every effect takes its time, so that there is a moment in every step.
        host.sign_delay = Some(ms(2));
        host.store.delay = ms(3);
    }
    connect(&mut cluster, 0, 1);
    cluster
}

fn plain() -> (Cluster, Vec<(HostId, RequestId)>) {
    let mut cluster = two(ClaimPolicy::All);
    let requests = begin(&mut cluster, &[(0, 1)]);
    (cluster, requests)
}

fn asking() -> (Cluster, Vec<(HostId, RequestId)>) {
    let mut cluster = two(ClaimPolicy::Ask);
    let requests = begin(&mut cluster, &[(0, 1)]);
    (cluster, requests)
}

fn both() -> (Cluster, Vec<(HostId, RequestId)>) {
    let mut cluster = two(ClaimPolicy::All);
    let requests = begin(&mut cluster, &[(0, 1), (1, 0)]);
    (cluster, requests)
}

/// The initiator's claim is written, and its last signature has not come to the responder; both know nothing of each other.
fn resuming() -> (Cluster, Vec<(HostId, RequestId)>) {
    let (mut cluster, _) = plain();
    let written = |cluster: &Cluster| cluster.host(0).store.table(pk_proto::Table::Exchanges).count() == 1;
    assert!(cluster.drive_until(written, SECOND));
    again(cluster)
}

/// The responder's claim is written, and the initiator does not know.
fn recalling() -> (Cluster, Vec<(HostId, RequestId)>) {
    let (mut cluster, _) = plain();
    let written = |cluster: &Cluster| cluster.host(1).store.table(pk_proto::Table::Answered).count() == 1;
    assert!(cluster.drive_until(written, SECOND));
    again(cluster)
}

/// The initiator is killed, comes back, and meets the other one again.
fn again(mut cluster: Cluster) -> (Cluster, Vec<(HostId, RequestId)>) {
    cluster.kill(0);
    cluster.drive(60 * SECOND);
    cluster.start_node(0);
    let doubts = |event: &Event| matches!(event, Event::ClaimInDoubt { .. }).then_some(());
    assert_eq!(events(&cluster, 0, doubts).len(), 1);
    assert!(matches!(cluster.connect(0, 1), Ok(pk_proto::Reply::Connect(_))));
    (cluster, Vec::new())
}

/// Lets things happen; whoever is asked says yes.
fn drive(cluster: &mut Cluster, asks: bool, seconds: u32, mut done: impl FnMut(&Cluster) -> bool) {
    let end = cluster.now() + seconds * SECOND;
    let mut seen = [0, 1].map(|node| cluster.events(node).len());
    while !done(cluster) && cluster.step_by(end) {
        for node in [0, 1] {
            let new = cluster.events_since(node, seen[node]).filter_map(|event| match event {
                Event::ClaimAsked { ask, .. } if asks => Some(*ask),
                _ => None,
            });
            let new: Vec<_> = new.collect();
            seen[node] = cluster.events(node).len();
            for ask in new {
                if cluster.machine(node).is_none() {
                    break;
                }
                cluster.call(node, |machine, now| machine.answer_claim(ask, true, now));
            }
        }
    }
}

/// Both run and meet; whoever has no claim, and none in doubt, asks for it again, as its embedder would.
fn recover(cluster: &mut Cluster, scenario: &Scenario) {
    for node in [0, 1] {
        if cluster.machine(node).is_none() {
            cluster.start_node(node);
        }
    }
    // Whoever was left behind notices that.
    drive(cluster, scenario.asks, 100, |_| false);
    assert!(matches!(cluster.connect(0, 1), Ok(pk_proto::Reply::Connect(_))));
    drive(cluster, scenario.asks, 100, |_| false);
    for (from, to) in scenario.pairs {
        if count(cluster, *from, *from, *to) == 0 {
            let requests = begin(cluster, &[(*from, *to)]);
            drive(cluster, scenario.asks, 100, |cluster| cluster.done(*from, requests[0].1).is_some());
            claimed(cluster.await_done(*from, requests[0].1));
        }
    }
    drive(cluster, scenario.asks, 10, |_| false);
    for (from, to) in scenario.pairs {
        assert_linked(cluster, *from, *to, 1);
    }
    for node in [0, 1] {
        assert_eq!(chain(cluster, node).len(), scenario.pairs.len());
        assert_settled(cluster, node);
        assert_eq!(cluster.host(node).store.table(pk_proto::Table::Exchanges).filter(|(key, _)| key[0] == 0).count(), 0);
    }
}

/// Runs a scenario whose one side is killed after so many words. Returns in which steps it died; `None` if it did not.
fn run(scenario: &Scenario, victim: HostId, words: u64, policy: CrashPolicy) -> Option<Vec<ClaimStep>> {
    let (mut cluster, _) = (scenario.begin)();
    cluster.host_mut(victim).store.crash = policy;
    cluster.kill_after(victim, words);
    drive(&mut cluster, scenario.asks, 20, |cluster| cluster.machine(victim).is_none());
    let pk_sim::Actor::Node(corpse) = cluster.corpse(victim)? else { return None };
    let steps = corpse.exchanges().into_iter().map(|exchange| exchange.step).collect();
    drive(&mut cluster, scenario.asks, 2, |_| false);
    recover(&mut cluster, scenario);
    Some(steps)
}

#[test]
fn a_crash_at_any_word_of_either_side_loses_nothing_and_doubles_nothing() {
    let (mut runs, mut died_in) = (0, BTreeSet::new());
    for scenario in &SCENARIOS {
        let (mut calm, requests) = (scenario.begin)();
        let before = [0, 1].map(|node| calm.words(node));
        drive(&mut calm, scenario.asks, 10, |calm| {
            let done = requests.iter().all(|(node, id)| calm.done(*node, *id).is_some());
            done && [0, 1].iter().all(|node| calm.node(*node).exchanges().is_empty())
        });
        let words = [0, 1].map(|node| calm.words(node) - before[node]);
        for (from, to) in scenario.pairs {
            assert_linked(&mut calm, *from, *to, 1);
        }
        for (victim, words) in words.into_iter().enumerate() {
            assert!(words > 20, "{}: {words} words of node {victim}", scenario.name);
            for policy in [CrashPolicy::Keep, CrashPolicy::Lose] {
                for word in 1..=words {
                    let steps = run(scenario, victim, word, policy);
                    let steps = steps.unwrap_or_else(|| panic!("{}: {victim} {word} {policy:?}", scenario.name));
                    died_in.extend(steps);
                    runs += 1;
                }
            }
        }
    }
    assert!(runs > 500, "{runs} crashes");
    // Exhaustive: a new step is a new line here, and has to be died in.
    for step in ALL {
        match step {
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
            | ClaimStep::Recalling
            | ClaimStep::Deciding
            | ClaimStep::SigningTheirs
            | ClaimStep::WaitingToDraft
            | ClaimStep::SigningMine
            | ClaimStep::Agreeing
            | ClaimStep::Answered
            | ClaimStep::Appending => assert!(died_in.contains(&step), "nobody died in {step:?}: {died_in:?}"),
        }
    }
}

const ALL: [ClaimStep; 18] = [
    ClaimStep::Waiting,
    ClaimStep::SigningFirst,
    ClaimStep::Asked,
    ClaimStep::HalfAnswered,
    ClaimStep::SigningLast,
    ClaimStep::Persisting,
    ClaimStep::Finishing,
    ClaimStep::Pausing,
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

//! A process may die at any moment of an exchange, on either side: when both run again and have met, each has its claim, once.
//!
//! Every scenario is run once without a crash, to count the words of each side: all inputs and outputs of its machine. Then
//! each side is killed after each of its words, with the writes under way applied and not applied.

use std::collections::BTreeSet;
use std::time::Duration;

use pk_proto::claims::{ClaimPolicy, ClaimStep};
use pk_proto::{Dialect, Event, Options, Reply, Request, Table};
use pk_sim::{Cluster, CrashPolicy, HostId};

use crate::common::{SECOND, ms};
use crate::kit::*;

/// Who claims with whom, from the same moment on.
type Pairs = &'static [(HostId, HostId)];

/// What goes on when a process dies.
struct Scenario {
    name: &'static str,
    /// In the end, each of these has its claim.
    pairs: Pairs,
    /// Says yes to whatever the embedder is asked.
    asks: bool,
    /// Up to the moment from which on a crash may happen.
    before: fn(Dialect) -> Cluster,
    /// From then on.
    begin: fn(&mut Cluster, Pairs),
}

const SCENARIOS: [Scenario; 6] = [
    Scenario { name: "one claims", pairs: &[(0, 1)], asks: false, before: plain, begin: claim_all },
    Scenario { name: "one claims, the other asks", pairs: &[(0, 1)], asks: true, before: asking, begin: claim_all },
    Scenario { name: "both claim", pairs: &[(0, 1), (1, 0)], asks: false, before: plain, begin: claim_all },
    Scenario { name: "busy chains", pairs: &[(0, 1)], asks: false, before: plain, begin: claim_while_busy },
    Scenario { name: "the responder resumes", pairs: &[(0, 1)], asks: false, before: resuming, begin: meet },
    Scenario { name: "the responder recalls", pairs: &[(0, 1)], asks: false, before: recalling, begin: meet },
];

fn two(policy: ClaimPolicy, dialect: Dialect) -> Cluster {
    let mut cluster = started(2, 11, |config| config.claim_policy = policy);
    for node in [0, 1] {
        let host = cluster.host_mut(node);
        host.dialects = vec![dialect];
        // Every effect takes its time, so that there is a moment in every step.
        host.sign_delay = Some(ms(2));
        host.store.delay = ms(3);
    }
    connect(&mut cluster, 0, 1);
    cluster
}

fn plain(dialect: Dialect) -> Cluster {
    two(ClaimPolicy::All, dialect)
}

fn asking(dialect: Dialect) -> Cluster {
    two(ClaimPolicy::Ask, dialect)
}

fn claim_all(cluster: &mut Cluster, pairs: Pairs) {
    for (from, to) in pairs {
        let request = claim(cluster, *to);
        begin_if_alive(cluster, *from, request);
    }
}

/// When a claim is to be drafted, the chain is being written: of the initiator at once, of the responder 30 ms later.
fn claim_while_busy(cluster: &mut Cluster, pairs: Pairs) {
    let own = own_claim(cluster, 0);
    begin_if_alive(cluster, 0, own);
    cluster.drive(ms(3));
    claim_all(cluster, pairs);
    // While the claim waits, something else is said.
    cluster.drive(ms(1));
    let target = cluster.id(1);
    begin_if_alive(cluster, 0, Request::PingNode { target, options: Options::default() });
    cluster.drive(ms(28));
    let own = own_claim(cluster, 1);
    begin_if_alive(cluster, 1, own);
}

/// The initiator's claim is written, and its last signature has not come to the responder; both know nothing of each other.
fn resuming(dialect: Dialect) -> Cluster {
    let mut cluster = plain(dialect);
    claim_all(&mut cluster, &[(0, 1)]);
    let written = |cluster: &Cluster| cluster.host(0).store.table(Table::Exchanges).count() == 1;
    assert!(cluster.drive_until(written, SECOND));
    again(cluster)
}

/// The responder's claim is written, and the initiator does not know.
fn recalling(dialect: Dialect) -> Cluster {
    let mut cluster = plain(dialect);
    claim_all(&mut cluster, &[(0, 1)]);
    let written = |cluster: &Cluster| cluster.host(1).store.table(Table::Answered).count() == 1;
    assert!(cluster.drive_until(written, SECOND));
    again(cluster)
}

/// The initiator connects again.
fn meet(cluster: &mut Cluster, _: Pairs) {
    let (target, address) = (cluster.id(1), cluster.address(1));
    begin_if_alive(cluster, 0, Request::Connect { target, address, options: Options::default() });
}

fn begin_if_alive(cluster: &mut Cluster, node: HostId, request: Request) {
    if cluster.machine(node).is_some() {
        cluster.request(node, request);
    }
}

/// The initiator is killed, comes back, and meets the other one again.
fn again(mut cluster: Cluster) -> Cluster {
    cluster.kill(0);
    cluster.drive(60 * SECOND);
    cluster.start_node(0);
    cluster.drive(Duration::ZERO);
    let doubts = |event: &Event| matches!(event, Event::ClaimInDoubt { .. }).then_some(());
    assert_eq!(events(&cluster, 0, doubts).len(), 1);
    cluster
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
    assert!(matches!(cluster.connect(0, 1), Ok(Reply::Connect(_))));
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
        let links = chain(cluster, node).iter().filter(|claim| claim.link().is_some()).count();
        assert_eq!(links, scenario.pairs.len());
        assert_settled(cluster, node);
        assert_eq!(cluster.host(node).store.table(Table::Exchanges).filter(|(key, _)| key[0] == 0).count(), 0);
    }
}

/// Runs a scenario whose one side is killed after so many words. Returns in which steps it died; `None` if it did not.
fn run(
    scenario: &Scenario,
    dialect: Dialect,
    victim: HostId,
    words: u64,
    policy: CrashPolicy,
) -> Option<Vec<ClaimStep>> {
    let mut cluster = (scenario.before)(dialect);
    cluster.host_mut(victim).store.crash = policy;
    cluster.kill_after(victim, words);
    (scenario.begin)(&mut cluster, scenario.pairs);
    drive(&mut cluster, scenario.asks, 20, |cluster| cluster.machine(victim).is_none());
    let pk_sim::Actor::Node(corpse) = cluster.corpse(victim)? else { return None };
    let steps = corpse.exchanges().into_iter().map(|exchange| exchange.step).collect();
    drive(&mut cluster, scenario.asks, 2, |_| false);
    recover(&mut cluster, scenario);
    Some(steps)
}

#[test]
fn a_crash_at_any_word_of_either_side_loses_nothing_and_doubles_nothing() {
    sweep(Dialect::Native);
}

#[test]
fn nor_does_one_on_the_other_dialect() {
    sweep(Dialect::Polykey);
}

fn sweep(dialect: Dialect) {
    let (mut runs, mut died_in) = (0, BTreeSet::new());
    for scenario in &SCENARIOS {
        let mut calm = (scenario.before)(dialect);
        let before = [0, 1].map(|node| calm.words(node));
        (scenario.begin)(&mut calm, scenario.pairs);
        drive(&mut calm, scenario.asks, 10, |calm| {
            let settled = |node| {
                let machine = calm.node(node);
                let metrics = machine.metrics();
                metrics.requests_open == 0 && metrics.exchanges == 0 && machine.claims_in_doubt().next().is_none()
            };
            settled(0) && settled(1)
        });
        let words = [0, 1].map(|node| calm.words(node) - before[node]);
        for (from, to) in scenario.pairs {
            assert_linked(&mut calm, *from, *to, 1);
        }
        for (victim, words) in words.into_iter().enumerate() {
            assert!(words > 20, "{}: {words} words of node {victim}", scenario.name);
            for policy in [CrashPolicy::Keep, CrashPolicy::Lose] {
                for word in 1..=words {
                    let steps = run(scenario, dialect, victim, word, policy);
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
            // Who is asked again on the native dialect recalls the answer; on the other one it is looked for first.
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
            | ClaimStep::Appending => assert!(died_in.contains(&step), "nobody died in {step:?}: {died_in:?}"),
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

//! Walks in a minimal network: the contacted nodes, their order, the queried ids, and the end.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use core::time::Duration;

use super::candidates::{Candidate, Candidates, Contact, Report, State};
use super::evidence::shared_bits;
use super::walk::{Goal, Step, Walk};
use super::way::{Cost, Way};
use crate::api::search_config::SearchConfig;
use crate::machine::dial::AddressOrigin;
use crate::machine::experience::{Experience, Reach};
use crate::types::id::NodeId;
use crate::types::time::Instant;

const MS: Duration = Duration::from_millis(1);
const TARGET: NodeId = NodeId::from_bytes([0; 32]);

/// Pseudorandom ids.
fn id(seed: u64) -> NodeId {
    NodeId::from_bytes(*blake3::hash(&seed.to_be_bytes()).as_bytes())
}

/// One walk in a network in which every node knows all others, and an answer takes 100 ms.
struct World {
    config: SearchConfig,
    walk: Walk,
    now: Instant,
    nodes: Vec<NodeId>,
    dead: BTreeSet<NodeId>,
    /// The answers of lying nodes.
    lies: BTreeMap<NodeId, Vec<NodeId>>,
    connected: BTreeSet<NodeId>,
    /// Contacted nodes with the queried ids and the times.
    asked: Vec<(NodeId, NodeId, Instant)>,
    answers: BTreeSet<(Instant, NodeId)>,
}

impl World {
    fn new(nodes: u64, k: usize, goal: Goal) -> Self {
        let config = SearchConfig::default();
        let candidates = Candidates::new(TARGET, 256, 10);
        let walk = Walk::new(&config, &Experience::new(), (TARGET, goal), k, candidates);
        let mut nodes: Vec<_> = (0..nodes).map(id).collect();
        nodes.sort_unstable();
        Self {
            config,
            walk,
            now: Instant::ORIGIN,
            nodes,
            dead: BTreeSet::new(),
            lies: BTreeMap::new(),
            connected: BTreeSet::new(),
            asked: Vec::new(),
            answers: BTreeSet::new(),
        }
    }

    fn report(node: NodeId, by: Option<NodeId>) -> Report {
        let address = ("10.0.0.1:1".parse().unwrap(), AddressOrigin::DIRECT);
        Report { node, by, vouched: true, addresses: alloc::vec![address], relay: None }
    }

    fn know(&mut self, nodes: impl IntoIterator<Item = NodeId>) {
        for node in nodes {
            self.walk.candidates.add(Self::report(node, None));
        }
    }

    fn closest(&self, queried: &NodeId, to: &NodeId) -> Vec<NodeId> {
        // The bucket of an honest node is a sample: every third node of it, and its neighborhood.
        let shared = shared_bits(&to.distance(queried));
        let mut nodes: Vec<_> = self.nodes.iter().filter(|node| *node != to).copied().collect();
        nodes.sort_unstable_by_key(|node| node.distance(queried));
        let in_bucket = |node: &NodeId| shared_bits(&node.distance(queried)) > shared;
        let size = nodes.iter().filter(|node| in_bucket(node)).count();
        let step = (size / 20).max(1);
        nodes.into_iter().step_by(step).take(20).collect()
    }

    /// Runs until the walk waits for the next answer, or ends.
    fn step(&mut self) -> Option<Step> {
        loop {
            let connected = self.connected.clone();
            let way = |candidate: &Candidate| match connected.contains(&candidate.node) {
                true => Way::Now(Cost::Connected),
                false => Way::Now(Cost::Dialed),
            };
            match self.walk.next(&self.config, self.now, 64, way) {
                Step::Contact { node, edge, extra } => {
                    let reach = if self.connected.contains(&node) {
                        Reach::Connected
                    } else {
                        Reach::Dialed
                    };
                    let how = (edge, extra);
                    self.walk.begin(self.now, (&node, reach), how, 0);
                    self.asked.push((node, self.walk.query(&node), self.now));
                    if !self.dead.contains(&node) {
                        self.answers.insert((self.now + 100 * MS, node));
                    }
                }
                Step::Wait(until) => {
                    let answer = self.answers.first().copied();
                    match (answer, until) {
                        (Some((at, node)), until) if until.is_none_or(|until| at <= until) => {
                            self.answers.pop_first();
                            self.now = at;
                            self.answer(node);
                        }
                        (_, Some(until)) => self.now = until,
                        (_, None) => return Some(Step::Wait(None)),
                    }
                    return None;
                }
                end => return Some(end),
            }
        }
    }

    fn answer(&mut self, node: NodeId) {
        self.connected.insert(node);
        let queried = self.walk.query(&node);
        let nodes = match self.lies.get(&node) {
            Some(lie) => lie.clone(),
            None => self.closest(&queried, &node),
        };
        let known = nodes.into_iter().map(|reported| Self::report(reported, Some(node))).collect();
        let address = "10.0.0.1:1".parse().unwrap();
        let lists = [known, Vec::new()];
        self.walk.answered(&self.config, self.now, &node, address, lists, |_, _| {});
    }

    /// Runs to the end. Returns the nodes that were found.
    fn run(&mut self) -> Vec<NodeId> {
        for _ in 0..2000 {
            if let Some(step) = self.step() {
                assert!(matches!(step, Step::End { limited: false }), "{step:?}");
                return self.walk.closest().into_iter().map(|(node, _)| node).collect();
            }
        }
        panic!("no end");
    }

    fn truth(&self, k: usize) -> Vec<NodeId> {
        let mut live: Vec<_> =
            self.nodes.iter().filter(|node| !self.dead.contains(node)).copied().collect();
        live.sort_unstable_by_key(|node| node.distance(&TARGET));
        live.truncate(k);
        live
    }
}

#[test]
fn healthy_walk_is_narrow_first_and_exact() {
    let mut world = World::new(300, 20, Goal::Closest);
    let far: Vec<_> = world.nodes.iter().rev().take(20).copied().collect();
    world.know(far);
    let first = Instant::ORIGIN;
    world.step();
    let at_once = world.asked.iter().filter(|(.., at)| *at == first).count();
    assert_eq!(at_once, 2, "the two nearest");
    assert_eq!(world.run(), world.truth(20));
    assert!(world.asked.iter().all(|(_, queried, _)| *queried == TARGET), "no edge, no silence");
    assert!(world.asked.len() <= 35, "{}", world.asked.len());
}

#[test]
fn silent_contacts_lose_their_places_and_the_other_side_of_the_edge_is_queried() {
    let mut world = World::new(300, 20, Goal::Closest);
    let known: Vec<_> = world.nodes.iter().rev().take(20).copied().collect();
    world.dead = world.nodes.iter().step_by(3).copied().collect();
    world.know(known);
    let found = world.run();
    assert_eq!(found, world.truth(20));
    let edges: Vec<_> = world.asked.iter().filter(|(_, queried, _)| *queried != TARGET).collect();
    assert!(!edges.is_empty());
    for (node, queried, _) in &edges {
        // The first bit that differs is that of the edge: the target otherwise.
        let bit = shared_bits(&queried.distance(&TARGET));
        assert!(bit < 256 && shared_bits(&node.distance(&TARGET)) >= bit, "of the window");
    }
    let again = edges.iter().filter(|(node, _, at)| {
        world.asked.iter().any(|(other, _, before)| other == node && before < at)
    });
    assert!(again.count() > 0, "live ones are asked again");
    assert!(world.now < Instant::ORIGIN + 3000 * MS, "{:?}", world.now);
}

#[test]
fn nodes_of_an_implausible_response_are_queried_last() {
    let mut world = World::new(300, 20, Goal::Closest);
    let known: Vec<_> = world.nodes.iter().rev().take(3).copied().collect();
    // Nodes next to the target that no other node knows: a node that is far away cannot know them
    // all.
    let forged: Vec<_> = (1..=20u8)
        .map(|last| {
            let mut bytes = [0; 32];
            (bytes[2], bytes[31]) = (1, last);
            NodeId::from_bytes(bytes)
        })
        .collect();
    world.lies.extend(known.iter().take(1).map(|liar| (*liar, forged.clone())));
    world.know(known);
    let found = world.run();
    assert_eq!(found, world.truth(20), "forged ones take no place");
    assert!(world.asked.iter().all(|(node, ..)| !forged.contains(node)));
}

#[test]
fn silence_proves_nothing_before_the_first_answer_ever() {
    let mut world = World::new(100, 20, Goal::Closest);
    world.dead = world.nodes.iter().copied().collect();
    let known: Vec<_> = world.nodes.iter().take(60).copied().collect();
    world.know(known);
    let last = (0..200).find_map(|_| world.step());
    assert!(matches!(last, Some(Step::Wait(None))), "until a dial fails: {last:?}");
    assert_eq!(world.asked.len(), 16, "and not all at once");
    // Each failure lets another one start.
    let (node, ..) = world.asked[0];
    world.walk.candidates.set(TARGET.distance(&node), State::Failed);
    world.step();
    assert_eq!(world.asked.len(), 17);
}

#[test]
fn reported_target_is_contacted_at_once_and_alone() {
    let mut world = World::new(300, 20, Goal::Node);
    let known: Vec<_> = world.nodes.iter().rev().take(20).copied().collect();
    world.know(known);
    world.step();
    let before = world.asked.len();
    world.walk.candidates.add(World::report(TARGET, Some(world.nodes[0])));
    world.dead.insert(TARGET);
    world.answers.clear();
    world.step();
    assert_eq!(world.asked.len(), before + 1);
    assert_eq!(world.asked[before].0, TARGET);
    let contact: Option<Contact> =
        world.walk.candidates.get(&TARGET).and_then(Candidate::contact).cloned();
    assert!(contact.is_some());
    // It is silent, so the walk continues with others.
    let more = (0..9).any(|_| world.step().is_some() || world.asked.len() > before + 1);
    assert!(more, "{:?}", world.asked.len());
}

#[test]
fn others_are_contacted_beside_a_target_that_may_be_silent() {
    let asked_at_once = |silent: bool| {
        let mut world = World::new(300, 20, Goal::Node);
        world.walk.target_is_silent = silent;
        let known: Vec<_> = world.nodes.iter().rev().take(20).copied().collect();
        world.know(known.into_iter().chain([TARGET]));
        world.dead.insert(TARGET);
        world.step();
        assert_eq!(world.asked[0].0, TARGET);
        let first = |(.., at): &&(NodeId, NodeId, Instant)| *at == Instant::ORIGIN;
        world.asked.iter().filter(first).count()
    };
    assert_eq!((asked_at_once(false), asked_at_once(true)), (1, 3));
}

#[test]
fn more_of_the_nearest_are_contacted_where_handshakes_take_time() {
    // Contacts after 5 ms, if the handshakes of the first two are complete then or not.
    let asked = |goal: Goal, is_complete: bool| {
        let mut world = World::new(300, 20, goal);
        let known: Vec<_> = world.nodes.iter().rev().take(20).copied().collect();
        world.know(known);
        world.step();
        for (node, ..) in world.asked.clone() {
            if is_complete {
                world.walk.connected(Instant::ORIGIN + MS, &node, true);
            }
        }
        while world.now < Instant::ORIGIN + 5 * MS {
            world.step();
        }
        world.step();
        world.asked.iter().filter(|(.., at)| *at <= Instant::ORIGIN + 5 * MS).count()
    };
    assert_eq!((asked(Goal::Node, false), asked(Goal::Node, true)), (8, 2));
    assert_eq!(asked(Goal::Closest, false), 2, "nothing waits for its end");
}

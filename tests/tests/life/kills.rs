//! Repeated SIGKILL while a node writes: its directory is consistent every time, and nothing
//! acknowledged is lost.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use pk_driver::{Node, NodeConfig};
use pk_proto::cert::verify_client;
use pk_proto::{NodeId, SeedNode};
use pk_tests::Rt;
use pk_tests::child::{Child, seed_node_of};
use pk_tests::node::{options, shutdown, start};
use pk_tests::wait::{sleep, soon, spawn};
use serde_json::Value;

use crate::AGENT;
use crate::kit::{key_files, snapshot};

pk_tests::cases!(
    node_killed_while_it_writes_keeps_a_consistent_directory,
    node_killed_during_its_first_start_can_start_again,
);

const KILLS: u32 = 20;

/// What a directory must contain.
#[derive(Debug, Default)]
struct Promised {
    /// The last id that was acknowledged.
    id: Option<NodeId>,
    /// The nodes of the last flush that was acknowledged.
    nodes: BTreeSet<NodeId>,
}

fn ids(value: &Value) -> BTreeSet<NodeId> {
    let text = |value: &Value| value.as_str().unwrap().parse().unwrap();
    value.as_array().unwrap().iter().map(text).collect()
}

impl Promised {
    fn record(&mut self, word: &Value) -> Option<NodeId> {
        assert!(word.get("error").is_none(), "{word}");
        if let Some(nodes) = word.get("flushed") {
            self.nodes = ids(nodes);
        }
        let renewed = word.get("renewed").map(|id| id.as_str().unwrap().parse().unwrap());
        self.id = renewed.or(self.id);
        renewed
    }

    /// Checks a directory after a kill. Returns the id of the node.
    fn check(&self, dir: &Path, kill: u32) -> NodeId {
        let before = snapshot(dir);
        let kept: BTreeSet<NodeId> = before.contacts.iter().map(|(node, _)| *node).collect();
        assert!(
            kept.is_superset(&self.nodes),
            "kill {kill}: of {:?} only {kept:?} was kept",
            self.nodes
        );
        let config = NodeConfig::open(dir).unwrap_or_else(|error| panic!("kill {kill}: {error}"));
        let id = config.key.node_id();
        let chain =
            verify_client(&config.identity.chain, pk_driver::unix_now().as_secs()).unwrap().chain;
        assert_eq!(chain[0], id, "kill {kill}");
        if let Some(owner) = before.meta.map(|meta| meta.owner) {
            assert_eq!(owner, id, "kill {kill}");
        }
        // The last acknowledged renewal is done; one more may be, that was in progress.
        if let Some(promised) = self.id {
            assert!(
                chain[..chain.len().min(2)].contains(&promised),
                "kill {kill}: {promised} of {chain:?}"
            );
        }
        // One key, its certificates, and the former keys: no key is pending.
        let files = key_files(dir);
        assert_eq!(files.len(), 1 + chain.len(), "kill {kill}: {files:?}");
        assert_eq!(
            files.iter().filter(|name| name.ends_with(".crt")).count(),
            1,
            "kill {kill}: {files:?}"
        );
        id
    }
}

/// Connects to the agent repeatedly, so that it has something to write.
async fn connect_repeatedly<R: Rt>(node: Node<R>, agent: SeedNode) {
    // Short deadlines, because the agent is killed.
    let options = options(Duration::from_millis(300), Duration::from_millis(300));
    loop {
        let connected = node.connect(agent.node, agent.address.clone(), options).await;
        if connected.is_err() || node.disconnect(agent.node).await.is_err() {
            return;
        }
    }
}

async fn node_killed_while_it_writes_keeps_a_consistent_directory<R: Rt>(runtime: R) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_str().unwrap();
    let mut friends = Vec::new();
    for seed in 2..6 {
        friends.push(start(&runtime, seed).await);
    }
    let (mut promised, mut renewals, mut unheard) = (Promised::default(), 0, 0);
    // The duration of an undisturbed renewal, so that the kills hit all its steps.
    let took = {
        let mut child = Child::start::<R>(AGENT, &[path]);
        child.line(&runtime, "start of the agent").await;
        let begun = Instant::now();
        assert!(promised.record(&child.ask(&runtime, "renew").await).is_some());
        let took = begun.elapsed();
        child.kill();
        promised.check(dir.path(), 0);
        took
    };
    for kill in 1..=KILLS {
        let mut child = Child::start::<R>(AGENT, &[path]);
        let agent = seed_node_of(&child.line(&runtime, "start of the agent").await);
        promised.id = Some(agent.node);
        let pesters: Vec<_> = friends
            .iter()
            .map(|friend| spawn(&runtime, connect_repeatedly(friend.clone(), agent.clone())))
            .collect();
        sleep(&runtime, Duration::from_millis(30)).await;
        promised.record(&child.ask(&runtime, "flush").await);
        // Something is in progress at the kill: a renewal, twice out of three times, or a flush.
        child.send_line(if kill % 3 == 0 { "flush" } else { "renew" });
        sleep(&runtime, took * 2 * kill / KILLS).await;
        child.kill();
        let words = soon(&runtime, "last words", child.remaining_output(&runtime)).await;
        let heard = words.iter().filter_map(|word| promised.record(word)).count();
        let id = promised.check(dir.path(), kill);
        renewals += u32::from(id != agent.node);
        unheard += u32::from(id != agent.node && heard == 0);
        for pester in pesters {
            pester.join(&runtime, "the end of a connection").await;
        }
    }
    println!(
        "{}: {KILLS} kills; a renewal takes {took:?}; {renewals} done, {unheard} of them unheard of",
        R::NAME
    );
    assert!(!promised.nodes.is_empty());
    let friends: Vec<_> = friends.iter().collect();
    shutdown(&runtime, &friends).await;
}

async fn node_killed_during_its_first_start_can_start_again<R: Rt>(runtime: R) {
    // The duration of an undisturbed start.
    let took = {
        let dir = tempfile::tempdir().unwrap();
        let begun = Instant::now();
        let child = Child::start::<R>(AGENT, &[dir.path().to_str().unwrap()]);
        child.line(&runtime, "start of the agent").await;
        begun.elapsed()
    };
    let mut stages = BTreeSet::new();
    for kill in 1..=KILLS {
        let dir = tempfile::tempdir().unwrap();
        let mut child = Child::start::<R>(AGENT, &[dir.path().to_str().unwrap()]);
        sleep(&runtime, took * kill / KILLS).await;
        child.kill();
        let entries = |dir: &Path| std::fs::read_dir(dir).map_or(0, Iterator::count);
        stages.insert((entries(dir.path()), entries(&dir.path().join("keys"))));
        let config =
            NodeConfig::open(dir.path()).unwrap_or_else(|error| panic!("kill {kill}: {error}"));
        let id = config.key.node_id();
        drop(config);
        assert_eq!(key_files(dir.path()), ["node.crt", "node.key"], "kill {kill}");
        assert_eq!(
            entries(dir.path()),
            3,
            "kill {kill}: something is left beside the keys, the lock and the store"
        );
        assert_eq!(NodeConfig::open(dir.path()).unwrap().key.node_id(), id, "kill {kill}");
    }
    println!(
        "{}: a start takes {took:?}; entries in the directories at the kills: {stages:?}",
        R::NAME
    );
}

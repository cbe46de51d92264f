//! A disk that fails under a running node, and deleted, forked and damaged stores.
//!
//! `strace` makes single system calls of the node fail, one at a time: nothing that was
//! acknowledged is lost, and the chain continues without a fork.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use pk_driver::{RedbStore, Store};
use pk_proto::{StoreOp, StoreRange, Table};
use serde_json::{Value, json};

use crate::process::{Agent, LIMIT, pk, pk_ok, signal, wait};

/// A new node in a directory.
fn new_node_directory() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    pk_ok(&["keygen", "--dir", path(&dir)]);
    dir
}

fn path(dir: &tempfile::TempDir) -> &str {
    dir.path().to_str().unwrap()
}

/// A node of a directory that is connected with a peer.
fn started(dir: &tempfile::TempDir, peer: &Agent) -> Agent {
    let mut agent = Agent::start(&["--dir", path(dir), "--seed-node", &peer.seed_node()]);
    agent.event("joined");
    agent
}

/// The numbers of the claims in a chain, and their ids.
fn numbers(claims: &Value) -> Vec<u64> {
    claims
        .as_array()
        .unwrap()
        .iter()
        .map(|claim| claim["payload"]["seq"].as_u64().unwrap())
        .collect()
}

fn ids(claims: &Value) -> Vec<String> {
    let id = |claim: &Value| claim["claimIdEncoded"].as_str().unwrap().to_owned();
    claims.as_array().unwrap().iter().map(id).collect()
}

// -- single system calls that fail

/// A `strace` that makes system calls of a process fail. Detached when dropped.
struct Failing(Child);

impl Failing {
    /// The calls of a kind fail with an error from the `n`-th one on: that one, or `all` of them.
    fn inject(pid: u32, calls: &str, error: &str, n: u32, all: bool) -> Self {
        let when = if all { format!("{n}+") } else { n.to_string() };
        let strace = Command::new("strace")
            .args([
                "-f",
                "-p",
                &pid.to_string(),
                "-o",
                "/dev/null",
                "-e",
                &format!("trace={calls}"),
            ])
            .args(["-e", &format!("inject={calls}:error={error}:when={when}")])
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let failing = Self(strace);
        // Once every thread is traced.
        let until = Instant::now() + LIMIT;
        while !is_traced(pid) {
            assert!(Instant::now() < until, "strace does not attach");
            sleep(Duration::from_millis(10));
        }
        failing
    }
}

impl Drop for Failing {
    fn drop(&mut self) {
        signal(self.0.id(), "INT");
        wait(&mut self.0, LIMIT);
    }
}

fn is_traced(pid: u32) -> bool {
    let traced = |task: &Path| {
        let status = fs::read_to_string(task.join("status")).unwrap_or_default();
        status.lines().any(|line| line.starts_with("TracerPid:") && !line.ends_with("\t0"))
    };
    fs::read_dir(format!("/proc/{pid}/task")).unwrap().all(|task| traced(&task.unwrap().path()))
}

/// Whether `strace` can be used; prints a message if not.
fn can_trace() -> bool {
    let there =
        Command::new("strace").arg("-V").stdout(Stdio::null()).stderr(Stdio::null()).status();
    if there.is_ok_and(|status| status.success()) {
        return true;
    }
    assert!(std::env::var("CI").as_deref() != Ok("true"), "strace is missing");
    eprintln!("NOT RUN: strace is missing, so no test of a disk that fails");
    false
}

/// The claims that a node has acknowledged.
#[derive(Default)]
struct ClaimLog {
    acknowledged: BTreeSet<String>,
}

impl ClaimLog {
    fn claim(&mut self, agent: &mut Agent, peer: &Agent) -> Value {
        let answer = agent.answer(&format!("claim {}", peer.id));
        if answer["ok"] == true {
            let claim = answer["result"]["claimIdEncoded"].as_str().unwrap().to_owned();
            assert!(self.acknowledged.insert(claim), "acknowledged twice: {answer}");
        }
        answer
    }

    /// Checks that the chain has no fork and contains every acknowledged claim.
    fn check(&self, what: &str, claims: &Value) {
        let numbers = numbers(claims);
        assert_eq!(numbers, (1..=numbers.len() as u64).collect::<Vec<_>>(), "{what}");
        let ids = ids(claims);
        for claim in &self.acknowledged {
            assert_eq!(
                ids.iter().filter(|id| *id == claim).count(),
                1,
                "{what}: {claim} in {ids:?}"
            );
        }
    }
}

/// Claims while system calls fail, and checks the node afterwards.
fn claim_during_failures(calls: &str, error: &str, n: u32, all: bool) {
    let what = format!(
        "{calls} fails with {error}, number {n}{}",
        if all { " and all after it" } else { "" }
    );
    let (dir, mut peer) = (new_node_directory(), Agent::start(&["--allow-all"]));
    let (mut agent, mut words) = (started(&dir, &peer), ClaimLog::default());
    assert_eq!(words.claim(&mut agent, &peer)["ok"], true, "{what}");
    {
        let _failing = Failing::inject(agent.pid(), calls, error, n, all);
        agent.send(&format!("claim {}", peer.id));
        // If nothing can be written, the answer follows when writes succeed again.
        sleep(if all { Duration::from_secs(2) } else { Duration::from_millis(1500) });
    }
    let answer = agent.wait_for("the answer to claim", |value| value["cmd"] == "claim");
    if answer["ok"] == true {
        words.acknowledged.insert(answer["result"]["claimIdEncoded"].as_str().unwrap().to_owned());
    }
    // The chain continues without a fork, and both nodes read the same claims.
    let until = Instant::now() + LIMIT;
    while words.claim(&mut agent, &peer)["ok"] != true {
        assert!(Instant::now() < until, "{what}: the store does not recover");
        sleep(Duration::from_millis(200));
    }
    let own = agent.ask("sigchain");
    words.check(&what, &own);
    let read = peer.ask(&format!("chain {}", agent.id));
    assert_eq!(read.as_array().map(Vec::len), own.as_array().map(Vec::len), "{what}: {read}");
    agent.quit();

    let shown = pk(&["chain", "--dir", path(&dir)]);
    assert_eq!(shown.code, Some(0), "{what}: {shown}");
    let mut agent = started(&dir, &peer);
    assert_eq!(words.claim(&mut agent, &peer)["ok"], true, "{what}");
    words.check(&what, &agent.ask("sigchain"));
    agent.quit();
    peer.quit();
}

#[test]
fn one_failed_fsync_neither_forks_the_chain_nor_loses_a_claim() {
    if can_trace() {
        (1..=3).for_each(|n| claim_during_failures("fsync,fdatasync", "EIO", n, false));
    }
}

#[test]
fn one_failed_write_neither_forks_the_chain_nor_loses_a_claim() {
    if can_trace() {
        (1..=3).for_each(|n| claim_during_failures("pwrite64", "EIO", n, false));
    }
}

#[test]
fn failing_or_full_disk_loses_no_acknowledged_claim() {
    if can_trace() {
        claim_during_failures("fsync,fdatasync", "EIO", 1, true);
        claim_during_failures("pwrite64", "ENOSPC", 1, true);
        claim_during_failures("pwrite64,fsync,fdatasync", "EIO", 3, true);
    }
}

// -- deleted, forked and damaged stores

#[test]
fn deleted_store_of_a_running_node_is_detected_and_the_directory_stays_locked() {
    let (dir, peer) = (new_node_directory(), Agent::start(&["--allow-all"]));
    let mut agent = started(&dir, &peer);
    agent.ask(&format!("claim {}", peer.id));
    fs::remove_file(dir.path().join("store.redb")).unwrap();

    let answer = agent.answer(&format!("claim {}", peer.id));
    assert_eq!(
        (&answer["ok"], &answer["error"]["name"]),
        (&json!(false), &json!("StoreClosed")),
        "{answer}"
    );
    let message = answer["error"]["message"].as_str().unwrap();
    assert!(
        message.contains("was deleted while the node was running")
            && message.contains("Stop the node"),
        "{message}"
    );
    assert_eq!(
        agent.event("storeClosed")["reason"],
        message.strip_prefix("the store is closed: ").unwrap()
    );
    // What was acknowledged before can still be read, and no other node takes this identity.
    assert_eq!(numbers(&agent.ask("sigchain")), [1]);
    for command in [&["run", "--stdio", "--dir", path(&dir)][..], &["chain", "--dir", path(&dir)]] {
        let second = pk(command);
        assert_eq!(second.code, Some(1), "{second}");
        assert!(format!("{second}").contains("another process is using"), "{second}");
    }
    assert!(!dir.path().join("store.redb").exists());
    agent.kill();
    peer.end();
}

#[test]
fn lock_file_of_a_killed_process_does_not_lock() {
    let dir = new_node_directory();
    let mut agent = Agent::start(&["--dir", path(&dir)]);
    agent.kill();
    assert!(dir.path().join("lock").exists());
    Agent::start(&["--dir", path(&dir)]).quit();
}

/// A store with the fork of an earlier version: two claims number 2, and one more behind the
/// second.
fn forked(dir: &tempfile::TempDir) {
    let peer = Agent::start(&["--allow-all"]);
    let store = dir.path().join("store.redb");
    let claims = |count: usize| {
        let mut agent = started(dir, &peer);
        (0..count).for_each(|_| drop(agent.ask(&format!("claim {}", peer.id))));
        agent.quit();
    };
    claims(1);
    let first = fs::read(&store).unwrap();
    claims(1);
    let range =
        StoreRange { table: Table::Claims, from: vec![].into(), to: None, descending: true };
    let (rows, _) = RedbStore::open(&store).unwrap().range(&range, 0).unwrap();
    let (key, value) = rows[0].clone();
    fs::write(&store, first).unwrap();
    claims(2);
    let mut store = RedbStore::open(&store).unwrap();
    store.apply(&[StoreOp::Put { table: Table::Claims, key, value }], true).unwrap();
    peer.end();
}

#[test]
fn forked_chain_is_reported_at_the_start_and_by_pk_chain() {
    let dir = new_node_directory();
    forked(&dir);
    let mut agent = Agent::start(&["--dir", path(&dir)]);
    let event = agent.event("chainForked");
    assert_eq!(
        (&event["seq"], event["claims"].as_array().map(Vec::len)),
        (&json!(2), Some(2)),
        "{event}"
    );
    assert_eq!(numbers(&agent.ask("sigchain")), [1, 2, 2, 3]);
    agent.quit();
    let shown = pk(&["chain", "--dir", path(&dir)]);
    assert_eq!(shown.code, Some(1), "{shown}");
    assert!(
        shown.stderr.contains("the chain is forked")
            && shown.stderr.contains("pk keygen --dir NEW"),
        "{shown}"
    );
    // A chain without a fork is not reported.
    let dir = new_node_directory();
    let mut agent = Agent::start(&["--dir", path(&dir)]);
    agent.ask("graph");
    let stderr = agent.kill();
    assert!(!stderr.contains("forked"), "{stderr}");
}

#[test]
fn errors_explain_lost_keys_and_damaged_stores() {
    let dir = new_node_directory();
    Agent::start(&["--dir", path(&dir)]).quit();
    let store = dir.path().join("store.redb");
    let refused = |command: &str, words: &[&str]| {
        let refused = pk(&[command, "--dir", path(&dir)]);
        assert_eq!(refused.code, Some(1), "{refused}");
        words
            .iter()
            .for_each(|word| assert!(refused.stderr.contains(word), "no {word:?} in {refused}"));
    };

    let whole = fs::read(&store).unwrap();
    let mut damaged = whole.clone();
    let middle = damaged.len() / 2;
    damaged[20..].iter_mut().step_by(3).for_each(|byte| *byte ^= 0x55);
    assert!(damaged[middle..] != whole[middle..]);
    fs::write(&store, damaged).unwrap();
    refused("chain", &["is damaged", "restore store.redb from a backup", "pk keygen --dir NEW"]);
    fs::write(&store, b"something else, and long enough to be a file").unwrap();
    refused("chain", &["is not the store of a node", "another program wrote the file"]);
    fs::write(&store, &whole).unwrap();

    // Other keys, and none.
    let other = new_node_directory();
    fs::rename(dir.path().join("keys"), dir.path().join("away")).unwrap();
    refused("chain", &["the keys of the node in", "restore the directory `keys` of that node"]);
    refused("keygen", &["the keys of the node in", "restore the directory `keys` of that node"]);
    fs::rename(other.path().join("keys"), dir.path().join("keys")).unwrap();
    refused("chain", &["restore the directory `keys` of that node"]);
}

//! Peers that are killed, restarted and stopped, and how soon a node uses them again.

use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::process::{Agent, pk_ok, signal};

/// Maximum time until a request over a dead connection is answered if its peer has restarted. It
/// must not take the 15 s of a dial.
const AGAIN: Duration = Duration::from_secs(2);

/// The same on a machine where two dozen processes start at once.
const CROWDED: Duration = Duration::from_secs(6);

/// A node that can be killed and started again.
struct Peer {
    dir: TempDir,
    agent: Agent,
}

impl Peer {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        pk_ok(&["keygen", "--dir", dir.path().to_str().unwrap()]);
        let agent = Self::run(&dir, 0);
        Self { dir, agent }
    }

    fn run(dir: &TempDir, port: u64) -> Agent {
        Agent::start(&[
            "--dir",
            dir.path().to_str().unwrap(),
            "--listen",
            &format!("127.0.0.1:{port}"),
        ])
    }

    /// Kill −9, and a new process at this port.
    fn restart_at(&mut self, port: u64) {
        self.agent.kill();
        self.agent = Self::run(&self.dir, port);
    }

    /// An orderly stop, and a new process at the same port.
    fn stop_and_start(&mut self) {
        let port = self.agent.port;
        self.agent.send("quit");
        self.agent.ended();
        self.agent = Self::run(&self.dir, port);
    }

    fn restart(&mut self) {
        self.restart_at(self.agent.port);
    }
}

fn start_node() -> Agent {
    Agent::start(&["--listen", "127.0.0.1:0"])
}

fn connect(from: &mut Agent, to: &Agent) {
    from.ask(&format!("connect {} 127.0.0.1 {}", to.id, to.port));
}

/// Pings a node, which must answer within `limit`.
fn ping_within(limit: Duration, from: &mut Agent, id: &str, what: &str) {
    let begun = Instant::now();
    let answer = from.answer(&format!("ping {id}"));
    assert_eq!(answer["ok"], true, "{what}: {answer}");
    assert!(
        answer["result"] != Value::Bool(false) && !answer["result"].is_null(),
        "{what}: {answer}"
    );
    assert!(begun.elapsed() < limit, "{what}: after {:?}", begun.elapsed());
}

fn connections(agent: &mut Agent) -> usize {
    agent.ask("connections").as_array().unwrap().len()
}

#[test]
fn killed_and_restarted_peer_is_used_again_at_once() {
    let (mut a, mut b) = (start_node(), Peer::start());
    connect(&mut a, &b.agent);
    b.restart();
    ping_within(AGAIN, &mut a, &b.agent.id, "it has not connected itself");
    // The peer connects; then one connection is dead and one is live, and either has the smaller
    // id.
    for round in 0..5 {
        connect(&mut b.agent, &a);
        b.restart();
        connect(&mut b.agent, &a);
        ping_within(AGAIN, &mut a, &b.agent.id, &format!("round {round}"));
        ping_within(AGAIN, &mut b.agent, &a.id, &format!("round {round}, the other way"));
    }
    // Many restarts without a request in between.
    for _ in 0..8 {
        b.restart();
        connect(&mut b.agent, &a);
    }
    ping_within(AGAIN, &mut a, &b.agent.id, "many dead connections");
    a.quit();
    b.agent.quit();
}

#[test]
fn restarted_node_answers_twenty_peers_that_write_at_once() {
    let mut b = Peer::start();
    let mut peers: Vec<_> = (0..20).map(|_| start_node()).collect();
    for peer in &mut peers {
        connect(peer, &b.agent);
    }
    b.restart();
    let begun = Instant::now();
    for peer in &mut peers {
        peer.send(&format!("ping {}", b.agent.id));
    }
    for peer in &mut peers {
        let answer = peer.wait_for("the answer to a ping", |value| value["cmd"] == "ping");
        assert_eq!(answer["ok"], true, "{answer}");
    }
    assert!(begun.elapsed() < CROWDED, "{:?}", begun.elapsed());
}

#[test]
fn peer_restarted_at_another_port_is_used_there() {
    let (mut a, mut b) = (start_node(), Peer::start());
    connect(&mut a, &b.agent);
    b.restart_at(0);
    // No other node has its address.
    connect(&mut b.agent, &a);
    ping_within(AGAIN, &mut a, &b.agent.id, "at another port");
    ping_within(AGAIN, &mut a, &b.agent.id, "and again");
    a.quit();
    b.agent.quit();
}

#[test]
fn both_ends_find_each_other_after_both_restart() {
    let (mut a, mut b) = (Peer::start(), Peer::start());
    connect(&mut a.agent, &b.agent);
    // An orderly stop writes everything; then each is killed.
    a.stop_and_start();
    b.stop_and_start();
    a.restart();
    b.restart();
    ping_within(CROWDED, &mut a.agent, &b.agent.id, "from one");
    ping_within(AGAIN, &mut b.agent, &a.agent.id, "from the other");
    a.agent.quit();
    b.agent.quit();
}

#[test]
fn resumed_peer_answers_and_is_dialed_at_most_once() {
    let (mut a, b) = (start_node(), Peer::start());
    connect(&mut a, &b.agent);
    ping_within(AGAIN, &mut a, &b.agent.id, "before");
    signal(b.agent.pid(), "STOP");
    a.send(&format!("ping {}", b.agent.id));
    std::thread::sleep(Duration::from_secs(3));
    signal(b.agent.pid(), "CONT");
    let begun = Instant::now();
    let answer = a.wait_for("the answer to a ping", |value| value["cmd"] == "ping");
    assert_eq!(answer["ok"], true, "{answer}");
    assert!(begun.elapsed() < AGAIN, "{:?}", begun.elapsed());
    ping_within(AGAIN, &mut a, &b.agent.id, "after");
    assert!(connections(&mut a) <= 2, "one dial beside the connection at most");
    a.quit();
    b.agent.quit();
}

#[test]
fn resumed_node_keeps_its_connections() {
    let mut a = start_node();
    let peers: Vec<_> = (0..4).map(|_| start_node()).collect();
    for peer in &peers {
        connect(&mut a, peer);
    }
    for peer in &peers {
        a.send(&format!("ping {}", peer.id));
    }
    signal(a.pid(), "STOP");
    std::thread::sleep(Duration::from_secs(4));
    signal(a.pid(), "CONT");
    for _ in &peers {
        let answer = a.wait_for("the answer to a ping", |value| value["cmd"] == "ping");
        assert_eq!(answer["ok"], true, "{answer}");
    }
    assert_eq!(connections(&mut a), peers.len(), "no peer was dialed again");
}

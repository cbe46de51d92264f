//! Instructions of a search and of a question that is asked and answered, counted by valgrind, so
//! that the result is the same on a noisy machine:
//!
//! ```text
//! cargo run --release -p pk-sim --example instructions
//! ```
//!
//! The numbers include both ends and the simulator. Compare them between two versions.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "a program that measures"
)]

use std::process::Command;

use pk_proto::{
    ClosestNodesQuery, FindEnd, FindNodeOptions, NodeId, Reply, Request, RequestOptions,
};
use pk_sim::Cluster;

/// Nodes of the network that is searched.
const NODES: usize = 64;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => {
            println!("a search, {NODES} nodes        {:8} instructions", each("search", 40));
            println!("a question, 24 nodes      {:8} instructions", each("question", 200));
        }
        [work, rounds] => {
            let rounds = rounds.parse().unwrap();
            match work {
                "search" => search(rounds),
                "question" => ask(rounds),
                _ => panic!("no work is called {work}"),
            }
        }
        _ => println!("either nothing, or `search` or `question` and a number of rounds"),
    }
}

/// Searches from every node in turn for ids that no node has.
fn search(rounds: u8) {
    let mut cluster = network(NODES);
    for round in 0..rounds {
        let request = Request::FindNode { target: absent(round), find: FindNodeOptions::default() };
        let Reply::FindNode(outcome) = cluster.ask(usize::from(round) % NODES, request).unwrap()
        else {
            panic!()
        };
        assert_ne!(outcome.ended, FindEnd::Connected);
    }
}

/// Asks one node for the nodes closest to ids that no node has.
fn ask(rounds: u8) {
    let mut cluster = network(24);
    for round in 0..rounds {
        let (via, target) = (cluster.id(1), absent(round));
        let query = ClosestNodesQuery { known: true, connected: true };
        let request =
            Request::QueryClosestNodes { via, target, query, options: RequestOptions::default() };
        let Reply::QueryClosestNodes(closest) = cluster.ask(0, request).unwrap() else { panic!() };
        assert!(closest.known.len() >= 15, "{}", closest.known.len());
    }
}

fn network(nodes: usize) -> Cluster {
    let mut cluster = Cluster::quiet().nodes(nodes).seed(7).start();
    cluster.join_all();
    cluster
}

fn absent(number: u8) -> NodeId {
    let mut bytes = [0xa5; 32];
    (bytes[0], bytes[31]) = (number.wrapping_mul(97), number);
    NodeId::from_bytes(bytes)
}

/// Runs this program under valgrind with no round and with `rounds`: the difference is the rounds.
fn each(work: &str, rounds: u64) -> u64 {
    let [none, all] = [0, rounds].map(|rounds| count(&[work, &rounds.to_string()]));
    (all - none) / rounds
}

fn count(arguments: &[&str]) -> u64 {
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]);
    let program = std::env::current_exe().unwrap();
    let output = valgrind.arg(program).args(arguments).output().expect("valgrind does not run");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let output = String::from_utf8_lossy(&output.stderr).into_owned();
    let collected = output.lines().find_map(|line| line.split_once("Collected : "));
    collected.unwrap_or_else(|| panic!("valgrind printed: {output}")).1.trim().parse().unwrap()
}

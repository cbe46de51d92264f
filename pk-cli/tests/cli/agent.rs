//! `pk run` with text output.

use std::io::{BufRead, BufReader};
use std::sync::mpsc;
use std::thread;

use crate::process::{Agent, LIMIT, command, pk_ok, signal, wait};

#[test]
fn run_prints_events_and_ends_cleanly_on_a_signal() {
    for (name, runtime) in [("INT", "tokio"), ("TERM", "smol")] {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().to_str().unwrap();
        let id = pk_ok(&["keygen", "--dir", dir]).stdout;
        let id = id.trim();
        let seed = Agent::start(&[]);
        let seed_node = seed.seed_node();
        let listen = ["run", "--dir", dir, "--listen", "127.0.0.1:0", "--runtime", runtime];
        let said = run_until(&[&listen[..], &["--seed-node", &seed_node]].concat(), name, "joined");
        for expected in [
            format!("node {id} on {runtime}"),
            "listening on UDP 127.0.0.1:".to_owned(),
            format!("other nodes join with --seed-node pk://{id}@127.0.0.1:"),
            format!("+ {} connected, to 127.0.0.1:{}", seed.id, seed.port),
            "joined through 1 seed node in ".to_owned(),
            format!("SIG{name}: shutting down"),
            "stopped".to_owned(),
        ] {
            assert!(said.iter().any(|line| line.starts_with(&expected)), "{expected} in {said:?}");
        }
        // The next run has stored contacts.
        let said = run_until(&listen, name, "joined");
        for expected in ["1 node in the stored node graph", "joined through stored contacts in "] {
            assert!(said.iter().any(|line| line.starts_with(expected)), "{expected} in {said:?}");
        }
        seed.end();
        let said = run_until(&listen, name, "no stored contact answered; retrying");
        assert!(!said.iter().any(|line| line.starts_with("joined")), "{said:?}");
    }
}

#[test]
fn node_without_contacts_reports_it() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().to_str().unwrap();
    pk_ok(&["keygen", "--dir", dir]);
    run_until(
        &["run", "--dir", dir, "--listen", "127.0.0.1:0"],
        "TERM",
        "no stored contacts and no --seed-node",
    );
}

#[test]
fn run_prints_new_links() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().to_str().unwrap();
    pk_ok(&["keygen", "--dir", dir]);
    let mut other = Agent::start(&[]);
    let (id, seed_node) = (other.id.clone(), other.seed_node());
    let claiming = thread::spawn(move || {
        let connected = other.event("connectionReverse");
        other.ask(&format!("claim {}", connected["nodeId"].as_str().unwrap()));
        other.end();
    });
    let args =
        ["run", "--dir", dir, "--listen", "127.0.0.1:0", "--allow-all", "--seed-node", &seed_node];
    let said = run_until(&args, "TERM", "✓");
    let told = format!("✓ linked with {id}: claim v");
    assert!(said.iter().any(|line| line.starts_with(&told)), "{said:?}");
    claiming.join().unwrap();
    assert!(pk_ok(&["chain", "--dir", dir]).stdout.ends_with("is valid: 1 claim\n"));
}

/// Runs a node until it prints a line that starts with `said_last`, sends it a signal, and returns
/// all printed lines.
fn run_until(args: &[&str], name: &str, said_last: &str) -> Vec<String> {
    let mut child = command(args).spawn().unwrap();
    let (queue, lines) = mpsc::channel();
    let stdout = BufReader::new(child.stdout.take().unwrap());
    thread::spawn(move || {
        stdout.lines().map_while(Result::ok).try_for_each(|line| queue.send(line))
    });
    let mut said = Vec::<String>::new();
    while !said.last().is_some_and(|line| line.starts_with(said_last)) {
        let Ok(line) = lines.recv_timeout(LIMIT) else {
            drop(child.kill());
            panic!("`{said_last}` did not come after {said:?}");
        };
        said.push(line);
    }
    signal(child.id(), name);
    let code = wait(&mut child, LIMIT);
    said.extend(lines.iter());
    assert_eq!(code, Some(Some(0)), "{said:?}");
    said
}

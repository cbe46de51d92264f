//! `pk run` for people.

use std::io::{BufRead, BufReader};
use std::sync::mpsc;
use std::thread;

use crate::process::{Agent, LIMIT, command, pk_ok, signal, wait};

#[test]
fn a_node_says_what_happens_and_ends_cleanly_on_a_signal() {
    for (name, runtime) in [("INT", "tokio"), ("TERM", "smol")] {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().to_str().unwrap();
        let id = pk_ok(&["keygen", "--dir", dir]).stdout;
        let id = id.trim();
        let seed = Agent::start(&[]);
        let seed_node = seed.seed_node();
        let args = ["run", "--dir", dir, "--listen", "127.0.0.1:0", "--seed-node", &seed_node, "--runtime", runtime];
        let mut child = command(&args).spawn().unwrap();
        let (queue, lines) = mpsc::channel();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        thread::spawn(move || stdout.lines().map_while(Result::ok).try_for_each(|line| queue.send(line)));

        let mut said = Vec::new();
        while said.len() < 5 {
            said.push(lines.recv_timeout(LIMIT).unwrap_or_else(|error| panic!("{error} after {said:?}")));
        }
        signal(child.id(), name);
        let code = wait(&mut child, LIMIT);
        said.extend(lines.iter());
        assert_eq!(code, Some(Some(0)), "{said:?}");
        for expected in [
            format!("node {id} on {runtime}"),
            "listening on UDP 127.0.0.1:".to_owned(),
            format!("others join with --seed-node pk://{id}@127.0.0.1:"),
            format!("+ {} connected, to 127.0.0.1:{}", seed.id, seed.port),
            "joined through 1 seed node in ".to_owned(),
            format!("SIG{name}: shutting down"),
            "stopped".to_owned(),
        ] {
            assert!(said.iter().any(|line| line.starts_with(&expected)), "{expected} in {said:?}");
        }
        seed.end();
    }
}

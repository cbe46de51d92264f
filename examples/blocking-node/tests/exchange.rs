//! Two processes find each other and exchange 10 MB over loopback. This is a test of
//! `blocking-node` and of `event-loop`.
#![allow(clippy::unwrap_used, missing_docs, reason = "a test that cannot continue has failed")]

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

/// The program of the package of this test.
const NODE: &str = env!(concat!("CARGO_BIN_EXE_", env!("CARGO_PKG_NAME")));

fn node(dir: &std::path::Path, arguments: &[&str]) -> Child {
    Command::new(NODE)
        .arg(dir)
        .arg("127.0.0.1:0")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

fn line(child: &mut Child, n: usize) -> String {
    let output = BufReader::new(child.stdout.take().unwrap());
    output.lines().nth(n).unwrap().unwrap()
}

#[test]
fn two_nodes_exchange_ten_megabytes_and_stop() {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let mut first = node(dirs[0].path(), &[]);
    let name = line(&mut first, 0);
    let begun = Instant::now();
    for run in 0..2 {
        // The second run is the same node, started from its directory.
        let mut second = node(dirs[1].path(), &[&name, "10000000"]);
        assert_eq!(line(&mut second, 1), "10000000", "run {run}");
        drop(second.stdin.take());
        assert!(second.wait().unwrap().success());
    }
    println!("two exchanges of 10 MB, with start and stop: {:?}", begun.elapsed());
    drop(first.stdin.take());
    assert!(first.wait().unwrap().success());
}

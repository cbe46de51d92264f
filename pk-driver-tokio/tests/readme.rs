//! The code of the README is the example `hello`, which runs.
#![allow(clippy::unwrap_used, clippy::panic, reason = "this is a helper of tests")]

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};

const README: &str = include_str!("../../README.md");
const EXAMPLE: &str = include_str!("../examples/hello.rs");

/// Ends when dropped.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        // Fails if it has ended.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// The program that cargo has built beside this test.
fn hello() -> Command {
    let test = std::env::current_exe().unwrap();
    let target: PathBuf = test.parent().and_then(|deps| deps.parent()).unwrap().join("examples");
    Command::new(target.join(format!("hello{}", std::env::consts::EXE_SUFFIX)))
}

fn line(from: ChildStdout) -> String {
    let mut line = String::new();
    BufReader::new(from).read_line(&mut line).unwrap();
    line.trim_end().to_owned()
}

#[test]
fn readme_contains_the_example() {
    let code = EXAMPLE
        .lines()
        .skip_while(|line| line.starts_with("//!") || line.is_empty())
        .collect::<Vec<_>>()
        .join("\n");
    assert!(
        README.contains(&format!("```rust,no_run\n{code}\n```\n")),
        "examples/hello.rs has changed: copy it to README.md"
    );
}

#[test]
fn readme_example_runs() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = hello().arg(dir.path().join("alice")).stdout(Stdio::piped()).spawn().unwrap();
    let stdout = server.stdout.take().unwrap();
    let _server = Server(server);
    let peer = line(stdout);
    assert!(peer.starts_with("pk://"), "{peer}");
    let client = hello().arg(dir.path().join("bob")).arg(peer).output().unwrap();
    assert_eq!(
        String::from_utf8_lossy(&client.stdout),
        "hello, world\n",
        "{}",
        String::from_utf8_lossy(&client.stderr)
    );
    assert!(client.status.success());
}

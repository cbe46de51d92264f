//! Nodes in separate processes (the program `pk-test-node`), which tests kill and whose memory they
//! measure.
//!
//! A child prints one JSON line when it is ready, and one for each line that it is sent. Dropping
//! it kills it.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child as Process, ChildStdin, Command, Stdio};
use std::thread;
use std::time::Duration;

use pk_driver::Runtime;
use pk_proto::{NodeId, SeedNode};
use serde_json::Value;
use smol::channel;

use crate::case::Rt;
use crate::wait::within;

/// Maximum time for a start or an answer of a child.
const LIMIT: Duration = Duration::from_secs(20);

/// A node in a process of its own.
#[derive(Debug)]
pub struct Child {
    process: Process,
    stdin: ChildStdin,
    lines: channel::Receiver<String>,
}

impl Child {
    /// Starts the program `exe` on the runtime of the case; `arguments` as it documents them.
    pub fn start<R: Rt>(exe: &str, arguments: &[&str]) -> Self {
        let mut process = Command::new(exe)
            .arg(R::NAME)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{exe} does not start: {error}"));
        let stdin = process.stdin.take().expect("it was asked for");
        let stdout = process.stdout.take().expect("it was asked for");
        let (sender, lines) = channel::unbounded();
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.try_send(line).is_err() {
                    return;
                }
            }
        });
        Self { process, stdin, lines }
    }

    /// The next line of the child.
    pub async fn line<R: Runtime>(&self, runtime: &R, what: &str) -> Value {
        let line = within(runtime, LIMIT, what, self.lines.recv()).await;
        let line = line.unwrap_or_else(|_| panic!("{what}: the child has ended"));
        serde_json::from_str(&line)
            .unwrap_or_else(|error| panic!("{what}: the child says {line:?}: {error}"))
    }

    /// Sends a line to the child and returns its answer.
    pub async fn ask<R: Runtime>(&mut self, runtime: &R, line: &str) -> Value {
        writeln!(self.stdin, "{line}")
            .unwrap_or_else(|error| panic!("the child does not hear {line:?}: {error}"));
        let answer = self.line(runtime, line).await;
        assert!(answer.get("error").is_none(), "the child does not {line}: {answer}");
        answer
    }

    /// Sends a line to the child without waiting for an answer.
    pub fn send_line(&mut self, line: &str) {
        writeln!(self.stdin, "{line}")
            .unwrap_or_else(|error| panic!("the child does not hear {line:?}: {error}"));
    }

    /// Returns the lines that the child printed before it ended and that were not read yet.
    pub async fn remaining_output<R: Runtime>(&self, runtime: &R) -> Vec<Value> {
        let mut words = Vec::new();
        while let Ok(line) = within(runtime, LIMIT, "the end of the child", self.lines.recv()).await
        {
            // An incomplete line is ignored.
            words.extend(serde_json::from_str::<Value>(&line));
        }
        words
    }

    /// Kills the process with SIGKILL.
    pub fn kill(&mut self) {
        self.process.kill().expect("the child can be killed");
        self.process.wait().expect("a killed child ends");
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // Fails if it has ended.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Returns the id and the address of the child, from its first line.
pub fn seed_node_of(ready: &Value) -> SeedNode {
    let text = |name| {
        ready.get(name).and_then(Value::as_str).unwrap_or_else(|| panic!("no {name} in {ready}"))
    };
    let node: NodeId = text("id").parse().expect("the child knows its id");
    SeedNode { node, address: text("addr").parse().expect("the child knows its address") }
}

/// Returns a number from an answer of a child, by its path.
pub fn number(value: &Value, path: &str) -> u64 {
    value.pointer(path).and_then(Value::as_u64).unwrap_or_else(|| panic!("no {path} in {value}"))
}

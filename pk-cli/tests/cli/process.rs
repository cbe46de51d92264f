//! Runs of `pk` with a time limit.

use std::fmt;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

/// Time limit, longer than any step takes on a busy machine.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// How a run of `pk` ended.
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "exit code {:?}\n-- stdout\n{}\n-- stderr\n{}",
            self.code, self.stdout, self.stderr
        )
    }
}

impl Ended {
    /// stdout as JSON, one value per line.
    pub(crate) fn json(&self) -> Vec<Value> {
        let parse = |line| {
            serde_json::from_str(line).unwrap_or_else(|error| panic!("{error} in {line}\n{self}"))
        };
        self.stdout.lines().map(parse).collect()
    }
}

pub(crate) fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pk"));
    command
        .args(args)
        .env_remove("PK_LOG")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// As [`command`], in a network namespace.
pub(crate) fn command_in(namespace: &str, args: &[&str]) -> Command {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", namespace, env!("CARGO_BIN_EXE_pk")]).args(args);
    command.env_remove("PK_LOG").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs `pk` to its end, within `limit`.
pub(crate) fn pk_within(limit: Duration, args: &[&str]) -> Ended {
    finish(&mut command(args), limit)
}

/// Runs `pk` to its end in a network namespace.
pub(crate) fn pk_in(namespace: &str, args: &[&str]) -> Ended {
    finish(&mut command_in(namespace, args), LIMIT)
}

/// Runs a command to its end. Its stderr is a pipe, its stdout may be something else.
pub(crate) fn finish(command: &mut Command, limit: Duration) -> Ended {
    let mut child = command.spawn().unwrap();
    let stdout = child.stdout.take().map(read_all);
    let stderr = read_all(child.stderr.take().unwrap());
    let code = wait(&mut child, limit);
    let stdout = stdout.map_or_else(String::new, |stdout| stdout.join().unwrap());
    let stderr = stderr.join().unwrap();
    let ended = Ended { code: code.flatten(), stdout, stderr };
    assert!(code.is_some(), "`{command:?}` did not end within {limit:?}: {ended}");
    ended
}

/// Runs `pk` to its end.
pub(crate) fn pk(args: &[&str]) -> Ended {
    pk_within(LIMIT, args)
}

/// Runs `pk`, which must succeed.
pub(crate) fn pk_ok(args: &[&str]) -> Ended {
    let ended = pk(args);
    assert_eq!(ended.code, Some(0), "`pk {}`: {ended}", args.join(" "));
    ended
}

fn read_all(mut from: impl Read + Send + 'static) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        from.read_to_end(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// The exit code; `None` if the child had to be killed.
pub(crate) fn wait(child: &mut Child, limit: Duration) -> Option<Option<i32>> {
    let until = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return Some(status.code());
        }
        if Instant::now() > until {
            child.kill().unwrap();
            child.wait().unwrap();
            return None;
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// Sends a signal to a process.
pub(crate) fn signal(pid: u32, name: &str) {
    assert!(Command::new("kill").args(["-s", name, &pid.to_string()]).status().unwrap().success());
}

/// A `pk run --stdio` that is driven through its pipes. Killed when dropped.
pub(crate) struct Agent {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: mpsc::Receiver<String>,
    /// Lines that were read while waiting for others.
    unclaimed: Vec<Value>,
    stderr: Option<thread::JoinHandle<String>>,
    pub(crate) id: String,
    pub(crate) port: u64,
}

impl Agent {
    pub(crate) fn start(args: &[&str]) -> Self {
        Self::spawn(&mut command(&[&["run", "--stdio"], args].concat()))
    }

    /// As [`start`](Self::start), in a network namespace.
    pub(crate) fn start_in(namespace: &str, args: &[&str]) -> Self {
        Self::spawn(&mut command_in(namespace, &[&["run", "--stdio"], args].concat()))
    }

    /// Runs a prepared command that is `pk run --stdio`.
    pub(crate) fn spawn(command: &mut Command) -> Self {
        let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
        let (queue, lines) = mpsc::channel();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        thread::spawn(move || {
            stdout.lines().map_while(Result::ok).try_for_each(|line| queue.send(line))
        });
        let stderr = Some(read_all(child.stderr.take().unwrap()));
        let stdin = child.stdin.take();
        let mut agent =
            Self { child, stdin, lines, unclaimed: Vec::new(), stderr, id: String::new(), port: 0 };
        let ready = agent.event("ready");
        agent.id = ready["nodeId"].as_str().unwrap().to_owned();
        agent.port = ready["port"].as_u64().unwrap();
        agent
    }

    /// The node as a seed of others.
    pub(crate) fn seed_node(&self) -> String {
        format!("pk://{}@127.0.0.1:{}", self.id, self.port)
    }

    /// Writes a line.
    pub(crate) fn send(&mut self, line: &str) {
        writeln!(self.stdin.as_mut().unwrap(), "{line}").unwrap();
    }

    /// Writes a command and waits for its answer, which must be a success.
    pub(crate) fn ask(&mut self, line: &str) -> Value {
        let answer = self.answer(line);
        assert_eq!(answer["ok"], true, "{line}: {answer}");
        answer["result"].clone()
    }

    /// Returns how many addresses it has punched on request of other nodes.
    pub(crate) fn punches(&mut self) -> u64 {
        self.ask("metrics")["core"]["punches"].as_u64().unwrap()
    }

    /// Writes a command and waits for its answer.
    pub(crate) fn answer(&mut self, line: &str) -> Value {
        self.send(line);
        let name = line.split_whitespace().next().unwrap().to_owned();
        self.wait_for(&format!("the answer to {line}"), |value| value["cmd"] == name.as_str())
    }

    /// Waits for an event.
    pub(crate) fn event(&mut self, name: &str) -> Value {
        self.wait_for(&format!("the event {name}"), |value| value["event"] == name)
    }

    /// Waits for the first matching line that was not returned yet.
    pub(crate) fn wait_for(&mut self, what: &str, fits: impl Fn(&Value) -> bool) -> Value {
        if let Some(at) = self.unclaimed.iter().position(&fits) {
            return self.unclaimed.remove(at);
        }
        let until = Instant::now() + LIMIT;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let Ok(line) = self.lines.recv_timeout(left) else {
                let stderr = self.kill();
                panic!(
                    "{what} did not come within {LIMIT:?}; what came: {:?}\n{stderr}",
                    self.unclaimed
                );
            };
            let value: Value =
                serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error} in {line}"));
            if fits(&value) {
                return value;
            }
            self.unclaimed.push(value);
        }
    }

    /// Closes stdin and waits for the end.
    pub(crate) fn end(mut self) {
        self.stdin = None;
        self.ended();
    }

    /// Writes `quit` and waits for the end.
    pub(crate) fn quit(mut self) {
        self.send("quit");
        self.ended();
    }

    /// Waits for the last line and a clean exit.
    pub(crate) fn ended(&mut self) {
        self.event("stopped");
        let code = wait(&mut self.child, LIMIT);
        assert_eq!(code, Some(Some(0)), "{}", self.kill());
        assert!(self.lines.recv_timeout(LIMIT).is_err(), "`stopped` is the last line");
    }

    /// The number of the process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Kills the process with SIGKILL. Returns its log.
    pub(crate) fn kill(&mut self) -> String {
        // Fails if it has ended.
        drop(self.child.kill());
        drop(self.child.wait());
        self.stderr.take().map_or_else(String::new, |stderr| stderr.join().unwrap())
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.kill();
    }
}

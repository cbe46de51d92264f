//! Signals end every command that runs a node, whatever the state of its output.

use std::fs;
use std::io::{self, PipeReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::process::{Agent, LIMIT, command, pk_ok, signal, wait};

const SIGNALS: [(&str, i32); 3] = [("HUP", 1), ("INT", 2), ("TERM", 15)];

/// A node ends within a second; the rest is for a busy machine. Shorter than the time after which
/// the program exits by force.
const PROMPT: Duration = Duration::from_millis(4500);

const UNKNOWN: &str = "vha4e7nbk17opbvaircmjpeiteb56e2dv3ma146vjei403d0fdte0";

/// A full pipe that is not read: a write to it blocks as long as its reader exists.
fn stalled() -> (PipeReader, Stdio) {
    let (reader, mut writer) = io::pipe().unwrap();
    // The capacity of a pipe on Linux.
    writer.write_all(&[b'\n'; 64 * 1024]).unwrap();
    (reader, writer.into())
}

/// The same program with SIGHUP and SIGINT as a shell leaves them, also if these tests run with
/// both ignored.
fn with_default_signals(program: &Command) -> Command {
    let mut env = Command::new("env");
    env.arg("--default-signal=HUP,INT").arg(program.get_program()).args(program.get_args());
    for (name, value) in program.get_envs() {
        match value {
            Some(value) => env.env(name, value),
            None => env.env_remove(name),
        };
    }
    env
}

/// A program that runs with unread stdout and stderr.
struct Stalled {
    child: Child,
    _unread: [PipeReader; 2],
}

impl Stalled {
    fn start(command: &Command) -> Self {
        let ((out, stdout), (err, stderr)) = (stalled(), stalled());
        let child = with_default_signals(command)
            .stdin(Stdio::piped())
            .stdout(stdout)
            .stderr(stderr)
            .spawn()
            .unwrap();
        Self { child, _unread: [out, err] }
    }

    /// Signals it and waits for its exit code.
    fn end(&mut self, name: &str) -> Option<i32> {
        let begun = Instant::now();
        signal(self.child.id(), name);
        let code = wait(&mut self.child, LIMIT).unwrap();
        assert!(begun.elapsed() < PROMPT, "it took {:?} after SIG{name}", begun.elapsed());
        code
    }
}

impl Drop for Stalled {
    fn drop(&mut self) {
        // Fails if it has ended.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[test]
fn node_whose_output_is_not_read_stops_cleanly_on_each_signal() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().to_str().unwrap();
    pk_ok(&["keygen", "--dir", dir]);
    let mut peer = Agent::start(&[]);
    for (name, _) in SIGNALS {
        for runtime in ["tokio", "smol"] {
            let args = ["run", "--dir", dir, "--listen", "127.0.0.1:0", "--runtime", runtime];
            let mut node = Stalled::start(&command(
                &[&args[..], &["--log", "trace", "--seed-node", &peer.seed_node()]].concat(),
            ));
            peer.event("connectionReverse");
            assert_eq!(node.end(name), Some(0), "SIG{name} on {runtime}");
            assert_eq!(
                peer.event("connectionClosed")["reason"],
                "closed by the peer",
                "SIG{name} on {runtime}"
            );
        }
    }
    peer.end();
}

#[test]
fn session_whose_output_is_not_read_stops_on_each_signal() {
    let peer = Agent::start(&[]);
    for (name, _) in SIGNALS {
        let mut session = Stalled::start(&command(&[
            "run",
            "--stdio",
            "--log",
            "trace",
            "--seed-node",
            &peer.seed_node(),
        ]));
        sleep(Duration::from_secs(1));
        assert_eq!(session.end(name), Some(0), "SIG{name}");
    }
    peer.end();
}

#[test]
fn command_that_waits_for_the_network_is_interrupted_by_each_signal() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().to_str().unwrap();
    pk_ok(&["keygen", "--dir", dir]);
    let dead = format!("pk://{UNKNOWN}@127.0.0.1:9");
    for (line, (name, number)) in ["find", "buckets", "ping"].into_iter().zip(SIGNALS) {
        let mut args = vec![line, "--dir", dir, "--seed-node", &dead, "--json", "--log", "trace"];
        if line != "buckets" {
            args.push(UNKNOWN);
        }
        let mut command_ = Stalled::start(&command(&args));
        sleep(Duration::from_secs(1));
        assert_eq!(command_.end(name), Some(128 + number), "`pk {line}` on SIG{name}");
    }
}

fn is_empty(dir: &Path) -> bool {
    fs::read_dir(dir).unwrap().next().is_none()
}

/// Starts a demo that lasts longer than the tests wait, with its temporary directories in `dir`,
/// and waits until it has one.
fn demo(dir: &Path) -> Stalled {
    let mut demo = command(&["demo", "--nodes", "64"]);
    demo.env("TMPDIR", dir);
    let demo = Stalled::start(&demo);
    let until = Instant::now() + LIMIT;
    while is_empty(dir) {
        assert!(Instant::now() < until, "the demo makes no temporary directory");
        sleep(Duration::from_millis(1));
    }
    demo
}

#[test]
fn interrupted_demo_removes_its_temporary_files() {
    for (name, number) in SIGNALS {
        for after in [0, 300, 1500] {
            let dir = tempfile::tempdir().unwrap();
            let mut demo = demo(dir.path());
            sleep(Duration::from_millis(after));
            assert_eq!(demo.end(name), Some(128 + number), "SIG{name} after {after} ms");
            assert!(is_empty(dir.path()), "SIG{name} after {after} ms");
        }
    }
}

#[test]
fn second_signal_ends_the_demo_at_once_and_removes_its_files() {
    for after in [0, 500] {
        let dir = tempfile::tempdir().unwrap();
        let mut demo = demo(dir.path());
        sleep(Duration::from_millis(after));
        signal(demo.child.id(), "INT");
        // The first signal may have ended it before the second one.
        let code = demo.end("TERM");
        assert!([Some(128 + 2), Some(128 + 15)].contains(&code), "{code:?}");
        assert!(is_empty(dir.path()), "after {after} ms");
    }
}

/// A slow `npm` and its child process.
fn slow_npm(dir: &Path) -> PathBuf {
    let bin = dir.join("bin");
    fs::create_dir(&bin).unwrap();
    let pids = dir.join("pids");
    let npm = format!(
        "#!/bin/sh\nsleep 60 &\necho $$ $! > {0}.new; mv {0}.new {0}; wait\n",
        pids.display()
    );
    for (name, script) in [("node", "#!/bin/sh\necho v22.0.0\n"), ("npm", npm.as_str())] {
        let path = bin.join(name);
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    bin
}

/// Whether a process runs; one that has ended and was not waited for does not.
fn runs(pid: &str) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

#[test]
fn interrupted_installation_leaves_no_process() {
    for signals in [&["TERM"][..], &["INT", "INT"]] {
        let dir = tempfile::tempdir().unwrap();
        let path = format!("{}:/usr/bin:/bin", slow_npm(dir.path()).display());
        let mut demo = command(&["demo", "--interop"]);
        demo.env("PATH", path).env("XDG_CACHE_HOME", dir.path()).env("TMPDIR", dir.path());
        let mut demo = Stalled::start(&demo);
        let pids = dir.path().join("pids");
        let until = Instant::now() + LIMIT;
        while !pids.exists() {
            assert!(Instant::now() < until, "npm was not started");
            sleep(Duration::from_millis(5));
        }
        let pids = fs::read_to_string(pids).unwrap();
        assert!(pids.split_whitespace().all(runs), "{pids}");
        let (last, first) = signals.split_last().unwrap();
        first.iter().for_each(|name| signal(demo.child.id(), name));
        assert!(demo.end(last).is_some_and(|code| code > 128), "{signals:?}");
        let until = Instant::now() + LIMIT;
        while pids.split_whitespace().any(runs) {
            assert!(Instant::now() < until, "{signals:?}: a process of {pids} is left");
            sleep(Duration::from_millis(5));
        }
    }
}

#[test]
fn nohup_run_ignores_a_hangup() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_str().unwrap();
    pk_ok(&["keygen", "--dir", path]);
    let mut nohup = Command::new("nohup");
    nohup.args([env!("CARGO_BIN_EXE_pk"), "run", "--dir", path, "--listen", "127.0.0.1:0"]);
    let mut node = Stalled::start(&nohup);
    sleep(Duration::from_secs(1));
    signal(node.child.id(), "HUP");
    sleep(Duration::from_secs(1));
    assert!(node.child.try_wait().unwrap().is_none(), "`nohup pk run` continues");
    assert_eq!(node.end("TERM"), Some(0));
}

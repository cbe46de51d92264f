//! Output that cannot be written is an error, whichever command writes it.

use std::fs::File;
use std::io;
use std::process::{Child, Command, Stdio};

use crate::process::{Agent, Ended, LIMIT, command, finish, pk_ok, signal, wait};

/// The exit code of a program that SIGPIPE has ended.
const CLOSED_PIPE: i32 = 141;

fn full() -> Stdio {
    File::options().write(true).open("/dev/full").unwrap().into()
}

/// A pipe whose reader is gone.
fn closed() -> Stdio {
    io::pipe().unwrap().1.into()
}

/// Commands that print something and need no network, with DIR for the directory of a node and FILE
/// for a recording.
const COMMANDS: [&str; 16] = [
    "help",
    "--help",
    "--version",
    "help run",
    "find --help",
    "id --dir DIR",
    "id --dir DIR --json",
    "cert --dir DIR",
    "cert --dir DIR --json",
    "chain --dir DIR",
    "chain --dir DIR --json",
    "allow --dir DIR",
    "replay FILE",
    "replay FILE --calls --json",
    "keygen --dir DIR/new",
    "demo --nodes 2",
];

fn run(line: &str, dir: &str, stdout: Stdio) -> Ended {
    let words: Vec<_> = line
        .split(' ')
        .map(|word| word.replace("DIR", dir).replace("FILE", &format!("{dir}/life")))
        .collect();
    finish(command(&words.iter().map(String::as_str).collect::<Vec<_>>()).stdout(stdout), LIMIT)
}

/// The directory of a node that has run, with a recording of that in the file `life`.
fn recorded_directory() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_str().unwrap();
    pk_ok(&["keygen", "--dir", path]);
    Agent::start(&["--dir", path, "--record", &format!("{path}/life")]).quit();
    dir
}

#[test]
fn every_command_fails_if_the_disk_is_full() {
    let dir = recorded_directory();
    for line in COMMANDS {
        let ended = run(line, dir.path().to_str().unwrap(), full());
        assert_eq!(ended.code, Some(1), "`pk {line}`: {ended}");
        assert!(
            ended.stderr.contains("cannot write to stdout: No space left on device"),
            "`pk {line}`: {ended}"
        );
        drop(std::fs::remove_dir_all(dir.path().join("new")));
    }
}

#[test]
fn closed_stdout_changes_only_the_exit_code() {
    let dir = recorded_directory();
    for line in COMMANDS {
        let ended = run(line, dir.path().to_str().unwrap(), closed());
        assert_eq!(
            (ended.code, ended.stderr.as_str()),
            (Some(CLOSED_PIPE), ""),
            "`pk {line}`: {ended}"
        );
        drop(std::fs::remove_dir_all(dir.path().join("new")));
    }
}

#[test]
fn failure_that_cannot_be_printed_keeps_its_exit_code() {
    for (line, code) in [("id --dir /nowhere", 1), ("cert --dir /nowhere --json", 1), ("dance", 2)]
    {
        for stderr in [full, closed] {
            let words: Vec<_> = line.split(' ').collect();
            let mut child = command(&words).stderr(stderr()).spawn().unwrap();
            assert_eq!(wait(&mut child, LIMIT), Some(Some(code)), "`pk {line}`");
        }
    }
}

/// Starts `pk run` with an stdout that cannot be written.
fn run_node(args: &[&str], stdout: Stdio) -> Child {
    let mut run = command(args);
    run.stdin(Stdio::piped()).stdout(stdout);
    run.spawn().unwrap()
}

#[test]
fn node_with_closed_stdout_keeps_running_and_reports_it_in_the_exit_code() {
    let dir = recorded_directory();
    let path = dir.path().to_str().unwrap();
    for (stdout, code) in [(full as fn() -> Stdio, 1), (closed, CLOSED_PIPE)] {
        let mut child = run_node(&["run", "--dir", path, "--listen", "127.0.0.1:0"], stdout());
        std::thread::sleep(std::time::Duration::from_secs(2));
        assert!(child.try_wait().unwrap().is_none(), "a node does not end for lack of a reader");
        signal(child.id(), "TERM");
        assert_eq!(wait(&mut child, LIMIT), Some(Some(code)));
    }
}

#[test]
fn session_ends_if_its_answers_cannot_be_written() {
    for (stdout, code) in [(full as fn() -> Stdio, 1), (closed, CLOSED_PIPE)] {
        let mut child = run_node(&["run", "--stdio"], stdout());
        let stdin = child.stdin.take();
        assert_eq!(wait(&mut child, LIMIT), Some(Some(code)));
        drop(stdin);
    }
}

/// The exit code that a shell reports.
#[test]
fn reader_can_close_the_pipe_after_the_first_line() {
    let dir = recorded_directory();
    let script = "set -o pipefail; \"$0\" replay \"$1/life\" --calls | head -n 1; echo \"code $?\"";
    let pk = env!("CARGO_BIN_EXE_pk");
    let output = Command::new("bash")
        .args(["-c", script, pk, dir.path().to_str().unwrap()])
        .output()
        .unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    // 0 if everything fits into the pipe before `head` ends.
    assert!(
        stdout.lines().count() == 2
            && (stdout.ends_with("code 141\n") || stdout.ends_with("code 0\n")),
        "{stdout}"
    );
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
}

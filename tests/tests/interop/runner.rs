//! The runner: processes that it starts end with it, and missing tools are reported.

use std::env;
use std::fs;
use std::net::{SocketAddr, UdpSocket};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use pk_interop::{Polykey, Settings};
use pk_tests::Rt;
use pk_tests::wait::{seen_within, within};
use serde_json::json;

use crate::kit::{PATIENCE, ask, ask_expecting_error, package, start_polykey};

long_cases!(
    polykey_node_ends_if_its_test_panics within Duration::from_secs(120),
    polykey_node_ends_with_the_process_that_started_it within Duration::from_secs(120),
);

/// Settings of nodes whose states are in a directory of their own, beside those of other cases.
fn settings() -> Settings {
    let states = package().join("state").join(format!("runner-{}", std::process::id()));
    Settings { states: Some(states), ..Settings::default() }
}

/// Number of states there.
fn state_directories() -> usize {
    fs::read_dir(settings().states.unwrap()).into_iter().flatten().flatten().count()
}

/// Whether no process listens on the address.
fn is_free(addr: SocketAddr) -> bool {
    UdpSocket::bind(addr).is_ok()
}

async fn polykey_node_ends_if_its_test_panics<R: Rt>(runtime: R, polykey: Polykey) {
    let mut peer = start_polykey(&runtime, &polykey, settings()).await;
    let addr = peer.addr();
    assert!(!is_free(addr) && state_directories() == 1);
    let unknown = ask_expecting_error(&runtime, &peer, "dance", json!({})).await;
    assert_eq!(unknown.message, "there is no command dance");
    let panicked = catch_unwind(AssertUnwindSafe(move || {
        let _peer = peer;
        panic!("on purpose");
    }));
    assert!(panicked.is_err());
    assert!(is_free(addr) && state_directories() == 0, "it was waited for");

    peer = start_polykey(&runtime, &polykey, settings()).await;
    ask(&runtime, &peer, "graph", json!({})).await;
    peer.kill();
    let gone = within(&runtime, PATIENCE, "an answer", peer.ask("graph", json!({}))).await;
    assert!(matches!(gone, Err(pk_interop::PeerError::Ended(_))), "{gone:?}");
    assert!(is_free(peer.addr()) && state_directories() == 0);
    // A node that cannot start reports the reason.
    let nowhere = Settings { host: "192.0.2.1".parse().unwrap(), ..settings() };
    let failed = within(&runtime, PATIENCE, "a start that fails", polykey.start(nowhere)).await;
    println!("{failed:?}");
    assert!(matches!(failed, Err(pk_interop::PeerError::Threw(_))), "{failed:?}");
    assert_eq!(state_directories(), 0);
    fs::remove_dir(settings().states.unwrap()).unwrap();
}

/// As if the starting process was killed: no call ends the node, but the end of its stdin does.
async fn polykey_node_ends_with_the_process_that_started_it<R: Rt>(runtime: R, _: Polykey) {
    let dir = package().join("state").join(format!("{}-orphan", std::process::id()));
    let settings = json!({ "dir": dir, "host": "127.0.0.1", "port": 0 });
    let mut node = Command::new("node")
        .arg(package().join("polykey.js"))
        .arg(settings.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    seen_within(&runtime, PATIENCE, "it works", async || dir.join("db").exists().then_some(()))
        .await;
    drop(node.stdin.take());
    let status =
        seen_within(&runtime, PATIENCE, "its end", async || node.try_wait().unwrap()).await;
    assert!(status.success(), "{status}");
    assert!(!dir.exists());
}

/// This test program, in an environment without Node.js.
fn without_node(required: Option<(&str, &str)>) -> Output {
    let mut program = Command::new(env::current_exe().unwrap());
    program
        .args(["--exact", "runner::polykey_node_ends_if_its_test_panics::tokio"])
        .env("PATH", "")
        .env_remove("CI");
    program.env_remove("PK_INTEROP").envs(required);
    program.output().unwrap()
}

#[test]
fn missing_tools_are_printed_or_fail_the_test() {
    let begun = Instant::now();
    let skipped = without_node(None);
    let stderr = String::from_utf8_lossy(&skipped.stderr);
    assert!(skipped.status.success(), "{stderr}");
    assert!(
        stderr.contains("NOTHING IS TESTED") && stderr.contains("`node` is not installed"),
        "{stderr}"
    );
    for required in [("PK_INTEROP", "required"), ("CI", "true")] {
        let failed = without_node(Some(required));
        let stdout = String::from_utf8_lossy(&failed.stdout);
        assert!(!failed.status.success(), "{stdout}");
        assert!(
            stdout.contains("the reference is required here: `node` is not installed"),
            "{stdout}"
        );
    }
    println!("in {:?}", begun.elapsed());
}

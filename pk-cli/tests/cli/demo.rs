//! `pk demo`.

use serde_json::{Value, json};

use std::path::Path;
use std::process::Command;

use crate::process::{Ended, pk_ok};

const STEPS: [&str; 13] = [
    "start", "join", "find", "ping", "stream", "claim", "chain", "forgery", "signal", "mdns",
    "restart", "renew", "shutdown",
];
/// Number of steps before the step of a Polykey node.
const BEFORE_POLYKEY: usize = 8;

fn assert_every_step_succeeded(ended: &Ended, nodes: u64, runtime: &str) {
    let mut lines = ended.json();
    let last = lines.pop().unwrap();
    assert_eq!(
        (&last["ok"], &last["nodes"], &last["runtime"]),
        (&json!(true), &json!(nodes), &json!(runtime)),
        "{ended}"
    );
    assert!(last["ms"].as_f64().is_some_and(|ms| ms > 0.0), "{last}");
    let steps: Vec<_> = lines.iter().map(|line| line["step"].as_str().unwrap()).collect();
    assert_eq!(steps, STEPS, "{ended}");
    for line in &lines {
        assert_eq!(line["ok"], true, "{ended}");
        assert!(line["ms"].as_f64().is_some_and(|ms| ms > 0.0), "{line}");
    }
    assert_eq!(
        (&lines[1]["joined"], &lines[2]["found"], &lines[3]["answered"]),
        (&json!(nodes - 1), &json!(nodes), &json!(nodes))
    );
    assert_eq!(lines[4]["bytes"], nodes << 20);
    assert_eq!(
        (&lines[5]["claimed"], &lines[6]["chains"]),
        (&json!(nodes), &json!(2 * nodes)),
        "{ended}"
    );
    assert!(
        lines[6]["claims"].as_u64() >= Some(4 * nodes),
        "a chain has a claim of each partner: {ended}"
    );
    let refused = lines[7]["forgeries"].as_array().unwrap();
    let found: Vec<_> =
        refused.iter().map(|one| (one["verified"].as_u64().unwrap(), &one["fault"])).collect();
    let expected = [
        (2, "claim 3 of the chain: the owner's signature is not valid"),
        (1, "claim 2 of the chain: its digest of the claim before it is wrong"),
        (1, "claim 2 of the chain: claims before it are missing: it has number 3"),
        (2, "claim 3 of the chain: another node's signature is not valid"),
    ];
    assert_eq!(found.len(), expected.len(), "{ended}");
    for ((verified, fault), (count, text)) in found.into_iter().zip(expected) {
        assert!(verified == count && fault.as_str().unwrap().starts_with(text), "{ended}");
    }
    assert_eq!((&lines[8]["mode"], &lines[9]["scope"]), (&json!("signal"), &json!("local")));
    assert!(lines[10]["known"].as_u64().unwrap() > 0, "{ended}");
    assert_eq!(lines[11]["claims"], 2, "{ended}");
    assert!(lines[11]["learnt"].as_u64().unwrap() > 0, "{ended}");
    assert!(
        lines[2]["attempts"].as_u64().unwrap() > 0,
        "no node was found without connecting: {ended}"
    );
    assert_eq!(ended.stderr, "", "nothing is logged");
}

#[test]
fn demo_of_eight_nodes_succeeds_on_tokio() {
    assert_every_step_succeeded(
        &pk_ok(&["demo", "--nodes", "8", "--json", "--runtime", "tokio"]),
        8,
        "tokio",
    );
}

#[test]
fn demo_of_eight_nodes_succeeds_on_smol() {
    assert_every_step_succeeded(
        &pk_ok(&["demo", "--nodes", "8", "--json", "--runtime", "smol"]),
        8,
        "smol",
    );
}

#[test]
fn demo_of_two_to_four_nodes_succeeds() {
    for runtime in ["tokio", "smol"] {
        for nodes in [2, 3, 4] {
            let ended =
                pk_ok(&["demo", "--nodes", &nodes.to_string(), "--json", "--runtime", runtime]);
            assert_every_step_succeeded(&ended, nodes, runtime);
        }
    }
}

#[test]
fn text_output_has_a_line_per_step() {
    let ended = pk_ok(&["demo", "--nodes", "3"]);
    // Further lines of a step follow its first line.
    let (more, lines): (Vec<&str>, Vec<&str>) =
        ended.stdout.lines().partition(|line| line.starts_with("   "));
    assert!(more.len() == 4 && more[0].contains("the owner's signature is not valid"), "{ended}");
    assert_eq!(lines.len(), STEPS.len() + 2, "{ended}");
    for (line, step) in lines.iter().skip(1).zip(STEPS) {
        assert!(line.trim_start().starts_with(step), "{ended}");
    }
    assert!(
        lines[STEPS.len() + 1].starts_with("all steps succeeded: 3 nodes on tokio in "),
        "{ended}"
    );
}

/// The directory of the package, which the interop suite of `tests/` also uses.
const CACHE: &str = env!("CARGO_TARGET_TMPDIR");

#[test]
fn polykey_node_joins_the_demo_if_it_can_be_installed() {
    if pk_interop::for_tests(Path::new(CACHE).join("pk-interop")).is_none() {
        return;
    }
    for runtime in ["tokio", "smol"] {
        let demo = ["demo", "--nodes", "4", "--interop", "--json", "--runtime", runtime];
        let ended = Command::new(env!("CARGO_BIN_EXE_pk"))
            .args(demo)
            .env("XDG_CACHE_HOME", CACHE)
            .output()
            .unwrap();
        let stdout = String::from_utf8(ended.stdout).unwrap();
        assert!(ended.status.success(), "{stdout}{}", String::from_utf8_lossy(&ended.stderr));
        let lines: Vec<Value> =
            stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let steps: Vec<_> = lines.iter().filter_map(|line| line["step"].as_str()).collect();
        let (before, after) = STEPS.split_at(BEFORE_POLYKEY);
        assert_eq!(steps, [&["install"], before, &["polykey"], after].concat(), "{stdout}");
        let met = lines.iter().find(|line| line["step"] == "polykey").unwrap();
        assert_eq!(
            (&met["found"], &met["foundBy"], &met["claims"]),
            (&json!(4), &json!(4), &json!(2)),
            "{stdout}"
        );
    }
}

#[test]
fn demo_without_node_js_prints_a_tip() {
    let ended = Command::new(env!("CARGO_BIN_EXE_pk"))
        .args(["demo", "--interop"])
        .env("PATH", "")
        .output()
        .unwrap();
    let stderr = String::from_utf8(ended.stderr).unwrap();
    assert_eq!(ended.status.code(), Some(1), "{stderr}");
    assert!(
        stderr.contains("`node` is not installed")
            && stderr.contains("tip: Install Node.js 20 or later"),
        "{stderr}"
    );
}

//! A node in a directory: its store survives a restart, and only one node uses the directory at a
//! time.

use std::fs;

use serde_json::json;

use crate::process::{Agent, pk, pk_ok};

const UNKNOWN: &str = "vha4e7nbk17opbvaircmjpeiteb56e2dv3ma146vjei403d0fdte0";

/// A new node in a directory: the directory and the id.
fn new_node_directory() -> (tempfile::TempDir, String) {
    let dir = tempfile::tempdir().unwrap();
    let id = pk_ok(&["keygen", "--dir", dir.path().to_str().unwrap()]).stdout.trim().to_owned();
    (dir, id)
}

#[test]
fn one_shots_need_no_seed_if_contacts_are_stored() {
    for runtime in ["tokio", "smol"] {
        let (dir, _) = new_node_directory();
        let dir = dir.path().to_str().unwrap();
        let run = |args: &[&str]| pk(&[args, &["--dir", dir, "--runtime", runtime]].concat());
        let a = Agent::start(&[]);
        let mut b = Agent::start(&["--seed-node", &a.seed_node()]);
        b.event("joined");

        for command in [&["find", &b.id][..], &["ping", &b.id], &["buckets"]] {
            let alone = run(command);
            assert_eq!((alone.code, alone.stdout.as_str()), (Some(1), ""), "{alone}");
            assert!(
                alone.stderr.contains("has no stored contacts")
                    && alone.stderr.contains("--seed-node"),
                "{alone}"
            );
        }
        let buckets = run(&["buckets", "--json", "--seed-node", &a.seed_node()]);
        assert_eq!((buckets.code, &buckets.json()[0]["nodes"]), (Some(0), &json!(2)), "{buckets}");

        // From here on it has stored contacts.
        for command in [&["find", &b.id][..], &["ping", &b.id]] {
            let found = run(command);
            assert_eq!(found.code, Some(0), "{found}");
            assert!(found.stdout.contains(&format!("127.0.0.1:{}", b.port)), "{found}");
        }
        let buckets = run(&["buckets"]);
        assert!(buckets.stdout.contains(&a.id) && buckets.stdout.contains(&b.id), "{buckets}");
        let absent = run(&["find", UNKNOWN]);
        assert_eq!(absent.code, Some(1), "{absent}");
        assert!(
            absent.stderr.contains("none of the nodes nearest to it has a contact for it"),
            "{absent}"
        );
        a.end();
        b.end();
    }
}

#[test]
fn restarted_node_joins_without_a_seed() {
    let (dir, id) = new_node_directory();
    let dir = dir.path().to_str().unwrap();
    let mut a = Agent::start(&[]);
    let mut node = Agent::start(&["--dir", dir, "--seed-node", &a.seed_node()]);
    assert_eq!(node.id, id);
    node.event("joined");
    node.quit();
    a.event("connectionClosed");
    let mut again = Agent::start(&["--dir", dir, "--runtime", "smol"]);
    assert_eq!(again.id, id);
    assert_eq!(
        again.ask("graph")[&a.id]["contact"][format!("127.0.0.1-{}", a.port)]["mode"],
        "direct"
    );
    assert_eq!(again.event("joined")["seeds"], json!([]));
    assert_eq!(a.event("connectionReverse")["nodeId"], id.as_str());
    again.quit();
    a.quit();
}

#[test]
fn directory_is_used_by_one_node_at_a_time() {
    let (dir, id) = new_node_directory();
    let dir = dir.path().to_str().unwrap();
    let node = Agent::start(&["--dir", dir]);
    for args in [
        &["run", "--dir", dir][..],
        &["run", "--stdio", "--dir", dir],
        &["find", UNKNOWN, "--dir", dir],
        &["ping", UNKNOWN, "--dir", dir],
        &["buckets", "--dir", dir],
        &["renew", "--dir", dir],
    ] {
        let ended = pk(args);
        assert_eq!(ended.code, Some(1), "{args:?}: {ended}");
        assert!(ended.stderr.contains(&format!("another process is using {dir}")), "{ended}");
        assert!(ended.stderr.contains("tip: stop the other process first"), "{ended}");
    }
    let json = pk(&["renew", "--dir", dir, "--json"]).json();
    assert_eq!((&json[0]["ok"], &json[0]["error"]["name"]), (&json!(false), &json!("InUse")));
    // Reading changes nothing, and is not refused.
    assert_eq!(pk_ok(&["id", "--dir", dir]).stdout.trim(), id);
    assert!(pk_ok(&["cert", "--dir", dir]).stdout.contains(&id));
    node.end();
}

#[test]
fn foreign_store_file_is_reported_and_not_changed() {
    let (dir, _) = new_node_directory();
    let store = dir.path().join("store.redb");
    let dir = dir.path().to_str().unwrap();
    fs::write(&store, "something else").unwrap();
    for command in [&["run"][..], &["buckets"], &["renew"]] {
        let ended = pk(&[command, &["--dir", dir]].concat());
        assert_eq!(ended.code, Some(1), "{ended}");
        assert!(ended.stderr.contains("store.redb is not the store of a node"), "{ended}");
    }
    assert_eq!(fs::read_to_string(&store).unwrap(), "something else");
}

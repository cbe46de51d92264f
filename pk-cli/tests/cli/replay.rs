//! `pk run --record` and `pk replay`.

use std::fs;

use serde_json::json;

use crate::process::{Agent, pk, pk_ok};

#[test]
fn recording_is_replayed_to_the_same_end() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("run.pktr");
    let path = file.to_str().unwrap();
    let a = Agent::start(&[]);
    let mut b = Agent::start(&["--seed-node", &a.seed_node(), "--record", path]);
    b.event("joined");
    let id = b.id.clone();
    let new = b.ask("renew")["nodeId"].as_str().unwrap().to_owned();
    let taken = pk(&["run", "--stdio", "--record", path]);
    assert_eq!(
        (taken.code, &taken.json()[0]["error"]["name"]),
        (Some(1), &json!("Record")),
        "{taken}"
    );
    b.quit();
    a.quit();

    let whole = &pk_ok(&["replay", path, "--json"]).json()[0];
    assert_eq!(
        (&whole["ok"], &whole["nodeId"], &whole["lastNodeId"]),
        (&json!(true), &json!(id), &json!(new))
    );
    assert_eq!((&whole["stopped"], &whole["nodes"]), (&json!(true), &json!(1)), "{whole}");
    let calls = whole["calls"].as_u64().unwrap();
    let people = pk_ok(&["replay", path]).stdout;
    assert!(people.starts_with(&format!("{id}: {calls} calls in ")), "{people}");
    assert!(
        people.contains(&format!("became {new}")) && people.contains("at the end stopped:"),
        "{people}"
    );
    let each = pk_ok(&["replay", path, "--calls", "--json"]).json();
    assert_eq!(each.len() as u64, calls + 1);
    assert_eq!(each[0]["record"], 1);
    let text = pk_ok(&["replay", path, "--calls"]).stdout;
    assert!(text.contains("Renew") && text.contains("→ Event(IdentityRenewed"), "{text}");

    // A recording that a crash has truncated is replayed to its last complete record.
    let bytes = fs::read(&file).unwrap();
    let cut = dir.path().join("cut");
    fs::write(&cut, &bytes[..bytes.len() - 3]).unwrap();
    assert_eq!(pk_ok(&["replay", cut.to_str().unwrap(), "--json"]).json()[0]["calls"], calls - 1);
    // The hash of the outputs up to the last call is a few bytes before it.
    let diverges = |back: usize| {
        let mut other = bytes.clone();
        let at = other.len() - back;
        other[at] ^= 1;
        fs::write(&cut, other).unwrap();
        let replayed = pk(&["replay", cut.to_str().unwrap()]);
        replayed.code == Some(1)
            && replayed.stderr.contains("the outputs differ from those of the recording")
    };
    assert!((2..=16).any(diverges), "no byte at the end is one of the hash");
}

#[test]
fn files_that_are_not_recordings_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes, expected) in [
        ("other", &b"something else"[..], "this is not a recording of a node"),
        ("newer", b"PKTR\x63", "the recording has format 99"),
        ("older", b"PKTR\x07", "the recording has format 7"),
        ("empty", b"PKTR\x08", "record 0 is damaged"),
    ] {
        let file = dir.path().join(name);
        fs::write(&file, bytes).unwrap();
        let ended = pk(&["replay", file.to_str().unwrap()]);
        assert_eq!((ended.code, ended.stdout.as_str()), (Some(1), ""), "{ended}");
        assert!(ended.stderr.contains(expected) && ended.stderr.contains(name), "{ended}");
    }
    let absent = dir.path().join("absent");
    let ended = pk(&["replay", absent.to_str().unwrap(), "--json"]);
    assert_eq!((ended.code, &ended.json()[0]["error"]["name"]), (Some(1), &json!("Io")), "{ended}");
}

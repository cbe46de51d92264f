//! A directory and a recording of version a57de15 (see tests/fixtures/a57de15/README.md).

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::process::{Agent, Ended, pk, pk_ok};

const FIXTURE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/a57de15");

/// A copy of the directory, and the facts that its node reported.
fn fixture() -> (TempDir, Value) {
    let (from, dir) = (Path::new(FIXTURE).join("node"), tempfile::tempdir().unwrap());
    fs::create_dir(dir.path().join("keys")).unwrap();
    fs::copy(from.join("store.redb"), dir.path().join("store.redb")).unwrap();
    for entry in fs::read_dir(from.join("keys")).unwrap() {
        let entry = entry.unwrap();
        let to = dir.path().join("keys").join(entry.file_name());
        fs::copy(entry.path(), &to).unwrap();
        // Git does not keep file modes, and a key must be private to its owner.
        fs::set_permissions(to, fs::Permissions::from_mode(0o600)).unwrap();
    }
    let facts = fs::read_to_string(Path::new(FIXTURE).join("node.json")).unwrap();
    (dir, serde_json::from_str(&facts).unwrap())
}

fn ids(claims: &Value) -> Value {
    claims.as_array().unwrap().iter().map(|claim| claim["claimIdEncoded"].clone()).collect()
}

#[test]
fn pk_continues_with_a_directory_of_a57de15() {
    let (dir, facts) = fixture();
    let path = dir.path().to_str().unwrap();
    assert_eq!(json!(pk_ok(&["id", "--dir", path]).stdout.trim()), facts["id"]);
    let chain = pk_ok(&["chain", "--dir", path, "--json"]).json().remove(0);
    assert_eq!(
        (&chain["ok"], ids(&chain["claims"])),
        (&json!(true), facts["claims"].clone()),
        "{chain}"
    );
    let allowed = pk_ok(&["allow", "--dir", path, "--json"]).json().remove(0);
    assert!(allowed.to_string().contains(facts["allowed"][0].as_str().unwrap()), "{allowed}");
    let cert = pk_ok(&["cert", "--dir", path]).stdout;
    assert!(cert.contains(facts["first"].as_str().unwrap()), "{cert}");

    let mut friend = Agent::start(&["--allow-all"]);
    let mut agent = Agent::start(&[
        "--dir",
        path,
        "--listen",
        "127.0.0.1:0",
        "--seed-node",
        &friend.seed_node(),
    ]);
    assert_eq!(json!(agent.id), facts["id"]);
    agent.event("joined");
    let mut known: Vec<_> = agent.ask("graph").as_object().unwrap().keys().cloned().collect();
    known.retain(|node| *node != friend.id);
    assert_eq!(json!(known), facts["contacts"]);
    agent.ask(&format!("claim {}", friend.id));
    let whole = friend.ask(&format!("chain {}", agent.id));
    assert_eq!(whole.as_array().unwrap().len(), facts["claims"].as_array().unwrap().len() + 1);
    agent.quit();

    let seed = friend.seed_node();
    let buckets = pk_ok(&["buckets", "--dir", path, "--seed-node", &seed, "--json"]).stdout;
    assert!(buckets.contains(&friend.id), "{buckets}");
    assert_eq!(json!(pk_ok(&["id", "--dir", path]).stdout.trim()), facts["id"]);
    friend.quit();
}

#[test]
fn recording_of_a57de15_is_refused_for_its_format() {
    let recording = format!("{FIXTURE}/run.pktr");
    let Ended { code, stderr, .. } = pk(&["replay", &recording]);
    assert_eq!(code, Some(1));
    assert!(
        stderr.contains("the recording has format 1; this program supports format"),
        "{stderr}"
    );
}

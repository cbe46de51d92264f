//! A node with its signer in another process: started, restarted without it, and stopped.
#![allow(clippy::unwrap_used, missing_docs, reason = "a test that cannot continue has failed")]

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use pk_host::KeyStore;

const PROGRAM: &str = env!("CARGO_BIN_EXE_remote-signer");

/// Runs a node and returns what it prints, or its error.
fn run(dir: &Path, signer: &[&str]) -> Result<Vec<String>, String> {
    let mut node = Command::new(PROGRAM)
        .args(["run", dir.to_str().unwrap(), "127.0.0.1:0"])
        .args(signer)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(node.stdout.take().unwrap()).lines();
    let lines: Vec<String> = lines.take(3).map(Result::unwrap).collect();
    drop(node.stdin.take());
    let output = node.wait_with_output().unwrap();
    if output.status.success() { Ok(lines) } else { Err(String::from_utf8(output.stderr).unwrap()) }
}

#[test]
fn root_key_stays_in_another_process() {
    let (dir, vault) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let signer = [PROGRAM, "sign", vault.path().to_str().unwrap()];
    let lines = run(dir.path(), &signer).unwrap();
    let [address, hot, root] = lines.as_slice() else { panic!("{lines:?}") };
    let key = |dir: &Path| KeyStore::new(dir).load_key().unwrap().unwrap();
    assert!(address.starts_with(&format!("pk://{hot}@127.0.0.1:")), "{address}");
    assert_eq!(*hot, key(dir.path()).node_id().to_string());
    assert_eq!(*root, key(vault.path()).node_id().to_string());
    // The key of the signer is nowhere in the directory of the node.
    let keys = dir.path().join("keys");
    let secret = fs::read_to_string(vault.path().join("keys/node.key")).unwrap();
    let secret = secret.lines().nth(1).unwrap();
    for entry in fs::read_dir(keys).unwrap() {
        assert!(!fs::read_to_string(entry.unwrap().path()).unwrap().contains(secret));
    }
    // The node has certificates and needs no signer; without both it does not start.
    let absent = ["this-program-does-not-exist"];
    let again = run(dir.path(), &absent).unwrap();
    assert_eq!(again[1..], lines[1..]);
    fs::remove_file(dir.path().join("keys/node.crt")).unwrap();
    assert!(run(dir.path(), &absent).is_err());
    let renewed = run(dir.path(), &signer).unwrap();
    assert_eq!(renewed[1..], lines[1..]);
}

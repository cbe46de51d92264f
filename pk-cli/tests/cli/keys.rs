//! `pk keygen` and `pk id`.

use std::fs;

use crate::process::{pk, pk_ok};

#[test]
fn keygen_makes_a_node_and_id_names_it() {
    let dir = tempfile::tempdir().unwrap();
    let node = dir.path().join("deep").join("node");
    let node = node.to_str().unwrap();
    let made = pk_ok(&["keygen", "--dir", node]).stdout;
    assert_eq!(
        (made.len(), made.starts_with('v'), made.ends_with('\n')),
        (54, true, true),
        "{made}"
    );
    assert_eq!(pk_ok(&["id", "--dir", node]).stdout, made);
    assert_eq!(pk_ok(&["id", "--dir", node, "--json"]).json()[0]["nodeId"], made.trim());
}

#[test]
fn keygen_never_replaces_a_key() {
    let dir = tempfile::tempdir().unwrap();
    let node = dir.path().to_str().unwrap();
    let made = pk_ok(&["keygen", "--dir", node]).stdout;
    let again = pk(&["keygen", "--dir", node]);
    assert_eq!((again.code, again.stdout.as_str()), (Some(1), ""), "{again}");
    assert!(
        again.stderr.contains("a key is never replaced") && again.stderr.contains("tip:"),
        "{again}"
    );
    assert_eq!(pk_ok(&["id", "--dir", node]).stdout, made);
    let json = pk(&["keygen", "--dir", node, "--json"]);
    assert_eq!((json.code, &json.json()[0]["ok"]), (Some(1), &false.into()), "{json}");
}

#[test]
fn directory_without_a_node_is_an_error_with_a_tip() {
    let dir = tempfile::tempdir().unwrap();
    let empty = dir.path().to_str().unwrap();
    for args in
        [&["id", "--dir", empty][..], &["run", "--dir", empty], &["run", "--stdio", "--dir", empty]]
    {
        let ended = pk(args);
        assert_eq!(ended.code, Some(1), "{args:?}: {ended}");
        assert!(
            ended.stderr.contains("there is no node in")
                && ended.stderr.contains("pk keygen --dir"),
            "{ended}"
        );
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "nothing was made");
}

#[test]
fn damaged_key_is_reported_and_not_changed() {
    let dir = tempfile::tempdir().unwrap();
    let node = dir.path().to_str().unwrap();
    pk_ok(&["keygen", "--dir", node]);
    let key = dir.path().join("keys").join("node.key");
    fs::write(&key, "something else").unwrap();
    for command in ["id", "keygen", "run"] {
        let ended = pk(&[command, "--dir", node]);
        assert_eq!(ended.code, Some(1), "{command}: {ended}");
        assert!(ended.stderr.contains("node.key"), "{command}: {ended}");
    }
    assert_eq!(fs::read_to_string(&key).unwrap(), "something else");
}

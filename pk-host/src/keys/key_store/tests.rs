use super::*;

const NOW: UnixMillis = UnixMillis(1_800_000_000_000);

#[test]
fn created_key_is_loaded_from_then_on() {
    let dir = tempfile::tempdir().unwrap();
    let store = KeyStore::new(dir.path().join("new"));
    let (key, identity) = store.load_or_create(NOW).unwrap();
    let (again, same) = store.load_or_create(NOW).unwrap();
    assert_eq!((key.node_id(), &identity), (again.node_id(), &same));
    let names: Vec<_> = fs::read_dir(dir.path().join("new/keys"))
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert_eq!(names.len(), 3, "nothing else is left behind: {names:?}");
}

#[test]
fn old_certificate_is_renewed_under_the_same_key() {
    let dir = tempfile::tempdir().unwrap();
    let store = KeyStore::new(dir.path());
    let (key, identity) = store.load_or_create(NOW).unwrap();
    let later = UnixMillis(NOW.0 + 300 * 86_400_000);
    let (again, renewed) = store.load_or_create(later).unwrap();
    assert_eq!(key.node_id(), again.node_id());
    assert_ne!(identity, renewed);
    assert_eq!(store.load_or_create(later).unwrap().1, renewed);
}

#[test]
fn key_is_never_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let store = KeyStore::new(dir.path());
    store.save_key(&KeyPair::from_seed(&[1; 32])).unwrap();
    let error = store.save_key(&KeyPair::from_seed(&[2; 32])).unwrap_err();
    assert!(matches!(error, KeyStoreError::Exists { .. }), "{error}");
    assert_eq!(
        store.load_key().unwrap().unwrap().node_id(),
        KeyPair::from_seed(&[1; 32]).node_id()
    );
}

#[cfg(unix)]
#[test]
fn key_file_is_private_to_its_owner() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let store = KeyStore::new(dir.path());
    store.save_key(&KeyPair::from_seed(&[1; 32])).unwrap();
    let path = store.key_path();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    let error = store.load_key().unwrap_err().to_string();
    assert!(error.contains("mode 640") && error.contains("chmod 600"), "{error}");
}

#[test]
fn foreign_files_are_reported() {
    let dir = tempfile::tempdir().unwrap();
    let store = KeyStore::new(dir.path());
    store.save_key(&KeyPair::from_seed(&[1; 32])).unwrap();
    let path = store.key_path();
    for (text, expected) in [
        ("", "is not a polykey-node-key file"),
        ("-----BEGIN PRIVATE KEY-----\n", "is not a polykey-node-key file"),
        ("polykey-node-key\n", "is not a polykey-node-key file"),
        ("polykey-node-key 0\n", "is not a polykey-node-key file"),
        ("polykey-node-key 2\nxyz\n", "version 2, which is newer"),
        ("polykey-node-key 1\n", "there is no key"),
        ("polykey-node-key 1\n###\n", "not base64"),
        ("polykey-node-key 1\nAAAA\n", "does not have 32 bytes"),
    ] {
        fs::write(&path, text).unwrap();
        let error = store.load_key().unwrap_err().to_string();
        assert!(error.contains(expected), "{text:?}: {error}");
        assert!(store.load_or_create(NOW).is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), text, "nothing is overwritten");
    }
}

#[test]
fn keys_can_be_renewed_many_times() {
    use crate::keys::identity::{DEFAULT_LIFETIME, dropped, succeeded};
    use pk_proto::cert::{MAX_CHAIN_LEN, verify_client};

    let dir = tempfile::tempdir().unwrap();
    let store = KeyStore::new(dir.path());
    let (mut key, mut identity) = store.load_or_create(NOW).unwrap();
    let mut ids = vec![key.node_id()];
    for generation in 1..=70u8 {
        let next = KeyPair::from_seed(&[generation; 32]);
        let after = succeeded(&identity, &key, &next, NOW, DEFAULT_LIFETIME).unwrap();
        let gone = usize::from(generation).checked_sub(MAX_CHAIN_LEN).map(|oldest| ids[oldest]);
        assert_eq!(
            dropped(&identity, &after),
            gone.into_iter().collect::<Vec<_>>(),
            "{generation}"
        );
        store.add(&next, &after).unwrap();
        store.activate(next.node_id()).unwrap();
        (key, identity) = store.load_for(Some(next.node_id()), NOW).unwrap();
        ids.push(next.node_id());
        assert_eq!((key.node_id(), &identity), (next.node_id(), &after));
        let proven = verify_client(&identity.chain, NOW.as_secs()).unwrap().chain;
        let newest: Vec<_> = ids.iter().rev().take(MAX_CHAIN_LEN).copied().collect();
        assert_eq!(proven, newest, "{generation}");
    }
}

/// Its certificates expire in November 2027; a node reissues the newest one, and has the same ids.
#[cfg(unix)]
#[test]
fn keys_of_version_a57de15_prove_the_same_ids_years_later() {
    use std::os::unix::fs::PermissionsExt;
    let fixture = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/a57de15/node/keys");
    for unix in [1_796_000_000, 1_830_000_000, 1_900_000_000, 2_400_000_000] {
        let dir = tempfile::tempdir().unwrap();
        let store = KeyStore::new(dir.path());
        fs::create_dir(dir.path().join("keys")).unwrap();
        let mut first = None;
        for entry in fs::read_dir(fixture).unwrap() {
            let (path, name) = (entry.as_ref().unwrap().path(), entry.unwrap().file_name());
            let to = dir.path().join("keys").join(&name);
            fs::copy(path, &to).unwrap();
            fs::set_permissions(to, fs::Permissions::from_mode(0o600)).unwrap();
            first = first.or(name
                .to_str()
                .and_then(|name| name.strip_suffix(".key")?.parse::<NodeId>().ok()));
        }
        let own = store.load_key().unwrap().unwrap().node_id();
        let (key, identity) = store.load_for(Some(own), UnixMillis(unix * 1000)).unwrap();
        assert_eq!(key.node_id(), own);
        let proven = pk_proto::cert::verify_client(&identity.chain, unix).unwrap();
        assert_eq!(proven.chain, [own, first.unwrap()], "{unix}");
    }
}

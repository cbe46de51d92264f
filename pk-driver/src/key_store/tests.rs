use super::*;

const NOW: UnixMillis = UnixMillis(1_800_000_000_000);

#[test]
fn what_is_made_once_is_loaded_ever_after() {
    let dir = tempfile::tempdir().unwrap();
    let store = KeyStore::new(dir.path().join("new"));
    let (key, identity) = store.load_or_create(NOW).unwrap();
    let (again, same) = store.load_or_create(NOW).unwrap();
    assert_eq!((key.node_id(), &identity), (again.node_id(), &same));
    let names: Vec<_> = fs::read_dir(dir.path().join("new/keys")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names.len(), 2, "nothing else is left behind: {names:?}");
}

#[test]
fn an_old_certificate_is_renewed_under_the_same_key() {
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
fn a_key_is_never_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let store = KeyStore::new(dir.path());
    store.save_key(&KeyPair::from_seed(&[1; 32])).unwrap();
    let error = store.save_key(&KeyPair::from_seed(&[2; 32])).unwrap_err();
    assert!(matches!(error, KeyStoreError::Exists { .. }), "{error}");
    assert_eq!(store.load_key().unwrap().unwrap().node_id(), KeyPair::from_seed(&[1; 32]).node_id());
}

#[cfg(unix)]
#[test]
fn a_key_is_for_its_owner_alone() {
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
fn a_file_that_is_not_ours_is_told_apart() {
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
        ("polykey-node-key 1\nAAAA\n", "not 32 bytes"),
    ] {
        fs::write(&path, text).unwrap();
        let error = store.load_key().unwrap_err().to_string();
        assert!(error.contains(expected), "{text:?}: {error}");
        assert!(store.load_or_create(NOW).is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), text, "nothing is overwritten");
    }
}

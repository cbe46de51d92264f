use std::fs;
use std::sync::atomic::Ordering;

use super::*;
use crate::store::MemoryStore;

const TABLES: [Table; 4] =
    [Table::Meta, Table::Contacts(NodeGraphSpace::A), Table::Contacts(NodeGraphSpace::B), Table::Refresh];

/// Numbers that look random and are the same every time.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % sides).unwrap()
    }
}

fn put(table: Table, key: &str, value: &str) -> StoreOp {
    StoreOp::Put { table, key: key.to_owned().into(), value: value.to_owned().into() }
}

fn random_op(dice: &mut Dice) -> StoreOp {
    let table = TABLES[dice.roll(4)];
    let key = Bytes::from(vec![u8::try_from(dice.roll(40)).unwrap(); 1 + dice.roll(32)]);
    match dice.roll(20) {
        0 => StoreOp::Clear { table },
        1..=5 => StoreOp::Delete { table, key },
        _ => StoreOp::Put { table, key, value: vec![7; dice.roll(2000)].into() },
    }
}

fn path(dir: &tempfile::TempDir) -> PathBuf {
    dir.path().join("store.redb")
}

/// What a crash leaves at this moment: a copy of the file.
fn crashed(path: &Path) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let copy = dir.path().join("copy.redb");
    fs::copy(path, &copy).unwrap();
    (dir, copy)
}

fn rows(path: &Path) -> Vec<(Table, Bytes, Bytes)> {
    RedbStore::open(path).unwrap().load().unwrap()
}

#[test]
fn it_does_what_a_store_in_memory_does() {
    let dir = tempfile::tempdir().unwrap();
    let mut dice = Dice(3);
    let (mut model, mut store) = (MemoryStore::new(), RedbStore::open(path(&dir)).unwrap());
    for round in 0..60 {
        let ops: Vec<_> = (0..dice.roll(12)).map(|_| random_op(&mut dice)).collect();
        model.apply(&ops, true).unwrap();
        store.apply(&ops, round % 5 == 0).unwrap();
        for _ in 0..10 {
            let table = TABLES[dice.roll(4)];
            let mut key = || Bytes::from(vec![u8::try_from(dice.roll(40)).unwrap()]);
            let (from, to) = (key(), Some(key()).filter(|to| to[0] > 5));
            let range = StoreRange { table, from, to, descending: dice.roll(2) == 0 };
            let max = dice.roll(9000) as u64;
            assert_eq!(store.range(&range, max), model.range(&range, max), "{range:?} {max}");
        }
        if round % 20 == 19 {
            drop(store);
            store = RedbStore::open(path(&dir)).unwrap();
            assert_eq!(store.load(), model.load());
        }
    }
    assert!(model.load().unwrap().len() > 20);
}

#[test]
fn what_is_durable_survives_a_crash_and_the_rest_is_whole_or_not_there() {
    let dir = tempfile::tempdir().unwrap();
    let path = path(&dir);
    let mut store = RedbStore::open(&path).unwrap();
    store.apply(&[put(Table::Meta, "a", "durable")], true).unwrap();
    let durable = rows(&crashed(&path).1);
    assert_eq!(durable.len(), 1);
    store.apply(&[put(Table::Refresh, "b", "loose"), put(Table::Meta, "c", "loose")], false).unwrap();
    assert_eq!(store.load().unwrap().len(), 3, "it can be read before it is durable");
    assert_eq!(rows(&crashed(&path).1), durable);
    store.sync().unwrap();
    assert_eq!(rows(&crashed(&path).1).len(), 3);
    // The next durable transaction makes the ones before it durable, and so does the end.
    store.apply(&[put(Table::Meta, "d", "loose")], false).unwrap();
    store.apply(&[StoreOp::Delete { table: Table::Meta, key: "a".into() }], true).unwrap();
    assert_eq!(rows(&crashed(&path).1).len(), 3);
    store.apply(&[put(Table::Meta, "e", "loose")], false).unwrap();
    drop(store);
    assert_eq!(rows(&path).len(), 4);
}

#[test]
fn what_a_killed_process_left_of_a_store_is_swept() {
    let dir = tempfile::tempdir().unwrap();
    let (temporary, _file) = Temporary::create(&path(&dir)).unwrap();
    std::mem::forget(temporary);
    drop(RedbStore::open(path(&dir)).unwrap());
    let names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["store.redb"]);
}

#[test]
fn many_that_make_one_store_at_once_make_one() {
    let dir = tempfile::tempdir().unwrap();
    let path = path(&dir);
    std::thread::scope(|scope| {
        let open = || match RedbStore::open(&path) {
            Ok(mut store) => {
                store.apply(&[put(Table::Meta, "a", "1")], true).unwrap();
                true
            }
            Err(StoreOpenError::InUse { .. }) => false,
            Err(error) => panic!("{error}"),
        };
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(open)).collect();
        assert!(threads.into_iter().any(|thread| thread.join().unwrap()));
    });
    assert_eq!(rows(&path).len(), 1);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn much_that_is_loose_is_made_durable() {
    let dir = tempfile::tempdir().unwrap();
    let path = path(&dir);
    let mut store = RedbStore::open(&path).unwrap();
    let row = |n: usize| put(Table::Refresh, &n.to_string(), &"x".repeat(10_000));
    for n in 0..LOOSE_LIMIT / 10_000 + 2 {
        store.apply(&[row(n)], false).unwrap();
    }
    assert!(rows(&crashed(&path).1).len() > LOOSE_LIMIT / 10_000 - 2);
    assert!(store.loose_bytes < 30_000);
}

#[test]
fn a_file_is_untouched_until_the_first_transaction() {
    let dir = tempfile::tempdir().unwrap();
    let path = path(&dir);
    let mut store = RedbStore::open(&path).unwrap();
    store.apply(&[put(Table::Meta, "a", "1")], true).unwrap();
    store.apply(&[put(Table::Meta, "b", "2")], false).unwrap();
    // One that was closed, and one that has to be repaired.
    let (_dir, broken_off) = crashed(&path);
    drop(store);
    for (path, rows) in [(path, 2), (broken_off, 1)] {
        let before = fs::read(&path).unwrap();
        let mut store = RedbStore::open(&path).unwrap();
        assert_eq!(store.load().unwrap().len(), rows);
        drop(store);
        assert!(fs::read(&path).unwrap() == before, "reading changed the file");
        store = RedbStore::open(&path).unwrap();
        store.apply(&[put(Table::Meta, "c", "3")], true).unwrap();
        assert_eq!(self::rows(&crashed(&path).1).len(), rows + 1);
        drop(store);
        assert_eq!(self::rows(&path).len(), rows + 1);
    }
}

#[cfg(unix)]
#[test]
fn a_store_is_for_its_owner_alone_and_nothing_lies_beside_it() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("new").join("store.redb");
    drop(RedbStore::open(&path).unwrap());
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::metadata(dir.path().join("new")).unwrap().permissions().mode() & 0o777, 0o700);
    assert_eq!(fs::read_dir(dir.path().join("new")).unwrap().count(), 1);
}

#[test]
fn a_store_is_open_once() {
    let dir = tempfile::tempdir().unwrap();
    let store = RedbStore::open(path(&dir)).unwrap();
    let error = RedbStore::open(path(&dir)).unwrap_err();
    assert!(matches!(error, StoreOpenError::InUse { .. }), "{error}");
    assert!(error.to_string().contains("store.redb is in use"), "{error}");
    drop(store);
    RedbStore::open(path(&dir)).unwrap();
}

/// Opens a file in vain, and compares it.
fn refused(path: &Path) -> StoreOpenError {
    let before = fs::read(path).unwrap();
    let error = RedbStore::open(path).unwrap_err();
    assert!(fs::read(path).unwrap() == before, "the file was changed");
    assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "something was left beside it");
    error
}

#[test]
fn what_is_not_a_store_is_told_apart_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = path(&dir);
    for content in [&b""[..], b"x", b"SQLite format 3\0, or so it says", &[0; 8192]] {
        fs::write(&path, content).unwrap();
        let error = refused(&path);
        assert!(matches!(error, StoreOpenError::Foreign { .. }), "{error}");
    }
    fs::remove_file(&path).unwrap();

    // A database of somebody else.
    let other = Database::create(&path).unwrap();
    let transaction = other.begin_write().unwrap();
    transaction.open_table(definition(Table::Meta)).unwrap();
    transaction.commit().unwrap();
    drop(other);
    let error = refused(&path);
    assert!(matches!(error, StoreOpenError::Foreign { .. }), "{error}");

    // One of a later version of this program.
    let later = Database::create(&path).unwrap();
    let transaction = later.begin_write().unwrap();
    transaction.open_table(FORMAT_TABLE).unwrap().insert(FORMAT_KEY, 2).unwrap();
    transaction.commit().unwrap();
    drop(later);
    let error = refused(&path);
    assert!(matches!(error, StoreOpenError::Newer { found: 2, .. }), "{error}");
    assert!(error.to_string().ends_with("has format 2, this program reads up to format 1"), "{error}");

    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    let error = RedbStore::open(&path).unwrap_err();
    assert!(matches!(error, StoreOpenError::Io { .. } | StoreOpenError::Foreign { .. }), "{error}");
}

/// A store with something in it, closed.
fn filled(path: &Path) -> Vec<(Table, Bytes, Bytes)> {
    let mut store = RedbStore::open(path).unwrap();
    let mut dice = Dice(5);
    for _ in 0..10 {
        let ops: Vec<_> = (0..30).map(|_| random_op(&mut dice)).collect();
        store.apply(&ops, true).unwrap();
    }
    store.load().unwrap()
}

#[test]
fn a_broken_file_is_an_error_or_whole_and_never_changed_by_looking() {
    let dir = tempfile::tempdir().unwrap();
    let path = path(&dir);
    let expected = filled(&path);
    let whole = fs::read(&path).unwrap();
    let mut dice = Dice(9);
    let (mut refused, mut accepted) = (0, 0);
    for round in 0..250 {
        let mut bytes = whole.clone();
        match round % 5 {
            0 => bytes.truncate(dice.roll(bytes.len() as u64)),
            1 => {
                let at = dice.roll(bytes.len() as u64);
                bytes[at] ^= 1 << dice.roll(8);
            }
            // The header and what is near it.
            2 => {
                let at = dice.roll(512);
                bytes[at] = u8::try_from(dice.roll(256)).unwrap();
            }
            // A page that was not written, or holds something else.
            3 => {
                let at = dice.roll((bytes.len() / 4096) as u64) * 4096;
                bytes[at..at + 4096].fill(if round % 2 == 0 { 0 } else { 0xa5 });
            }
            _ => {
                let at = dice.roll(bytes.len() as u64);
                bytes[at..].fill(0);
            }
        }
        fs::write(&path, &bytes).unwrap();
        match RedbStore::open(&path).map(|store| store.load().unwrap()) {
            Ok(rows) => {
                // Only what holds no row was broken.
                assert_eq!(rows, expected);
                accepted += 1;
            }
            Err(error) => {
                assert!(
                    matches!(error, StoreOpenError::Damaged { .. } | StoreOpenError::Foreign { .. }),
                    "round {round}: {error}"
                );
                refused += 1;
            }
        }
        assert!(fs::read(&path).unwrap() == bytes, "round {round}: the file was changed");
    }
    println!("{refused} refused, {accepted} whole");
    assert!(refused > 100, "{refused}");
}

#[test]
fn after_a_failure_of_the_disk_it_goes_on_and_has_lost_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = path(&dir);
    let mut store = RedbStore::open(&path).unwrap();
    store.apply(&[put(Table::Meta, "a", "durable")], true).unwrap();
    store.apply(&[put(Table::Meta, "b", "loose")], false).unwrap();
    store.open.as_ref().unwrap().gate.full.store(true, Ordering::SeqCst);
    let refused = put(Table::Meta, "c", "refused");
    store.apply(&[refused], true).unwrap_err();
    store.range(&StoreRange { table: Table::Meta, from: Bytes::new(), to: None, descending: false }, 1).unwrap_err();
    // There is room again.
    store.apply(&[put(Table::Meta, "d", "later")], true).unwrap();
    let keys = |path: &Path| rows(path).into_iter().map(|(_, key, _)| key).collect::<Vec<_>>();
    assert_eq!(keys(&crashed(&path).1), ["a", "b", "d"].map(Bytes::from));
}

use std::fs;

use redb::Database;

use super::gate::disk::{self, Plan};
use super::open::{FORMAT_KEY, FORMAT_TABLE};
use super::*;
use crate::store::MemoryStore;
use crate::system::files::Temporary;

const TABLES: [Table; 4] = [
    Table::Meta,
    Table::Contacts(NodeGraphSpace::A),
    Table::Contacts(NodeGraphSpace::B),
    Table::Refresh,
];

/// Pseudorandom numbers, equal in every run.
struct TestRng(u64);

impl TestRng {
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

fn random_op(rng: &mut TestRng) -> StoreOp {
    let table = TABLES[rng.roll(4)];
    let key = Bytes::from(vec![u8::try_from(rng.roll(40)).unwrap(); 1 + rng.roll(32)]);
    match rng.roll(20) {
        0 => StoreOp::Clear { table },
        1..=5 => StoreOp::Delete { table, key },
        _ => StoreOp::Put { table, key, value: vec![7; rng.roll(2000)].into() },
    }
}

fn path(dir: &tempfile::TempDir) -> PathBuf {
    dir.path().join("store.redb")
}

/// Returns a copy of the file as a crash leaves it now.
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
fn store_equals_a_store_in_memory() {
    let dir = tempfile::tempdir().unwrap();
    let mut rng = TestRng(3);
    let (mut model, mut store) = (MemoryStore::new(), RedbStore::open(path(&dir)).unwrap());
    for round in 0..60 {
        let ops: Vec<_> = (0..rng.roll(12)).map(|_| random_op(&mut rng)).collect();
        model.apply(&ops, true).unwrap();
        store.apply(&ops, round % 5 == 0).unwrap();
        for _ in 0..10 {
            let table = TABLES[rng.roll(4)];
            let mut key = || Bytes::from(vec![u8::try_from(rng.roll(40)).unwrap()]);
            let (from, to) = (key(), Some(key()).filter(|to| to[0] > 5));
            let range = StoreRange { table, from, to, descending: rng.roll(2) == 0 };
            let max = rng.roll(9000) as u64;
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
fn durable_rows_survive_a_crash_and_other_transactions_are_complete_or_absent() {
    let dir = tempfile::tempdir().unwrap();
    let path = path(&dir);
    let mut store = RedbStore::open(&path).unwrap();
    store.apply(&[put(Table::Meta, "a", "durable")], true).unwrap();
    let durable = rows(&crashed(&path).1);
    assert_eq!(durable.len(), 1);
    store
        .apply(&[put(Table::Refresh, "b", "loose"), put(Table::Meta, "c", "loose")], false)
        .unwrap();
    assert_eq!(store.load().unwrap().len(), 3, "it can be read before it is durable");
    assert_eq!(rows(&crashed(&path).1), durable);
    store.sync().unwrap();
    assert_eq!(rows(&crashed(&path).1).len(), 3);
    // The next durable transaction makes earlier ones durable, and so does the end.
    store.apply(&[put(Table::Meta, "d", "loose")], false).unwrap();
    store.apply(&[StoreOp::Delete { table: Table::Meta, key: "a".into() }], true).unwrap();
    assert_eq!(rows(&crashed(&path).1).len(), 3);
    store.apply(&[put(Table::Meta, "e", "loose")], false).unwrap();
    drop(store);
    assert_eq!(rows(&path).len(), 4);
}

#[test]
fn temporary_files_of_a_killed_process_are_removed() {
    let dir = tempfile::tempdir().unwrap();
    let (temporary, _file) = Temporary::create(&path(&dir)).unwrap();
    std::mem::forget(temporary);
    drop(RedbStore::open(path(&dir)).unwrap());
    let names: Vec<_> =
        fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["store.redb"]);
}

#[test]
fn concurrent_creations_make_one_store() {
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
fn many_non_durable_bytes_are_made_durable() {
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
fn file_is_unchanged_until_the_first_transaction() {
    let dir = tempfile::tempdir().unwrap();
    let path = path(&dir);
    let mut store = RedbStore::open(&path).unwrap();
    store.apply(&[put(Table::Meta, "a", "1")], true).unwrap();
    store.apply(&[put(Table::Meta, "b", "2")], false).unwrap();
    // A closed file, and one that must be repaired.
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
fn store_is_private_to_its_owner_and_the_only_file() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("new").join("store.redb");
    drop(RedbStore::open(&path).unwrap());
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::metadata(dir.path().join("new")).unwrap().permissions().mode() & 0o777, 0o700);
    assert_eq!(fs::read_dir(dir.path().join("new")).unwrap().count(), 1);
}

#[test]
fn store_can_be_opened_once_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let store = RedbStore::open(path(&dir)).unwrap();
    let error = RedbStore::open(path(&dir)).unwrap_err();
    assert!(matches!(error, StoreOpenError::InUse { .. }), "{error}");
    assert!(error.to_string().contains("store.redb is in use"), "{error}");
    drop(store);
    RedbStore::open(path(&dir)).unwrap();
}

/// Opening a file fails and leaves it unchanged.
fn refused(path: &Path) -> StoreOpenError {
    let before = fs::read(path).unwrap();
    let error = RedbStore::open(path).unwrap_err();
    assert!(fs::read(path).unwrap() == before, "the file was changed");
    assert_eq!(
        fs::read_dir(path.parent().unwrap()).unwrap().count(),
        1,
        "something was left beside the file"
    );
    error
}

#[test]
fn foreign_files_are_reported_and_not_changed() {
    let dir = tempfile::tempdir().unwrap();
    let path = path(&dir);
    for content in [&b""[..], b"x", b"SQLite format 3\0, or so it says", &[0; 8192]] {
        fs::write(&path, content).unwrap();
        let error = refused(&path);
        assert!(matches!(error, StoreOpenError::Foreign { .. }), "{error}");
    }
    fs::remove_file(&path).unwrap();

    // A database of another program.
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
    assert!(
        error.to_string().ends_with("has format 2; this program supports formats up to 1"),
        "{error}"
    );

    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    let error = RedbStore::open(&path).unwrap_err();
    assert!(matches!(error, StoreOpenError::Io { .. } | StoreOpenError::Foreign { .. }), "{error}");
}

/// A closed store with rows.
fn filled(path: &Path) -> Vec<(Table, Bytes, Bytes)> {
    let mut store = RedbStore::open(path).unwrap();
    let mut rng = TestRng(5);
    for _ in 0..10 {
        let ops: Vec<_> = (0..30).map(|_| random_op(&mut rng)).collect();
        store.apply(&ops, true).unwrap();
    }
    store.load().unwrap()
}

#[test]
fn damaged_file_is_an_error_or_complete_and_not_changed_by_reading() {
    let dir = tempfile::tempdir().unwrap();
    let path = path(&dir);
    let expected = filled(&path);
    let whole = fs::read(&path).unwrap();
    let mut rng = TestRng(9);
    let (mut refused, mut accepted) = (0, 0);
    for round in 0..250 {
        let mut bytes = whole.clone();
        match round % 5 {
            0 => bytes.truncate(rng.roll(bytes.len() as u64)),
            1 => {
                let at = rng.roll(bytes.len() as u64);
                bytes[at] ^= 1 << rng.roll(8);
            }
            // The header and the bytes after it.
            2 => {
                let at = rng.roll(512);
                bytes[at] = u8::try_from(rng.roll(256)).unwrap();
            }
            // A page that was not written, or contains other data.
            3 => {
                let at = rng.roll((bytes.len() / 4096) as u64) * 4096;
                bytes[at..at + 4096].fill(if round % 2 == 0 { 0 } else { 0xa5 });
            }
            _ => {
                let at = rng.roll(bytes.len() as u64);
                bytes[at..].fill(0);
            }
        }
        fs::write(&path, &bytes).unwrap();
        match RedbStore::open(&path).map(|mut store| store.load().unwrap()) {
            Ok(rows) => {
                // Only a part without rows was damaged.
                assert_eq!(rows, expected);
                accepted += 1;
            }
            Err(error) => {
                assert!(
                    matches!(
                        error,
                        StoreOpenError::Damaged { .. } | StoreOpenError::Foreign { .. }
                    ),
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

// -- when the disk fails

/// Waits until the store may be reopened.
fn wait() {
    std::thread::sleep(REOPEN_DELAY + Duration::from_millis(20));
}

fn meta_rows(store: &mut RedbStore) -> Result<Vec<(Bytes, Bytes)>, StoreError> {
    let range = StoreRange { table: Table::Meta, from: Bytes::new(), to: None, descending: false };
    Ok(store.range(&range, u64::MAX)?.0)
}

fn meta_keys(store: &mut RedbStore) -> Vec<Bytes> {
    meta_rows(store).unwrap().into_iter().map(|(key, _)| key).collect()
}

/// A store with a durable and a non-durable row.
fn before_failure(path: &Path) -> RedbStore {
    let mut store = RedbStore::open(path).unwrap();
    store.apply(&[put(Table::Meta, "a", "durable")], true).unwrap();
    store.apply(&[put(Table::Meta, "b", "loose")], false).unwrap();
    store
}

#[test]
fn store_continues_after_a_disk_failure_without_losses() {
    // At once: the file is reopened within the transaction that fails.
    let (mut applied, mut refused) = (0, 0);
    for n in 0.. {
        let dir = tempfile::tempdir().unwrap();
        let path = path(&dir);
        let mut store = before_failure(&path);
        disk::plan(Plan::One(n));
        let result = store.apply(&[put(Table::Meta, "c", "uncertain")], true);
        let failed = disk::has_failed();
        disk::plan(Plan::Nothing);
        let there = match result {
            Ok(()) => true,
            Err(WriteFailure::NotApplied(_)) => false,
            Err(error) => panic!("{n}: {error:?}"),
        };
        let expected: Vec<_> = if there { vec!["a", "b", "c"] } else { vec!["a", "b"] };
        assert_eq!(meta_keys(&mut store), expected, "{n}: read at once");
        store.apply(&[put(Table::Meta, "d", "later")], true).unwrap();
        let rows = rows(&crashed(&path).1).into_iter().map(|(_, key, _)| key).collect::<Vec<_>>();
        assert_eq!(rows, [expected, vec!["d"]].concat(), "{n}");
        if !failed {
            break;
        }
        applied += u32::from(there);
        refused += u32::from(!there);
    }
    assert!(applied > 0 && refused > 0, "{applied} {refused}");
}

#[test]
fn unknown_outcome_is_decided_once_when_the_disk_recovers() {
    let (mut unknown, mut applied) = (0, 0);
    for n in 0.. {
        let dir = tempfile::tempdir().unwrap();
        let path = path(&dir);
        let mut store = before_failure(&path);
        disk::plan(Plan::All(n));
        let result = store.apply(&[put(Table::Meta, "c", "uncertain")], true);
        if result.is_ok() {
            disk::plan(Plan::Nothing);
            break;
        }
        assert!(matches!(result, Err(WriteFailure::Unknown(_))), "{n}: {result:?}");
        unknown += 1;
        // While the disk fails no outcome is reported; later transactions are not applied.
        wait();
        meta_rows(&mut store).unwrap_err();
        let later = store.apply(&[put(Table::Meta, "d", "refused")], true);
        assert!(matches!(later, Err(WriteFailure::NotApplied(_))), "{n}: {later:?}");
        disk::plan(Plan::Nothing);
        wait();
        let keys = meta_keys(&mut store);
        let there = keys == ["a", "b", "c"];
        assert!(there || keys == ["a", "b"], "{n}: {keys:?}");
        applied += u32::from(there);
        // The rows are on the disk: the next start finds the same, with the non-durable rows once
        // they are synced.
        store.sync().unwrap();
        let (_dir, copy) = crashed(&path);
        assert_eq!(meta_keys(&mut RedbStore::open(copy).unwrap()), keys, "{n}");
    }
    assert!(unknown > applied && applied > 0, "{unknown} {applied}");
}

#[test]
fn non_durable_rows_do_not_overwrite_later_ones() {
    for n in 0.. {
        let dir = tempfile::tempdir().unwrap();
        let path = path(&dir);
        let mut store = RedbStore::open(&path).unwrap();
        store.apply(&[put(Table::Meta, "a", "loose")], false).unwrap();
        disk::plan(Plan::All(n));
        let result = store.apply(&[put(Table::Meta, "a", "newer")], true);
        let failed = disk::has_failed();
        disk::plan(Plan::Nothing);
        wait();
        let value = meta_rows(&mut store).unwrap().remove(0).1;
        if result.is_ok() {
            assert_eq!(value, "newer");
        }
        store.apply(&[put(Table::Meta, "z", "z")], true).unwrap();
        assert_eq!(meta_rows(&mut store).unwrap().remove(0).1, value, "{n}");
        if !failed {
            break;
        }
    }
}

#[test]
fn file_that_was_not_closed_is_rewritten_before_use() {
    let dir = tempfile::tempdir().unwrap();
    let path = path(&dir);
    let mut store = RedbStore::open(&path).unwrap();
    store.apply(&[put(Table::Meta, "a", "1")], true).unwrap();
    let (_dir, unclean) = crashed(&path);
    drop(store);
    // Pages of the file, and then those of the transaction.
    let writes = |path: &Path| {
        let mut store = RedbStore::open(path).unwrap();
        let mut n = 0;
        loop {
            disk::plan(Plan::One(n));
            let settled = match &store.state {
                State::Open(open) => open.settle(),
                _ => panic!("it is not open"),
            };
            if settled.is_ok() {
                disk::plan(Plan::Nothing);
                store.apply(&[put(Table::Meta, "b", "2")], true).unwrap();
                return n;
            }
            n += 1;
        }
    };
    assert!(writes(&unclean) >= writes(&path) + 2, "every page, and an fsync");
}

#[test]
fn store_without_version_numbers_is_read_and_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = path(&dir);
    let mut store = RedbStore::open(&path).unwrap();
    store.apply(&[put(Table::Meta, "a", "1")], true).unwrap();
    drop(store);
    let old = Database::create(&path).unwrap();
    let transaction = old.begin_write().unwrap();
    assert!(transaction.delete_table(NUMBER_TABLE).unwrap());
    transaction.commit().unwrap();
    drop(old);
    let mut store = RedbStore::open(&path).unwrap();
    assert_eq!((store.number, meta_keys(&mut store)), (0, vec!["a".into()]));
    store.apply(&[put(Table::Meta, "b", "2")], true).unwrap();
    drop(store);
    assert_eq!(RedbStore::open(&path).unwrap().number, 1);
}

// -- when the file is deleted or replaced

#[cfg(unix)]
#[test]
fn deleted_or_replaced_file_is_detected_at_the_next_durable_transaction() {
    for replaced in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let path = path(&dir);
        let mut store = RedbStore::open(&path).unwrap();
        store.apply(&[put(Table::Meta, "a", "1")], true).unwrap();
        let (_dir, copy) = crashed(&path);
        fs::remove_file(&path).unwrap();
        if replaced {
            fs::copy(copy, &path).unwrap();
        }
        for _ in 0..2 {
            let lost = store.apply(&[put(Table::Meta, "b", "2")], true).unwrap_err();
            let WriteFailure::Closed(why) = &lost else { panic!("{lost:?}") };
            let what = if replaced { "was replaced by another file" } else { "was deleted" };
            assert!(why.contains(what) && why.contains("Stop the node"), "{why}");
        }
        // The old file can still be read.
        assert_eq!(meta_keys(&mut store), ["a"]);
        drop(store);
        assert_eq!(path.exists(), replaced);
    }
}

#[cfg(unix)]
#[test]
fn file_replaced_while_the_disk_fails_is_not_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = path(&dir);
    let mut store = before_failure(&path);
    disk::plan(Plan::All(0));
    store.apply(&[put(Table::Meta, "c", "3")], true).unwrap_err();
    disk::plan(Plan::Nothing);
    let (_dir, copy) = crashed(&path);
    fs::remove_file(&path).unwrap();
    fs::copy(&copy, &path).unwrap();
    wait();
    let lost = store.apply(&[put(Table::Meta, "d", "4")], true).unwrap_err();
    assert!(matches!(lost, WriteFailure::Closed(_)), "{lost:?}");
}

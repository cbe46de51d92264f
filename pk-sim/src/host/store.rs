//! A host's store: what is written, and what survives a crash.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use pk_proto::{EffectId, Input, StoreOp, StoreRange, StoreRow, Table, WriteFailure};

use crate::rng_streams::RngStream;

/// What a crash leaves of pending writes, and of those that were acknowledged but not durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CrashPolicy {
    /// All values.
    Keep,
    /// None of them.
    Lose,
    /// The first few; their number is random. Never a part of a transaction.
    #[default]
    Random,
}

/// How a write fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WriteFault {
    /// It is not applied, and reported as not applied.
    Refused,
    /// It is applied durably, and its outcome is reported as unknown.
    Written,
    /// It is not applied, and its outcome is reported as unknown.
    Lost,
}

/// Tables in memory.
#[derive(Debug, Clone)]
pub struct Store {
    /// Duration of each write or read; they are executed sequentially.
    pub delay: Duration,
    /// Number of next writes that fail.
    pub fail_next: u32,
    /// Per mille of writes that fail.
    pub fail_per_mille: u16,
    /// Per mille of writes whose outcome is reported as unknown; every other one of them is
    /// applied.
    pub unknown_per_mille: u16,
    /// Failures of single writes, by their numbers from 1.
    pub faults: BTreeMap<u64, WriteFault>,
    /// Number of reads that fail after a write with unknown outcome.
    pub unreadable: u32,
    /// Number of next reads that fail.
    pub fail_reads: u32,
    /// What a crash leaves.
    pub crash: CrashPolicy,
    /// What reads return.
    rows: Rows,
    /// What is on the disk.
    disk: Rows,
    /// Acknowledged, not yet on the disk.
    unsynced: Vec<Vec<StoreOp>>,
    jobs: VecDeque<Job>,
    transactions: u64,
    writes: u64,
}

type Rows = BTreeMap<(Table, Bytes), Bytes>;

#[derive(Debug, Clone)]
pub(crate) enum Job {
    Persist { id: EffectId, ops: Vec<StoreOp>, durable: bool },
    Load { id: EffectId, range: StoreRange, max_bytes: u64 },
}

impl Default for Store {
    fn default() -> Self {
        Self {
            delay: Duration::from_micros(500),
            fail_next: 0,
            fail_per_mille: 0,
            unknown_per_mille: 0,
            faults: BTreeMap::new(),
            unreadable: 0,
            fail_reads: 0,
            crash: CrashPolicy::default(),
            rows: Rows::new(),
            disk: Rows::new(),
            unsynced: Vec::new(),
            jobs: VecDeque::new(),
            transactions: 0,
            writes: 0,
        }
    }
}

impl Store {
    /// Returns the value of a row.
    pub fn get(&self, table: Table, key: &[u8]) -> Option<&Bytes> {
        self.rows.get(&(table, Bytes::copy_from_slice(key)))
    }

    /// Returns the rows of a table in order of their keys.
    pub fn table(&self, table: Table) -> impl Iterator<Item = (&Bytes, &Bytes)> {
        self.rows
            .iter()
            .filter(move |((of, _), _)| *of == table)
            .map(|((_, key), value)| (key, value))
    }

    /// Returns every row, in order of tables and keys.
    pub fn rows(&self) -> impl Iterator<Item = (Table, &Bytes, &Bytes)> {
        self.rows.iter().map(|((table, key), value)| (*table, key, value))
    }

    /// Applies operations durably, as a previous process would have.
    pub fn seed(&mut self, ops: impl IntoIterator<Item = StoreOp>) {
        for op in ops {
            apply(&mut self.rows, &op);
            apply(&mut self.disk, &op);
        }
    }

    /// Returns the number of applied transactions.
    pub fn transactions(&self) -> u64 {
        self.transactions
    }

    /// Returns the number of writes, failed ones included.
    pub fn writes(&self) -> u64 {
        self.writes
    }

    /// Queues a job. Returns whether it is the first, which has to be waited for.
    pub(crate) fn push(&mut self, job: Job) -> bool {
        self.jobs.push_back(job);
        self.jobs.len() == 1
    }

    /// Does the first job. Returns its answer and whether there is another one.
    pub(crate) fn work(&mut self, die: &mut RngStream) -> Option<(Input, bool)> {
        let answer = match self.jobs.pop_front()? {
            Job::Persist { id, ops, durable } => {
                let fault = self.next_fault(die);
                match fault {
                    None => self.apply(ops, durable),
                    Some(WriteFault::Written) => self.apply(ops, true),
                    Some(WriteFault::Refused | WriteFault::Lost) => {}
                }
                let result = match fault {
                    None => Ok(()),
                    Some(WriteFault::Refused) => {
                        Err(WriteFailure::NotApplied("the disk is full".to_owned()))
                    }
                    Some(WriteFault::Written | WriteFault::Lost) => {
                        self.fail_reads = self.unreadable;
                        Err(WriteFailure::Unknown("the disk fails".to_owned()))
                    }
                };
                Input::Persisted { id, result }
            }
            Job::Load { id, .. } if self.fail_reads > 0 => {
                self.fail_reads -= 1;
                Input::Loaded { id, result: Err("the disk fails".to_owned()) }
            }
            Job::Load { id, range, max_bytes } => {
                Input::Loaded { id, result: Ok(self.load(&range, max_bytes)) }
            }
        };
        Some((answer, !self.jobs.is_empty()))
    }

    /// The process is killed: pending jobs are not completed.
    pub(crate) fn crash(&mut self, die: &mut RngStream) {
        let under_way = self.jobs.drain(..).filter_map(|job| match job {
            Job::Persist { ops, .. } => Some(ops),
            Job::Load { .. } => None,
        });
        let mut open: Vec<_> = self.unsynced.drain(..).chain(under_way).collect();
        let kept = match self.crash {
            CrashPolicy::Keep => open.len(),
            CrashPolicy::Lose => 0,
            CrashPolicy::Random => usize::try_from(die.below(open.len() as u64 + 1)).unwrap_or(0),
        };
        open.truncate(kept);
        open.iter().flatten().for_each(|op| apply(&mut self.disk, op));
        self.rows = self.disk.clone();
    }

    /// How the next write fails, if it does.
    fn next_fault(&mut self, die: &mut RngStream) -> Option<WriteFault> {
        self.writes += 1;
        let refused = self.fail_next > 0 || die.happens(self.fail_per_mille);
        self.fail_next = self.fail_next.saturating_sub(1);
        if let Some(fault) = self.faults.remove(&self.writes) {
            return Some(fault);
        }
        if refused {
            return Some(WriteFault::Refused);
        }
        let unknown = die.happens(self.unknown_per_mille);
        unknown.then(|| {
            if self.writes.is_multiple_of(2) { WriteFault::Written } else { WriteFault::Lost }
        })
    }

    fn apply(&mut self, ops: Vec<StoreOp>, durable: bool) {
        self.transactions += 1;
        ops.iter().for_each(|op| apply(&mut self.rows, op));
        self.unsynced.push(ops);
        if durable {
            self.unsynced.drain(..).flatten().for_each(|op| apply(&mut self.disk, &op));
        }
    }

    fn load(&self, range: &StoreRange, max_bytes: u64) -> (Vec<StoreRow>, bool) {
        let all = self.table(range.table);
        let inside = all
            .filter(|(key, _)| **key >= range.from && range.to.as_ref().is_none_or(|to| *key < to));
        let mut rows: Vec<StoreRow> =
            inside.map(|(key, value)| (key.clone(), value.clone())).collect();
        if range.descending {
            rows.reverse();
        }
        let mut bytes = 0;
        let size = |row: &StoreRow| (row.0.len() + row.1.len()) as u64;
        let fitting = rows.iter().take_while(|row| {
            bytes += size(row);
            bytes <= max_bytes
        });
        let count = fitting.count().max(1).min(rows.len());
        let more = count < rows.len();
        rows.truncate(count);
        (rows, more)
    }
}

fn apply(rows: &mut Rows, op: &StoreOp) {
    match op {
        StoreOp::Put { table, key, value } => {
            drop(rows.insert((*table, key.clone()), value.clone()));
        }
        StoreOp::Delete { table, key } => drop(rows.remove(&(*table, key.clone()))),
        StoreOp::Clear { table } => rows.retain(|(of, _), _| of != table),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(key: u8) -> StoreOp {
        StoreOp::Put { table: Table::Claims, key: vec![key].into(), value: vec![key; 9].into() }
    }

    fn persist(store: &mut Store, key: u8, durable: bool) -> Input {
        store.push(Job::Persist { id: EffectId(key.into()), ops: vec![put(key)], durable });
        store.work(&mut RngStream::new(1, 1)).unwrap().0
    }

    fn keys(store: &Store) -> Vec<u8> {
        store.rows().map(|(_, key, _)| key[0]).collect()
    }

    #[test]
    fn crash_loses_non_durable_writes_in_order() {
        for (policy, kept) in [(CrashPolicy::Lose, 2), (CrashPolicy::Keep, 5)] {
            let mut store = Store { crash: policy, ..Store::default() };
            persist(&mut store, 0, false);
            persist(&mut store, 1, true);
            persist(&mut store, 2, false);
            store.push(Job::Persist { id: EffectId(3), ops: vec![put(3)], durable: true });
            store.push(Job::Persist { id: EffectId(4), ops: vec![put(4)], durable: true });
            assert_eq!(keys(&store), [0, 1, 2]);
            store.crash(&mut RngStream::new(1, 1));
            assert_eq!(keys(&store), (0..kept).collect::<Vec<_>>());
            assert!(store.work(&mut RngStream::new(1, 1)).is_none());
        }
        let mut lengths = std::collections::BTreeSet::new();
        for seed in 0..64 {
            let mut store = Store::default();
            (0..3).for_each(|key| drop(persist(&mut store, key, false)));
            store.crash(&mut RngStream::new(seed, 1));
            let keys = keys(&store);
            assert_eq!(keys, (0..3).take(keys.len()).collect::<Vec<_>>());
            lengths.insert(keys.len());
        }
        assert_eq!(lengths.len(), 4);
    }

    #[test]
    fn failed_write_changes_nothing() {
        let mut store = Store { fail_next: 1, ..Store::default() };
        assert!(matches!(persist(&mut store, 1, true), Input::Persisted { result: Err(_), .. }));
        assert!(matches!(persist(&mut store, 2, true), Input::Persisted { result: Ok(()), .. }));
        assert_eq!((keys(&store), store.transactions()), (vec![2], 1));
    }

    #[test]
    fn write_with_an_unknown_outcome_was_applied_or_not() {
        let faults = BTreeMap::from([
            (1, WriteFault::Written),
            (2, WriteFault::Lost),
            (3, WriteFault::Refused),
        ]);
        let mut store = Store { faults, unreadable: 1, ..Store::default() };
        let unknown = |answer| {
            matches!(answer, Input::Persisted { result: Err(WriteFailure::Unknown(_)), .. })
        };
        assert!(unknown(persist(&mut store, 1, true)));
        assert!(unknown(persist(&mut store, 2, true)));
        assert!(!unknown(persist(&mut store, 3, true)));
        assert_eq!((keys(&store), store.writes()), (vec![1], 3));
        let range =
            StoreRange { table: Table::Claims, from: Bytes::new(), to: None, descending: false };
        let mut load = || {
            store.push(Job::Load { id: EffectId(9), range: range.clone(), max_bytes: 0 });
            match store.work(&mut RngStream::new(1, 1)) {
                Some((Input::Loaded { result, .. }, _)) => result,
                other => panic!("{other:?}"),
            }
        };
        assert!(load().is_err());
        assert_eq!(load().unwrap().0.len(), 1);
    }

    #[test]
    fn read_is_bounded_and_ordered_and_returns_an_existing_row() {
        let mut store = Store::default();
        (0..5).for_each(|key| drop(persist(&mut store, key, false)));
        let mut load = |from: u8, to: Option<u8>, descending, max_bytes| {
            let range = StoreRange {
                table: Table::Claims,
                from: vec![from].into(),
                to: to.map(|to| vec![to].into()),
                descending,
            };
            store.push(Job::Load { id: EffectId(9), range, max_bytes });
            match store.work(&mut RngStream::new(1, 1)) {
                Some((Input::Loaded { result: Ok((rows, more)), .. }, _)) => {
                    (rows.iter().map(|row| row.0[0]).collect::<Vec<_>>(), more)
                }
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(load(1, Some(4), false, 1000), (vec![1, 2, 3], false));
        assert_eq!(load(1, None, true, 20), (vec![4, 3], true));
        assert_eq!(load(0, None, false, 0), (vec![0], true));
        assert_eq!(load(7, None, false, 100), (vec![], false));
    }
}

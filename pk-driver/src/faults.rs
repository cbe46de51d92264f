//! A store that fails when it is told to, for tests of what a node makes of it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pk_proto::{StoreOp, StoreRange, StoreRow};

use crate::store::{Store, StoreError};

/// What goes wrong with one operation of a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It fails and does nothing, as on a full disk.
    Fail,
    /// It is done, and said to have failed, as where a disk loses the answer.
    DoneButFails,
    /// Neither it nor any write after it is done, and all are said to be, as by a disk that lies: nothing helps against that,
    /// and whoever judges must notice.
    Lose,
    /// So many of a transaction's operations are done, then nothing ever again, as in a crash of a store that is not atomic.
    Tear(usize),
    /// It is not done, and nothing is ever again, as in a crash.
    Crash,
    /// It is done, but takes this long.
    Delay(Duration),
}

/// How a store is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Access {
    /// `range`, and so `load`, which is one for each page.
    Read,
    /// `apply` and `sync`.
    Write,
}

/// What goes wrong with which operation. Clones are the same plan.
#[derive(Debug, Clone, Default)]
pub struct Faults(Arc<Mutex<Plan>>);

#[derive(Debug, Default)]
struct Plan {
    counts: BTreeMap<Access, u64>,
    faults: BTreeMap<(Access, u64), Fault>,
    /// What has become of it for good.
    lasting: Option<Fault>,
}

impl Faults {
    /// Nothing goes wrong.
    pub fn new() -> Self {
        Self::default()
    }

    /// One thing goes wrong with the `n`-th operation of its kind, counted from 1.
    pub fn at(access: Access, n: u64, fault: Fault) -> Self {
        let faults = Self::new();
        faults.plan().faults.insert((access, n), fault);
        faults
    }

    /// One thing goes wrong with the next operation of its kind.
    pub fn next(&self, access: Access, fault: Fault) {
        let next = self.count(access) + 1;
        self.plan().faults.insert((access, next), fault);
    }

    /// Whether something is planned that has not gone wrong yet.
    pub fn is_pending(&self) -> bool {
        !self.plan().faults.is_empty()
    }

    /// How many operations of a kind there have been.
    pub fn count(&self, access: Access) -> u64 {
        self.plan().counts.get(&access).copied().unwrap_or_default()
    }

    /// Whether it has come to a crash.
    pub fn crashed(&self) -> bool {
        self.plan().lasting == Some(Fault::Crash)
    }

    /// What goes wrong with an operation that begins now.
    fn take(&self, access: Access) -> Option<Fault> {
        let mut plan = self.plan();
        let count = plan.counts.entry(access).or_default();
        *count += 1;
        let count = *count;
        if plan.lasting.is_some() {
            return plan.lasting;
        }
        let fault = plan.faults.remove(&(access, count));
        plan.lasting = match fault {
            Some(Fault::Crash | Fault::Tear(_)) => Some(Fault::Crash),
            Some(Fault::Lose) => fault,
            _ => None,
        };
        fault
    }

    fn plan(&self) -> MutexGuard<'_, Plan> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A store around a store, in which things go wrong. It blocks, so that a node puts it on its own thread.
#[derive(Debug)]
pub struct FaultyStore<S> {
    inner: S,
    faults: Faults,
}

impl<S> FaultyStore<S> {
    /// A store in which things go wrong as planned.
    pub fn new(inner: S, faults: Faults) -> Self {
        Self { inner, faults }
    }
}

fn failed() -> StoreError {
    StoreError("a planned failure".to_owned())
}

impl<S: Store> FaultyStore<S> {
    fn write(
        &mut self,
        ops: &[StoreOp],
        durable: bool,
        write: impl FnOnce(&mut S) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        match self.faults.take(Access::Write) {
            None => write(&mut self.inner),
            Some(Fault::Delay(delay)) => {
                std::thread::sleep(delay);
                write(&mut self.inner)
            }
            Some(Fault::Fail | Fault::Crash) => Err(failed()),
            Some(Fault::Lose) => Ok(()),
            Some(Fault::DoneButFails) => write(&mut self.inner).and(Err(failed())),
            Some(Fault::Tear(done)) => {
                let done = ops.get(..done).unwrap_or(ops);
                self.inner.apply(done, durable).and(Err(failed()))
            }
        }
    }
}

impl<S: Store> Store for FaultyStore<S> {
    fn apply(&mut self, ops: &[StoreOp], durable: bool) -> Result<(), StoreError> {
        self.write(ops, durable, |inner| inner.apply(ops, durable))
    }

    fn range(&self, range: &StoreRange, max_bytes: u64) -> Result<(Vec<StoreRow>, bool), StoreError> {
        match self.faults.take(Access::Read) {
            None | Some(Fault::Lose) => {}
            Some(Fault::Delay(delay)) => std::thread::sleep(delay),
            Some(_) => return Err(failed()),
        }
        self.inner.range(range, max_bytes)
    }

    fn sync(&mut self) -> Result<(), StoreError> {
        self.write(&[], true, S::sync)
    }
}

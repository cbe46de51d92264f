//! A store with planned failures, for tests of how a node handles them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pk_proto::{StoreOp, StoreRange, StoreRow, WriteFailure};

use crate::store::{Store, StoreError};

/// Failure of one store operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The operation fails without effect, as on a full disk.
    Fail,
    /// The operation is applied, and its outcome is reported as unknown, as if the disk lost the
    /// answer.
    DoneButFails,
    /// The operation is not applied, and its outcome is reported as unknown.
    Unsure,
    /// Neither this write nor any later one is applied, and all are reported as applied, as by a
    /// disk that lies. No node can handle this; a checker must detect it.
    Lose,
    /// This number of operations of a transaction is applied, none is reported, and nothing is
    /// applied afterwards: a crash of a store that is not atomic.
    Tear(usize),
    /// The operation is not applied, and nothing is afterwards: a crash.
    Crash,
    /// The operation is applied, but takes this long.
    Delay(Duration),
}

/// Kind of a store operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Access {
    /// `range`, and therefore `load`, which calls it once per page.
    Read,
    /// `apply` and `sync`.
    Write,
}

/// The planned failures. Clones share one plan.
#[derive(Debug, Clone, Default)]
pub struct Faults(Arc<Mutex<Plan>>);

#[derive(Debug, Default)]
struct Plan {
    counts: BTreeMap<Access, u64>,
    faults: BTreeMap<(Access, u64), Fault>,
    /// Permanent state after a failure.
    lasting: Option<Fault>,
}

impl Faults {
    /// Creates a plan without failures.
    pub fn new() -> Self {
        Self::default()
    }

    /// Creates a plan with one failure, of the `n`-th operation of its kind, counted from 1.
    pub fn at(access: Access, n: u64, fault: Fault) -> Self {
        let faults = Self::new();
        faults.plan().faults.insert((access, n), fault);
        faults
    }

    /// Plans a failure of the next operation of its kind.
    pub fn next(&self, access: Access, fault: Fault) {
        let next = self.count(access) + 1;
        self.plan().faults.insert((access, next), fault);
    }

    /// Returns whether a planned failure has not occurred yet.
    pub fn is_pending(&self) -> bool {
        !self.plan().faults.is_empty()
    }

    /// Returns the number of operations of a kind so far.
    pub fn count(&self, access: Access) -> u64 {
        self.plan().counts.get(&access).copied().unwrap_or_default()
    }

    /// Returns whether a planned crash has occurred.
    pub fn crashed(&self) -> bool {
        self.plan().lasting == Some(Fault::Crash)
    }

    /// Returns the failure of an operation that starts now.
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

/// A store with planned failures around another store. It blocks, so that a node runs it on its own
/// thread.
#[derive(Debug)]
pub struct FaultyStore<S> {
    inner: S,
    faults: Faults,
}

impl<S> FaultyStore<S> {
    /// Wraps a store.
    pub fn new(inner: S, faults: Faults) -> Self {
        Self { inner, faults }
    }
}

fn failed() -> String {
    "a planned failure".to_owned()
}

impl<S: Store> FaultyStore<S> {
    fn write(
        &mut self,
        ops: &[StoreOp],
        durable: bool,
        write: impl FnOnce(&mut S) -> Result<(), WriteFailure>,
    ) -> Result<(), WriteFailure> {
        match self.faults.take(Access::Write) {
            None => write(&mut self.inner),
            Some(Fault::Delay(delay)) => {
                std::thread::sleep(delay);
                write(&mut self.inner)
            }
            Some(Fault::Fail | Fault::Crash) => Err(WriteFailure::NotApplied(failed())),
            Some(Fault::Lose) => Ok(()),
            Some(Fault::DoneButFails) => {
                write(&mut self.inner).and(Err(WriteFailure::Unknown(failed())))
            }
            Some(Fault::Unsure) => Err(WriteFailure::Unknown(failed())),
            Some(Fault::Tear(done)) => {
                let done = ops.get(..done).unwrap_or(ops);
                self.inner.apply(done, durable).and(Err(WriteFailure::NotApplied(failed())))
            }
        }
    }
}

impl<S: Store> Store for FaultyStore<S> {
    fn apply(&mut self, ops: &[StoreOp], durable: bool) -> Result<(), WriteFailure> {
        self.write(ops, durable, |inner| inner.apply(ops, durable))
    }

    fn range(
        &mut self,
        range: &StoreRange,
        max_bytes: u64,
    ) -> Result<(Vec<StoreRow>, bool), StoreError> {
        match self.faults.take(Access::Read) {
            None | Some(Fault::Lose) => {}
            Some(Fault::Delay(delay)) => std::thread::sleep(delay),
            Some(_) => return Err(StoreError(failed())),
        }
        self.inner.range(range, max_bytes)
    }

    fn sync(&mut self) -> Result<(), WriteFailure> {
        self.write(&[], true, S::sync)
    }
}

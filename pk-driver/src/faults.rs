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
    /// So many of a transaction's operations are done, then nothing ever again, as in a crash of a store that is not atomic.
    Tear(usize),
    /// It is not done, and nothing is ever again, as in a crash.
    Crash,
    /// It is done, but takes this long.
    Delay(Duration),
}

/// What goes wrong with which operation. Clones are the same plan.
#[derive(Debug, Clone, Default)]
pub struct Faults(Arc<Mutex<Plan>>);

#[derive(Debug, Default)]
struct Plan {
    count: u64,
    faults: BTreeMap<u64, Fault>,
    crashed: bool,
}

impl Faults {
    /// Nothing goes wrong.
    pub fn new() -> Self {
        Self::default()
    }

    /// One thing goes wrong with the `n`-th operation, counted from 1 over every `apply`, `range` and `sync`.
    pub fn at(n: u64, fault: Fault) -> Self {
        let faults = Self::new();
        faults.plan().faults.insert(n, fault);
        faults
    }

    /// One thing goes wrong with the next operation.
    pub fn next(&self, fault: Fault) {
        self.nth_from_now(1, fault);
    }

    /// One thing goes wrong with the `n`-th operation from now on, counted from 1.
    pub fn nth_from_now(&self, n: u64, fault: Fault) {
        let mut plan = self.plan();
        let at = plan.count.saturating_add(n);
        plan.faults.insert(at, fault);
    }

    /// Whether something is planned that has not gone wrong yet.
    pub fn is_pending(&self) -> bool {
        !self.plan().faults.is_empty()
    }

    /// How many operations there have been.
    pub fn count(&self) -> u64 {
        self.plan().count
    }

    /// Whether it has come to a crash.
    pub fn crashed(&self) -> bool {
        self.plan().crashed
    }

    /// What goes wrong with an operation that begins now.
    fn take(&self) -> Option<Fault> {
        let mut plan = self.plan();
        plan.count += 1;
        let count = plan.count;
        if plan.crashed {
            return Some(Fault::Crash);
        }
        let fault = plan.faults.remove(&count);
        plan.crashed = matches!(fault, Some(Fault::Crash | Fault::Tear(_)));
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
        match self.faults.take() {
            None => write(&mut self.inner),
            Some(Fault::Delay(delay)) => {
                std::thread::sleep(delay);
                write(&mut self.inner)
            }
            Some(Fault::Fail | Fault::Crash) => Err(failed()),
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
        match self.faults.take() {
            None => {}
            Some(Fault::Delay(delay)) => std::thread::sleep(delay),
            Some(_) => return Err(failed()),
        }
        self.inner.range(range, max_bytes)
    }

    fn sync(&mut self) -> Result<(), StoreError> {
        self.write(&[], true, S::sync)
    }
}

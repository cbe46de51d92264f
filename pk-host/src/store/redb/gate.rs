//! A file that is only read until it is opened for writing.

use std::fs::File;
use std::io;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use redb::backends::FileBackend;
use redb::{BackendError, StorageBackend};

/// A redb file. Until it is opened for writing, writes are held in memory, in order.
#[derive(Debug)]
pub(super) struct Gate {
    file: FileBackend,
    held: Mutex<Option<Held>>,
    /// Whether data that can be read may not be on the disk.
    suspect: bool,
}

/// redb owns its backend; the store keeps the gate.
#[derive(Debug)]
pub(super) struct Gated(Arc<Gate>);

impl Gated {
    pub(super) fn new(gate: &Arc<Gate>) -> Self {
        Self(Arc::clone(gate))
    }
}

/// Operations that are held in memory.
#[derive(Debug, Default)]
struct Held {
    steps: Vec<Step>,
    len: u64,
}

#[derive(Debug)]
enum Step {
    Write { at: u64, bytes: Vec<u8> },
    SetLen(u64),
    Sync,
}

/// The first bytes of every redb file.
const MAGIC: [u8; 9] = *b"redb\x1A\x0A\xA9\x0D\x0A";
/// Flag in the byte after that: the file was not closed properly.
const RECOVERY_REQUIRED: u8 = 2;
/// Bytes that are rewritten at once.
const PIECE: u64 = 1024 * 1024;

impl Gate {
    /// Returns `None` if the file is not a redb file, or is empty. `suspect`: the disk has failed
    /// while the file was open.
    pub(super) fn new(file: File, suspect: bool) -> io::Result<Option<Self>> {
        let len = file.metadata()?.len();
        let file = FileBackend::new(file).map_err(io::Error::other)?;
        let mut start = [0; MAGIC.len() + 1];
        if len < start.len() as u64 {
            return Ok(None);
        }
        file.read(0, &mut start)?;
        let [magic @ .., flags] = start;
        let suspect = suspect || flags & RECOVERY_REQUIRED != 0;
        let held = Mutex::new(Some(Held { steps: Vec::new(), len }));
        let gate = Self { file, held, suspect };
        Ok((magic == MAGIC).then_some(gate))
    }

    /// Applies the held operations to the file, and holds none from now on. Can be retried after an
    /// error.
    pub(super) fn open(&self) -> io::Result<()> {
        let mut held = self.held();
        if let Some(Held { steps, .. }) = &*held {
            if self.suspect {
                self.rewrite()?;
            }
            for step in steps {
                match step {
                    Step::Write { at, bytes } => self.write(*at, bytes)?,
                    Step::SetLen(len) => self.file.set_len(*len)?,
                    Step::Sync => self.sync()?,
                }
            }
        }
        *held = None;
        Ok(())
    }

    /// Rewrites every page and syncs the file. Pages that an earlier `fsync` failed to write are
    /// only in memory, and marked as clean: nothing else would ever write them.
    fn rewrite(&self) -> io::Result<()> {
        let len = self.file.len()?;
        let mut piece = Vec::new();
        let mut at = 0;
        while at < len {
            piece.resize(usize::try_from(PIECE.min(len - at)).unwrap_or_default(), 0);
            self.file.read(at, &mut piece)?;
            self.write(at, &piece)?;
            at += piece.len() as u64;
        }
        self.sync()
    }

    fn write(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        #[cfg(test)]
        disk::next()?;
        self.file.write(at, bytes)
    }

    /// In tests an `fsync` fails after it has written everything.
    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()?;
        #[cfg(test)]
        disk::next()?;
        Ok(())
    }

    fn held(&self) -> MutexGuard<'_, Option<Held>> {
        // Each step is complete, so that a poisoned lock is consistent.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    /// Reads the file and applies the held operations to the result.
    fn read(&self, file: &FileBackend, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let len = out.len() as u64;
        if offset.checked_add(len).is_none_or(|end| end > self.len) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        out.fill(0);
        let there =
            usize::try_from(file.len()?.saturating_sub(offset).min(len)).unwrap_or(out.len());
        if let Some(out) = out.get_mut(..there).filter(|out| !out.is_empty()) {
            file.read(offset, out)?;
        }
        for step in &self.steps {
            match step {
                Step::Write { at, bytes } => overlay(offset, out, *at, bytes),
                Step::SetLen(len) => {
                    let cut = usize::try_from(len.saturating_sub(offset)).unwrap_or(out.len());
                    if let Some(beyond) = out.get_mut(cut..) {
                        beyond.fill(0);
                    }
                }
                Step::Sync => {}
            }
        }
        Ok(())
    }
}

/// Copies the overlap of two ranges of a file: from `bytes`, which starts at `at`, to `out`, which
/// starts at `offset`.
fn overlay(offset: u64, out: &mut [u8], at: u64, bytes: &[u8]) {
    let from = at.max(offset);
    let to = (at + bytes.len() as u64).min(offset + out.len() as u64);
    let index = |position: u64, origin: u64| {
        usize::try_from(position.saturating_sub(origin)).unwrap_or(usize::MAX)
    };
    if from < to
        && let Some(out) = out.get_mut(index(from, offset)..index(to, offset))
        && let Some(bytes) = bytes.get(index(from, at)..index(to, at))
    {
        out.copy_from_slice(bytes);
    }
}

impl StorageBackend for Gated {
    fn len(&self) -> io::Result<u64> {
        match &*self.0.held() {
            Some(held) => Ok(held.len),
            None => self.0.file.len(),
        }
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        match &*self.0.held() {
            Some(held) => held.read(&self.0.file, offset, out),
            None => self.0.file.read(offset, out),
        }
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        match &mut *self.0.held() {
            Some(held) => {
                held.steps.push(Step::SetLen(len));
                held.len = len;
                Ok(())
            }
            None => self.0.file.set_len(len),
        }
    }

    fn sync_data(&self) -> io::Result<()> {
        match &mut *self.0.held() {
            Some(held) => {
                held.steps.push(Step::Sync);
                Ok(())
            }
            None => self.0.sync(),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        match &mut *self.0.held() {
            Some(held) => {
                held.len = held.len.max(offset.saturating_add(data.len() as u64));
                held.steps.push(Step::Write { at: offset, bytes: data.to_vec() });
                Ok(())
            }
            None => self.0.write(offset, data),
        }
    }

    fn close(&self) -> io::Result<()> {
        self.0.file.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.0.file.try_lock_range(start, end)
    }

    fn try_lock_shared_range(
        &self,
        start: Bound<u64>,
        end: Bound<u64>,
    ) -> Result<bool, BackendError> {
        self.0.file.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.file.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.file.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.file.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.0.file.query_lock_range(start, end)
    }
}

/// The disk of a test, whose writes and syncs fail as planned; one per thread.
#[cfg(test)]
pub(super) mod disk {
    use std::cell::Cell;
    use std::io;

    /// Operations that fail.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub(crate) enum Plan {
        Nothing,
        /// The operation after this number.
        One(u32),
        /// Every operation after this number.
        All(u32),
    }

    thread_local! {
        static PLAN: Cell<Plan> = const { Cell::new(Plan::Nothing) };
    }

    pub(crate) fn plan(plan: Plan) {
        PLAN.set(plan);
    }

    /// Returns whether a planned failure has occurred.
    pub(crate) fn has_failed() -> bool {
        matches!(PLAN.get(), Plan::Nothing | Plan::All(0))
    }

    pub(super) fn next() -> io::Result<()> {
        let (fails, then) = match PLAN.get() {
            Plan::Nothing => (false, Plan::Nothing),
            Plan::One(0) => (true, Plan::Nothing),
            Plan::One(left) => (false, Plan::One(left - 1)),
            Plan::All(0) => (true, Plan::All(0)),
            Plan::All(left) => (false, Plan::All(left - 1)),
        };
        PLAN.set(then);
        if fails { Err(io::Error::from_raw_os_error(5)) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffered_writes_are_read_as_if_they_were_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let before: Vec<u8> = MAGIC.into_iter().chain(0..100).collect();
        std::fs::write(&path, &before).unwrap();
        let file = File::options().read(true).write(true).open(&path).unwrap();
        let gate = Arc::new(Gate::new(file, false).unwrap().unwrap());
        let backend = Gated::new(&gate);
        let mut model = before.clone();
        backend.write(20, &[200; 10]).unwrap();
        model[20..30].fill(200);
        backend.set_len(60).unwrap();
        model.truncate(60);
        backend.sync_data().unwrap();
        backend.set_len(150).unwrap();
        model.resize(150, 0);
        backend.write(140, &[201; 20]).unwrap();
        model.resize(160, 0);
        model[140..].fill(201);
        backend.write(25, &[202; 2]).unwrap();
        model[25..27].fill(202);

        assert_eq!(backend.len().unwrap(), 160);
        for from in 0..160 {
            for to in from..=160 {
                let mut out = vec![77; to - from];
                backend.read(from as u64, &mut out).unwrap();
                assert_eq!(out, model[from..to], "{from}..{to}");
            }
        }
        assert!(backend.read(150, &mut [0; 11]).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), before);
        gate.open().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), model);
        backend.write(0, &[7]).unwrap();
        assert_eq!(std::fs::read(&path).unwrap()[0], 7);
    }

    #[test]
    fn other_files_are_distinguished() {
        let dir = tempfile::tempdir().unwrap();
        for content in [&b""[..], b"redb", b"something else, and long enough"] {
            let path = dir.path().join("file");
            std::fs::write(&path, content).unwrap();
            assert!(Gate::new(File::open(&path).unwrap(), false).unwrap().is_none());
        }
    }
}

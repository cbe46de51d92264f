//! A standard stream that is written by its own thread. A slow reader blocks only that thread. The
//! first write error is kept until the end of the program.

use std::io;
use std::mem::take;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Total size of the bytes that wait to be written. A longer text is accepted if the queue is
/// empty.
const LIMIT: usize = 1024 * 1024;

/// Time limit for the remaining bytes after [`Sink::leave`].
const GRACE: Duration = Duration::from_millis(250);

/// A stream, and the bytes that wait to be written to it.
pub(crate) struct Sink {
    state: Mutex<State>,
    changed: Condvar,
    write: fn(&[u8]) -> io::Result<()>,
}

struct State {
    queue: Vec<u8>,
    /// Whether the thread is started.
    started: bool,
    /// Whether the thread is writing the bytes that it took from the queue.
    writing: bool,
    /// Whether the program is ending: nothing waits for the reader.
    leaving: bool,
    /// Number of lines dropped because the queue was full.
    skipped: u64,
    /// Whether a write has failed; nothing more is written.
    broken: bool,
    /// First write error, until it is reported.
    error: Option<io::Error>,
}

impl Sink {
    /// Creates a stream. `write` writes and flushes.
    pub(crate) const fn new(write: fn(&[u8]) -> io::Result<()>) -> Self {
        let state = State {
            queue: Vec::new(),
            started: false,
            writing: false,
            leaving: false,
            skipped: 0,
            broken: false,
            error: None,
        };
        Self { state: Mutex::new(state), changed: Condvar::new(), write }
    }

    /// Queues a text. Waits for room if the queue is full; after [`leave`](Self::leave) the text is
    /// dropped instead.
    pub(crate) fn write(&'static self, text: &[u8]) {
        let mut state = self.lock();
        while state.is_full(text) && !state.leaving && !state.broken {
            state = self.wait(state);
        }
        if !state.is_full(text) {
            self.push(state, text);
        }
    }

    /// Queues a line, or drops and counts it if the queue is full. Never waits. The number of
    /// dropped lines is written when there is room again.
    pub(crate) fn offer(&'static self, line: &[u8]) {
        let mut state = self.lock();
        if state.is_full(line) {
            state.skipped += 1;
        } else {
            self.push(state, line);
        }
    }

    /// Queues a text and waits until it is written. Returns whether it was.
    pub(crate) fn write_through(&'static self, text: &[u8]) -> bool {
        self.write(text);
        let mut state = self.lock();
        while !state.is_idle() && !state.broken {
            state = self.wait(state);
        }
        !state.broken
    }

    /// Returns whether a write has failed.
    pub(crate) fn is_broken(&self) -> bool {
        self.lock().broken
    }

    /// Announces that the program ends soon: from now on nothing waits for a slow reader, except
    /// [`finish`](Self::finish) for a moment.
    pub(crate) fn leave(&self) {
        self.lock().leaving = true;
        self.changed.notify_all();
    }

    /// Waits until the queue is empty.
    ///
    /// # Errors
    ///
    /// The first write error, once.
    pub(crate) fn finish(&self) -> io::Result<()> {
        let mut state = self.lock();
        let mut until = None;
        loop {
            if let Some(error) = state.error.take() {
                return Err(error);
            }
            if state.is_idle() || state.broken {
                return Ok(());
            }
            if !state.leaving {
                state = self.wait(state);
                continue;
            }
            let until = *until.get_or_insert_with(|| Instant::now() + GRACE);
            let Some(left) = until.checked_duration_since(Instant::now()) else { return Ok(()) };
            let waited = self.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn push(&'static self, mut state: MutexGuard<'_, State>, text: &[u8]) {
        if state.broken {
            return;
        }
        state.queue.extend_from_slice(text);
        if !state.started {
            state.started =
                thread::Builder::new().name("output".to_owned()).spawn(|| self.run()).is_ok();
        }
        if state.started {
            drop(state);
            self.changed.notify_all();
        } else {
            // No thread could be started: write here.
            let text = take(&mut state.queue);
            let written = (self.write)(&text);
            state.end(written);
        }
    }

    /// Writes the queue until a write fails.
    fn run(&self) {
        let mut state = self.lock();
        while !state.broken {
            if state.queue.is_empty() {
                state = self.wait(state);
                continue;
            }
            let text = take(&mut state.queue);
            state.writing = true;
            drop(state);
            let written = (self.write)(&text);
            state = self.lock();
            state.end(written);
            self.changed.notify_all();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is consistent after every step.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn is_full(&self, text: &[u8]) -> bool {
        !self.queue.is_empty() && self.queue.len() + text.len() > LIMIT
    }

    fn is_idle(&self) -> bool {
        self.queue.is_empty() && !self.writing
    }

    /// Marks the end of a write.
    fn end(&mut self, written: io::Result<()>) {
        self.writing = false;
        match written {
            Ok(()) => {
                let skipped = take(&mut self.skipped);
                if skipped > 0 {
                    self.queue.extend_from_slice(format!("… {skipped} lines dropped\n").as_bytes());
                }
            }
            Err(error) => {
                self.broken = true;
                self.error = Some(error);
                self.queue = Vec::new();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// A stream that is never read.
    fn stalled(_: &[u8]) -> io::Result<()> {
        loop {
            thread::park();
        }
    }

    fn leaked(write: fn(&[u8]) -> io::Result<()>) -> &'static Sink {
        Box::leak(Box::new(Sink::new(write)))
    }

    #[test]
    fn paused_reader_does_not_delay_the_end() {
        let sink = leaked(stalled);
        for _ in 0..5 {
            sink.offer(&vec![b'x'; LIMIT]);
        }
        assert!(sink.lock().skipped >= 3 && sink.lock().queue.len() <= LIMIT);
        let written = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&written);
        let writer = thread::spawn(move || {
            for _ in 0..3 {
                sink.write(&vec![b'y'; LIMIT]);
                counted.fetch_add(1, Ordering::SeqCst);
            }
        });
        thread::sleep(Duration::from_millis(50));
        assert!(written.load(Ordering::SeqCst) < 3, "data waits for its reader");
        sink.leave();
        writer.join().unwrap();
        let begun = Instant::now();
        assert!(sink.finish().is_ok());
        assert!((GRACE..20 * GRACE).contains(&begun.elapsed()));
    }

    #[test]
    fn failed_write_is_reported_once_and_ends_every_wait() {
        let sink = leaked(|_| Err(io::ErrorKind::StorageFull.into()));
        assert!(!sink.write_through(b"one"));
        for _ in 0..3 {
            sink.write(&vec![b'x'; LIMIT]);
        }
        assert!(sink.is_broken());
        assert_eq!(sink.finish().unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert!(sink.finish().is_ok());
    }

    #[test]
    fn everything_is_written_in_order_before_the_end() {
        static WRITTEN: Mutex<Vec<u8>> = Mutex::new(Vec::new());
        let sink = leaked(|text| {
            thread::sleep(Duration::from_millis(1));
            WRITTEN.lock().unwrap().extend_from_slice(text);
            Ok(())
        });
        for n in 0..100_u8 {
            sink.write(&[n]);
        }
        assert!(sink.finish().is_ok());
        assert_eq!(*WRITTEN.lock().unwrap(), (0..100).collect::<Vec<_>>());
    }
}

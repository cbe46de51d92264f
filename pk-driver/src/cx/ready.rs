//! Keyed wakers: sources that woke up are known by key, so that the cost of a turn depends on the
//! number of events, not of sources.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Wake, Waker};

/// Keys that woke up, in order, each at most once; and the waker of the consumer.
#[derive(Debug)]
pub(crate) struct ReadyQueue<K> {
    state: Mutex<State<K>>,
}

#[derive(Debug)]
struct State<K> {
    ready: VecDeque<Arc<Source<K>>>,
    /// The consumer, while it sleeps.
    sleeper: Option<Waker>,
    closed: bool,
}

/// State shared by the wakers of one key.
#[derive(Debug)]
struct Source<K> {
    key: K,
    /// Whether the key is in the queue.
    queued: AtomicBool,
    queue: Arc<ReadyQueue<K>>,
}

impl<K: Copy + Send + Sync + 'static> ReadyQueue<K> {
    pub(crate) fn new() -> Arc<Self> {
        let state = State { ready: VecDeque::new(), sleeper: None, closed: false };
        Arc::new(Self { state: Mutex::new(state) })
    }

    /// Returns a waker that queues `key`. Two wakers of one key are two entries.
    pub(crate) fn waker(self: &Arc<Self>, key: K) -> Waker {
        Waker::from(Arc::new(Source {
            key,
            queued: AtomicBool::new(false),
            queue: Arc::clone(self),
        }))
    }

    /// Removes and returns the first key. A wake from now on queues it again.
    pub(crate) fn pop(&self) -> Option<K> {
        let source = self.lock().ready.pop_front()?;
        // Before its source is polled: a wake during the poll must not be lost.
        source.queued.store(false, Ordering::Release);
        Some(source.key)
    }

    /// Registers the consumer to be woken by the next key. Returns `false`, without registering it,
    /// if a key is queued.
    pub(crate) fn sleep(&self, waker: &Waker) -> bool {
        let sleeper = waker.clone();
        let mut state = self.lock();
        let idle = state.ready.is_empty();
        let before = if idle { state.sleeper.replace(sleeper) } else { Some(sleeper) };
        drop(state);
        drop(before);
        idle
    }

    /// The consumer is awake and need not be woken.
    pub(crate) fn awake(&self) {
        let sleeper = self.lock().sleeper.take();
        drop(sleeper);
    }

    /// Drops every key, now and later. Without this the entries and the queue would keep each other
    /// alive.
    pub(crate) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        let dropped = (state.sleeper.take(), std::mem::take(&mut state.ready));
        drop(state);
        drop(dropped);
    }

    fn lock(&self) -> MutexGuard<'_, State<K>> {
        // No foreign code runs under this lock, not even the drop of a waker, so that a poisoned
        // one is consistent.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Copy + Send + Sync + 'static> Wake for Source<K> {
    fn wake(self: Arc<Self>) {
        if self.queued.swap(true, Ordering::AcqRel) {
            return;
        }
        let queue = Arc::clone(&self.queue);
        let mut state = queue.lock();
        if state.closed {
            return;
        }
        state.ready.push_back(self);
        let sleeper = state.sleeper.take();
        drop(state);
        if let Some(sleeper) = sleeper {
            sleeper.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[derive(Default)]
    struct Counter(AtomicUsize);

    impl Wake for Counter {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn consumer() -> (Arc<Counter>, Waker) {
        let counter = Arc::new(Counter::default());
        (Arc::clone(&counter), Waker::from(counter))
    }

    #[test]
    fn key_is_queued_once_and_in_order() {
        let queue = ReadyQueue::new();
        let (one, two) = (queue.waker(1), queue.waker(2));
        one.wake_by_ref();
        two.wake_by_ref();
        one.wake_by_ref();
        assert_eq!((queue.pop(), queue.pop(), queue.pop()), (Some(1), Some(2), None));
    }

    #[test]
    fn key_woken_while_it_is_served_is_queued_again() {
        let queue = ReadyQueue::new();
        let one = queue.waker(1);
        one.wake_by_ref();
        assert_eq!(queue.pop(), Some(1));
        one.wake_by_ref();
        assert_eq!(queue.pop(), Some(1));
    }

    #[test]
    fn sleeping_consumer_is_woken_once_and_an_awake_one_never() {
        let queue = ReadyQueue::new();
        let (counter, waker) = consumer();
        let (one, two) = (queue.waker(1), queue.waker(2));
        assert!(queue.sleep(&waker));
        one.wake_by_ref();
        two.wake_by_ref();
        assert_eq!(counter.0.load(Ordering::SeqCst), 1);
        assert!(!queue.sleep(&waker), "there is work");
        assert_eq!((queue.pop(), queue.pop()), (Some(1), Some(2)));
        assert!(queue.sleep(&waker));
        queue.awake();
        one.wake_by_ref();
        assert_eq!(counter.0.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn closed_queue_keeps_no_references() {
        let queue = ReadyQueue::new();
        let (one, two) = (queue.waker(1), queue.waker(2));
        one.wake_by_ref();
        queue.close();
        two.wake_by_ref();
        drop((one, two));
        assert_eq!(Arc::strong_count(&queue), 1);
        assert_eq!(queue.pop(), None);
    }

    #[test]
    fn no_wake_is_lost_between_threads() {
        const KEYS: usize = 8;
        const ROUNDS: usize = 2_000;
        let queue = ReadyQueue::new();
        let (sender, receiver) = std::sync::mpsc::channel();
        struct Unpark(std::thread::Thread);
        impl Wake for Unpark {
            fn wake(self: Arc<Self>) {
                self.0.unpark();
            }
        }
        let threads: Vec<_> = (0..KEYS)
            .map(|key| {
                let waker = queue.waker(key);
                let sender = sender.clone();
                std::thread::spawn(move || {
                    for _ in 0..ROUNDS {
                        sender.send(key).unwrap();
                        waker.wake_by_ref();
                    }
                })
            })
            .collect();
        // Every message is sent before its wake, so after a key is popped its earlier messages are
        // available.
        let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
        let mut seen = 0;
        while seen < KEYS * ROUNDS {
            while queue.pop().is_some() {
                seen += receiver.try_iter().count();
            }
            if seen < KEYS * ROUNDS && queue.sleep(&waker) {
                std::thread::park_timeout(std::time::Duration::from_secs(10));
                assert!(queue.pop().is_some() || receiver.try_recv().is_err(), "a wake was lost");
                seen += receiver.try_iter().count();
            }
        }
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    }
}

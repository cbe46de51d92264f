//! Bounded waits.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;
use std::time::{Duration, Instant};

use pk_driver::Runtime;
use smol::channel;
use smol::future::or;

/// Limit for operations that take milliseconds on an idle machine.
pub const SOON: Duration = Duration::from_secs(15);

/// Interval between two reads of a state that has no event.
const LOOK: Duration = Duration::from_millis(10);

/// Waits this long.
pub async fn sleep<R: Runtime>(runtime: &R, duration: Duration) {
    let runtime = runtime.quinn();
    let mut timer = runtime.new_timer(runtime.now() + duration);
    poll_fn(|cx| timer.as_mut().poll(cx)).await;
}

/// The output of a future, or `None` if it is not there in time.
pub async fn try_within<R: Runtime, T>(
    runtime: &R,
    limit: Duration,
    future: impl Future<Output = T>,
) -> Option<T> {
    let late = async {
        sleep(runtime, limit).await;
        None
    };
    or(async { Some(future.await) }, late).await
}

/// The output of a future.
///
/// # Panics
///
/// It is not there in time.
pub async fn within<R: Runtime, T>(
    runtime: &R,
    limit: Duration,
    what: &str,
    future: impl Future<Output = T>,
) -> T {
    match try_within(runtime, limit, future).await {
        Some(output) => output,
        None => panic!("{what}: not within {limit:?}"),
    }
}

/// The output of a future, soon.
///
/// # Panics
///
/// It is not there within [`SOON`].
pub async fn soon<R: Runtime, T>(runtime: &R, what: &str, future: impl Future<Output = T>) -> T {
    within(runtime, SOON, what, future).await
}

/// Polls until there is a value.
///
/// # Panics
///
/// There is nothing within `limit`.
pub async fn seen_within<R: Runtime, T>(
    runtime: &R,
    limit: Duration,
    what: &str,
    mut look: impl AsyncFnMut() -> Option<T>,
) -> T {
    let begun = Instant::now();
    loop {
        if let Some(seen) = within(runtime, limit, what, look()).await {
            return seen;
        }
        assert!(begun.elapsed() < limit, "{what}: not seen within {limit:?}");
        sleep(runtime, LOOK).await;
    }
}

/// Polls until the condition is true.
///
/// # Panics
///
/// The condition is not true within [`SOON`].
pub async fn until<R: Runtime>(runtime: &R, what: &str, mut look: impl AsyncFnMut() -> bool) {
    seen_within(runtime, SOON, what, async || look().await.then_some(())).await;
}

/// Runs a future on a task of its own. Dropping the handle lets it run on.
pub fn spawn<R: Runtime, T: Send + 'static>(
    runtime: &R,
    future: impl Future<Output = T> + Send + 'static,
) -> Spawned<T> {
    let (sender, receiver) = channel::bounded(1);
    runtime.quinn().spawn(Box::pin(async move {
        let _ = sender.try_send(future.await);
    }));
    Spawned(receiver)
}

/// The output of a spawned task.
#[derive(Debug)]
pub struct Spawned<T>(channel::Receiver<T>);

impl<T> Spawned<T> {
    /// Waits for it, soon.
    ///
    /// # Panics
    ///
    /// The task panicked, or takes too long.
    pub async fn join<R: Runtime>(self, runtime: &R, what: &str) -> T {
        match soon(runtime, what, self.0.recv()).await {
            Ok(output) => output,
            Err(_) => panic!("{what}: its task has panicked"),
        }
    }
}

/// The outputs of futures that run side by side, on this task.
pub async fn all<T, F: Future<Output = T>>(futures: impl IntoIterator<Item = F>) -> Vec<T> {
    let mut running: Vec<(Pin<Box<F>>, Option<T>)> =
        futures.into_iter().map(|f| (Box::pin(f), None)).collect();
    poll_fn(|cx| {
        let mut done = true;
        for (future, output) in &mut running {
            if output.is_none() {
                match future.as_mut().poll(cx) {
                    Poll::Ready(ready) => *output = Some(ready),
                    Poll::Pending => done = false,
                }
            }
        }
        if done { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    running.into_iter().filter_map(|(_, output)| output).collect()
}

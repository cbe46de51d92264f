//! Work that blocks on the disk or a router. Each piece of work runs on a new thread, because it is
//! rare.

use std::io;
use std::thread;

use tokio::sync::oneshot;

/// Runs `work` on a new thread. The receiver fails if the work panics.
///
/// Fails if the thread cannot be spawned.
pub(crate) fn spawn<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<oneshot::Receiver<T>> {
    let (done, answer) = oneshot::channel();
    let work = move || {
        // Fails if the receiver was dropped.
        let _ = done.send(work());
    };
    thread::Builder::new().name(name.to_owned()).spawn(work)?;
    Ok(answer)
}

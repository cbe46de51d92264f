//! Work that waits for the disk: on a thread of its own, which ends with it. There is little of it, and never much at a
//! time.

use std::io;
use std::thread;

use tokio::sync::oneshot;

/// Does `work` on a thread. The receiver fails if the work panics.
///
/// Errors: there is no thread to be had.
pub(crate) fn spawn<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<oneshot::Receiver<T>> {
    let (done, answer) = oneshot::channel();
    let work = move || {
        // Fails if nobody waits for it.
        let _ = done.send(work());
    };
    thread::Builder::new().name(name.to_owned()).spawn(work)?;
    Ok(answer)
}

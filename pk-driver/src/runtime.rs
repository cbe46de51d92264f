//! What the driver needs of an async runtime.

use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};

/// A future on the heap that may move between threads.
pub type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// An async runtime: everything that the driver takes from its surroundings. Cheap to clone.
///
/// Tasks, timers, the clock and the UDP socket come as quinn's own runtime trait, so that there is one of each; a binding
/// adds what quinn has no use for.
pub trait Runtime: Clone + Send + Sync + Unpin + 'static {
    /// Tasks, timers, clock and UDP sockets of this runtime. Called once per node, from within the runtime.
    fn quinn(&self) -> Arc<dyn quinn::Runtime>;

    /// Looks a host name up. Errors: those of the resolver; a name without addresses may be an error or an empty list.
    fn resolve(&self, host: String, port: u16) -> BoxFuture<io::Result<Vec<SocketAddr>>>;
}

/// Polls a future that keeps nothing between polls: those of quinn's streams, which leave their waker with the connection.
pub(crate) fn poll_once<F: Future>(context: &mut Context<'_>, future: F) -> Poll<F::Output> {
    pin!(future).poll(context)
}

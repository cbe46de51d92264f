//! The interface of async runtimes.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

/// A boxed future that can move between threads.
pub type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// A watch of the addresses of this machine, to be polled like a stream. It is ready for every
/// address that is there at first or that comes, and for every one that goes. After an error it is
/// not polled again.
pub type AddressChanges = Box<dyn FnMut(&mut Context<'_>) -> Poll<io::Result<()>> + Send>;

/// An async runtime: everything that the driver needs from its environment. Cheap to clone.
///
/// Tasks, timers, the clock and the UDP socket come from quinn's own runtime trait, so that there
/// is one of each. A binding adds what quinn does not use.
pub trait Runtime: Clone + Send + Sync + Unpin + 'static {
    /// Returns the tasks, timers, clock and UDP sockets of this runtime. Called once per node,
    /// within the runtime's context.
    fn quinn(&self) -> Arc<dyn quinn::Runtime>;

    /// Resolves a host name. Fails with the errors of the resolver; a name without addresses may be
    /// an error or an empty list.
    fn resolve(&self, host: String, port: u16) -> BoxFuture<io::Result<Vec<SocketAddr>>>;

    /// Begins to watch the addresses of this machine. Called at most once per node, within the
    /// runtime's context. Fails where the system does not permit it; the node then works without.
    fn address_changes(&self) -> io::Result<AddressChanges>;
}

//! What the runtime provides: tasks and threads.

pub(crate) mod blocking;
pub(crate) mod runtime;
pub(crate) mod tasks;

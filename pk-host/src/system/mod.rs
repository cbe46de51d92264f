//! What the operating system provides: clocks, files and the lock of a directory.

pub(crate) mod clock;
pub(crate) mod clock_watch;
pub(crate) mod dir_lock;
pub mod files;

//! The process: its async runtime, its signals, and the temporary files that it must remove.

pub(crate) mod leftovers;
pub(crate) mod runtime;
pub(crate) mod signal;

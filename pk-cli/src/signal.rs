//! The signals that end a running node.

use std::io;

use async_signal::{Signal, Signals};
use futures_util::StreamExt;

/// Watches for SIGINT and SIGTERM from now on; the future gives the name of the first. One implementation for both
/// runtimes: it needs neither.
///
/// # Errors
///
/// The handlers cannot be installed.
pub(crate) fn stop_signal() -> io::Result<impl Future<Output = &'static str>> {
    let mut signals = Signals::new([Signal::Int, Signal::Term])?;
    Ok(async move {
        match signals.next().await {
            Some(Ok(Signal::Int)) => "SIGINT",
            _ => "SIGTERM",
        }
    })
}

//! Selection of the runtime. Everything else is generic over [`Runtime`].

use std::future::poll_fn;
use std::pin::pin;
use std::time::Duration;

use futures_util::future::{Either, select};
use pk_driver::Runtime;
use pk_driver_smol::Smol;
use pk_driver_tokio::Tokio;

use crate::args::{Command, RuntimeName};
use crate::error::{CliError, Result};

/// Runs a command to completion.
pub(crate) fn run(name: RuntimeName, command: Command) -> Result<()> {
    match name {
        RuntimeName::Tokio => {
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
            let no_threads = |error| {
                CliError::new("Threads", format!("failed to start the threads of tokio: {error}"))
            };
            let runtime = runtime.map_err(no_threads)?;
            let result = runtime.block_on(command.run(Tokio));
            // Do not wait for a host name that is still being resolved.
            runtime.shutdown_background();
            result
        }
        RuntimeName::Smol => smol::block_on(command.run(Smol)),
    }
}

/// Waits for a duration.
pub(crate) async fn sleep<R: Runtime>(runtime: &R, duration: Duration) {
    let runtime = runtime.quinn();
    let mut timer = runtime.new_timer(runtime.now() + duration);
    poll_fn(|cx| timer.as_mut().poll(cx)).await;
}

/// Runs a future for at most `limit`. Returns `None` and drops it if it is not complete by then.
pub(crate) async fn timeout<R: Runtime, T>(
    runtime: &R,
    limit: Duration,
    future: impl Future<Output = T>,
) -> Option<T> {
    match select(pin!(future), pin!(sleep(runtime, limit))).await {
        Either::Left((output, _)) => Some(output),
        Either::Right(((), _)) => None,
    }
}

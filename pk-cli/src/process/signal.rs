//! Signals that end the program: SIGINT, SIGTERM and SIGHUP.

use std::fs;
use std::io;
use std::pin::pin;
use std::process::exit;
use std::thread;
use std::time::Duration;

use async_signal::{Signal, Signals};
use futures_util::future::{Either, select};
use futures_util::{FutureExt, StreamExt};
use smol::Timer;
use tokio::sync::oneshot;

use crate::error::CliError;
use crate::output;
use crate::process::leftovers;

/// Time limit for the program to end by itself after the first signal. A node takes about a second
/// to stop.
const LIMIT: Duration = Duration::from_secs(5);

/// A signal that was received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StopSignal {
    pub(crate) name: &'static str,
    number: u8,
}

impl StopSignal {
    const TERM: Self = Self { name: "SIGTERM", number: 15 };

    /// Returns the exit code of a command that was interrupted.
    pub(crate) fn exit_code(self) -> u8 {
        128 + self.number
    }

    fn of(signal: Signal) -> Self {
        match signal {
            Signal::Hup => Self { name: "SIGHUP", number: 1 },
            Signal::Int => Self { name: "SIGINT", number: 2 },
            _ => Self::TERM,
        }
    }
}

/// Starts to watch for signals. The future returns the first one.
///
/// The second signal ends the program at once, and so does the first if the program has not ended
/// within the time limit. A thread does this, so that it does not depend on the runtime. SIGHUP
/// stays ignored if the program was started with SIGHUP ignored (`nohup`).
///
/// # Errors
///
/// The signal handlers cannot be installed.
pub(crate) fn stop_signal() -> io::Result<impl Future<Output = StopSignal> + Clone + Unpin> {
    let mut watched = vec![Signal::Int, Signal::Term];
    if !ignores_hangup() {
        watched.push(Signal::Hup);
    }
    let signals = Signals::new(watched)?;
    let (first, receiver) = oneshot::channel();
    thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || smol::block_on(watch(signals, first)))?;
    // The sender is dropped only with the program.
    Ok(receiver.map(|signal| signal.unwrap_or(StopSignal::TERM)).shared())
}

/// Runs a future, unless a signal interrupts it.
///
/// # Errors
///
/// Those of the future; the interruption.
pub(crate) async fn unless<T>(
    signal: impl Future<Output = StopSignal>,
    work: impl Future<Output = Result<T, CliError>>,
) -> Result<T, CliError> {
    match select(pin!(work), pin!(signal)).await {
        Either::Left((result, _)) => result,
        Either::Right((signal, _)) => Err(CliError::interrupted(signal.name, signal.exit_code())),
    }
}

/// Does not return if a signal was received.
async fn watch(mut signals: Signals, first: oneshot::Sender<StopSignal>) {
    let Some(signal) = next(&mut signals).await else { return };
    output::leave();
    // Fails if the command is complete: then the output is the last thing to wait for.
    let _ = first.send(signal);
    let signal = match select(Box::pin(next(&mut signals)), Timer::after(LIMIT)).await {
        Either::Left((again, _)) => again.unwrap_or(signal),
        Either::Right(_) => signal,
    };
    leftovers::remove();
    exit(signal.exit_code().into());
}

async fn next(signals: &mut Signals) -> Option<StopSignal> {
    loop {
        if let Ok(signal) = signals.next().await? {
            return Some(StopSignal::of(signal));
        }
    }
}

/// Returns whether this process ignores SIGHUP, from `/proc/self/status`; `false` where there is no
/// such file.
fn ignores_hangup() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    ignored
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .is_some_and(|mask| mask & 1 == 1)
}

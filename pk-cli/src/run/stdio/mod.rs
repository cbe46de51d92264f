//! `pk run --stdio`: the line protocol of the reference's test peer. The first line on stdout is
//! the event `ready`; one line per command and the events follow; the last line is `stopped`.
//!
//! In addition to the reference there are the commands `mdns`, `stream`, `disallow`, `allowed` and
//! `answer`, the words `block` and `force` and an outcome for `setnode`, an argument for `gestalt`,
//! and the events `joined`, `joinFailed`, `identityRenewed`, `connectionClosed`, `peerMisbehaved`,
//! `claimAdded`, `claimAsked`, `claimInDoubt`, `claimSettled`, `lagged`, `portMapped` and the
//! others of the port mapping. Unlike in the reference, what `sign` has signed enters the local
//! chain, and `chain` and `claimsGet` return only verified claims.

mod claims;
mod command;
mod events;
mod lines;
mod perform;
mod port_mapping;

use std::pin::pin;
use std::time::{Duration, Instant};

use futures_util::future::{join, join4, select};
use futures_util::{FutureExt, Stream, StreamExt, stream};
use pk_driver::{Node, Runtime};
use serde::Serialize;
use serde_json::Value;
use tokio::sync::{Notify, mpsc};

use crate::args::RunArgs;
use crate::error::{CliError, Result};
use crate::node::echo;
use crate::output;
use crate::output::polykey_json;
use crate::process::runtime::{sleep, timeout};
use crate::process::signal;
use crate::run::session;
use command::{Command, Line};
use lines::Printer;

/// Tagged commands that run concurrently; further ones wait.
const CONCURRENCY: usize = 256;
/// Time that unread output delays the end, approximately.
const PRINT_TIMEOUT: Duration = Duration::from_secs(1);

/// Runs until `quit`, the end of stdin, a signal, or until a write to stdout fails.
pub(crate) async fn run<R: Runtime + Unpin>(args: RunArgs, runtime: R) -> Result<()> {
    let (printer, printed) = Printer::start()?;
    let result = serve(args, &runtime, &printer, printed.clone()).await;
    if let Err(error) = &result {
        let fatal = events::Fatal { event: "fatal", error: error.json() };
        timeout(&runtime, PRINT_TIMEOUT, printer.print(&fatal)).await;
    }
    drop(printer);
    timeout(&runtime, PRINT_TIMEOUT, printed).await;
    output::leave();
    result
}

async fn serve<R: Runtime + Unpin>(
    args: RunArgs,
    runtime: &R,
    printer: &Printer,
    unread: impl Future<Output = ()> + Unpin,
) -> Result<()> {
    let signal = signal::stop_signal()?;
    let (node, told) = session::start(&args, runtime).await?;
    let echo = echo::accept(&node).await?;
    printer.print(&events::Ready::new(&node, polykey_json::pem(&node.identity()))).await;
    let (in_order, tagged) = lines::read()?;

    let quit = Notify::new();
    let ended = Notify::new();
    let stopping = {
        let (quit, ended) = (Box::pin(quit.notified()), Box::pin(ended.notified()));
        select(select(signal, unread), select(quit, ended)).map(drop).shared()
    };
    let session = Session { node: &node, printer, quit: &quit };
    let work = async {
        let in_order = queue(in_order, stopping.clone()).for_each(|line| session.answer(line));
        let tagged = queue(tagged, stopping.clone())
            .for_each_concurrent(CONCURRENCY, |line| session.answer(line));
        join(in_order, tagged).await;
        ended.notify_one();
    };
    let shutdown = async {
        stopping.clone().await;
        // Ends the commands that are still running.
        node.shutdown().await;
    };
    let joining = session::join(&node, runtime, &args.seed_nodes, async |_, result| {
        events::print_joined(printer, result).await;
    });
    let joining = select(Box::pin(joining), stopping.clone());
    let all = join(join4(work, shutdown, joining, echo::serve(echo)), events::print(told, printer));
    // A reader that does not read the answers must not delay the end.
    let late = async {
        stopping.clone().await;
        node.shutdown().await;
        sleep(runtime, PRINT_TIMEOUT).await;
    };
    select(pin!(all), pin!(late)).await;
    timeout(runtime, PRINT_TIMEOUT, printer.print(&events::Stopped { event: "stopped" })).await;
    Ok(())
}

/// Returns the lines read until `stopping`. Each is answered, even if only to report that the node
/// has stopped.
fn queue(
    mut lines: mpsc::Receiver<Line>,
    stopping: impl Future<Output = ()> + Unpin,
) -> impl Stream<Item = Line> {
    let mut stopping = stopping.fuse();
    stream::poll_fn(move |cx| {
        if stopping.poll_unpin(cx).is_ready() {
            lines.close();
        }
        lines.poll_recv(cx)
    })
}

struct Session<'a, R> {
    node: &'a Node<R>,
    printer: &'a Printer,
    quit: &'a Notify,
}

/// Answer to a command.
#[derive(Serialize)]
struct CommandResponse {
    #[serde(skip_serializing_if = "Option::is_none")]
    tag: Option<String>,
    cmd: String,
    ok: bool,
    ms: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<Value>,
}

impl<R: Runtime + Unpin> Session<'_, R> {
    /// Executes a command and prints its answer. `quit` has none but the event `stopped`.
    async fn answer(&self, line: Line) {
        let begun = Instant::now();
        let result = match line.command {
            Ok(Command::Quit) => return self.quit.notify_one(),
            Ok(command) => perform::perform(self.node, command).await,
            Err(why) => Err(CliError::new("Error", why)),
        };
        let (result, error) = match result {
            Ok(result) => (Some(result), None),
            Err(error) => (None, Some(error.json())),
        };
        let ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.printer
            .print(&CommandResponse {
                tag: line.tag,
                cmd: line.name,
                ok: error.is_none(),
                ms,
                result,
                error,
            })
            .await;
    }
}

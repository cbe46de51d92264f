//! `pk run --stdio`: the line protocol of the reference's test peer. The first line on stdout is the event `ready`; then
//! one line per command, and events as they come; the last one is `stopped`.
//!
//! Beyond the reference it has the commands `mdns`, `stream`, `disallow`, `allowed` and `answer`, the words `block` and `force`
//! and an outcome for `setnode`, an argument for `gestalt`, and the events `joined`, `joinFailed`, `identityRenewed`,
//! `connectionClosed`, `peerMisbehaved`, `claimAdded`, `claimAsked`, `claimInDoubt`, `claimSettled` and `lagged`. What `sign`
//! has signed enters the own chain, and `chain` and `claimsGet` give only what they have verified.

mod claims;
mod command;
mod events;
mod lines;
mod perform;

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
use crate::runtime::{sleep, timeout};
use crate::{echo, run, shape, signal};
use command::{Command, Line};
use lines::Printer;

/// Tagged commands that run at a time; further ones wait.
const CONCURRENCY: usize = 256;
/// What nobody reads holds up the end for so long, and a little more.
const PRINT_TIMEOUT: Duration = Duration::from_secs(1);

/// Runs until `quit`, the end of stdin, a signal, or until nobody reads stdout any more.
pub(crate) async fn run<R: Runtime + Unpin>(args: RunArgs, runtime: R) -> Result<()> {
    let (printer, printed) = Printer::start()?;
    let result = serve(args, &runtime, &printer, printed.clone()).await;
    if let Err(error) = &result {
        let fatal = events::Fatal { event: "fatal", error: error.json() };
        timeout(&runtime, PRINT_TIMEOUT, printer.print(&fatal)).await;
    }
    drop(printer);
    timeout(&runtime, PRINT_TIMEOUT, printed).await;
    result
}

async fn serve<R: Runtime + Unpin>(
    args: RunArgs,
    runtime: &R,
    printer: &Printer,
    unread: impl Future<Output = ()> + Unpin,
) -> Result<()> {
    let signal = signal::stop_signal()?;
    let node = run::start(&args, runtime).await?;
    let told = node.events();
    let echo = echo::accept(&node).await?;
    printer.print(&events::Ready::new(&node, shape::pem(&node.identity()))).await;
    let (in_order, tagged) = lines::read()?;

    let quit = Notify::new();
    let ended = Notify::new();
    let stopping = {
        let (quit, ended) = (Box::pin(quit.notified()), Box::pin(ended.notified()));
        select(select(Box::pin(signal), unread), select(quit, ended)).map(drop).shared()
    };
    let session = Session { node: &node, printer, quit: &quit };
    let work = async {
        let in_order = queue(in_order, stopping.clone()).for_each(|line| session.answer(line));
        let tagged = queue(tagged, stopping.clone()).for_each_concurrent(CONCURRENCY, |line| session.answer(line));
        join(in_order, tagged).await;
        ended.notify_one();
    };
    let shutdown = async {
        stopping.clone().await;
        // Ends what is still being worked on.
        node.shutdown().await;
    };
    let joining = run::join(&node, runtime, &args.seed_nodes, async |_, result| {
        events::print_joined(printer, result).await;
    });
    let joining = select(Box::pin(joining), stopping.clone());
    let all = join(join4(work, shutdown, joining, echo::serve(echo)), events::print(told, printer));
    // Whoever does not read the answers does not hold up the end.
    let late = async {
        stopping.clone().await;
        node.shutdown().await;
        sleep(runtime, PRINT_TIMEOUT).await;
    };
    select(pin!(all), pin!(late)).await;
    timeout(runtime, PRINT_TIMEOUT, printer.print(&events::Stopped { event: "stopped" })).await;
    Ok(())
}

/// The lines that have been read until `stopping`: each gets its answer, if only that the node was stopped.
fn queue(mut lines: mpsc::Receiver<Line>, stopping: impl Future<Output = ()> + Unpin) -> impl Stream<Item = Line> {
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

/// The answer to a command.
#[derive(Serialize)]
struct Answer {
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
    /// Carries out a command and prints its answer. `quit` has none but the event `stopped`.
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
        self.printer.print(&Answer { tag: line.tag, cmd: line.name, ok: error.is_none(), ms, result, error }).await;
    }
}

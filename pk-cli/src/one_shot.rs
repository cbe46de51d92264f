//! What `find`, `ping`, `claim`, `chain` and `buckets` have in common: a node from DIR that joins, does one thing and shuts down.

use std::pin::pin;
use std::time::{Duration, Instant};

use futures_util::future::{Either, select};
use indicatif::ProgressBar;
use pk_driver::{Node, NodeError, Runtime};
use pk_proto::{Failure, Options};

use crate::args::{OneShotArgs, TargetArgs};
use crate::error::{CliError, Result};
use crate::{node, signal};

/// The shortest deadline that there is.
const LEAST: Duration = Duration::from_millis(1);
/// The default of the core.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);

/// How much time a command has left.
#[derive(Clone, Copy)]
pub(crate) struct Limit {
    begun: Instant,
    limit: Duration,
}

impl Limit {
    /// Deadlines for a request that begins now and may take all that is left.
    pub(crate) fn options(self) -> Options {
        let left = self.limit.saturating_sub(self.begun.elapsed()).max(LEAST);
        Options { deadline: Some(left), ..Options::default() }
    }

    /// The whole of it.
    pub(crate) fn secs(self) -> u64 {
        self.limit.as_secs()
    }
}

/// Starts the node of `args` on a free port, runs `work`, and shuts the node down whatever came of it.
///
/// # Errors
///
/// Those of the start and of `work`; an interruption by a signal.
pub(crate) async fn with_node<R: Runtime + Unpin>(
    args: &OneShotArgs,
    runtime: R,
    work: impl AsyncFnOnce(&Node<R>, Limit) -> Result<()>,
) -> Result<()> {
    let limit = Limit { begun: Instant::now(), limit: Duration::from_secs(args.timeout) };
    let signal = signal::stop_signal()?;
    let mut config = node::open(&args.dir)?;
    args.mdns.apply(&mut config);
    let node = Node::start_on(runtime, config).await?;
    let result = match select(pin!(work(&node, limit)), pin!(signal)).await {
        Either::Left((result, _)) => result,
        Either::Right((signal, _)) => Err(CliError::new("Interrupted", format!("interrupted by {signal}"))),
    };
    node.shutdown().await;
    result
}

/// Joins through the seeds of `args`, or else through whom the node knows from before; with `whole` also learns the
/// neighbourhood.
///
/// # Errors
///
/// No seed could be reached. There is none, and the node knows nobody: unless it may ask the local network.
pub(crate) async fn join<R: Runtime + Unpin>(
    node: &Node<R>,
    args: &OneShotArgs,
    whole: bool,
    limit: Limit,
) -> Result<()> {
    if args.seed_nodes.is_empty() {
        let knows_nobody = node.metrics().await?.nodes == 0;
        if knows_nobody && !args.mdns.is_on() {
            let message =
                format!("the node in {} knows no other node yet, and no seed node was given", args.dir.display());
            return Err(CliError::new("NoSeeds", message).tip("give it one with --seed-node pk://ID@HOST:PORT"));
        }
        if knows_nobody || !whole {
            // The search itself begins with whom it knows.
            return Ok(());
        }
    }
    let mut options = limit.options();
    // A little sooner than the whole, so that each seed's own failure is told.
    options.connect_timeout = options.deadline.map(|left| (left * 4 / 5).clamp(LEAST, CONNECT_TIMEOUT));
    let join = node.sync_node_graph(args.seed_nodes.clone(), whole, options);
    waiting(args, "joining", join).await.map(drop).map_err(|error| in_time(error, limit))
}

/// Refuses to look for the node in the folder itself.
///
/// # Errors
///
/// It is the target.
pub(crate) fn refuse_own<R: Runtime>(node: &Node<R>, args: &TargetArgs) -> Result<()> {
    if args.target != node.own_id() {
        return Ok(());
    }
    let dir = args.common.dir.display();
    Err(CliError::new("OwnNode", format!("{} is the node in {dir} itself", args.target)).tip("name another node"))
}

/// Shows that something takes its time: on stderr, for people, if it is a terminal.
pub(crate) async fn waiting<T>(args: &OneShotArgs, what: &'static str, work: impl Future<Output = T>) -> T {
    if args.json {
        return work.await;
    }
    let spinner = ProgressBar::new_spinner().with_message(what);
    spinner.enable_steady_tick(Duration::from_millis(100));
    let result = work.await;
    spinner.finish_and_clear();
    result
}

/// The error for a deadline that has passed, in words of the command line; other errors as they are.
pub(crate) fn in_time(error: NodeError, limit: Limit) -> CliError {
    match error {
        NodeError::Failure(Failure::DeadlineExceeded) => {
            CliError::new("DeadlineExceeded", format!("not done within {} s", limit.secs()))
                .tip("give it longer with --timeout SECONDS")
        }
        error => error.into(),
    }
}

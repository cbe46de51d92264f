//! Common parts of `find`, `closest`, `ping`, `claim`, `chain` and `buckets`: the node in DIR
//! joins, does one thing and shuts down.

use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use pk_driver::{Node, NodeError, Runtime};
use pk_proto::{Failure, RequestOptions};

use crate::args::{OneShotArgs, TargetArgs};
use crate::error::{CliError, Result};
use crate::node;
use crate::process::signal;
use crate::process::signal::unless;

/// Shortest deadline.
const LEAST: Duration = Duration::from_millis(1);
/// Default of the core.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);

/// Remaining time of a command.
#[derive(Clone, Copy)]
pub(crate) struct Limit {
    begun: Instant,
    limit: Duration,
}

impl Limit {
    /// Returns timeouts for a request that starts now and may take all of the remaining time.
    pub(crate) fn options(self) -> RequestOptions {
        let left = self.limit.saturating_sub(self.begun.elapsed()).max(LEAST);
        RequestOptions { deadline: Some(left), ..RequestOptions::default() }
    }

    /// Returns the time limit of the command.
    pub(crate) fn secs(self) -> u64 {
        self.limit.as_secs()
    }
}

/// Starts the node of `args` on a free port, runs `work`, and shuts the node down whatever the
/// result.
///
/// # Errors
///
/// Those of the start and of `work`; interruption by a signal.
pub(crate) async fn with_node<R: Runtime + Unpin>(
    args: &OneShotArgs,
    runtime: R,
    work: impl AsyncFnOnce(&Node<R>, Limit) -> Result<()>,
) -> Result<()> {
    let limit = Limit { begun: Instant::now(), limit: Duration::from_secs(args.timeout) };
    let signal = signal::stop_signal()?;
    let mut config = node::open(&args.dir)?;
    args.mdns.apply(&mut config);
    args.network.apply(&mut config);
    let start = async { Ok(Node::start_on(runtime, config).await?) };
    let node = unless(signal.clone(), start).await?;
    let result = unless(signal, work(&node, limit)).await;
    node.shutdown().await;
    result
}

/// Joins through the seed nodes of `args`, or else through stored contacts; with `whole` also
/// refreshes the nearby buckets.
///
/// # Errors
///
/// No seed node was reached. Or there is none, the graph is empty, and mDNS is off.
pub(crate) async fn join<R: Runtime + Unpin>(
    node: &Node<R>,
    args: &OneShotArgs,
    whole: bool,
    limit: Limit,
) -> Result<()> {
    if args.seed_nodes.is_empty() {
        let knows_nobody = node.metrics().await?.nodes == 0;
        if knows_nobody && !args.mdns.is_on() {
            let message = format!(
                "the node in {} has no stored contacts, and no seed node was given",
                args.dir.display()
            );
            return Err(CliError::new("NoSeeds", message)
                .tip("add a seed node with --seed-node pk://ID@HOST:PORT"));
        }
        if knows_nobody || !whole {
            // The search itself starts from the stored contacts.
            return Ok(());
        }
    }
    let mut options = limit.options();
    // Shorter than the deadline, so that the failure of each seed node is reported.
    options.connect_timeout =
        options.deadline.map(|left| (left * 4 / 5).clamp(LEAST, CONNECT_TIMEOUT));
    let join = node.sync_node_graph(args.seed_nodes.clone(), whole, options);
    waiting(args, "joining", join).await.map(drop).map_err(|error| in_time(error, limit))
}

/// Fails if the target is the node in the directory itself.
///
/// # Errors
///
/// The target is the local node.
pub(crate) fn refuse_own<R: Runtime>(node: &Node<R>, args: &TargetArgs) -> Result<()> {
    if args.target != node.own_id() {
        return Ok(());
    }
    let dir = args.common.dir.display();
    Err(CliError::new("OwnNode", format!("{} is the node in {dir} itself", args.target))
        .tip("name another node"))
}

/// Shows progress on stderr if it is a terminal.
pub(crate) async fn waiting<T>(
    args: &OneShotArgs,
    what: &'static str,
    work: impl Future<Output = T>,
) -> T {
    if args.json {
        return work.await;
    }
    let spinner = ProgressBar::new_spinner().with_message(what);
    spinner.enable_steady_tick(Duration::from_millis(100));
    let result = work.await;
    spinner.finish_and_clear();
    result
}

/// Converts the error of an exceeded deadline into a message; returns other errors unchanged.
pub(crate) fn in_time(error: NodeError, limit: Limit) -> CliError {
    match error {
        NodeError::Failure(Failure::DeadlineExceeded) => {
            CliError::new("DeadlineExceeded", format!("not completed within {} s", limit.secs()))
                .tip("increase the limit with --timeout SECONDS")
        }
        error => error.into(),
    }
}

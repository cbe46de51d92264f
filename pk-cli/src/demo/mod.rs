//! `pk demo`: a whole network in one process, over QUIC on loopback.

mod claims;
mod life;
mod network;
mod polykey;
mod report;
mod steps;

use std::time::Duration;

use futures_util::future::join;
use pk_driver::Runtime;
use pk_interop::Polykey;

use crate::args::DemoArgs;
use crate::error::{CliError, Result};
use crate::output;
use crate::runtime::timeout;
use network::Network;
use report::{Outcome, Progress, Report};

/// A step that is not over by then has failed: the demo always ends.
const STEP_TIMEOUT: Duration = Duration::from_secs(120);

/// `pk demo`.
pub(crate) async fn run<R: Runtime + Unpin>(args: DemoArgs, runtime: R) -> Result<()> {
    let name = args.runtime.runtime.as_str();
    let nodes = usize::from(args.nodes);
    if !args.json {
        output::line(format_args!("{nodes} real nodes on {name}, over QUIC on loopback"));
    }
    let demo = Demo { runtime, report: Report::new(args.json) };
    let result = demo.run(nodes, args.interop).await;
    demo.report.end(result.is_ok(), nodes, name);
    result
}

struct Demo<R> {
    runtime: R,
    report: Report,
}

impl<R: Runtime + Unpin> Demo<R> {
    async fn run(&self, nodes: usize, interop: bool) -> Result<()> {
        // First of all: it may be that it cannot be had.
        let polykey = if interop { Some(self.install().await?) } else { None };
        let mut network = Network::new()?;
        self.step("start", nodes, async |progress| network.start(nodes, &self.runtime, &progress).await).await?;
        let echoes = network.serve_echoes();
        let work = async {
            let worked = self.work(&mut network, polykey.as_ref()).await;
            // Whatever failed before: everything is closed, and the echoes end with it.
            let all = network.all().count();
            let closed = self.step("shutdown", all, async |progress| steps::shutdown(&network, &progress).await).await;
            worked.and(closed)
        };
        join(work, echoes).await.0
    }

    async fn install(&self) -> Result<Polykey> {
        let mut installed = None;
        let install = async |_| {
            let (polykey, outcome) = polykey::install().await?;
            installed = Some(polykey);
            Ok(outcome)
        };
        self.step("install", 1, install).await?;
        installed.ok_or_else(|| CliError::new("Interop", "nothing was installed"))
    }

    async fn work(&self, network: &mut Network<R>, polykey: Option<&Polykey>) -> Result<()> {
        let runtime = &self.runtime;
        self.together(network).await?;
        if let Some(polykey) = polykey {
            let meet = async |progress| polykey::meet(network, polykey, &progress).await;
            self.step("polykey", network.nodes.len() + 1, meet).await?;
        }
        self.step("signal", 1, async |progress| life::signal(network, runtime, &progress).await).await?;
        self.step("mdns", 1, async |progress| life::mdns(network, runtime, &progress).await).await?;
        self.step("restart", 1, async |progress| life::restart(network, runtime, &progress).await).await?;
        self.step("renew", 1, async |progress| life::renew(network, runtime, &progress).await).await
    }

    /// The steps that all nodes take, and those about claims.
    async fn together(&self, network: &mut Network<R>) -> Result<()> {
        let runtime = &self.runtime;
        let nodes = network.nodes.len();
        self.step("join", nodes - 1, async |progress| steps::join(network, runtime, &progress).await).await?;
        let pairs = network.pairs()?;
        self.step("find", nodes, async |progress| steps::find(network, &pairs, runtime, &progress).await).await?;
        self.step("ping", nodes, async |progress| steps::ping(network, &pairs, &progress).await).await?;
        self.step("stream", nodes, async |progress| steps::stream(network, &pairs, &progress).await).await?;
        self.step("claim", nodes, async |progress| claims::claim(&pairs, &progress).await).await?;
        self.step("chain", 2 * nodes, async |progress| claims::chain(&pairs, &progress).await).await?;
        let forgery = async |progress| claims::forgery(network, runtime, &progress).await;
        self.step("forgery", claims::FORGERIES, forgery).await
    }

    async fn step(
        &self,
        name: &'static str,
        parts: usize,
        step: impl AsyncFnOnce(Progress) -> Result<Outcome>,
    ) -> Result<()> {
        let limited = async |progress| match timeout(&self.runtime, STEP_TIMEOUT, step(progress)).await {
            Some(result) => result,
            None => Err(CliError::new("Timeout", format!("`{name}` was not over within {} s", STEP_TIMEOUT.as_secs()))),
        };
        self.report.step(name, parts, limited).await
    }
}

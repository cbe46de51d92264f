//! `pk demo`: a network in one process, over QUIC on loopback.

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
use crate::process::runtime::timeout;
use crate::process::signal;
use crate::process::signal::{StopSignal, unless};
use network::Network;
use report::{Outcome, Progress, Report};

/// Time limit of a step, so that the demo always ends.
const STEP_TIMEOUT: Duration = Duration::from_secs(120);

/// `pk demo`.
pub(crate) async fn run<R: Runtime + Unpin>(args: DemoArgs, runtime: R) -> Result<()> {
    let name = args.runtime.runtime.as_str();
    let nodes = usize::from(args.nodes);
    if !args.json {
        output::line(format_args!("{nodes} nodes on {name}, over QUIC on loopback"));
    }
    let demo = Demo { runtime, report: Report::new(args.json) };
    let signal = signal::stop_signal()?;
    let result = demo.run(nodes, args.interop, signal).await;
    // An interrupted installation continues until it is ended.
    pk_interop::end_all();
    demo.report.end(result.is_ok(), nodes, name);
    result
}

struct Demo<R> {
    runtime: R,
    report: Report,
}

impl<R: Runtime + Unpin> Demo<R> {
    /// Runs all steps, unless a signal interrupts them.
    async fn run(
        &self,
        nodes: usize,
        interop: bool,
        signal: impl Future<Output = StopSignal> + Clone,
    ) -> Result<()> {
        // First, because the installation may fail.
        let polykey =
            if interop { Some(unless(signal.clone(), self.install()).await?) } else { None };
        let mut network = Network::new()?;
        let start = self.step("start", nodes, async |progress| {
            network.start(nodes, &self.runtime, &progress).await
        });
        unless(signal.clone(), start).await?;
        let echoes = network.serve_echoes();
        let work = async {
            let worked = unless(signal, self.work(&mut network, polykey.as_ref())).await;
            // Also after a failure: everything is closed, and the echoes end with it.
            let all = network.all().count();
            let closed = self
                .step("shutdown", all, async |progress| steps::shutdown(&network, &progress).await)
                .await;
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
        self.step("signal", 1, async |progress| life::signal(network, runtime, &progress).await)
            .await?;
        self.step("mdns", 1, async |progress| life::mdns(network, runtime, &progress).await)
            .await?;
        self.step("restart", 1, async |progress| life::restart(network, runtime, &progress).await)
            .await?;
        self.step("renew", 1, async |progress| life::renew(network, runtime, &progress).await).await
    }

    /// Runs the steps that all nodes take, and those about claims.
    async fn together(&self, network: &mut Network<R>) -> Result<()> {
        let runtime = &self.runtime;
        let nodes = network.nodes.len();
        self.step("join", nodes - 1, async |progress| {
            steps::join(network, runtime, &progress).await
        })
        .await?;
        let pairs = network.pairs()?;
        self.step("find", nodes, async |progress| {
            steps::find(network, &pairs, runtime, &progress).await
        })
        .await?;
        self.step("ping", nodes, async |progress| steps::ping(network, &pairs, &progress).await)
            .await?;
        self.step("stream", nodes, async |progress| {
            steps::stream(network, &pairs, &progress).await
        })
        .await?;
        self.step("claim", nodes, async |progress| claims::claim(&pairs, &progress).await).await?;
        self.step("chain", 2 * nodes, async |progress| claims::chain(&pairs, &progress).await)
            .await?;
        let forgery = async |progress| claims::forgery(network, runtime, &progress).await;
        self.step("forgery", claims::FORGERIES, forgery).await
    }

    async fn step(
        &self,
        name: &'static str,
        parts: usize,
        step: impl AsyncFnOnce(Progress) -> Result<Outcome>,
    ) -> Result<()> {
        let limited =
            async |progress| match timeout(&self.runtime, STEP_TIMEOUT, step(progress)).await {
                Some(result) => result,
                None => Err(CliError::new(
                    "Timeout",
                    format!("`{name}` did not complete within {} s", STEP_TIMEOUT.as_secs()),
                )),
            };
        self.report.step(name, parts, limited).await
    }
}

//! `pk`: a Polykey node on the command line.

mod args;
mod commands;
mod demo;
mod error;
mod node;
mod node_args;
mod output;
mod process;
mod run;
mod sim_args;

use std::io::{IsTerminal, stderr};
use std::process::ExitCode;

use pk_driver::Runtime;
use serde_json::json;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::args::{Cli, Command};
use crate::commands::{
    allow, buckets, cert, chain, claim, closest, find, keys, renew, replay, sim,
};
use crate::error::Result;

fn main() -> ExitCode {
    let code = match Cli::read() {
        Ok(cli) => execute(cli),
        Err(code) => code,
    };
    output::end(code).into()
}

/// Runs a command and returns the exit code.
fn execute(Cli { log, command }: Cli) -> u8 {
    start_log(log);
    let json = command.json();
    match process::runtime::run(command.runtime(), command) {
        Ok(()) => 0,
        Err(error) => {
            if json {
                output::json(&json!({ "ok": false, "error": error.json() }));
            }
            output::error(&error);
            error.exit_code()
        }
    }
}

impl Command {
    /// Executes a command that needs a node.
    async fn run<R: Runtime + Unpin>(self, runtime: R) -> Result<()> {
        match self {
            Self::Keygen(args) => keys::keygen(&args),
            Self::Id(args) => keys::id(&args),
            Self::Run(args) => run::run(args, runtime).await,
            Self::Find(args) => find::find(args, runtime).await,
            Self::Ping(args) => find::ping(args, runtime).await,
            Self::Closest(args) => closest::closest(args, runtime).await,
            Self::Claim(args) => claim::claim(args, runtime).await,
            Self::Chain(args) => chain::chain(args, runtime).await,
            Self::Allow(args) => allow::allow(args, runtime).await,
            Self::Buckets(args) => buckets::buckets(args, runtime).await,
            Self::Cert(args) => cert::cert(&args),
            Self::Renew(args) => renew::renew(args, runtime).await,
            Self::Replay(args) => replay::replay(&args),
            Self::Demo(args) => demo::run(args, runtime).await,
            Self::Sim(args) => sim::sim(&args).await,
        }
    }
}

fn start_log(filter: Targets) {
    let lines =
        tracing_subscriber::fmt::layer().with_writer(output::Log).with_ansi(stderr().is_terminal());
    tracing_subscriber::registry().with(filter).with(lines).init();
}

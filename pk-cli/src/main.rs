//! `pk`: a Polykey node on the command line.

mod agent;
mod allow;
mod args;
mod buckets;
mod cert;
mod chain;
mod claim;
mod demo;
mod echo;
mod error;
mod find;
mod keys;
mod node;
mod one_shot;
mod output;
mod renew;
mod replay;
mod run;
mod runtime;
mod shape;
mod signal;
mod stdio;
mod words;

use std::io::{IsTerminal, stderr};
use std::process::ExitCode;

use pk_driver::Runtime;
use serde_json::json;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::args::{Cli, Command};
use crate::error::Result;

fn main() -> ExitCode {
    let Cli { log, command } = Cli::read();
    start_log(log);
    let json = command.json();
    match runtime::run(command.runtime(), command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if json {
                output::json(&json!({ "ok": false, "error": error.json() }));
            }
            eprintln!("error: {}", output::shown(error));
            ExitCode::FAILURE
        }
    }
}

impl Command {
    /// Carries out a command that needs a node.
    async fn run<R: Runtime + Unpin>(self, runtime: R) -> Result<()> {
        match self {
            Self::Keygen(args) => keys::keygen(&args),
            Self::Id(args) => keys::id(&args),
            Self::Run(args) => run::run(args, runtime).await,
            Self::Find(args) => find::find(args, runtime).await,
            Self::Ping(args) => find::ping(args, runtime).await,
            Self::Claim(args) => claim::claim(args, runtime).await,
            Self::Chain(args) => chain::chain(args, runtime).await,
            Self::Allow(args) => allow::allow(args, runtime).await,
            Self::Buckets(args) => buckets::buckets(args, runtime).await,
            Self::Cert(args) => cert::cert(&args),
            Self::Renew(args) => renew::renew(args, runtime).await,
            Self::Replay(args) => replay::replay(&args),
            Self::Demo(args) => demo::run(args, runtime).await,
        }
    }
}

fn start_log(filter: Targets) {
    let lines = tracing_subscriber::fmt::layer().with_writer(stderr).with_ansi(stderr().is_terminal());
    tracing_subscriber::registry().with(filter).with(lines).init();
}

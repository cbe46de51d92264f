//! `pk run`: a node that keeps running, for people or (`--stdio`) for scripts.

mod console;
mod session;
mod stdio;

use pk_driver::Runtime;

use crate::args::RunArgs;
use crate::error::Result;

/// `pk run`.
pub(crate) async fn run<R: Runtime + Unpin>(args: RunArgs, runtime: R) -> Result<()> {
    if args.stdio { stdio::run(args, runtime).await } else { console::run(args, runtime).await }
}

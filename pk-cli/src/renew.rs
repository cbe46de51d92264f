//! `pk renew`.

use pk_driver::Runtime;
use serde_json::json;

use crate::args::RenewArgs;
use crate::error::Result;
use crate::{node, output};

/// `pk renew`: the node of a folder becomes another key. It runs for it, so that store and keys change as one.
///
/// # Errors
///
/// There is no node in the folder, or one is running there. Otherwise the node is the old one, whole.
pub(crate) async fn renew<R: Runtime + Unpin>(args: RenewArgs, runtime: R) -> Result<()> {
    let node = node::start_alone(&args.keys.dir, runtime).await?;
    let renewed = node.renew().await;
    node.shutdown().await;
    let renewed = renewed?;
    if args.keys.json {
        let (old, new) = (renewed.old.to_string(), renewed.new.to_string());
        output::json(&json!({ "ok": true, "oldNodeId": old, "nodeId": new }));
    } else {
        output::line(format_args!("{}", renewed.new));
        output::line(format_args!("  was {}, and is reached by that id as well", renewed.old));
    }
    Ok(())
}

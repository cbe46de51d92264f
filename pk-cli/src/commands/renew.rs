//! `pk renew`.

use pk_driver::Runtime;
use serde_json::json;

use crate::args::RenewArgs;
use crate::error::Result;
use crate::node;
use crate::output;

/// `pk renew`: renews the key of the node in a directory. Starts the node, so that store and keys
/// change in one transaction.
///
/// # Errors
///
/// The directory contains no node, or another process uses it. After any other error the node is
/// unchanged.
pub(crate) async fn renew<R: Runtime + Unpin>(args: RenewArgs, runtime: R) -> Result<()> {
    let node = node::start_alone(&args.keys.dir, runtime).await?;
    let renewed = node.renew().await;
    node.shutdown().await;
    let renewed = renewed?;
    if args.keys.json {
        let (old, new) = (renewed.old.to_string(), renewed.new.to_string());
        let dropped: Vec<_> = renewed.dropped.iter().map(ToString::to_string).collect();
        output::json(
            &json!({ "ok": true, "oldNodeId": old, "nodeId": new, "droppedNodeIds": dropped }),
        );
    } else {
        output::line(format_args!("{}", renewed.new));
        output::line(format_args!("  was {}, and is still reachable under that id", renewed.old));
        for dropped in &renewed.dropped {
            output::line(format_args!(
                "  is no longer reachable under {dropped}: the certificate chain has its maximum length"
            ));
        }
    }
    Ok(())
}

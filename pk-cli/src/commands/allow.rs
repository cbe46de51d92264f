//! `pk allow`.

use pk_driver::{Node, Runtime};
use pk_proto::{NodeId, RequestOptions};
use serde_json::{Value, json};

use crate::args::AllowArgs;
use crate::error::Result;
use crate::node;
use crate::output;
use crate::output::format::count;

/// `pk allow`: changes or lists the nodes that may claim the node in a directory. Starts the node
/// without making it reachable.
///
/// # Errors
///
/// The directory contains no node, or another process uses it. The list cannot be written.
pub(crate) async fn allow<R: Runtime + Unpin>(args: AllowArgs, runtime: R) -> Result<()> {
    let node = node::start_alone(&args.keys.dir, runtime).await?;
    let result = change(&node, &args).await;
    node.shutdown().await;
    let allowed = result?;
    if args.keys.json {
        let nodes: Value = allowed.iter().map(ToString::to_string).collect();
        output::json(&json!({ "ok": true, "nodeId": node.own_id().to_string(), "allowed": nodes }));
        return Ok(());
    }
    match allowed.len() {
        0 => output::line(format_args!("no node may claim {}", node.own_id())),
        n => output::line(format_args!("{} may claim {}", count(n as u64, "node"), node.own_id())),
    }
    for id in allowed {
        output::line(format_args!("  {id}"));
    }
    Ok(())
}

/// Applies `args` to the list, then reads it.
async fn change<R: Runtime>(node: &Node<R>, args: &AllowArgs) -> Result<Vec<NodeId>> {
    for id in &args.nodes {
        if args.remove {
            node.disallow_claim(*id, RequestOptions::default()).await?;
        } else {
            node.allow_claim(*id, RequestOptions::default()).await?;
        }
    }
    Ok(node.allowed_claims().await?)
}

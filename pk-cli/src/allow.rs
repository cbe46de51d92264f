//! `pk allow`.

use pk_driver::{Node, Runtime};
use pk_proto::{NodeId, Options};
use serde_json::{Value, json};

use crate::args::AllowArgs;
use crate::error::Result;
use crate::words::count;
use crate::{node, output};

/// `pk allow`: who may claim the node of a folder. It runs for it, reachable by nobody.
///
/// # Errors
///
/// There is no node in the folder, or one is running there. The list cannot be written.
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
        0 => output::line(format_args!("nobody may claim {}", node.own_id())),
        n => output::line(format_args!("{} may claim {}", count(n as u64, "node"), node.own_id())),
    }
    for id in allowed {
        output::line(format_args!("  {id}"));
    }
    Ok(())
}

/// Changes the list as `args` say, and reads it.
async fn change<R: Runtime>(node: &Node<R>, args: &AllowArgs) -> Result<Vec<NodeId>> {
    for id in &args.nodes {
        if args.remove {
            node.disallow_claim(*id, Options::default()).await?;
        } else {
            node.allow_claim(*id, Options::default()).await?;
        }
    }
    Ok(node.allowed_claims().await?)
}

//! `pk buckets`.

use std::collections::BTreeMap;

use pk_driver::Runtime;
use pk_proto::NodeId;
use serde::Serialize;
use serde_json::{Value, json};

use crate::args::OneShotArgs;
use crate::commands::one_shot::{join, with_node};
use crate::error::Result;
use crate::node;
use crate::output;
use crate::output::format::count;
use crate::output::polykey_json;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct BucketsLine {
    ok: bool,
    node_id: NodeId,
    nodes: usize,
    buckets: Vec<Value>,
}

/// `pk buckets`: prints the farthest bucket first, because it contains the most nodes.
pub(crate) async fn buckets<R: Runtime + Unpin>(args: OneShotArgs, runtime: R) -> Result<()> {
    with_node(&args, runtime, async |node, limit| {
        join(node, &args, true, limit).await?;
        let mut buckets: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for (bucket, id, contact) in node::graph(node).await? {
            buckets.entry(bucket).or_default().push((id, contact));
        }
        let nodes: usize = buckets.values().map(Vec::len).sum();
        if args.json {
            let buckets: Vec<Value> = buckets
                .iter()
                .rev()
                .map(|(bucket, nodes)| {
                    let nodes =
                        nodes.iter().map(|(id, known)| polykey_json::closest_node(*id, known));
                    json!({ "bucket": bucket, "nodes": nodes.collect::<Value>() })
                })
                .collect();
            output::json(&BucketsLine { ok: true, node_id: node.own_id(), nodes, buckets });
            return Ok(());
        }
        output::line(format_args!(
            "{} has {} in its node graph",
            node.own_id(),
            count(nodes as u64, "node")
        ));
        for (bucket, nodes) in buckets.iter().rev() {
            output::line(format_args!("  bucket {bucket}: {}", count(nodes.len() as u64, "node")));
            for (id, contact) in nodes {
                let addresses: Vec<String> =
                    contact.iter().map(|(address, _)| address.to_string()).collect();
                output::line(format_args!("    {id}  {}", addresses.join(", ")));
            }
        }
        Ok(())
    })
    .await
}

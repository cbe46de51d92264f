//! `pk claim`, and what else the commands do with claims of the own chain.

use std::ops::Bound;

use pk_driver::{Node, NodeError, Runtime};
use pk_proto::claims::{Claim, ClaimId};
use pk_proto::{ClaimsQuery, Failure, NodeId, Options, Refusal};
use serde_json::json;

use crate::args::{OneShotArgs, TargetArgs};
use crate::error::{CliError, Result};
use crate::find::reach;
use crate::one_shot::{in_time, refuse_own, waiting, with_node};
use crate::{output, shape};

/// `pk claim`.
pub(crate) async fn claim<R: Runtime + Unpin>(args: TargetArgs, runtime: R) -> Result<()> {
    with_node(&args.common, runtime, async |node, limit| {
        refuse_own(node, &args)?;
        reach(node, args.target, &args.common, limit).await?;
        let signing = waiting(&args.common, "signing", node.claim_node(args.target, limit.options()));
        let id = signing.await.map_err(|error| match error {
            NodeError::Failure(failure) => explain(failure, node.own_id(), args.target, &args.common)
                .unwrap_or_else(|failure| in_time(NodeError::Failure(failure), limit)),
            error => in_time(error, limit),
        })?;
        let claim = read(node, id).await?;
        if args.common.json {
            output::json(&json!({
                "ok": true, "nodeId": args.target.to_string(), "seq": claim.seq(),
                "claimIdEncoded": id.to_string(), "signedTokenEncoded": shape::signed_token(&claim),
            }));
        } else {
            output::line(format_args!("{} and {} belong together now", node.own_id(), args.target));
            output::line(format_args!("  claim {} of the own chain is {id}, signed by both", claim.seq()));
        }
        Ok(())
    })
    .await
}

/// Failures that only claims have, in words of the command line; others come back.
fn explain(
    failure: Failure,
    own: NodeId,
    target: NodeId,
    args: &OneShotArgs,
) -> std::result::Result<CliError, Failure> {
    match failure {
        Failure::Refused(Refusal::Denied) => {
            Ok(CliError::new("Refused", format!("{target} does not let {own} claim it"))
                .tip(format!("there, `pk allow {own}` before `pk run`, or `pk run --allow {own}`, lets it")))
        }
        Failure::ClaimInDoubt(id) => Ok(CliError::new(
            "ClaimInDoubt",
            format!("claim {id} is in the own chain, but {target} was lost before it said that it has its own"),
        )
        .tip(format!("the next `pk run --dir {}` that meets it makes up for that", args.dir.display()))
        .detail("claimIdEncoded", id.to_string())),
        failure => Err(failure),
    }
}

/// A claim of the own chain.
///
/// # Errors
///
/// There is none with this id, or the store fails.
pub(crate) async fn read<R: Runtime>(node: &Node<R>, id: ClaimId) -> Result<Claim> {
    let found = node.claims(ClaimsQuery::id(id), Options::default()).await?;
    found.claims.into_iter().next().ok_or_else(|| CliError::new("NoClaim", format!("there is no claim {id}")))
}

/// The claims of the own chain behind this one, as many as are read at a time, and whether there are more.
///
/// # Errors
///
/// The store fails.
pub(crate) async fn own_after<R: Runtime>(node: &Node<R>, known: Option<ClaimId>) -> Result<(Vec<Claim>, bool)> {
    let from = known.map_or(Bound::Unbounded, Bound::Excluded);
    let found = node.claims(ClaimsQuery { from, ..ClaimsQuery::default() }, Options::default()).await?;
    Ok((found.claims, found.more))
}

//! `pk claim`, and helpers for claims of the local chain.

use std::ops::Bound;

use pk_driver::{Node, NodeError, Runtime};
use pk_proto::claims::{Claim, ClaimId};
use pk_proto::{ClaimsQuery, Failure, NodeId, Refusal, RequestOptions};
use serde_json::json;

use crate::args::{OneShotArgs, TargetArgs};
use crate::commands::find::reach;
use crate::commands::one_shot::{in_time, refuse_own, waiting, with_node};
use crate::error::{CliError, Result};
use crate::output;
use crate::output::polykey_json;

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
                "claimIdEncoded": id.to_string(), "signedTokenEncoded": polykey_json::signed_token(&claim),
            }));
        } else {
            output::line(format_args!("{} and {} are linked", node.own_id(), args.target));
            output::line(format_args!("  claim {} of the local chain is {id}, signed by both", claim.seq()));
        }
        Ok(())
    })
    .await
}

/// Converts failures that only claims have into messages; returns others unchanged.
fn explain(
    failure: Failure,
    own: NodeId,
    target: NodeId,
    args: &OneShotArgs,
) -> std::result::Result<CliError, Failure> {
    match failure {
        Failure::Refused(Refusal::Denied) => {
            Ok(CliError::new("Refused", format!("{target} does not allow {own} to claim it")).tip(format!(
                "to allow it, run `pk allow {own}` before `pk run`, or `pk run --allow {own}`, on the other node"
            )))
        }
        Failure::ClaimUnconfirmed(id) => Ok(CliError::new(
            "ClaimInDoubt",
            format!("claim {id} is committed locally, but the connection to {target} was lost before it confirmed"),
        )
        .tip(format!("the exchange resumes the next time `pk run --dir {}` connects to it", args.dir.display()))
        .detail("claimIdEncoded", id.to_string())),
        failure => Err(failure),
    }
}

/// Reads a claim of the local chain.
///
/// # Errors
///
/// The chain contains no claim with this id, or the store fails.
pub(crate) async fn read<R: Runtime>(node: &Node<R>, id: ClaimId) -> Result<Claim> {
    let found = node.claims(ClaimsQuery::id(id), RequestOptions::default()).await?;
    found
        .claims
        .into_iter()
        .next()
        .ok_or_else(|| CliError::new("NoClaim", format!("there is no claim {id}")))
}

/// Reads the next claims of the local chain after `known`, up to the limit of one read. Returns
/// them and whether there are more.
///
/// # Errors
///
/// The store fails.
pub(crate) async fn own_after<R: Runtime>(
    node: &Node<R>,
    known: Option<ClaimId>,
) -> Result<(Vec<Claim>, bool)> {
    let from = known.map_or(Bound::Unbounded, Bound::Excluded);
    let found = node
        .claims(ClaimsQuery { from, ..ClaimsQuery::default() }, RequestOptions::default())
        .await?;
    Ok((found.claims, found.more))
}

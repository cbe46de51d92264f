//! Execution of the commands about claims.

use pk_driver::{Node, Runtime};
use pk_proto::claims::{Claim, ClaimContent};
use pk_proto::{GestaltQuery, RequestOptions};
use serde_json::{Value, json};

use super::command::ClaimsCommand;
use crate::commands::chain;
use crate::commands::claim;
use crate::error::Result;
use crate::output::polykey_json;

/// Type of the claims that the command `sign` has signed.
const NETWORK_TYP: &str = "ClaimNetworkAccess";

/// Executes a command about claims.
pub(super) async fn perform<R: Runtime>(node: &Node<R>, command: ClaimsCommand) -> Result<Value> {
    let options = RequestOptions::default();
    match command {
        ClaimsCommand::Allow { node: target } => {
            node.allow_claim(target, options).await?;
            Ok(json!({}))
        }
        ClaimsCommand::Disallow { node: target } => {
            node.disallow_claim(target, options).await?;
            Ok(json!({}))
        }
        ClaimsCommand::Allowed => {
            Ok(node.allowed_claims().await?.iter().map(ToString::to_string).collect())
        }
        ClaimsCommand::Claim { node: target } => {
            let id = node.claim_node(target, options).await?;
            Ok(polykey_json::claim_message(&claim::read(node, id).await?))
        }
        ClaimsCommand::ResolveApproval { approval, sign } => {
            node.resolve_claim_approval(approval, sign).await?;
            Ok(json!({}))
        }
        ClaimsCommand::Chain { node: target } => {
            Ok(chain::verified(node, target).await?.iter().map(polykey_json::chain_claim).collect())
        }
        ClaimsCommand::ClaimsGet { node: target } => Ok(chain::verified(node, target)
            .await?
            .iter()
            .map(polykey_json::claim_message)
            .collect()),
        ClaimsCommand::Sigchain => Ok(sigchain(node).await?.into()),
        ClaimsCommand::Gestalt { node: of } => {
            let of = of.unwrap_or_else(|| node.own_id());
            let gestalt = node.gestalt(of, GestaltQuery::default(), options).await?;
            // A node without links belongs to no gestalt.
            Ok(match gestalt.links.is_empty() {
                true => Value::Null,
                false => gestalt.nodes.iter().map(ToString::to_string).collect(),
            })
        }
        ClaimsCommand::Sign { node: target } => {
            let content = ClaimContent {
                typ: NETWORK_TYP.to_owned(),
                issuer: Some(node.own_id().to_string()),
                subject: Some(target.to_string()),
                members: "{}".to_owned(),
            };
            let signed = node.claim_network(target, content, options).await?;
            Ok(json!({ "signedTokenEncoded": polykey_json::signed_token(&signed) }))
        }
    }
}

/// Returns the local chain as stored.
async fn sigchain<R: Runtime>(node: &Node<R>) -> Result<Vec<Value>> {
    let mut entries = Vec::new();
    let mut known = None;
    loop {
        let (claims, more) = claim::own_after(node, known).await?;
        known = claims.last().map(Claim::id);
        entries.extend(claims.iter().map(|claim| {
            let mut entry = polykey_json::claim_message(claim);
            entry["payload"] = polykey_json::payload(claim);
            entry
        }));
        if !more {
            return Ok(entries);
        }
    }
}

//! `pk chain`: fetches, verifies and prints a chain.

use pk_driver::{Node, Runtime, unix_now};
use pk_proto::cert::verify_client;
use pk_proto::claims::{ChainFault, ChainFaultKind, ChainVerifier, Claim, TokenSignature};
use pk_proto::{NodeId, RequestOptions};
use serde_json::{Value, json};

use crate::args::ChainArgs;
use crate::commands::claim;
use crate::commands::find::reach;
use crate::commands::one_shot::{Limit, in_time, waiting, with_node};
use crate::error::{CliError, Result};
use crate::output;
use crate::output::format::{count, date};
use crate::output::polykey_json;

/// Claims per request. The claims before a failure are printed.
const PIECE: u64 = 100;

/// Explanation of a fork of the local chain, and what to do.
pub(crate) const FORKED: &str = "two claims of this node follow the same claim: a write that was reported as failed was \
    applied nevertheless, and an earlier version of pk made another claim in its place. Other \
    nodes verify the chain only up to the fork, and they may have seen different claims of the \
    two, so that the chain cannot be repaired. Keep the directory, create a new node with `pk \
    keygen --dir NEW`, and claim the same peers from it";

/// `pk chain`.
pub(crate) async fn chain<R: Runtime + Unpin>(args: ChainArgs, runtime: R) -> Result<()> {
    with_node(&args.common, runtime, async |node, limit| {
        let owner = args.target.unwrap_or_else(|| node.own_id());
        let own = owner == node.own_id();
        let mut shown =
            Shown { owner, own, json: args.common.json, claims: Vec::new(), count: 0, seq: 0 };
        let fault = if own {
            verify_own(node, |claims| shown.take(claims)).await?
        } else {
            reach(node, owner, &args.common, limit).await?;
            theirs(node, &args, limit, &mut shown).await?
        };
        shown.end(fault)
    })
    .await
}

/// Reads and verifies the chain of another node.
async fn theirs<R: Runtime + Unpin>(
    node: &Node<R>,
    args: &ChainArgs,
    limit: Limit,
    shown: &mut Shown,
) -> Result<Option<ChainFault>> {
    let mut known = None;
    loop {
        let reading = node.request_chain_data(shown.owner, known, Some(PIECE), limit.options());
        let (claims, end) = waiting(&args.common, "reading", reading)
            .await
            .map_err(|error| in_time(error, limit))?;
        shown.take(&claims);
        if !end.more {
            return Ok(end.fault);
        }
        known = end.head;
    }
}

/// Reads and verifies the local chain like a peer does. Passes the verified claims to `take` and
/// returns the first fault.
///
/// # Errors
///
/// The store fails.
async fn verify_own<R: Runtime>(
    node: &Node<R>,
    mut take: impl FnMut(&[Claim]),
) -> Result<Option<ChainFault>> {
    // The current and former ids. Expired certificates prove nothing to peers, but the keys still
    // belong to this node.
    let ids =
        verify_client(&node.identity().chain, unix_now().as_secs()).map(|proven| proven.chain);
    let mut verifier = ChainVerifier::new(ids.unwrap_or_else(|_| vec![node.own_id()]));
    let mut known = None;
    loop {
        let (claims, more) = claim::own_after(node, known).await?;
        known = claims.last().map(Claim::id);
        let held = claims.iter().take_while(|claim| verifier.verify(claim).is_ok()).count();
        take(claims.get(..held).unwrap_or_default());
        if !more || verifier.fault().is_some() {
            return Ok(verifier.fault());
        }
    }
}

/// Reads and verifies the chain of another node as a whole.
///
/// # Errors
///
/// The chain cannot be read, or verification fails; then the error contains the verified prefix.
pub(crate) async fn verified<R: Runtime>(node: &Node<R>, target: NodeId) -> Result<Vec<Claim>> {
    let (claims, end) =
        node.request_chain_data(target, None, None, RequestOptions::default()).await?;
    match end.fault {
        Some(fault) => {
            let before = claims.iter().map(polykey_json::chain_claim).collect();
            Err(broken(target, fault, claims.len() as u64, before))
        }
        None => Ok(claims),
    }
}

/// Returns the error for a chain that fails verification. `verified` is the number of verified
/// claims, `before` are those to print.
fn broken(owner: NodeId, fault: ChainFault, verified: u64, before: Vec<Value>) -> CliError {
    let message = match verified {
        0 => format!("the chain of {owner} is invalid: {fault}"),
        1 => format!("the chain of {owner} is invalid: {fault}; the claim before is verified"),
        n => {
            format!("the chain of {owner} is invalid: {fault}; the {n} claims before are verified")
        }
    };
    CliError::new("ChainFault", message)
        .detail("seq", fault.seq)
        .detail("claimIdEncoded", fault.claim.map(|id| id.to_string()))
        .detail("fault", json!(fault.kind))
        .detail("verified", before)
}

/// What has been printed, or is collected for JSON.
struct Shown {
    /// Owner of the chain, under the id that was requested.
    owner: NodeId,
    /// Whether the owner is the local node.
    own: bool,
    json: bool,
    claims: Vec<Value>,
    /// Number of verified claims.
    count: u64,
    /// Number (`seq`) of the last claim.
    seq: u64,
}

impl Shown {
    /// Prints or collects verified claims.
    fn take(&mut self, claims: &[Claim]) {
        for claim in claims {
            let before = std::mem::replace(&mut self.seq, claim.seq());
            self.count += 1;
            if self.json {
                let mut entry = polykey_json::chain_claim(claim);
                entry["signedTokenEncoded"] = polykey_json::signed_token(claim);
                self.claims.push(entry);
            } else {
                claim_lines(claim, self.owner, before).into_iter().for_each(output::line);
            }
        }
    }

    /// Prints the result.
    fn end(self, fault: Option<ChainFault>) -> Result<()> {
        let owner = self.owner;
        if let Some(fault) = fault {
            let error = broken(owner, fault, self.count, self.claims);
            let forked = self.own && matches!(fault.kind, ChainFaultKind::Fork(_));
            return Err(if forked { error.tip(FORKED) } else { error });
        }
        if self.json {
            let id = owner.to_string();
            output::json(
                &json!({ "ok": true, "nodeId": id, "verified": self.count, "claims": self.claims }),
            );
        } else if self.count == 0 {
            output::line(format_args!("the chain of {owner} is empty"));
        } else {
            output::line(format_args!(
                "the chain of {owner} is valid: {}",
                count(self.count, "claim")
            ));
        }
        Ok(())
    }
}

/// Returns the lines that describe a verified claim. `before` is the number of the claim before it.
fn claim_lines(claim: &Claim, owner: NodeId, before: u64) -> Vec<String> {
    let mut lines = vec![format!(
        "{:>4}  {}  {}  {}",
        claim.seq(),
        claim.id(),
        date(claim.issued_at()),
        claim.typ()
    )];
    let mut signers = claim.token().signatures().iter().map(TokenSignature::signer);
    lines.extend(signers.next().map(|signer| match signer == owner {
        true => format!("      ✓ signed by {signer}, its owner"),
        false => format!("      ✓ signed by {signer}, another id of its owner"),
    }));
    lines.extend(signers.map(|other| format!("      ✓ signed by {other}")));
    lines.push(match claim.prev_claim_id() {
        None => "      ✓ the first claim".to_owned(),
        Some(_) => format!("      ✓ follows claim {before}, by id and digest"),
    });
    lines
}

//! `pk chain`: what a node has claimed, and that it holds.

use pk_driver::{Node, Runtime, now};
use pk_proto::cert::verify_client;
use pk_proto::claims::{ChainFault, ChainVerifier, Claim, TokenSignature};
use pk_proto::{NodeId, Options};
use serde_json::{Value, json};

use crate::args::ChainArgs;
use crate::error::{CliError, Result};
use crate::find::reach;
use crate::one_shot::{Limit, in_time, waiting, with_node};
use crate::words::{count, date};
use crate::{claim, output, shape};

/// Claims that are asked for at a time: those before a failure are shown.
const PIECE: u64 = 100;

/// `pk chain`.
pub(crate) async fn chain<R: Runtime + Unpin>(args: ChainArgs, runtime: R) -> Result<()> {
    with_node(&args.common, runtime, async |node, limit| {
        let owner = args.target.unwrap_or_else(|| node.own_id());
        let mut shown = Shown { owner, json: args.common.json, claims: Vec::new(), seq: 0 };
        let fault = if owner == node.own_id() {
            own(node, |claims| shown.take(claims)).await?
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
        let (claims, end) = waiting(&args.common, "reading", reading).await.map_err(|error| in_time(error, limit))?;
        shown.take(&claims);
        if !end.more {
            return Ok(end.fault);
        }
        known = end.head;
    }
}

/// Reads and verifies the own chain, as others do: hands out the claims that hold, and says which one does not.
///
/// # Errors
///
/// The store fails.
async fn own<R: Runtime>(node: &Node<R>, mut take: impl FnMut(&[Claim])) -> Result<Option<ChainFault>> {
    // Who it is and was. Certificates that have expired prove nothing to others; the keys are still its own.
    let ids = verify_client(&node.identity().chain, now().as_secs()).map(|proven| proven.chain);
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
/// It cannot be read. It does not hold: the error has the claims before the one at fault.
pub(crate) async fn verified<R: Runtime>(node: &Node<R>, target: NodeId) -> Result<Vec<Claim>> {
    let (claims, end) = node.request_chain_data(target, None, None, Options::default()).await?;
    match end.fault {
        Some(fault) => Err(broken(target, fault, claims.iter().map(shape::chain_claim).collect())),
        None => Ok(claims),
    }
}

/// The error for a chain that does not hold; `before` are the claims that do.
fn broken(owner: NodeId, fault: ChainFault, before: Vec<Value>) -> CliError {
    let verified = fault.seq.saturating_sub(1);
    let message = match verified {
        0 => format!("the chain of {owner} does not hold: {fault}"),
        1 => format!("the chain of {owner} does not hold: {fault}; the claim before is verified"),
        n => format!("the chain of {owner} does not hold: {fault}; the {n} claims before are verified"),
    };
    CliError::new("ChainFault", message)
        .detail("seq", fault.seq)
        .detail("claimIdEncoded", fault.claim.map(|id| id.to_string()))
        .detail("fault", json!(fault.kind))
        .detail("verified", before)
}

/// What has been shown, or in JSON is to be.
struct Shown {
    /// Whose chain it is, by the id that was asked for.
    owner: NodeId,
    json: bool,
    claims: Vec<Value>,
    seq: u64,
}

impl Shown {
    /// Claims that are verified.
    fn take(&mut self, claims: &[Claim]) {
        for claim in claims {
            self.seq = claim.seq();
            if self.json {
                let mut entry = shape::chain_claim(claim);
                entry["signedTokenEncoded"] = shape::signed_token(claim);
                self.claims.push(entry);
            } else {
                told(claim, self.owner).into_iter().for_each(output::line);
            }
        }
    }

    /// The end of the chain.
    fn end(self, fault: Option<ChainFault>) -> Result<()> {
        let owner = self.owner;
        if let Some(fault) = fault {
            return Err(broken(owner, fault, self.claims));
        }
        if self.json {
            let id = owner.to_string();
            output::json(&json!({ "ok": true, "nodeId": id, "verified": self.seq, "claims": self.claims }));
        } else if self.seq == 0 {
            output::line(format_args!("{owner} has claimed nothing"));
        } else {
            output::line(format_args!("the chain of {owner} holds: {}", count(self.seq, "claim")));
        }
        Ok(())
    }
}

/// A verified claim, in lines for people.
fn told(claim: &Claim, owner: NodeId) -> Vec<String> {
    let mut lines = vec![format!("{:>4}  {}  {}  {}", claim.seq(), claim.id(), date(claim.issued_at()), claim.typ())];
    let mut signers = claim.token().signatures().iter().map(TokenSignature::signer);
    lines.extend(signers.next().map(|signer| match signer == owner {
        true => format!("      ✓ signed by {signer}, its owner"),
        false => format!("      ✓ signed by {signer}, another id of its owner"),
    }));
    lines.extend(signers.map(|other| format!("      ✓ signed by {other}")));
    lines.push(match claim.prev_claim_id() {
        None => "      ✓ the first one".to_owned(),
        Some(_) => format!("      ✓ follows claim {}, by id and digest", claim.seq().saturating_sub(1)),
    });
    lines
}

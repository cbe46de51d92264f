//! Steps of the demo about claims: nodes cross-sign, chains are fetched and verified, forged chains
//! are refused.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use data_encoding::BASE64URL_NOPAD;
use futures_util::{StreamExt, TryStreamExt, stream};
use pk_driver::{KeyPair, MemoryStore, Node, NodeError, Runtime, Store, StoreError};
use pk_proto::claims::{
    ChainFaultKind, ChainHead, Claim, ClaimContent, ClaimLinkNode, DigestAlgorithm,
    SignatureEncoded, SignedTokenEncoded, claim_row,
};
use pk_proto::{
    ClaimsQuery, Failure, GestaltQuery, NodeId, Refusal, RequestOptions, SignatureFault, StoreOp,
    StoreRange, StoreRow, Table, UnixMillis, WriteFailure,
};
use serde_json::{Value, json};

use super::network::{Network, address};
use super::report::{Outcome, Progress};
use super::steps::Pairs;
use crate::error::{CliError, Result};
use crate::node::keys;
use crate::output::format::{Spread, count, human, ms};

/// Claims that are signed concurrently: enough that nodes are initiators and responders at the same
/// time.
const CLAIMS: usize = 8;

/// Each node claims its partner, in a ring and concurrently. Claims are refused until the partner
/// allows them.
pub(super) async fn claim<R: Runtime + Unpin>(
    pairs: &Pairs<'_, R>,
    progress: &Progress,
) -> Result<Outcome> {
    for (node, partner) in pairs {
        match node.claim_node(partner.own_id(), RequestOptions::default()).await {
            Err(NodeError::Failure(Failure::Refused(Refusal::Denied))) => {}
            other => {
                return Err(CliError::new(
                    "Claim",
                    format!("a claim that was not allowed was not refused: {other:?}"),
                ));
            }
        }
        partner.allow_claim(node.own_id(), RequestOptions::default()).await?;
    }
    let sign = async |(node, partner): &(&Node<R>, &Node<R>)| {
        let begun = Instant::now();
        node.claim_node(partner.own_id(), RequestOptions::default()).await?;
        progress.tick();
        Ok::<_, CliError>(begun.elapsed())
    };
    let times: Vec<Duration> =
        stream::iter(pairs).map(sign).buffer_unordered(CLAIMS).try_collect().await?;
    let spread = Spread::of(times.iter().copied());
    Ok(Outcome {
        summary: format!(
            "{} cross-signed with a partner that refused before it allowed the claim: median {}, p95 {}",
            count(times.len() as u64, "node"),
            human(spread.median),
            human(spread.p95)
        ),
        figures: json!({ "claimed": times.len(), "medianMs": ms(spread.median), "p95Ms": ms(spread.p95) }),
    })
}

/// Each node of a pair fetches the other's chain, verifies every claim and finds the link in it.
/// The gestalt then contains both.
pub(super) async fn chain<R: Runtime + Unpin>(
    pairs: &Pairs<'_, R>,
    progress: &Progress,
) -> Result<Outcome> {
    let (mut times, mut claims) = (Vec::new(), 0);
    for (node, partner) in pairs {
        for (reader, owner) in [(node, partner), (partner, node)] {
            let begun = Instant::now();
            let chain = whole(reader, owner.own_id()).await?;
            times.push(begun.elapsed());
            claims += chain.len();
            let links_both = |claim: &Claim| {
                claim.link().and_then(|link| link.other(&owner.own_id())) == Some(reader.own_id())
            };
            let gestalt = reader
                .gestalt(reader.own_id(), GestaltQuery::default(), RequestOptions::default())
                .await?;
            if !chain.iter().any(links_both) || !gestalt.nodes.contains(&owner.own_id()) {
                let message = format!(
                    "{} and {} are not linked: {gestalt:?}",
                    reader.own_id(),
                    owner.own_id()
                );
                return Err(CliError::new("Chain", message));
            }
            progress.tick();
        }
    }
    let spread = Spread::of(times.iter().copied());
    Ok(Outcome {
        summary: format!(
            "{} with {} fetched and verified, both chains of every pair: median {}, p95 {}",
            count(times.len() as u64, "chain"),
            count(claims as u64, "claim"),
            human(spread.median),
            human(spread.p95)
        ),
        figures: json!({
            "chains": times.len(), "claims": claims, "medianMs": ms(spread.median), "p95Ms": ms(spread.p95),
        }),
    })
}

/// Returns all claims of a node's chain, which must be valid.
pub(super) async fn whole<R: Runtime>(reader: &Node<R>, owner: NodeId) -> Result<Vec<Claim>> {
    let (claims, end) =
        reader.request_chain_data(owner, None, None, RequestOptions::default()).await?;
    match end.fault {
        None => Ok(claims),
        Some(fault) => {
            Err(CliError::new("ChainFault", format!("the chain of {owner} is invalid: {fault}")))
        }
    }
}

/// A new node creates an honest chain and then modifies it in its own store in several ways. Each
/// chain is served as stored, and refused by its reader with the expected fault.
pub(super) async fn forgery<R: Runtime + Unpin>(
    network: &mut Network<R>,
    runtime: &R,
    progress: &Progress,
) -> Result<Outcome> {
    let (store, key) = (Shared::default(), keys::ephemeral(None)?);
    let node = network
        .guest_of(runtime, key.clone(), |config| config.store = Box::new(store.clone()))
        .await?;
    let (friend, reader) = (network.first()?, network.resident()?);
    let seed = network.seed()?;
    node.connect(seed.node, seed.address, RequestOptions::default()).await?;
    reader.connect(node.own_id(), address(&node)?, RequestOptions::default()).await?;

    friend.allow_claim(node.own_id(), RequestOptions::default()).await?;
    node.add_claim(note(node.own_id(), "first"), RequestOptions::default()).await?;
    node.claim_node(friend.own_id(), RequestOptions::default()).await?;
    node.add_claim(note(node.own_id(), "last"), RequestOptions::default()).await?;
    let honest = node.claims(ClaimsQuery::default(), RequestOptions::default()).await?.claims;
    let verified = whole(&reader, node.own_id()).await?;
    let [first, link, last] = &honest[..] else {
        return Err(wrong(format!("a chain of 3 has {}", honest.len())));
    };
    if verified != honest {
        return Err(wrong(
            "the chain that was read differs from the one that was created".to_owned(),
        ));
    }

    let forger = Forger { key, first, link, last };
    let mut summary = String::from(
        "a node forged its own chain of 3 claims in its store; each forged chain that it \
            served was refused:",
    );
    let mut found = Vec::new();
    for Forgery { name, ops, kind, verified } in forger.forgeries(reader.own_id())? {
        store.change(&ops)?;
        let (claims, end) =
            reader.request_chain_data(node.own_id(), None, None, RequestOptions::default()).await?;
        let fault = end.fault.ok_or_else(|| wrong(format!("{name}: the chain was accepted")))?;
        if fault.kind != kind || fault.seq != verified + 1 || claims.len() as u64 != verified {
            return Err(wrong(format!("{name}: {fault}, after {} claims", claims.len())));
        }
        let gestalt = reader.gestalt(
            reader.own_id(),
            GestaltQuery { direct: true, ..GestaltQuery::default() },
            RequestOptions::default(),
        );
        if gestalt.await?.nodes.contains(&node.own_id()) {
            return Err(wrong(format!("{name}: the reader is linked with the forging node")));
        }
        summary.push_str(&format!("\n{name}: claim {}: {}", fault.seq, fault.kind));
        found.push(json!({ "forgery": name, "fault": fault.to_string(), "verified": verified }));
        // Restores the honest chain.
        store.change(&honest.iter().map(claim_row).collect::<Vec<_>>())?;
        progress.tick();
    }
    if whole(&reader, node.own_id()).await? != honest {
        return Err(wrong("the honest chain has changed".to_owned()));
    }
    Ok(Outcome {
        summary,
        figures: json!({ "refused": found.len(), "forgeries": Value::from(found) }),
    })
}

/// Number of ways to forge a chain.
pub(super) const FORGERIES: usize = 4;

/// A way to forge a chain.
struct Forgery {
    name: &'static str,
    /// Changes to the store.
    ops: Vec<StoreOp>,
    /// Expected fault, and the number of valid claims before it.
    kind: ChainFaultKind,
    verified: u64,
}

/// A node with its own key and claims that others signed: a chain of a note, a link and a note.
struct Forger<'a> {
    key: KeyPair,
    first: &'a Claim,
    link: &'a Claim,
    last: &'a Claim,
}

impl Forger<'_> {
    fn forgeries(&self, victim: NodeId) -> Result<[Forgery; FORGERIES]> {
        let mismatch = SignatureFault::Mismatch;
        Ok([
            Forgery {
                name: "a changed payload",
                ops: vec![claim_row(&self.changed()?)],
                kind: ChainFaultKind::OwnerSignature(mismatch),
                verified: 2,
            },
            Forgery {
                name: "a rewritten past with new signatures",
                ops: vec![claim_row(&self.signed(
                    &note(self.key.node_id(), "never"),
                    self.first,
                    None,
                )?)],
                kind: ChainFaultKind::PrevDigest,
                verified: 1,
            },
            Forgery {
                name: "a missing claim",
                ops: vec![StoreOp::Delete {
                    table: Table::Claims,
                    key: self.link.id().as_bytes().to_vec().into(),
                }],
                kind: ChainFaultKind::SeqGap(3),
                verified: 1,
            },
            Forgery {
                name: "a link that the other node never signed",
                ops: vec![claim_row(&self.made_up(victim)?)],
                kind: ChainFaultKind::CounterSignature(mismatch),
                verified: 2,
            },
        ])
    }

    /// Returns the last claim with another text under its old signature.
    fn changed(&self) -> Result<Claim> {
        let mut token = self.last.token().encoded();
        token.payload =
            BASE64URL_NOPAD.encode(self.last.token().payload().replace("last", "lost").as_bytes());
        parse(&token)
    }

    /// Returns another claim in place of one, with a valid signature.
    fn signed(
        &self,
        content: &ClaimContent,
        in_place_of: &Claim,
        prev: Option<&Claim>,
    ) -> Result<Claim> {
        let own = self.key.node_id();
        let prev = prev.map(|prev| ChainHead::of(prev, DigestAlgorithm::Blake3));
        let made = UnixMillis(in_place_of.issued_at() * 1000);
        let draft = Claim::draft(content, in_place_of.id(), made, prev.as_ref())
            .map_err(|fault| wrong(fault.to_string()))?;
        let signature = self.key.sign(&draft.signing_input(&own));
        let signed = draft.sign(own, signature).map_err(|fault| wrong(fault.to_string()))?;
        Ok(signed.into_claim())
    }

    /// Returns a link in place of the last claim, with the other node's signature copied from
    /// another claim.
    fn made_up(&self, victim: NodeId) -> Result<Claim> {
        let link = ClaimLinkNode { issuer: self.key.node_id(), subject: victim };
        let claim = self.signed(&ClaimContent::link(&link), self.last, Some(self.link))?;
        let mut token = claim.token().encoded();
        let stolen = self.link.token().encoded().signatures.into_iter().nth(1);
        let SignatureEncoded { signature, .. } =
            stolen.ok_or_else(|| wrong("a link has one signature".to_owned()))?;
        let header = json!({ "alg": "EdDSA", "kid": victim.to_string() }).to_string();
        token.signatures.push(SignatureEncoded {
            protected: BASE64URL_NOPAD.encode(header.as_bytes()),
            signature,
        });
        parse(&token)
    }
}

fn note(owner: NodeId, text: &str) -> ClaimContent {
    let members = json!({ "note": text }).to_string();
    ClaimContent {
        typ: "pk.demo.Note".to_owned(),
        issuer: Some(owner.to_string()),
        subject: None,
        members,
    }
}

fn parse(token: &SignedTokenEncoded) -> Result<Claim> {
    Claim::parse(json!(token).to_string().as_bytes()).map_err(|fault| wrong(fault.to_string()))
}

fn wrong(what: String) -> CliError {
    CliError::new("Forgery", what)
}

/// A store shared by the node, which trusts it, and the forging code.
#[derive(Clone, Default)]
struct Shared(Arc<Mutex<MemoryStore>>);

impl Shared {
    /// Modifies the store without the node's knowledge.
    fn change(&self, ops: &[StoreOp]) -> Result<()> {
        self.clone().apply(ops, true).map_err(|error| wrong(error.to_string()))
    }
}

impl Store for Shared {
    fn blocks(&self) -> bool {
        false
    }

    fn apply(&mut self, ops: &[StoreOp], durable: bool) -> std::result::Result<(), WriteFailure> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).apply(ops, durable)
    }

    fn range(
        &mut self,
        range: &StoreRange,
        max_bytes: u64,
    ) -> std::result::Result<(Vec<StoreRow>, bool), StoreError> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).range(range, max_bytes)
    }
}

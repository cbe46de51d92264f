//! The steps of the demo about claims: nodes cross-sign, chains are fetched and verified, forged ones are refused.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use data_encoding::BASE64URL_NOPAD;
use futures_util::{StreamExt, TryStreamExt, stream};
use pk_driver::{KeyPair, MemoryStore, Node, NodeError, Runtime, Store, StoreError};
use pk_proto::claims::{
    ChainFaultKind, ChainHead, Claim, ClaimContent, ClaimLinkNode, DigestAlgorithm, SignatureEncoded, TokenEncoded,
    claim_row,
};
use pk_proto::{
    ClaimsQuery, Failure, GestaltQuery, NodeId, Options, Refusal, SignatureFault, StoreOp, StoreRange, StoreRow, Table,
    UnixMillis,
};
use serde_json::{Value, json};

use super::network::{Network, address};
use super::report::{Outcome, Progress};
use super::steps::Pairs;
use crate::error::{CliError, Result};
use crate::keys;
use crate::words::{Spread, count, human, ms};

/// Claims that are signed at a time: enough that a node signs for one while another signs for it.
const CLAIMS: usize = 8;

/// Everyone and its partner sign a claim for each other, all around the ring at once. Whoever is not allowed to is refused.
pub(super) async fn claim<R: Runtime + Unpin>(pairs: &Pairs<'_, R>, progress: &Progress) -> Result<Outcome> {
    for (node, partner) in pairs {
        match node.claim_node(partner.own_id(), Options::default()).await {
            Err(NodeError::Failure(Failure::Refused(Refusal::Denied))) => {}
            other => return Err(CliError::new("Claim", format!("who was not allowed was not refused: {other:?}"))),
        }
        partner.allow_claim(node.own_id(), Options::default()).await?;
    }
    let sign = async |(node, partner): &(&Node<R>, &Node<R>)| {
        let begun = Instant::now();
        node.claim_node(partner.own_id(), Options::default()).await?;
        progress.tick();
        Ok::<_, CliError>(begun.elapsed())
    };
    let times: Vec<Duration> = stream::iter(pairs).map(sign).buffer_unordered(CLAIMS).try_collect().await?;
    let spread = Spread::of(times.iter().copied());
    Ok(Outcome {
        summary: format!(
            "{} cross-signed with a partner that had refused until it allowed it: median {}, p95 {}",
            count(times.len() as u64, "node"),
            human(spread.median),
            human(spread.p95)
        ),
        figures: json!({ "claimed": times.len(), "medianMs": ms(spread.median), "p95Ms": ms(spread.p95) }),
    })
}

/// Of every pair each fetches the other's chain, verifies every claim, and finds the link in it; then it knows that they
/// belong together.
pub(super) async fn chain<R: Runtime + Unpin>(pairs: &Pairs<'_, R>, progress: &Progress) -> Result<Outcome> {
    let (mut times, mut claims) = (Vec::new(), 0);
    for (node, partner) in pairs {
        for (reader, owner) in [(node, partner), (partner, node)] {
            let begun = Instant::now();
            let chain = whole(reader, owner.own_id()).await?;
            times.push(begun.elapsed());
            claims += chain.len();
            let links_both =
                |claim: &Claim| claim.link().and_then(|link| link.other(&owner.own_id())) == Some(reader.own_id());
            let gestalt = reader.gestalt(reader.own_id(), GestaltQuery::default(), Options::default()).await?;
            if !chain.iter().any(links_both) || !gestalt.nodes.contains(&owner.own_id()) {
                let message = format!("{} and {} are not linked: {gestalt:?}", reader.own_id(), owner.own_id());
                return Err(CliError::new("Chain", message));
            }
            progress.tick();
        }
    }
    let spread = Spread::of(times.iter().copied());
    Ok(Outcome {
        summary: format!(
            "{} with {} fetched and verified, both of every pair: median {}, p95 {}",
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

/// The whole chain of a node, which has to hold.
pub(super) async fn whole<R: Runtime>(reader: &Node<R>, owner: NodeId) -> Result<Vec<Claim>> {
    let (claims, end) = reader.request_chain_data(owner, None, None, Options::default()).await?;
    match end.fault {
        None => Ok(claims),
        Some(fault) => Err(CliError::new("ChainFault", format!("the chain of {owner} does not hold: {fault}"))),
    }
}

/// A newcomer makes an honest chain, and then changes it in its own store, again and again in another way. Every one is
/// served as it stands there, and refused by who reads it, with the fault that it has.
pub(super) async fn forgery<R: Runtime + Unpin>(
    network: &mut Network<R>,
    runtime: &R,
    progress: &Progress,
) -> Result<Outcome> {
    let (store, key) = (Shared::default(), keys::ephemeral(None)?);
    let node = network.guest_of(runtime, key.clone(), |config| config.store = Box::new(store.clone())).await?;
    let (friend, reader) = (network.first()?, network.resident()?);
    let seed = network.seed()?;
    node.connect(seed.node, seed.address, Options::default()).await?;
    reader.connect(node.own_id(), address(&node)?, Options::default()).await?;

    friend.allow_claim(node.own_id(), Options::default()).await?;
    node.add_claim(note(node.own_id(), "first"), Options::default()).await?;
    node.claim_node(friend.own_id(), Options::default()).await?;
    node.add_claim(note(node.own_id(), "last"), Options::default()).await?;
    let honest = node.claims(ClaimsQuery::default(), Options::default()).await?.claims;
    let verified = whole(&reader, node.own_id()).await?;
    let [first, link, last] = &honest[..] else { return Err(wrong(format!("a chain of 3 has {}", honest.len()))) };
    if verified != honest {
        return Err(wrong("the chain that was read is not the one that was made".to_owned()));
    }

    let forger = Forger { key, first, link, last };
    let mut summary = String::from(
        "a node forged its own chain of 3 claims in its store; what it then served was refused each time:",
    );
    let mut found = Vec::new();
    for Forgery { name, ops, kind, verified } in forger.forgeries(reader.own_id())? {
        store.change(&ops)?;
        let (claims, end) = reader.request_chain_data(node.own_id(), None, None, Options::default()).await?;
        let fault = end.fault.ok_or_else(|| wrong(format!("{name}: the chain was taken")))?;
        if fault.kind != kind || fault.seq != verified + 1 || claims.len() as u64 != verified {
            return Err(wrong(format!("{name}: {fault}, behind {} claims", claims.len())));
        }
        let gestalt = reader.gestalt(
            reader.own_id(),
            GestaltQuery { direct: true, ..GestaltQuery::default() },
            Options::default(),
        );
        if gestalt.await?.nodes.contains(&node.own_id()) {
            return Err(wrong(format!("{name}: the reader is linked with the forger")));
        }
        summary.push_str(&format!("\n{name}: claim {}: {}", fault.seq, fault.kind));
        found.push(json!({ "forgery": name, "fault": fault.to_string(), "verified": verified }));
        // As it was.
        store.change(&honest.iter().map(claim_row).collect::<Vec<_>>())?;
        progress.tick();
    }
    if whole(&reader, node.own_id()).await? != honest {
        return Err(wrong("the honest chain is not what it was".to_owned()));
    }
    Ok(Outcome { summary, figures: json!({ "refused": found.len(), "forgeries": Value::from(found) }) })
}

/// How many ways there are.
pub(super) const FORGERIES: usize = 4;

/// A way to forge a chain.
struct Forgery {
    name: &'static str,
    /// What it does to the store.
    ops: Vec<StoreOp>,
    /// What there is to be found, and behind how many claims that hold.
    kind: ChainFaultKind,
    verified: u64,
}

/// Somebody who has its own key, and claims that others signed: a chain of a note, a link and a note.
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
                name: "a payload changed",
                ops: vec![claim_row(&self.changed()?)],
                kind: ChainFaultKind::OwnerSignature(mismatch),
                verified: 2,
            },
            Forgery {
                name: "the past rewritten and signed anew",
                ops: vec![claim_row(&self.signed(&note(self.key.node_id(), "never"), self.first, None)?)],
                kind: ChainFaultKind::PrevDigest,
                verified: 1,
            },
            Forgery {
                name: "a claim left out",
                ops: vec![StoreOp::Delete { table: Table::Claims, key: self.link.id().as_bytes().to_vec().into() }],
                kind: ChainFaultKind::SeqGap(3),
                verified: 1,
            },
            Forgery {
                name: "a link that the other never signed",
                ops: vec![claim_row(&self.made_up(victim)?)],
                kind: ChainFaultKind::CounterSignature(mismatch),
                verified: 2,
            },
        ])
    }

    /// The last claim with another text under its old signature.
    fn changed(&self) -> Result<Claim> {
        let mut token = self.last.token().encoded();
        token.payload = BASE64URL_NOPAD.encode(self.last.token().payload().replace("last", "lost").as_bytes());
        parse(&token)
    }

    /// Another claim in place of one, properly signed.
    fn signed(&self, content: &ClaimContent, in_place_of: &Claim, prev: Option<&Claim>) -> Result<Claim> {
        let own = self.key.node_id();
        let prev = prev.map(|prev| ChainHead::of(prev, DigestAlgorithm::Blake3));
        let made = UnixMillis(in_place_of.issued_at() * 1000);
        let draft =
            Claim::draft(content, in_place_of.id(), made, prev.as_ref()).map_err(|fault| wrong(fault.to_string()))?;
        let signature = self.key.sign(&draft.signing_input(&own));
        let signed = draft.sign(own, signature).map_err(|fault| wrong(fault.to_string()))?;
        Ok(signed.into_claim())
    }

    /// In place of the last claim a link with somebody, whose signature is taken from what another one signed.
    fn made_up(&self, victim: NodeId) -> Result<Claim> {
        let link = ClaimLinkNode { issuer: self.key.node_id(), subject: victim };
        let claim = self.signed(&ClaimContent::link(&link), self.last, Some(self.link))?;
        let mut token = claim.token().encoded();
        let stolen = self.link.token().encoded().signatures.into_iter().nth(1);
        let SignatureEncoded { signature, .. } = stolen.ok_or_else(|| wrong("a link has one signature".to_owned()))?;
        let header = json!({ "alg": "EdDSA", "kid": victim.to_string() }).to_string();
        token.signatures.push(SignatureEncoded { protected: BASE64URL_NOPAD.encode(header.as_bytes()), signature });
        parse(&token)
    }
}

fn note(owner: NodeId, text: &str) -> ClaimContent {
    let members = json!({ "note": text }).to_string();
    ClaimContent { typ: "pk.demo.Note".to_owned(), issuer: Some(owner.to_string()), subject: None, members }
}

fn parse(token: &TokenEncoded) -> Result<Claim> {
    Claim::parse(json!(token).to_string().as_bytes()).map_err(|fault| wrong(fault.to_string()))
}

fn wrong(what: String) -> CliError {
    CliError::new("Forgery", what)
}

/// A store that two have: the node, which trusts it, and the forger.
#[derive(Clone, Default)]
struct Shared(Arc<Mutex<MemoryStore>>);

impl Shared {
    /// Changes it behind the node's back.
    fn change(&self, ops: &[StoreOp]) -> Result<()> {
        self.clone().apply(ops, true).map_err(|error| wrong(error.to_string()))
    }
}

impl Store for Shared {
    fn blocks(&self) -> bool {
        false
    }

    fn apply(&mut self, ops: &[StoreOp], durable: bool) -> std::result::Result<(), StoreError> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).apply(ops, durable)
    }

    fn range(&self, range: &StoreRange, max_bytes: u64) -> std::result::Result<(Vec<StoreRow>, bool), StoreError> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).range(range, max_bytes)
    }
}

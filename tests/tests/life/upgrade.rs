//! A directory that version a57de15 has written, used by the current version (see
//! fixtures/a57de15/README.md).

use std::fs;
use std::ops::Bound;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use pk_driver::{KeyPair, Node, NodeConfig};
use pk_proto::cert::verify_client;
use pk_proto::claims::{ChainVerifier, Claim, ClaimPolicy, OpenExchange};
use pk_proto::{ClaimsQuery, GestaltQuery, NodeId, RequestOptions};
use pk_tests::Rt;
use pk_tests::node::{config, connect, seed, shutdown, start, start_with};
use pk_tests::wait::{soon, until};
use serde_json::Value;
use tempfile::TempDir;

use crate::kit::{key_files, open_with, snapshot};

pk_tests::cases!(every_row_is_read_and_the_node_continues, unfinished_exchanges_are_completed,);

const FIXTURE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/a57de15");

/// A copy of the directory, and the facts that its node reported.
fn fixture() -> (TempDir, Value) {
    let dir = tempfile::tempdir().unwrap();
    copy(&Path::new(FIXTURE).join("node"), dir.path());
    let facts = fs::read_to_string(Path::new(FIXTURE).join("node.json")).unwrap();
    (dir, serde_json::from_str(&facts).unwrap())
}

fn copy(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            fs::create_dir_all(&target).unwrap();
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), &target).unwrap();
            // Git does not keep file modes, and a key must be private to its owner.
            fs::set_permissions(target, fs::Permissions::from_mode(0o600)).unwrap();
        }
    }
}

fn texts(facts: &Value, name: &str) -> Vec<String> {
    let mut texts: Vec<_> = facts[name]
        .as_array()
        .unwrap()
        .iter()
        .map(|text| text.as_str().unwrap().to_owned())
        .collect();
    texts.sort();
    texts
}

fn sorted<T: ToString>(all: impl IntoIterator<Item = T>) -> Vec<String> {
    let mut texts: Vec<_> = all.into_iter().map(|one| one.to_string()).collect();
    texts.sort();
    texts
}

fn id(facts: &Value, name: &str) -> NodeId {
    facts[name].as_str().unwrap().parse().unwrap()
}

async fn chain<R: Rt>(runtime: &R, node: &Node<R>) -> Vec<Claim> {
    let query = ClaimsQuery {
        from: Bound::Unbounded,
        to: Bound::Unbounded,
        descending: false,
        limit: 1000,
    };
    let found =
        soon(runtime, "claims", node.claims(query, RequestOptions::default())).await.unwrap();
    assert!(!found.more);
    found.claims
}

/// Allows claims of every node.
fn allow_all_claims(config: &mut NodeConfig) {
    config.core.claim_policy = ClaimPolicy::All;
}

async fn every_row_is_read_and_the_node_continues<R: Rt>(runtime: R) {
    let (dir, facts) = fixture();
    let (own, first) = (id(&facts, "id"), id(&facts, "first"));
    assert_eq!(key_files(dir.path()), ["node.crt", "node.key", &format!("{first}.key")]);
    let kept = snapshot(dir.path());
    assert_eq!(kept.meta.unwrap().owner, own);
    assert_eq!(sorted(kept.contacts.iter().map(|(node, _)| node)), texts(&facts, "contacts"));
    assert!(kept.contacts.iter().all(|(_, contact)| contact.iter().count() > 0));
    assert_eq!(sorted(&kept.allowed), texts(&facts, "allowed"));
    let claims = texts(&facts, "claims");
    let head = kept.chain.unwrap();
    assert_eq!(
        (head.id.to_string(), head.seq),
        (claims.last().unwrap().clone(), claims.len() as u64)
    );
    let (mut ours, mut theirs) = (vec![], vec![]);
    for open in &kept.exchanges {
        match open {
            OpenExchange::Ours { peer, .. } => ours.push(*peer),
            OpenExchange::Theirs { issuer, .. } => theirs.push(*issuer),
        }
    }
    assert_eq!((ours, theirs), (vec![id(&facts, "inDoubt")], vec![id(&facts, "agreed")]));

    let a = open_with(&runtime, dir.path(), allow_all_claims).await;
    assert_eq!(a.own_id(), own);
    let ids = verify_client(&a.identity().chain, pk_driver::unix_now().as_secs()).unwrap().chain;
    assert_eq!(ids, [own, first]);
    let before = chain(&runtime, &a).await;
    assert_eq!(before.iter().map(|claim| claim.id().to_string()).collect::<Vec<_>>(), claims);
    let mut verifier = ChainVerifier::new(ids);
    before.iter().for_each(|claim| verifier.verify(claim).unwrap());
    assert_eq!(sorted(a.allowed_claims().await.unwrap()), texts(&facts, "allowed"));
    let gestalt = soon(
        &runtime,
        "gestalt",
        a.gestalt(own, GestaltQuery::default(), RequestOptions::default()),
    )
    .await
    .unwrap();
    assert_eq!(sorted(&gestalt.nodes), texts(&facts, "gestalt"));
    let in_doubt = a.unconfirmed_claims().await.unwrap();
    assert_eq!(in_doubt.iter().map(|(_, node)| *node).collect::<Vec<_>>(), [id(&facts, "inDoubt")]);

    // It is found under both ids, and its chain continues from either side.
    let b = start_with(&runtime, 2, allow_all_claims).await;
    soon(&runtime, "connect", b.connect(first, seed(&a).address, RequestOptions::default()))
        .await
        .unwrap();
    soon(&runtime, "claim", a.claim_node(b.own_id(), RequestOptions::default())).await.unwrap();
    soon(&runtime, "claim", b.claim_node(own, RequestOptions::default())).await.unwrap();
    let read = b.request_chain_data(own, None, None, RequestOptions::default());
    let (read, end) = soon(&runtime, "the chain", read).await.unwrap();
    assert_eq!((end.fault, read.len()), (None, claims.len() + 2));
    assert_eq!(read[..claims.len()], before);
    shutdown(&runtime, &[&a]).await;

    // New rows are read as well, and the old ones are still there.
    let a = open_with(&runtime, dir.path(), allow_all_claims).await;
    assert_eq!((a.own_id(), chain(&runtime, &a).await), (own, read));
    assert_eq!(sorted(a.allowed_claims().await.unwrap()), texts(&facts, "allowed"));
    let renewed = soon(&runtime, "renewal", a.renew()).await.unwrap();
    assert_eq!(renewed.old, own);
    let fresh = start(&runtime, 3).await;
    let connected = fresh.connect(first, seed(&a).address, RequestOptions::default());
    assert_eq!(soon(&runtime, "connect", connected).await.unwrap().node, renewed.new);
    shutdown(&runtime, &[&a, &b, &fresh]).await;
}

/// The peer of an exchange, which has lost everything but its key.
async fn peer<R: Rt>(runtime: &R, node: NodeId) -> Node<R> {
    let byte = (0..=255).find(|byte| KeyPair::from_seed(&[*byte; 32]).node_id() == node).unwrap();
    let mut config = config(byte);
    allow_all_claims(&mut config);
    soon(runtime, "start", Node::start_on(runtime.clone(), config)).await.unwrap()
}

async fn unfinished_exchanges_are_completed<R: Rt>(runtime: R) {
    let (dir, facts) = fixture();
    let own = id(&facts, "id");
    let a = open_with(&runtime, dir.path(), allow_all_claims).await;
    let before = a.chain_head().await.unwrap().unwrap().seq;
    // The claim of the local node is committed: the peer receives its counterpart.
    let doubted = peer(&runtime, id(&facts, "inDoubt")).await;
    connect(&runtime, &doubted, &a).await;
    until(&runtime, "the end of the doubt", async || {
        a.unconfirmed_claims().await.unwrap().is_empty()
    })
    .await;
    let (theirs, end) = soon(
        &runtime,
        "their chain",
        a.request_chain_data(doubted.own_id(), None, None, RequestOptions::default()),
    )
    .await
    .unwrap();
    let [claim] = &theirs[..] else { panic!("{theirs:?}") };
    assert_eq!((end.fault, claim.link().unwrap().issuer), (None, own));
    assert_eq!(a.chain_head().await.unwrap().unwrap().seq, before);
    // The exchange that the local node had accepted was never finished, and the peer starts it
    // again.
    let agreed = peer(&runtime, id(&facts, "agreed")).await;
    connect(&runtime, &agreed, &a).await;
    soon(&runtime, "claim", agreed.claim_node(own, RequestOptions::default())).await.unwrap();
    assert_eq!(a.chain_head().await.unwrap().unwrap().seq, before + 1);
    shutdown(&runtime, &[&a, &doubted, &agreed]).await;
}

//! Nodes whose root key a signer holds, which is slow, fails, does not answer, or signs wrongly.

use std::path::Path;
use std::time::Duration;

use pk_driver::{
    IdentityError, KeyStore, Node, NodeConfig, NodeError, RootKey, SignerError, StartError,
};
use pk_proto::cert::{Certificate, verify_server};
use pk_proto::claims::ClaimPolicy;
use pk_proto::{Identity, NodeId, RequestOptions};
use pk_tests::Rt;
use pk_tests::node::{address, connect, shutdown, start, start_with};
use pk_tests::signer::{Behavior, Remote};
use pk_tests::socket::loopback;
use pk_tests::wait::{SOON, seen_within, sleep, soon, until, within};

use crate::kit::{key_files, present_key};

pk_tests::cases!(
    slow_signer_is_awaited,
    start_without_a_signature_fails_and_stores_nothing,
    node_restarts_without_its_signer,
    node_continues_until_its_certificate_expires,
    expired_root_certificate_is_issued_again,
    another_signer_is_refused,
    renewed_hot_key_keeps_the_root,
);

const SLOW: Duration = Duration::from_millis(300);

/// Starts the node of a directory.
async fn try_open<R: Rt>(
    runtime: &R,
    dir: &Path,
    root: RootKey,
    change: impl FnOnce(&mut NodeConfig),
) -> Result<Node<R>, NodeError> {
    let mut config = NodeConfig::open_with_signer(dir, root).unwrap();
    config.listen = loopback();
    config.core.claim_policy = ClaimPolicy::All;
    change(&mut config);
    soon(runtime, "start", Node::start_on(runtime.clone(), config)).await
}

async fn open<R: Rt>(runtime: &R, dir: &Path, root: RootKey) -> Node<R> {
    try_open(runtime, dir, root, |_| {}).await.unwrap()
}

/// The ids of the certificates, newest first.
fn ids(identity: &Identity) -> Vec<NodeId> {
    identity.chain.iter().map(|der| Certificate::parse(der).unwrap().node_id()).collect()
}

fn signer_error(result: Result<impl Sized, NodeError>) -> SignerError {
    match result.err().expect("a node started") {
        NodeError::Start(StartError::Identity(IdentityError::Signer(error))) => error,
        other => panic!("{other:?}"),
    }
}

/// Connects to a node by this id. Returns the id that it has proved. A certificate of a few seconds
/// may expire between its issue and the dial; then it is issued again.
async fn connect_by_id<R: Rt>(runtime: &R, from: &Node<R>, node: &Node<R>, id: NodeId) -> NodeId {
    // The node may dial in between.
    until(runtime, "the end", async || {
        for known in [id, node.own_id()] {
            from.disconnect(known).await.unwrap();
        }
        from.connections().await.unwrap().is_empty()
    })
    .await;
    seen_within(runtime, SOON, "a connection", async || {
        let connected = from.connect(id, address(node), RequestOptions::default());
        Some(connected.await.ok()?.node)
    })
    .await
}

async fn slow_signer_is_awaited<R: Rt>(runtime: R) {
    let dir = tempfile::tempdir().unwrap();
    let remote = Remote::new(9);
    remote.becomes(Behavior::Signs(SLOW));
    let root = remote.root().node_id();
    let node = open(&runtime, dir.path(), remote.root()).await;
    assert_eq!(ids(&node.identity()), [node.own_id(), root]);
    assert_eq!(present_key(dir.path()), node.own_id(), "the directory has the hot key");
    assert_eq!(key_files(dir.path()), ["node.crt", "node.key"]);
    assert_eq!(remote.requests(), 3, "the root certificate has two signatures by its key");
    assert_eq!(node.certificate_failure(), None);
    // Peers find it by both ids, and verify claims with that of the hot key.
    let peer = start_with(&runtime, 2, |config| config.core.claim_policy = ClaimPolicy::All).await;
    for id in [root, node.own_id()] {
        assert_eq!(connect_by_id(&runtime, &peer, &node, id).await, node.own_id());
    }
    soon(&runtime, "a claim", node.claim_node(peer.own_id(), RequestOptions::default()))
        .await
        .unwrap();
    let chain = peer.request_chain_data(node.own_id(), None, None, RequestOptions::default());
    let (claims, end) = soon(&runtime, "a chain", chain).await.unwrap();
    assert_eq!((claims.len(), end.fault), (1, None));
    claims[0].token().verify(&node.own_id()).unwrap();
    assert!(claims[0].token().verify(&root).is_err(), "the root key signs no claims");
    assert_eq!(remote.requests(), 3, "connections and claims do not use the signer");
    shutdown(&runtime, &[&node, &peer]).await;
}

async fn start_without_a_signature_fails_and_stores_nothing<R: Rt>(runtime: R) {
    let dir = tempfile::tempdir().unwrap();
    let remote = Remote::new(9);
    let root = || {
        let mut root = remote.root();
        root.timeout = SLOW;
        root
    };
    let mut key = None;
    for (behavior, expected) in [
        (Behavior::Fails, SignerError::Failed("the card is locked".into())),
        (Behavior::Hangs, SignerError::TimedOut(SLOW)),
        (
            Behavior::Forges,
            SignerError::Wrong { key: root().node_id(), fault: pk_proto::SignatureFault::Mismatch },
        ),
    ] {
        remote.becomes(behavior);
        let error = signer_error(try_open(&runtime, dir.path(), root(), |_| {}).await);
        assert_eq!(error, expected);
        assert_eq!(key_files(dir.path()), ["node.key"], "{behavior:?}");
        let present = present_key(dir.path());
        assert_eq!(*key.get_or_insert(present), present, "the hot key stays");
    }
    remote.becomes(Behavior::Signs(Duration::ZERO));
    let node = open(&runtime, dir.path(), root()).await;
    assert_eq!(Some(node.own_id()), key);
    shutdown(&runtime, &[&node]).await;
}

async fn node_restarts_without_its_signer<R: Rt>(runtime: R) {
    let dir = tempfile::tempdir().unwrap();
    let remote = Remote::new(9);
    let node = open(&runtime, dir.path(), remote.root()).await;
    let (id, identity, requests) = (node.own_id(), node.identity(), remote.requests());
    shutdown(&runtime, &[&node]).await;
    for behavior in [Behavior::Hangs, Behavior::Fails] {
        remote.becomes(behavior);
        let node = open(&runtime, dir.path(), remote.root()).await;
        assert_eq!((node.own_id(), node.identity()), (id, identity.clone()));
        shutdown(&runtime, &[&node]).await;
    }
    assert_eq!(remote.requests(), requests, "a valid certificate needs no signature");
}

async fn node_continues_until_its_certificate_expires<R: Rt>(runtime: R) {
    let dir = tempfile::tempdir().unwrap();
    let remote = Remote::new(9);
    let mut root = remote.root();
    // A shutdown that waited for this would fail the case.
    root.timeout = Duration::from_secs(600);
    let lifetime = |config: &mut NodeConfig| {
        config.driver.certificate_lifetime = Duration::from_secs(9);
    };
    let node = try_open(&runtime, dir.path(), root.clone(), lifetime).await.unwrap();
    let (id, first) = (node.own_id(), node.identity());
    remote.becomes(Behavior::Fails);
    let peer = start(&runtime, 2).await;
    connect(&runtime, &peer, &node).await;
    // The certificate is due after 6 s.
    within(&runtime, SOON, "a failure", async {
        while node.certificate_failure().is_none_or(|failure| failure.attempts < 2) {
            sleep(&runtime, Duration::from_millis(20)).await;
        }
    })
    .await;
    let failure = node.certificate_failure().unwrap();
    assert!(failure.error.contains("the card is locked"), "{failure:?}");
    assert_eq!(node.identity(), first, "nothing but a signature replaces it");
    assert_eq!(KeyStore::new(dir.path()).load_identity().unwrap(), Some(first.clone()));
    soon(&runtime, "ping", peer.ping_node(id, RequestOptions::default())).await.unwrap();
    // A wrong signature is found before anything is stored.
    remote.becomes(Behavior::Forges);
    until(&runtime, "the next attempt", async || {
        node.certificate_failure().is_some_and(|failure| failure.error.contains("has not made"))
    })
    .await;
    assert_eq!(KeyStore::new(dir.path()).load_identity().unwrap(), Some(first.clone()));
    // The signer is available again: the node has a new certificate of the same key, also if its
    // old one has expired meanwhile.
    remote.becomes(Behavior::Signs(SLOW));
    until(&runtime, "a new certificate", async || node.identity() != first).await;
    assert_eq!(ids(&node.identity()), ids(&first));
    until(&runtime, "no failure", async || node.certificate_failure().is_none()).await;
    assert_eq!(connect_by_id(&runtime, &peer, &node, id).await, id);
    // A signer that does not answer delays neither calls nor the shutdown.
    let requests = remote.requests();
    remote.becomes(Behavior::Hangs);
    until(&runtime, "an attempt", async || remote.requests() > requests).await;
    shutdown(&runtime, &[&node, &peer]).await;
    // After its end it cannot start without the signer.
    remote.becomes(Behavior::Fails);
    let newest = KeyStore::new(dir.path()).load_identity().unwrap().unwrap();
    until(&runtime, "the expiry", async || {
        verify_server(&newest.chain, &[id], pk_driver::unix_now().as_secs()).is_err()
    })
    .await;
    let error = signer_error(try_open(&runtime, dir.path(), root.clone(), lifetime).await);
    assert_eq!(error, SignerError::Failed("the card is locked".into()));
    remote.becomes(Behavior::Signs(Duration::ZERO));
    let node = try_open(&runtime, dir.path(), root, lifetime).await.unwrap();
    assert_eq!(node.own_id(), id);
    shutdown(&runtime, &[&node]).await;
}

async fn expired_root_certificate_is_issued_again<R: Rt>(runtime: R) {
    let dir = tempfile::tempdir().unwrap();
    let remote = Remote::new(9);
    let mut root = remote.root();
    root.lifetime = Duration::from_secs(4);
    let node = open(&runtime, dir.path(), root.clone()).await;
    let first = node.identity();
    until(&runtime, "a new root certificate", async || node.identity().chain[1] != first.chain[1])
        .await;
    let peer = start(&runtime, 2).await;
    assert_eq!(connect_by_id(&runtime, &peer, &node, root.node_id()).await, node.own_id());
    shutdown(&runtime, &[&node]).await;
    // The certificate expires while the node does not run, and the signer is unavailable at the
    // start.
    let stored = KeyStore::new(dir.path()).load_identity().unwrap().unwrap();
    let expired = || {
        let now = pk_driver::unix_now().as_secs();
        verify_server(&stored.chain, &[root.node_id()], now).is_err()
    };
    until(&runtime, "the expiry", async || expired()).await;
    remote.becomes(Behavior::Fails);
    let node = open(&runtime, dir.path(), root.clone()).await;
    assert_eq!(connect_by_id(&runtime, &peer, &node, node.own_id()).await, node.own_id());
    until(&runtime, "a failure", async || node.certificate_failure().is_some()).await;
    root.lifetime = Duration::from_secs(1000);
    remote.becomes(Behavior::Signs(Duration::ZERO));
    until(&runtime, "a new chain", async || node.certificate_failure().is_none()).await;
    assert_eq!(connect_by_id(&runtime, &peer, &node, root.node_id()).await, node.own_id());
    shutdown(&runtime, &[&node, &peer]).await;
}

async fn another_signer_is_refused<R: Rt>(runtime: R) {
    let dir = tempfile::tempdir().unwrap();
    let node = open(&runtime, dir.path(), Remote::new(9).root()).await;
    shutdown(&runtime, &[&node]).await;
    let files = KeyStore::new(dir.path()).load_identity().unwrap();
    let other = Remote::new(8);
    let refused = try_open(&runtime, dir.path(), other.root(), |_| {}).await;
    assert!(
        matches!(
            refused,
            Err(NodeError::Start(StartError::Identity(IdentityError::ForeignRoot { .. })))
        ),
        "{refused:?}"
    );
    assert_eq!((KeyStore::new(dir.path()).load_identity().unwrap(), other.requests()), (files, 0));
    let refused = try_open(&runtime, dir.path(), other.root(), |config| {
        config.signer.as_mut().unwrap().timeout = Duration::ZERO;
    });
    let error = refused.await.unwrap_err().to_string();
    assert!(error.contains("timeout of the root key is 0ns"), "{error}");
}

async fn renewed_hot_key_keeps_the_root<R: Rt>(runtime: R) {
    let dir = tempfile::tempdir().unwrap();
    let remote = Remote::new(9);
    let node = open(&runtime, dir.path(), remote.root()).await;
    let (old, root, requests) = (node.own_id(), remote.root().node_id(), remote.requests());
    let renewed = soon(&runtime, "renew", node.renew()).await.unwrap();
    assert_eq!(remote.requests(), requests, "the present hot key certifies the next one");
    let chain = [renewed.new, old, root];
    assert_eq!(ids(&node.identity()), chain);
    let peer = start(&runtime, 2).await;
    for id in chain {
        assert_eq!(connect_by_id(&runtime, &peer, &node, id).await, renewed.new);
    }
    shutdown(&runtime, &[&node, &peer]).await;
    let node = open(&runtime, dir.path(), remote.root()).await;
    assert_eq!((node.own_id(), ids(&node.identity())), (renewed.new, chain.to_vec()));
    shutdown(&runtime, &[&node]).await;
}

//! Helpers of the tests of claims.
#![allow(unreachable_pub, reason = "a module of a test")]

use std::ops::Bound;
use std::time::Duration;

use pk_proto::claims::{ChainVerifier, Claim, ClaimContent, ClaimId, ClaimPolicy, Gestalt};
use pk_proto::{
    ClaimsFound, ClaimsQuery, Config, Event, Failure, GestaltQuery, Reply, Request, RequestId,
    RequestOptions,
};
use pk_sim::{Cluster, ClusterBuilder, HostId, Link};

use crate::common::SECOND;

/// Nodes that allow all claims, on links of 50 ms, with a delay of signatures.
pub fn nodes(count: usize, change: impl FnOnce(&mut Config)) -> ClusterBuilder {
    Cluster::quiet().nodes(count).link(Link::ms(25)).config(|config| {
        config.claim_policy = ClaimPolicy::All;
        config.store_delay = Duration::ZERO;
        config.refresh_delay = Duration::ZERO;
        config.retry_delay = Duration::ZERO;
        change(config);
    })
}

/// The same, started.
pub fn started(count: usize, seed: u64, change: impl FnOnce(&mut Config)) -> Cluster {
    nodes(count, change).seed(seed).start()
}

/// Connects two nodes, and waits until the connection has settled.
pub fn connect(cluster: &mut Cluster, from: HostId, to: HostId) {
    assert!(matches!(cluster.connect(from, to), Ok(Reply::Connect(_))));
    cluster.drive(SECOND);
}

/// Node 0 is connected to node 1, which has this policy, and node 0 on its list if `allowed`.
pub fn connected_with_policy(policy: ClaimPolicy, allowed: bool) -> Cluster {
    let mut cluster = started(2, 4, |config| config.claim_policy = policy);
    connect(&mut cluster, 0, 1);
    if allowed {
        let node = cluster.id(0);
        let allow = Request::AllowClaim { node, allowed: true, options: RequestOptions::default() };
        assert_eq!(cluster.ask(1, allow), Ok(Reply::AllowClaim));
    }
    cluster
}

pub fn claim(cluster: &Cluster, with: HostId) -> Request {
    Request::ClaimNode { target: cluster.id(with), options: RequestOptions::default() }
}

/// A claim of another type, about the node itself.
pub fn own_claim(cluster: &Cluster, node: HostId) -> Request {
    let issuer = Some(cluster.id(node).to_string());
    let members = "{\"colour\":\"green\"}".into();
    let content = ClaimContent { typ: "ClaimColour".into(), issuer, subject: None, members };
    Request::AddClaim { content, options: RequestOptions::default() }
}

/// A claim that succeeds.
pub fn claimed(result: Result<Reply, Failure>) -> ClaimId {
    match result {
        Ok(Reply::ClaimNode(claim)) => claim,
        other => panic!("{other:?}"),
    }
}

/// The stored chain of a node, each claim of it verified in order.
pub fn chain(cluster: &mut Cluster, node: HostId) -> Vec<Claim> {
    let query = ClaimsQuery {
        from: Bound::Unbounded,
        to: Bound::Unbounded,
        descending: false,
        limit: 1000,
    };
    let claims =
        match cluster.ask(node, Request::Claims { query, options: RequestOptions::default() }) {
            Ok(Reply::Claims(ClaimsFound { claims, more: false })) => claims,
            other => panic!("{other:?}"),
        };
    let mut verifier = ChainVerifier::new(owners(cluster, node));
    for claim in &claims {
        if let Err(fault) = verifier.verify(claim) {
            cluster.fail(&format!("the chain of node {node}: {fault}"));
        }
    }
    let head = cluster.node(node).chain_head().map(|head| (head.id, head.seq));
    assert_eq!(
        head,
        claims.last().map(|claim| (claim.id(), claim.seq())),
        "the head of node {node}"
    );
    claims
}

/// Every id of a node, newest first.
pub fn owners(cluster: &Cluster, node: HostId) -> Vec<pk_proto::NodeId> {
    let chain = pk_proto::cert::verify_client(
        &cluster.host(node).identity.chain,
        cluster.unix(node).as_secs(),
    );
    chain.unwrap().chain
}

/// The number of claims in the chain of `owner` that `issuer` has started with `subject`.
pub fn count(cluster: &mut Cluster, owner: HostId, issuer: HostId, subject: HostId) -> usize {
    let (issuers, subjects) = (owners(cluster, issuer), owners(cluster, subject));
    let links = chain(cluster, owner).into_iter().filter_map(|claim| claim.link().copied());
    links.filter(|link| issuers.contains(&link.issuer) && subjects.contains(&link.subject)).count()
}

/// The nodes that are linked with a node, by all its keys, from its own store.
pub fn gestalt(cluster: &mut Cluster, node: HostId) -> Gestalt {
    let query = GestaltQuery { direct: false, limit: 100 };
    let of = cluster.id(node);
    match cluster
        .ask(node, Request::Gestalt { node: of, query, options: RequestOptions::default() })
    {
        Ok(Reply::Gestalt(gestalt)) => gestalt,
        other => panic!("{other:?}"),
    }
}

/// Checks that both nodes have exactly this many claims that `from` has started, and that both
/// gestalts contain the link.
pub fn assert_linked(cluster: &mut Cluster, from: HostId, to: HostId, claims: usize) {
    for (node, other) in [(from, to), (to, from)] {
        assert_eq!(
            count(cluster, node, from, to),
            claims,
            "claims of {from} with {to} in the chain of {node}"
        );
        let (linked, other) = (gestalt(cluster, node).nodes, owners(cluster, other));
        assert!(other.iter().any(|id| linked.contains(id)), "the gestalt of {node} has no link");
    }
}

/// Checks that no state of any exchange is left.
pub fn assert_settled(cluster: &Cluster, node: HostId) {
    let machine = cluster.node(node);
    assert_eq!(machine.exchanges(), [], "exchanges of node {node}");
    assert_eq!(machine.unconfirmed_claims().count(), 0, "claims of node {node} in doubt");
    assert_eq!(machine.metrics().exchanges, 0, "exchanges of others at node {node}");
}

/// Events of a node that are of interest.
pub fn events<T>(cluster: &Cluster, node: HostId, wanted: impl Fn(&Event) -> Option<T>) -> Vec<T> {
    cluster.events(node).iter().filter_map(|(_, event)| wanted(event)).collect()
}

/// Starts a claim of each pair at the same instant.
pub fn begin(cluster: &mut Cluster, pairs: &[(HostId, HostId)]) -> Vec<(HostId, RequestId)> {
    pairs
        .iter()
        .map(|(from, to)| {
            let request = claim(cluster, *to);
            (*from, cluster.request(*from, request))
        })
        .collect()
}

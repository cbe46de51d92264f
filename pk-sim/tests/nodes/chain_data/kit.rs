//! Nodes with chains, and requests for chains.

use pk_proto::claims::{Claim, Gestalt, claim_row};
use pk_proto::{
    ChainData, ClaimsFound, ClaimsQuery, Event, Failure, GestaltQuery, Reply, Request, RequestId,
    RequestOptions,
};
use pk_sim::{Cluster, HostId, Key};

use crate::common::chains::chain;

pub const ASKER: HostId = 0;
pub const OWNER: HostId = 1;
pub const SEED: u64 = 5;

/// The key of a node of the cluster.
pub fn key(node: HostId) -> Key {
    Key::numbered(SEED, node as u64)
}

/// A node to link with.
pub fn friend(number: u64) -> Key {
    Key::numbered(SEED + 1, number)
}

pub fn friends(count: u64) -> Vec<Key> {
    (0..count).map(friend).collect()
}

pub fn request(target: HostId, since: Option<&Claim>) -> Request {
    let since = since.cloned();
    Request::RequestChainData {
        target: key(target).id(),
        since,
        limit: None,
        options: RequestOptions::default(),
    }
}

/// Every claim that was reported for a request.
pub fn reported_claims(cluster: &Cluster, node: HostId, id: RequestId) -> Vec<Claim> {
    let pages = cluster.events(node).iter().filter_map(|(_, event)| match event {
        Event::ChainData { id: of, claims } if *of == id => Some(claims.clone()),
        _ => None,
    });
    pages.flatten().collect()
}

pub fn outcome(result: Result<Reply, Failure>) -> ChainData {
    match result {
        Ok(Reply::RequestChainData(outcome)) => outcome,
        other => panic!("{other:?}"),
    }
}

pub fn gestalt(cluster: &mut Cluster, node: HostId, of: &Key, query: GestaltQuery) -> Gestalt {
    match cluster
        .ask(node, Request::Gestalt { node: of.id(), query, options: RequestOptions::default() })
    {
        Ok(Reply::Gestalt(gestalt)) => gestalt,
        other => panic!("{other:?}"),
    }
}

pub fn claims(cluster: &mut Cluster, node: HostId, query: ClaimsQuery) -> ClaimsFound {
    match cluster.ask(node, Request::Claims { query, options: RequestOptions::default() }) {
        Ok(Reply::Claims(found)) => found,
        other => panic!("{other:?}"),
    }
}

/// Two connected nodes, of which the second has a chain.
pub fn with_chain(chain: &[Claim]) -> Cluster {
    let mut cluster = Cluster::quiet().nodes(2).seed(SEED).start();
    cluster.host_mut(OWNER).store.seed(chain.iter().map(claim_row));
    cluster.connect(ASKER, OWNER).unwrap();
    cluster
}

/// Three valid claims.
pub fn valid_claims() -> Vec<Claim> {
    chain(&key(OWNER), &friends(3))
}

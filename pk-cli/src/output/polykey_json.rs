//! JSON forms of the reference: those that its test peer prints, and those of its RPC (docs/WIRE.md
//! section 5).

use data_encoding::{BASE64, BASE64URL_NOPAD};
use pk_proto::claims::{Claim, TokenSignature};
use pk_proto::{
    ActiveNode, ConnectionInfo, ContactMode, Identity, NodeAddress, NodeContact,
    NodeContactAddressData, NodeId, Scopes, SetNodeOutcome,
};
use serde_json::{Map, Value, json};

use crate::error::{CliError, Result};

/// Returns a NodeAddress: host and port.
pub(crate) fn address(address: &NodeAddress) -> Value {
    json!([address.host.to_string(), address.port])
}

/// Returns a NodeContactAddressData.
pub(crate) fn contact_data(data: &NodeContactAddressData) -> Value {
    json!({ "mode": mode(data.mode), "connectedTime": data.connected_time.0, "scopes": scopes(data.scopes) })
}

/// Returns a NodeContact: addresses by key.
pub(crate) fn contact(contact: &NodeContact) -> Value {
    contact
        .iter()
        .map(|(address, data)| (address.contact_key(), contact_data(data)))
        .collect::<Map<_, _>>()
        .into()
}

/// Returns the result of findNode and pingNode for a node that was found.
pub(crate) fn found(at: &NodeAddress, data: &NodeContactAddressData) -> Value {
    json!([address(at), contact_data(data)])
}

/// Returns a node that answered a search, and where.
pub(crate) fn found_closest((node, at): &(NodeId, NodeAddress)) -> Value {
    json!({ "nodeId": node.to_string(), "address": at.to_string() })
}

/// Returns the outcome of adding a node to the graph. The reference reports none.
///
/// # Errors
///
/// The node was rejected.
pub(crate) fn set_node(outcome: SetNodeOutcome) -> Result<Value> {
    match outcome {
        SetNodeOutcome::Added => Ok(json!({ "outcome": "added" })),
        SetNodeOutcome::Updated => Ok(json!({ "outcome": "updated" })),
        SetNodeOutcome::Replaced(node) => {
            Ok(json!({ "outcome": "replaced", "replaced": node.to_string() }))
        }
        SetNodeOutcome::Pending => Ok(json!({ "outcome": "pending" })),
        SetNodeOutcome::Rejected(why) => {
            Err(CliError::new("Rejected", format!("the node was rejected: {why}")))
        }
        other => Err(CliError::new("Unexpected", format!("{other:?}"))),
    }
}

/// Returns one entry of the response of nodesClosestLocalNodesGet.
pub(crate) fn closest_node(node: NodeId, known: &NodeContact) -> Value {
    json!({ "nodeIdEncoded": node.to_string(), "nodeContact": contact(known) })
}

/// Returns one entry of the response of nodesClosestActiveConnectionsGet.
pub(crate) fn active_node(active: &ActiveNode) -> Value {
    let connections: Map<String, Value> = active
        .connections
        .iter()
        .map(|connection| {
            let mut entry = json!({
                "host": connection.address.host.to_string(),
                "port": connection.address.port,
                "primary": connection.primary,
            });
            if let Some(ms) = connection.idle_in_ms {
                entry["timeout"] = ms.into();
            }
            (connection_id(&connection.shared_id), entry)
        })
        .collect();
    json!({ "nodeId": active.node.to_string(), "connections": connections })
}

/// Returns one entry of listConnections. The reference counts the uses of a connection; here a
/// connection in use counts as 1.
pub(crate) fn connection(info: &ConnectionInfo) -> Value {
    let mut entry = json!({
        "nodeId": info.node.to_string(),
        "connectionId": connection_id(&info.shared_id),
        "primary": info.primary,
        "suspected": info.suspected,
        "mode": mode(info.data.mode),
        "address": { "host": info.address.host.to_string(), "port": info.address.port },
        "usageCount": u8::from(info.idle_in.is_none()),
    });
    if let Some(idle_in) = info.idle_in {
        entry["timeout"] = u64::try_from(idle_in.as_millis()).unwrap_or(u64::MAX).into();
    }
    entry
}

/// Returns the shared id of a connection as text.
pub(crate) fn connection_id(shared_id: &[u8]) -> String {
    BASE64URL_NOPAD.encode(shared_id)
}

/// Returns a SignedTokenEncoded.
pub(crate) fn signed_token(claim: &Claim) -> Value {
    json!(claim.token().encoded())
}

/// Returns the payload of a claim, which is JSON.
pub(crate) fn payload(claim: &Claim) -> Value {
    serde_json::from_str(claim.token().payload()).unwrap_or_default()
}

/// Returns one entry of the response of nodesClaimsGet.
pub(crate) fn claim_message(claim: &Claim) -> Value {
    json!({ "claimIdEncoded": claim.id().to_string(), "signedTokenEncoded": signed_token(claim) })
}

/// Returns one entry of the result of requestChainData.
pub(crate) fn chain_claim(claim: &Claim) -> Value {
    let signers: Value = claim
        .token()
        .signatures()
        .iter()
        .map(TokenSignature::signer)
        .map(|id| id.to_string())
        .collect();
    json!({ "claimIdEncoded": claim.id().to_string(), "payload": payload(claim), "signers": signers })
}

/// Returns a certificate chain as PEM (RFC 7468), newest first.
pub(crate) fn pem(identity: &Identity) -> String {
    let mut pem = String::new();
    for der in &identity.chain {
        pem.push_str("-----BEGIN CERTIFICATE-----\n");
        let body = BASE64.encode(der);
        let mut rest = body.as_str();
        while !rest.is_empty() {
            let (line, after) = rest.split_at(rest.len().min(64));
            pem.push_str(line);
            pem.push('\n');
            rest = after;
        }
        pem.push_str("-----END CERTIFICATE-----\n");
    }
    pem
}

fn mode(mode: ContactMode) -> &'static str {
    match mode {
        ContactMode::Direct => "direct",
        ContactMode::Signal => "signal",
        ContactMode::Relay => "relay",
    }
}

fn scopes(scopes: Scopes) -> Vec<&'static str> {
    [("global", scopes.global), ("local", scopes.local)]
        .into_iter()
        .filter_map(|(name, on)| on.then_some(name))
        .collect()
}

#[cfg(test)]
mod tests {
    use pk_proto::UnixMillis;

    use super::*;

    const DATA: NodeContactAddressData = NodeContactAddressData {
        mode: ContactMode::Direct,
        connected_time: UnixMillis(1_700_000_000_123),
        scopes: Scopes { local: true, global: true },
    };

    #[test]
    fn contact_json_matches_the_reference() {
        let at: NodeAddress = "[::1]:9".parse().unwrap();
        let expected = json!({ "mode": "direct", "connectedTime": 1_700_000_000_123_u64, "scopes": ["global", "local"] });
        assert_eq!(
            contact(&NodeContact::new(at.clone(), DATA)),
            json!({ "0:0:0:0:0:0:0:1-9": expected.clone() })
        );
        assert_eq!(found(&at, &DATA), json!([["0:0:0:0:0:0:0:1", 9], expected]));
    }

    #[test]
    fn pem_has_lines_of_64() {
        let identity = Identity { chain: vec![vec![0; 50].into(), vec![0; 1].into()] };
        let lines: Vec<usize> = pem(&identity).lines().map(str::len).collect();
        assert_eq!(lines, [27, 64, 4, 25, 27, 4, 25]);
    }
}

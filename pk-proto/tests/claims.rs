//! Tokens, claims, their ids and their chains against the vectors of the reference (docs/WIRE.md
//! sections 1, 6 and 11).

#![allow(clippy::unwrap_used, reason = "helpers of tests are not seen as tests by the lint")]

use ed25519_dalek::{Signer, SigningKey};
use pk_proto::claims::{
    ChainFaultKind, ChainHead, ChainVerifier, Claim, ClaimContent, ClaimId, ClaimLinkNode,
    DigestAlgorithm, DoublySigned, SignedToken,
};
use pk_proto::{NodeId, Signature, UnixMillis};
use serde_json::Value;

fn vectors(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    let list = value[key].as_array().unwrap();
    assert!(!list.is_empty(), "{key}");
    list
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap()
}

fn hex(bytes: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(bytes)
}

fn key(value: &Value) -> SigningKey {
    let seed = data_encoding::HEXLOWER.decode(text(value, "seedHex").as_bytes()).unwrap();
    SigningKey::from_bytes(&seed.try_into().unwrap())
}

fn id(key: &SigningKey) -> NodeId {
    NodeId::from_bytes(key.verifying_key().to_bytes())
}

fn sign(key: &SigningKey, bytes: &[u8]) -> Signature {
    Signature(key.sign(bytes).to_bytes())
}

#[test]
fn ids_are_those_of_the_reference_under_the_same_clock() {
    for sample in list(&vectors(include_str!("vectors/claim_ids.json")), "samples") {
        let owner: NodeId = text(sample, "nodeId").parse().unwrap();
        let mut last = None;
        for vector in list(sample, "ids") {
            // The clock of this crate counts whole milliseconds, to which the reference rounds.
            let unix = UnixMillis(vector["epochMs"].as_f64().unwrap().round() as u64);
            let id = ClaimId::next(&owner, unix, last).unwrap();
            assert_eq!(hex(id.as_bytes()), text(vector, "hex"));
            assert_eq!(id.to_string(), text(vector, "encoded"));
            assert_eq!(text(vector, "encoded").parse(), Ok(id));
            last = Some(id);
        }
    }
}

#[test]
fn token_is_read_and_written_as_by_the_reference() {
    let vector = vectors(include_str!("vectors/tokens.json"));
    let encoded = vector["encoded"].to_string();
    let token = SignedToken::parse(encoded.as_bytes()).unwrap();
    assert_eq!(token.payload(), text(&vector, "canonicalPayload"));
    assert_eq!(serde_json::from_str::<Value>(&token.to_json()).unwrap(), vector["encoded"]);
    assert_eq!(SignedToken::parse(token.to_json().as_bytes()).as_ref(), Ok(&token));

    let signers = list(&vector, "signers");
    assert_eq!(token.signatures().len(), signers.len());
    for (signature, signer) in token.signatures().iter().zip(signers) {
        assert_eq!(signature.header(), text(signer, "canonicalProtected"));
        assert_eq!(signature.signer(), id(&key(signer)));
        assert_eq!(
            *signature.signature(),
            sign(&key(signer), text(signer, "signingInput").as_bytes())
        );
        assert_eq!(token.verify(&signature.signer()), Ok(()));
    }

    // The first signature has no further members in its header.
    let mut made = SignedToken::new(text(&vector, "canonicalPayload").into()).unwrap();
    let input = made.signing_input(&id(&key(&signers[0])));
    assert_eq!(input, text(&signers[0], "signingInput").as_bytes());
    made.add_signature(id(&key(&signers[0])), sign(&key(&signers[0]), &input)).unwrap();
    assert_eq!(made.signatures(), &token.signatures()[..1]);
}

#[test]
fn chains_are_verified_digested_and_created_as_by_the_reference() {
    let vector = vectors(include_str!("vectors/claims.json"));
    let nodes = vector["nodes"].as_object().unwrap();
    assert_eq!(nodes.len(), 2);
    for (name, node) in nodes {
        let owner = key(node);
        let other =
            nodes.iter().find(|(other, _)| *other != name).map(|(_, node)| key(node)).unwrap();
        let mut verifier = ChainVerifier::new(vec![id(&owner)]);
        let mut head: Option<ChainHead> = None;
        for vector in list(node, "sigchain") {
            let json = vector["signedTokenEncoded"].to_string();
            let named = text(vector, "claimIdEncoded").parse().unwrap();
            assert_eq!(hex(ClaimId::as_bytes(&named)), text(vector, "claimIdHex"));
            let claim = verifier.read(Some(named), json.as_bytes()).unwrap();
            verifier.verify(&claim).unwrap();
            assert_eq!(verifier.head(), Some((named, claim.seq())));
            assert_eq!(
                serde_json::from_str::<Value>(claim.token().payload()).unwrap(),
                vector["payload"]
            );
            for (signature, header) in
                claim.token().signatures().iter().zip(list(vector, "protectedHeaders"))
            {
                assert_eq!(serde_json::from_str::<Value>(signature.header()).unwrap(), *header);
            }
            assert_eq!(
                String::from_utf8(claim.token().digest_preimage()).unwrap(),
                text(vector, "digestPreimage")
            );
            let digest = claim.token().digest(DigestAlgorithm::Blake2b256);
            assert_eq!(hex(digest.as_bytes()), text(vector, "digestHex"));
            assert_eq!(digest.to_string(), text(vector, "digestEncoded"));
            assert!(DoublySigned::verify(claim.clone(), &id(&owner), &id(&other)).is_ok());
            assert!(DoublySigned::verify(claim.clone(), &id(&other), &id(&owner)).is_err());

            // With the same content and time it is equal to the byte.
            let link = *claim.link().unwrap();
            assert_eq!(Some(&*link.issuer.to_string()), claim.issuer());
            assert_eq!(link.other(&id(&owner)), Some(id(&other)));
            let unix = UnixMillis(claim.issued_at() * 1000);
            let draft =
                Claim::draft(&ClaimContent::link(&link), named, unix, head.as_ref()).unwrap();
            let signature = sign(&owner, &draft.signing_input(&id(&owner)));
            let half = draft.sign(id(&owner), signature).unwrap();
            let signature = sign(&other, &half.signing_input(&id(&other)));
            let made = half.clone().counter_sign(id(&other), signature).unwrap();
            assert_eq!(*made.claim(), claim);
            assert_eq!(half.completed_by(claim.clone(), &id(&other)), Ok(made));
            head = Some(ChainHead::of(&claim, DigestAlgorithm::Blake2b256));
        }
        assert_eq!(ClaimLinkNode::TYP, "ClaimLinkNode");
    }
}

/// A real node has skipped a number, and its chain is valid.
#[test]
fn chain_of_the_reference_with_a_gap_is_verified() {
    let vector = vectors(include_str!("vectors/claims_gap.json"));
    let owner: NodeId = text(&vector, "owner").parse().unwrap();
    let mut verifier = ChainVerifier::new(vec![owner]);
    let mut claims = Vec::new();
    for claim in list(&vector, "sigchain") {
        let json = claim["signedTokenEncoded"].to_string();
        let claim =
            verifier.read(text(claim, "claimIdEncoded").parse().ok(), json.as_bytes()).unwrap();
        verifier.verify(&claim).unwrap();
        claims.push(claim);
    }
    assert_eq!(claims.iter().map(Claim::seq).collect::<Vec<_>>(), [1, 3]);
    assert_eq!(ChainVerifier::after(vec![owner], &claims[0]).verify(&claims[1]), Ok(()));
    // Without the first claim there is a gap, and a repetition of the last one is a fork.
    let missing = ChainVerifier::new(vec![owner]).verify(&claims[1]).unwrap_err();
    assert_eq!((missing.seq, missing.kind), (1, ChainFaultKind::SeqGap(3)));
    let again = verifier.verify(&claims[1]).unwrap_err();
    assert_eq!((again.seq, again.kind), (4, ChainFaultKind::Fork(3)));
}

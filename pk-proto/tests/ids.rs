//! Node ids, distances and bucket indices against the vectors of the reference (docs/WIRE.md
//! section 1).

#![allow(clippy::unwrap_used, reason = "helpers of tests are not seen as tests by the lint")]

use ed25519_dalek::SigningKey;
use pk_proto::{BucketIndex, Distance, NodeId};
use serde_json::Value;

fn vectors(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

fn node_ids() -> Value {
    vectors(include_str!("vectors/node_ids.json"))
}

fn distances() -> Value {
    vectors(include_str!("vectors/distance.json"))
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    let list = value[key].as_array().unwrap();
    assert!(!list.is_empty(), "{key}");
    list
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap()
}

fn bytes(hex: &str) -> [u8; 32] {
    data_encoding::HEXLOWER.decode(hex.as_bytes()).unwrap().try_into().unwrap()
}

/// Big-endian bytes as decimal digits.
fn decimal(bytes: &[u8; 32]) -> String {
    let mut digits = vec![0u32];
    for byte in bytes {
        let mut carry = u32::from(*byte);
        for digit in &mut digits {
            carry += *digit * 256;
            *digit = carry % 10;
            carry /= 10;
        }
        while carry > 0 {
            digits.push(carry % 10);
            carry /= 10;
        }
    }
    digits.iter().rev().filter_map(|digit| char::from_digit(*digit, 10)).collect()
}

#[test]
fn id_is_the_public_key_of_its_seed_and_is_written_as_by_the_reference() {
    for vector in list(&node_ids(), "fromSeed") {
        let key =
            SigningKey::from_bytes(&bytes(text(vector, "seedHex"))).verifying_key().to_bytes();
        assert_eq!(key, bytes(text(vector, "publicKeyHex")));
        let id = NodeId::from_bytes(key);
        assert_eq!(id.as_bytes(), &bytes(text(vector, "nodeIdHex")));
        assert_eq!(id.to_string(), text(vector, "nodeIdEncoded"));
        assert_eq!(text(vector, "nodeIdEncoded").parse(), Ok(id));
    }
}

#[test]
fn any_32_bytes_are_an_id_and_are_read_back_from_text_and_json() {
    for vector in list(&node_ids(), "raw") {
        let id = NodeId::from_bytes(bytes(text(vector, "nodeIdHex")));
        let encoded = text(vector, "nodeIdEncoded");
        assert_eq!((id.to_string().as_str(), id.to_string().len()), (encoded, NodeId::TEXT_LEN));
        assert_eq!(encoded.parse(), Ok(id));
        assert_eq!(serde_json::to_value(id).unwrap(), vector["nodeIdEncoded"]);
        assert_eq!(serde_json::from_value::<NodeId>(vector["nodeIdEncoded"].clone()).unwrap(), id);
    }
}

#[test]
fn parsing_accepts_the_same_texts_as_the_reference() {
    let vectors = node_ids();
    let (good, bad): (Vec<_>, Vec<_>) =
        list(&vectors, "decode").iter().partition(|v| v["decodedHex"].is_string());
    assert!(good.len() >= 4 && bad.len() >= 6);
    for vector in good {
        let id = NodeId::from_bytes(bytes(text(vector, "decodedHex")));
        assert_eq!(text(vector, "input").parse(), Ok(id), "{vector}");
    }
    for vector in bad {
        assert!(vector["decodedHex"].is_null());
        assert!(text(vector, "input").parse::<NodeId>().is_err(), "{vector}");
        assert!(serde_json::from_value::<NodeId>(vector["input"].clone()).is_err(), "{vector}");
    }
}

#[test]
fn distances_and_bucket_indices_are_those_of_the_reference() {
    for pair in list(&distances(), "pairs") {
        let [a, b] = ["a", "b"].map(|key| text(pair, key).parse::<NodeId>().unwrap());
        assert_eq!(
            [*a.as_bytes(), *b.as_bytes()],
            ["aHex", "bHex"].map(|key| bytes(text(pair, key)))
        );
        let distance = a.distance(&b);
        assert_eq!(distance, Distance::from_bytes(bytes(text(pair, "distanceHex"))));
        assert_eq!(decimal(distance.as_bytes()), text(pair, "distanceDecimal"));
        assert_eq!(b.distance(&a), distance);
        // Equal ids are in no bucket; the reference throws, and the vector contains the text of its
        // error.
        let index =
            pair["bucketIndex"].as_u64().map(|index| BucketIndex(u8::try_from(index).unwrap()));
        assert_eq!(index.is_none(), a == b);
        assert_eq!(
            [a.bucket_index(&b), b.bucket_index(&a), distance.bucket_index()],
            [index; 3],
            "{pair}"
        );
    }
}

#[test]
fn sort_by_distance_has_the_order_of_the_reference() {
    let sort = &distances()["sort"];
    let ids = |key| {
        list(sort, key)
            .iter()
            .map(|id| id.as_str().unwrap().parse().unwrap())
            .collect::<Vec<NodeId>>()
    };
    let target: NodeId = text(sort, "target").parse().unwrap();
    let (mut input, expected) = (ids("input"), ids("ascendingByDistance"));
    assert_ne!(input, expected);
    input.sort_by_key(|id| id.distance(&target));
    assert_eq!(input, expected);
}

// Two parts of distance.json have no test here. `stickyIdleTimeout` is about connections and is
// tested with them. `bucketKeyLexiHex` is how the reference packs a bucket index into a key of its
// LevelDB; it never leaves that database, and the store of this project has other keys.

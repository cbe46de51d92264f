//! Contact keys against the vectors of the reference (docs/WIRE.md section 1, NodeContactAddress).

#![allow(clippy::unwrap_used, reason = "helpers of tests are not seen as tests by the lint")]

use pk_proto::{Host, NodeAddress};
use serde_json::Value;

/// Host as written, port, key.
fn samples() -> Vec<(String, u16, String)> {
    let vectors: Value = serde_json::from_str(include_str!("vectors/addresses.json")).unwrap();
    let samples = vectors["samples"].as_array().unwrap().iter();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    samples
        .map(|s| {
            (text(&s["host"]), s["port"].as_u64().unwrap().try_into().unwrap(), text(&s["key"]))
        })
        .collect()
}

#[test]
fn host_in_any_spelling_has_the_key_of_the_reference() {
    assert_eq!(samples().len(), 8);
    for (host, port, key) in samples() {
        let address = NodeAddress { host: host.parse().unwrap(), port };
        assert_eq!(address.contact_key(), key, "{host}");
    }
}

#[test]
fn key_is_read_back_as_its_address() {
    for (host, port, key) in samples() {
        let address = NodeAddress { host: host.parse::<Host>().unwrap(), port };
        assert_eq!(NodeAddress::from_contact_key(&key), Ok(address.clone()));
        assert_eq!(
            NodeAddress::from_contact_key(&format!("{host}-{port}")),
            Ok(address.clone()),
            "not canonical"
        );
        assert_eq!(address.to_string().parse(), Ok(address));
    }
}

#[test]
fn zone_of_an_address_stays_in_its_key() {
    let address: NodeAddress = "[FE80::1%eth-0]:7".parse().unwrap();
    assert_eq!(address.contact_key(), "fe80:0:0:0:0:0:0:1%eth-0-7");
    assert_eq!(NodeAddress::from_contact_key(&address.contact_key()), Ok(address));
}

#[test]
fn keys_without_a_proper_host_or_port_are_refused() {
    for key in [
        "",
        "-",
        "10.0.0.1",
        "10.0.0.1-",
        "10.0.0.1-0",
        "10.0.0.1-65536",
        "10.0.0.1-+80",
        "-80",
        "10.0.0.256-80",
    ] {
        assert!(NodeAddress::from_contact_key(key).is_err(), "{key}");
    }
}

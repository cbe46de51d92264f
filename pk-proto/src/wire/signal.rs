//! The bytes that source and relay sign for signalling (docs/WIRE.md section 8).

use alloc::string::String;
use alloc::vec::Vec;

use super::message::{SignalRequest, SignalTerms};
use crate::types::address::NodeAddress;
use crate::types::id::NodeId;

/// Returns what the source signs.
pub fn request_bytes(source: &NodeId, target: &NodeId, terms: &SignalTerms) -> Vec<u8> {
    let ids = [source.as_bytes().as_slice(), target.as_bytes().as_slice()].concat();
    match terms {
        SignalTerms::Once { expires, nonce } => {
            [b"pk/1 signal request", &ids[..], &expires.0.to_be_bytes(), nonce].concat()
        }
        SignalTerms::Plain => ids,
    }
}

/// Returns what the relay signs: the source's request and the source's address, from
/// [`address_text`] or as it was received.
pub fn relay_bytes(source: &NodeId, address_text: &str, request: &SignalRequest) -> Vec<u8> {
    let (asked, signature) =
        (request_bytes(source, &request.target, &request.terms), &request.signature.0);
    match request.terms {
        SignalTerms::Once { .. } => {
            [b"pk/1 signal relay", &asked[..], signature, address_text.as_bytes()].concat()
        }
        SignalTerms::Plain => [&asked[..], address_text.as_bytes(), signature].concat(),
    }
}

/// Returns the text of an address that a relay signs.
pub fn address_text(terms: &SignalTerms, address: &NodeAddress) -> String {
    match terms {
        SignalTerms::Once { .. } => address.contact_key(),
        SignalTerms::Plain => crate::wire::polykey::write_address(address),
    }
}

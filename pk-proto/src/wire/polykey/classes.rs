//! Exception classes of the reference for refusals, and their counterparts here.

use alloc::borrow::ToOwned;
use alloc::string::ToString;

use bytes::Bytes;

use super::format::Method;
use super::message::{RemoteError, write_error};
use crate::types::refusal::Refusal;
use crate::types::time::UnixMillis;
use crate::wire::fault::RemoteFailure;

/// An exception class of the reference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Class {
    name: &'static str,
    description: &'static str,
    exit_code: u8,
}

const USAGE: u8 = 64;
const DATA: u8 = 65;
const UNAVAILABLE: u8 = 69;
/// Not the 77 that is used elsewhere: the reference uses 68.
const NO_PERMISSION: u8 = 68;

pub(crate) const fn class(name: &'static str, description: &'static str, exit_code: u8) -> Class {
    Class { name, description, exit_code }
}

pub(crate) const VALIDATION: Class = class("ErrorValidation", "Input data failed validation", DATA);
const PERMISSION: Class =
    class("ErrorNodePermissionDenied", "Permission not given to do this action", NO_PERMISSION);
const NOT_FOUND: Class =
    class("ErrorNodeConnectionManagerConnectionNotFound", "Connection was not found", UNAVAILABLE);
const RATE: Class =
    class("ErrorNodeConnectionManagerRequestRateExceeded", "Rate limit was exceeded", USAGE);
const REQUEST_SIGNATURE: Class = class(
    "ErrorNodesConnectionSignalRequestVerificationFailed",
    "Failed to verify the request message signature",
    UNAVAILABLE,
);
const RELAY_SIGNATURE: Class = class(
    "ErrorNodesConnectionSignalRelayVerificationFailed",
    "Failed to verify the relay message signature",
    UNAVAILABLE,
);
const SINGLY_SIGNED: Class =
    class("ErrorSinglySignedClaimVerificationFailed", "Unable to verify intermediary claim", DATA);
const DOUBLY_SIGNED: Class =
    class("ErrorDoublySignedClaimVerificationFailed", "Unable to verify claim", DATA);

/// Returns the class of a refusal for the caller of `method`.
fn class_of(refusal: Refusal, method: Option<Method>) -> Class {
    match refusal {
        Refusal::NotConnected => NOT_FOUND,
        // Can be retried.
        Refusal::RateLimited | Refusal::Busy | Refusal::Stale | Refusal::Volume => RATE,
        // A relay that refuses the signature of its caller uses the class of a target that refuses
        // the signature of the relay (docs/WIRE.md section 8).
        Refusal::Signature if method == Some(Method::SignalInitial) => RELAY_SIGNATURE,
        Refusal::Signature if matches!(method, Some(Method::CrossSign | Method::NetworkSign)) => {
            SINGLY_SIGNED
        }
        Refusal::RelaySignature => RELAY_SIGNATURE,
        Refusal::Signature
        | Refusal::Expired
        | Refusal::Replayed
        | Refusal::NotTarget
        | Refusal::Terms => REQUEST_SIGNATURE,
        Refusal::Address | Refusal::Claim => VALIDATION,
        Refusal::Denied => PERMISSION,
    }
}

/// Encodes the error of a refusal.
pub(crate) fn write_refusal(refusal: Refusal, method: Option<Method>, now: UnixMillis) -> Bytes {
    write(class_of(refusal, method), &refusal.to_string(), now)
}

/// Encodes the error for invalid parameters of a method.
pub(crate) fn write_invalid(message: &str, now: UnixMillis) -> Bytes {
    write(VALIDATION, message, now)
}

pub(crate) fn write(class: Class, message: &str, now: UnixMillis) -> Bytes {
    let error = RemoteError { class: class.name.to_owned(), message: message.to_owned() };
    write_error(&error, class.description, class.exit_code, now)
}

/// Refusals that share their class with others: a node of this project distinguishes them by the
/// message.
const SHARED: [(Class, Refusal); 7] = [
    (RATE, Refusal::Busy),
    (RATE, Refusal::Stale),
    (RATE, Refusal::Volume),
    (REQUEST_SIGNATURE, Refusal::NotTarget),
    (REQUEST_SIGNATURE, Refusal::Terms),
    (VALIDATION, Refusal::Address),
    (VALIDATION, Refusal::Claim),
];

/// Meaning of a class when nothing else is known.
const MEANINGS: [(Class, Refusal); 7] = [
    (PERMISSION, Refusal::Denied),
    (NOT_FOUND, Refusal::NotConnected),
    (RATE, Refusal::RateLimited),
    (REQUEST_SIGNATURE, Refusal::Signature),
    (RELAY_SIGNATURE, Refusal::RelaySignature),
    (SINGLY_SIGNED, Refusal::Signature),
    (DOUBLY_SIGNED, Refusal::Signature),
];

/// Returns the meaning of an error that answers a local call.
pub(crate) fn failure(error: &RemoteError) -> RemoteFailure {
    let of_class = |(class, _): &&(Class, Refusal)| class.name == error.class;
    let said =
        SHARED.iter().filter(of_class).find(|(_, refusal)| refusal.to_string() == error.message);
    match said.or_else(|| MEANINGS.iter().find(of_class)) {
        Some((_, refusal)) => RemoteFailure::Refused(*refusal),
        None => RemoteFailure::Exception {
            class: excerpt(&error.class),
            message: excerpt(&error.message),
        },
    }
}

/// Returns the start of a text, for people.
fn excerpt(text: &str) -> alloc::string::String {
    text.chars().take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::polykey::message::Response;
    use crate::wire::polykey::message::parse_response;

    #[test]
    fn every_refusal_has_an_error_class_that_is_read_as_the_same_refusal() {
        for (refusal, method, name, meant) in [
            (Refusal::NotConnected, Method::SignalInitial, NOT_FOUND.name, Refusal::NotConnected),
            (Refusal::RateLimited, Method::SignalInitial, RATE.name, Refusal::RateLimited),
            (
                Refusal::Signature,
                Method::SignalInitial,
                RELAY_SIGNATURE.name,
                Refusal::RelaySignature,
            ),
            (Refusal::Signature, Method::SignalFinal, REQUEST_SIGNATURE.name, Refusal::Signature),
            (
                Refusal::RelaySignature,
                Method::SignalFinal,
                RELAY_SIGNATURE.name,
                Refusal::RelaySignature,
            ),
            (Refusal::Denied, Method::CrossSign, PERMISSION.name, Refusal::Denied),
            (Refusal::Signature, Method::CrossSign, SINGLY_SIGNED.name, Refusal::Signature),
            (Refusal::Stale, Method::CrossSign, RATE.name, Refusal::Stale),
            (Refusal::Claim, Method::NetworkSign, VALIDATION.name, Refusal::Claim),
        ] {
            let bytes = write_refusal(refusal, Some(method), UnixMillis(0));
            let Ok(Response::Error(error)) = parse_response(&bytes) else { panic!("{bytes:?}") };
            assert_eq!((&error.class[..], failure(&error)), (name, RemoteFailure::Refused(meant)));
        }
        let unknown = RemoteError { class: "ErrorParse".into(), message: "m".repeat(300) };
        let message = "m".repeat(200);
        assert_eq!(
            failure(&unknown),
            RemoteFailure::Exception { class: "ErrorParse".into(), message }
        );
    }
}

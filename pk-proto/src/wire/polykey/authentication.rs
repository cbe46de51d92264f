//! The authentication of a connection into a network (docs/WIRE.md section 14): messages of the
//! method `nodesAuthenticateConnection`, in both directions.

use alloc::borrow::Cow;
use alloc::format;
use alloc::string::String;
use core::time::Duration;

use bytes::Bytes;
use serde::Deserialize;

use super::classes::{Class, class, write};
use super::format::{Method, PolykeyFormat};
use super::message::{json, quoted, write_further, write_request, write_result};
use crate::types::network_id::NetworkId;
use crate::types::time::UnixMillis;
use crate::wire::parsed_message::NetworkMessage;

const NONE: &str = "NodesAuthenticateConnectionMessageNone";
const BASIC_PUBLIC: &str = "NodesAuthenticateConnectionMessageBasicPublic";
const SUCCESS: &str = "success";

/// Permission was denied (sysexits `EX_NOPERM`).
const NO_PERMISSION: u8 = 77;
const FAILED: Class = class(
    "ErrorNodeManagerAuthenticationFailed",
    "Failed to authenticate the connection",
    NO_PERMISSION,
);
const PROTOCOL: Class = class(
    "ErrorNodeAuthenticationInvalidProtocol",
    "The authentication did not follow its protocol",
    NO_PERMISSION,
);
const DENIED: Class = class(
    "ErrorNodeConnectionManagerRPCDenied",
    "The connection is not authenticated",
    NO_PERMISSION,
);

/// Why a peer is sent an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AuthenticationError {
    /// Its network is not accepted.
    Network,
    /// A message is not the expected one.
    Protocol,
    /// It has sent another request before the authentication.
    Denied,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw<'a> {
    #[serde(borrow, rename = "type")]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    network_id: Option<Cow<'a, str>>,
    success: Option<bool>,
}

/// Decodes a message, of either side. `None` if it is not one.
pub(super) fn read_authentication(params: &str) -> Option<NetworkMessage> {
    let raw: Raw<'_> = json(params).ok()?;
    match (&raw.kind[..], raw.network_id, raw.success) {
        (NONE, None, None) => Some(NetworkMessage::Member(None)),
        (BASIC_PUBLIC, Some(network), None) => {
            Some(NetworkMessage::Member(Some(network.parse().ok()?)))
        }
        (SUCCESS, None, Some(true)) => Some(NetworkMessage::Accepted),
        _ => None,
    }
}

fn params(message: &NetworkMessage) -> String {
    match message {
        NetworkMessage::Member(None) => format!("{{\"type\":\"{NONE}\"}}"),
        NetworkMessage::Member(Some(network)) => {
            let network = quoted(network.as_str());
            format!("{{\"type\":\"{BASIC_PUBLIC}\",\"networkId\":{network}}}")
        }
        NetworkMessage::Accepted => format!("{{\"type\":\"{SUCCESS}\",\"success\":true}}"),
        // Never sent.
        NetworkMessage::Invalid => "{}".into(),
    }
}

/// Encodes the first message of a caller, which names its network.
pub(crate) fn authenticate(network: &NetworkId, timeout: Duration) -> (Bytes, PolykeyFormat) {
    let method = Method::Authenticate;
    let params = params(&NetworkMessage::Member(Some(network.clone())));
    let bytes = write_request(method.name(), &params, Some(timeout));
    (bytes, PolykeyFormat::Call { method, ours: true })
}

/// Encodes a further message, of the caller or of the called node.
pub(crate) fn authentication(format: PolykeyFormat, message: &NetworkMessage) -> Bytes {
    match format {
        PolykeyFormat::Call { method, ours: true } => {
            write_further(method.name(), &params(message))
        }
        PolykeyFormat::Call { .. } | PolykeyFormat::First | PolykeyFormat::Alive => {
            write_result(&params(message))
        }
    }
}

/// Encodes an error.
pub(crate) fn write_authentication_error(why: AuthenticationError, now: UnixMillis) -> Bytes {
    match why {
        AuthenticationError::Network => {
            write(FAILED, "the nodes belong to different networks", now)
        }
        AuthenticationError::Protocol => write(PROTOCOL, "another message was expected", now),
        AuthenticationError::Denied => write(DENIED, "the connection is not authenticated", now),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_read_as_they_are_written() {
        let named = |name: &str| NetworkMessage::Member(Some(name.parse().unwrap()));
        for (message, text) in [
            (NetworkMessage::Member(None), r#"{"type":"NodesAuthenticateConnectionMessageNone"}"#),
            (
                named("a \"b\""),
                r#"{"type":"NodesAuthenticateConnectionMessageBasicPublic","networkId":"a \"b\""}"#,
            ),
            (NetworkMessage::Accepted, r#"{"type":"success","success":true}"#),
        ] {
            assert_eq!(params(&message), text);
            assert_eq!(read_authentication(text), Some(message));
        }
    }

    #[test]
    fn other_messages_are_refused() {
        for text in [
            "{}",
            "[]",
            r#"{"type":"success"}"#,
            r#"{"type":"success","success":false}"#,
            r#"{"type":"success","success":true,"networkId":"a"}"#,
            r#"{"type":"NodesAuthenticateConnectionMessageBasicPublic"}"#,
            r#"{"type":"NodesAuthenticateConnectionMessageBasicPublic","networkId":7}"#,
            r#"{"type":"NodesAuthenticateConnectionMessageBasicPublic","networkId":""}"#,
            r#"{"type":"NodesAuthenticateConnectionMessageNone","success":true}"#,
            r#"{"type":"NodesAuthenticateConnectionMessageOther","networkId":"a"}"#,
        ] {
            assert_eq!(read_authentication(text), None, "{text}");
        }
    }
}

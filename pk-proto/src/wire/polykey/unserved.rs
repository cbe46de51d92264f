//! Methods above the node layer: responses of a node without vaults and notifications.
//!
//! A caller of the reference displays an error of a known class to its user, but a reset only as
//! `[object Object]`. These methods are therefore answered like by a node that shares nothing,
//! unless the embedder serves them.

use alloc::borrow::{Cow, ToOwned};
use alloc::format;
use alloc::string::String;

use bytes::Bytes;
use serde::Deserialize;

use super::classes::{Class, class, write, write_invalid};
use super::format::PREFIX;
use super::message::{json, parse_request};
use super::methods::INVALID;
use crate::types::id::NodeId;
use crate::types::time::UnixMillis;

const DENIED: Class = class("ErrorVaultsPermissionDenied", "Permission was denied", 77);
const NO_VAULT: Class = class("ErrorVaultsVaultUndefined", "Vault does not exist", 64);
const NO_NOTIFICATIONS: Class =
    class("ErrorNotificationsPermissionsNotFound", "Could not find permissions for NodeId", 67);

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Info<'a> {
    #[serde(borrow, rename = "vaultNameOrId")]
    _vault: Cow<'a, str>,
    #[serde(borrow, rename = "action")]
    _action: Cow<'a, str>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Pack<'a> {
    #[serde(borrow, rename = "nameOrId")]
    _vault: Cow<'a, str>,
    #[serde(borrow, rename = "vaultAction")]
    _action: Cow<'a, str>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Notification<'a> {
    #[serde(borrow, rename = "signedNotificationEncoded")]
    _token: Cow<'a, str>,
}

/// Returns the response to a call of `protocol` that the embedder does not serve: the error of a
/// node that shares nothing with `caller`. `None` for an unknown method. `header` is the first
/// message of the call.
pub(crate) fn unserved(
    protocol: &str,
    header: &[u8],
    caller: &NodeId,
    now: UnixMillis,
) -> Option<Bytes> {
    let method = protocol.strip_prefix(PREFIX)?;
    let params = parse_request(header).map_or("", |request| request.params);
    let (valid, class, message) = match method {
        "vaultsScan" => (true, DENIED, format!("No permissions found for {caller}")),
        "vaultsGitInfoGet" => (json::<Info<'_>>(params).is_ok(), NO_VAULT, String::new()),
        "vaultsGitPackGet" => (json::<Pack<'_>>(params).is_ok(), NO_VAULT, String::new()),
        "notificationsSend" => {
            (json::<Notification<'_>>(params).is_ok(), NO_NOTIFICATIONS, "".to_owned())
        }
        _ => return None,
    };
    Some(if valid { write(class, &message, now) } else { write_invalid(INVALID, now) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::polykey::message::write_request;

    fn answer(method: &str, params: &str) -> Option<String> {
        let caller = NodeId::from_bytes([1; 32]);
        let answer = unserved(
            &[PREFIX, method].concat(),
            &write_request(method, params, None),
            &caller,
            UnixMillis(0),
        );
        answer.map(|bytes| core::str::from_utf8(&bytes).unwrap().to_owned())
    }

    fn error(class: &str, message: &str, description: &str, code: u8) -> Option<String> {
        let exception = format!(
            r#"{{"type":"{class}","data":{{"message":"{message}","timestamp":"1970-01-01T00:00:00.000Z","data":{{}},"description":"{description}","exitCode":{code}}}}}"#
        );
        Some(format!(
            r#"{{"jsonrpc":"2.0","error":{{"code":-32006,"message":"{message}","data":{exception}}},"id":null}}"#
        ))
    }

    #[test]
    fn each_method_has_the_error_of_a_node_that_shares_nothing() {
        let caller = NodeId::from_bytes([1; 32]);
        let denied = format!("No permissions found for {caller}");
        let scan = error("ErrorVaultsPermissionDenied", &denied, "Permission was denied", 77);
        assert_eq!(answer("vaultsScan", "{}"), scan);
        let vault = error("ErrorVaultsVaultUndefined", "", "Vault does not exist", 64);
        assert_eq!(answer("vaultsGitInfoGet", r#"{"vaultNameOrId":"x","action":"clone"}"#), vault);
        assert_eq!(answer("vaultsGitPackGet", r#"{"nameOrId":"x","vaultAction":"pull"}"#), vault);
        let notification = error(
            "ErrorNotificationsPermissionsNotFound",
            "",
            "Could not find permissions for NodeId",
            67,
        );
        assert_eq!(
            answer("notificationsSend", r#"{"signedNotificationEncoded":"a.b.c"}"#),
            notification
        );
    }

    #[test]
    fn parameters_of_another_form_are_invalid_and_other_methods_unknown() {
        let invalid = error("ErrorValidation", INVALID, INVALID, 65);
        for (method, params) in [
            ("vaultsGitInfoGet", "{}"),
            ("vaultsGitInfoGet", r#"{"vaultNameOrId":7,"action":"clone"}"#),
            ("vaultsGitInfoGet", r#"{"nameOrId":"x","vaultAction":"clone"}"#),
            ("vaultsGitPackGet", r#"{"nameOrId":"x"}"#),
            ("notificationsSend", r#"{"signedNotificationEncoded":null}"#),
        ] {
            assert_eq!(answer(method, params), invalid, "{method} {params}");
        }
        for method in ["nodesClaimNetworkVerify", "vaultsscan", "", "nodesAuditEventsGet"] {
            assert_eq!(answer(method, "{}"), None, "{method}");
        }
        let native = unserved("vaultsScan", b"{}", &NodeId::from_bytes([1; 32]), UnixMillis(0));
        assert_eq!(native, None, "a protocol of another dialect");
    }
}

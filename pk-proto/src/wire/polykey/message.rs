//! The two forms of a message: [`Request`] of a caller and [`Response`], and errors.

use alloc::borrow::{Cow, ToOwned};
use alloc::format;
use alloc::string::{String, ToString};
use core::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use super::ObjectFault;
use crate::types::time::UnixMillis;

/// Code of every error of a handler.
const HANDLER_ERROR: i64 = -32006;

/// A message of a caller. Each repeats the method.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request<'a> {
    /// Method.
    pub method: Cow<'a, str>,
    /// Parameters: the text of a JSON object.
    pub params: &'a str,
    /// Time that the caller waits, if it states a limit.
    pub timeout: Option<Duration>,
}

/// A message of the called node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Response<'a> {
    /// One result: the text of a JSON value.
    Result(&'a str),
    /// An error, which is the last message.
    Error(RemoteError),
}

/// An exception of the reference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteError {
    /// Name of its class; empty if there was none.
    pub class: String,
    /// Message.
    pub message: String,
}

#[derive(Deserialize)]
struct RawRequest<'a> {
    #[serde(borrow)]
    method: Cow<'a, str>,
    #[serde(borrow)]
    jsonrpc: Cow<'a, str>,
    #[serde(borrow)]
    params: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct RawMetadata<'a> {
    #[serde(borrow)]
    metadata: Option<RawTimeout<'a>>,
}

#[derive(Deserialize)]
struct RawTimeout<'a> {
    #[serde(borrow)]
    timeout: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct RawResponse<'a> {
    #[serde(borrow)]
    jsonrpc: Cow<'a, str>,
    #[serde(borrow, default, deserialize_with = "present")]
    result: Option<&'a RawValue>,
    #[serde(borrow)]
    error: Option<RawError<'a>>,
}

#[derive(Deserialize)]
struct RawError<'a> {
    #[serde(borrow)]
    message: Cow<'a, str>,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct RawException<'a> {
    #[serde(borrow, rename = "type")]
    class: Cow<'a, str>,
}

/// Parses a member that is present even if it is `null`.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

/// Parses a value of JSON from its text.
pub(crate) fn json<'a, T: Deserialize<'a>>(text: &'a str) -> Result<T, ObjectFault> {
    serde_json::from_str(text).map_err(|_| ObjectFault::NotAMessage)
}

fn text(object: &[u8]) -> Result<&str, ObjectFault> {
    core::str::from_utf8(object).map_err(|_| ObjectFault::NotAMessage)
}

/// Returns the integer part of a non-negative JSON number, `None` for anything else.
pub(crate) fn whole(number: &RawValue) -> Option<u64> {
    let text = number.get();
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    whole.parse().ok().filter(|_| fraction.bytes().all(|byte| byte.is_ascii_digit()))
}

/// Returns a text in JSON, with its quotes.
pub(crate) fn quoted(text: &str) -> String {
    serde_json::to_string(text).unwrap_or_else(|_| "\"\"".to_owned())
}

/// Parses an object as a message of a caller.
///
/// # Errors
/// `NotAMessage` if it is not one: not JSON, another version than 2.0, no method, parameters that
/// are not an object.
pub fn parse_request(object: &[u8]) -> Result<Request<'_>, ObjectFault> {
    let raw: RawRequest<'_> = json(text(object)?)?;
    let params = raw.params.map_or("{}", RawValue::get);
    if raw.jsonrpc != "2.0" || !params.starts_with('{') {
        return Err(ObjectFault::NotAMessage);
    }
    // A value that is not a number is no limit.
    let metadata = json::<RawMetadata<'_>>(params).ok().and_then(|params| params.metadata);
    let timeout =
        metadata.and_then(|metadata| metadata.timeout).and_then(whole).map(Duration::from_millis);
    Ok(Request { method: raw.method, params, timeout })
}

/// Parses an object as a response.
///
/// # Errors
/// `NotAMessage` if it is not one: not JSON, another version than 2.0, not exactly one of `result`
/// and `error`.
pub fn parse_response(object: &[u8]) -> Result<Response<'_>, ObjectFault> {
    let raw: RawResponse<'_> = json(text(object)?)?;
    match (raw.result, raw.error) {
        (Some(result), None) if raw.jsonrpc == "2.0" => Ok(Response::Result(result.get())),
        (None, Some(error)) if raw.jsonrpc == "2.0" => {
            let exception = error.data.and_then(|data| json::<RawException<'_>>(data.get()).ok());
            let class = exception.map(|exception| exception.class.into_owned()).unwrap_or_default();
            Ok(Response::Error(RemoteError { class, message: error.message.into_owned() }))
        }
        _ => Err(ObjectFault::NotAMessage),
    }
}

/// Encodes the first message of a call. `params` is the text of a JSON object without a member
/// `metadata`, which is added.
pub fn write_request(method: &str, params: &str, timeout: Option<Duration>) -> Bytes {
    let inner = params
        .trim()
        .strip_prefix('{')
        .and_then(|params| params.strip_suffix('}'))
        .unwrap_or_default();
    let comma = if inner.trim().is_empty() { "" } else { "," };
    let timeout = timeout.map_or("null".to_owned(), |timeout| timeout.as_millis().to_string());
    write_further(method, &format!("{{{inner}{comma}\"metadata\":{{\"timeout\":{timeout}}}}}"))
}

/// Encodes a further message of a call with several.
pub fn write_further(method: &str, params: &str) -> Bytes {
    let method = quoted(method);
    format!("{{\"method\":{method},\"jsonrpc\":\"2.0\",\"id\":null,\"params\":{params}}}").into()
}

/// Encodes one result: `result` is the text of a JSON value.
pub fn write_result(result: &str) -> Bytes {
    format!("{{\"jsonrpc\":\"2.0\",\"result\":{result},\"id\":null}}").into()
}

/// Encodes an error of a class that the reference knows (docs/WIRE.md section 4): it is thrown
/// there as an exception of that class. `exit_code` and `description` belong to the class.
pub fn write_error(
    error: &RemoteError,
    description: &str,
    exit_code: u8,
    now: UnixMillis,
) -> Bytes {
    let (class, message) = (quoted(&error.class), quoted(&error.message));
    let (description, timestamp) = (quoted(description), quoted(&timestamp(now)));
    let fields = format!(
        "\"message\":{message},\"timestamp\":{timestamp},\"data\":{{}},\"description\":{description}"
    );
    let exception = format!("{{\"type\":{class},\"data\":{{{fields},\"exitCode\":{exit_code}}}}}");
    let error = format!("{{\"code\":{HANDLER_ERROR},\"message\":{message},\"data\":{exception}}}");
    format!("{{\"jsonrpc\":\"2.0\",\"error\":{error},\"id\":null}}").into()
}

/// Returns a time in the form of the reference: `2026-11-22T08:08:56.070Z`.
fn timestamp(now: UnixMillis) -> String {
    let seconds = der::DateTime::from_unix_duration(Duration::from_secs(now.0 / 1000));
    let seconds =
        seconds.map_or_else(|_| "9999-12-31T23:59:59Z".to_owned(), |seconds| seconds.to_string());
    format!("{}.{:03}Z", seconds.trim_end_matches('Z'), now.0 % 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ERROR: &str = concat!(
        r#"{"jsonrpc":"2.0","error":{"code":-32006,"message":"a \"b\"","data":{"type":"ErrorParse","data":{"#,
        r#""message":"a \"b\"","timestamp":"2026-11-22T08:08:56.070Z","data":{},"description":"d","exitCode":65}}},"#,
        r#""id":null}"#
    );

    #[test]
    fn requests_are_read_as_by_the_reference() {
        let read = |text: &'static str| parse_request(text.as_bytes());
        let request = |method: &'static str, params, timeout: Option<u64>| {
            Ok(Request {
                method: method.into(),
                params,
                timeout: timeout.map(Duration::from_millis),
            })
        };
        assert_eq!(read(r#"{"method":"m","jsonrpc":"2.0","params":{}}"#), request("m", "{}", None));
        assert_eq!(read(r#"{"id":7,"jsonrpc":"2.0","method":"\u006d"}"#), request("m", "{}", None));
        for (timeout, ms) in
            [("15000", Some(15_000)), ("1500.5", Some(1500)), ("0", Some(0)), ("null", None)]
                .into_iter()
                .chain([("-1", None), ("1e3", None), ("\"5\"", None), ("{}", None)])
        {
            let params = format!(r#"{{"x":1,"metadata":{{"timeout":{timeout}}}}}"#);
            let text = format!(r#"{{"method":"m","jsonrpc":"2.0","id":null,"params":{params}}}"#);
            let read = parse_request(text.as_bytes()).unwrap();
            assert_eq!(
                (read.params, read.timeout),
                (&params[..], ms.map(Duration::from_millis)),
                "{timeout}"
            );
        }
        for bad in [
            "",
            "{}",
            "[]",
            r#"{"method":"m"}"#,
            r#"{"method":"m","jsonrpc":"1.0"}"#,
            r#"{"method":"m","jsonrpc":2.0}"#,
            r#"{"method":7,"jsonrpc":"2.0"}"#,
            r#"{"method":"m","jsonrpc":"2.0","params":[]}"#,
            r#"{"method":"m","jsonrpc":"2.0","params":7}"#,
            r#"{"method":"m","method":"n","jsonrpc":"2.0"}"#,
            r#"{"method":"m","jsonrpc":"2.0",}"#,
            r#"{"method":"m","jsonrpc":"2.0"} x"#,
            "{\"method\":\"\\ud800\",\"jsonrpc\":\"2.0\"}",
        ] {
            assert_eq!(parse_request(bad.as_bytes()), Err(ObjectFault::NotAMessage), "{bad}");
        }
        assert_eq!(
            parse_request(b"{\"method\":\"\xff\",\"jsonrpc\":\"2.0\"}"),
            Err(ObjectFault::NotAMessage)
        );
    }

    #[test]
    fn answers_are_results_or_errors_and_never_both() {
        let read = |text: &'static str| parse_response(text.as_bytes());
        assert_eq!(
            read(r#"{"jsonrpc":"2.0","result":{"a":1},"id":null}"#),
            Ok(Response::Result(r#"{"a":1}"#))
        );
        assert_eq!(read(r#"{"jsonrpc":"2.0","result":null,"id":1}"#), Ok(Response::Result("null")));
        let error = |class: &str, message: &str| {
            Ok(Response::Error(RemoteError {
                class: class.to_owned(),
                message: message.to_owned(),
            }))
        };
        assert_eq!(read(ERROR), error("ErrorParse", "a \"b\""));
        assert_eq!(
            read(r#"{"jsonrpc":"2.0","error":{"code":-32601,"message":"m"},"id":null}"#),
            error("", "m")
        );
        assert_eq!(
            read(r#"{"jsonrpc":"2.0","error":{"code":1,"message":"m","data":7},"id":null}"#),
            error("", "m")
        );
        for bad in [
            r#"{"jsonrpc":"2.0","id":null}"#,
            r#"{"jsonrpc":"2.0","result":1,"error":{"code":1,"message":"m"},"id":null}"#,
            r#"{"jsonrpc":"2","result":1,"id":null}"#,
            r#"{"jsonrpc":"2.0","error":7,"id":null}"#,
            r#"{"jsonrpc":"2.0","error":{"code":1},"id":null}"#,
        ] {
            assert_eq!(parse_response(bad.as_bytes()), Err(ObjectFault::NotAMessage), "{bad}");
        }
    }

    #[test]
    fn messages_are_written_as_by_the_reference() {
        let minute = Some(Duration::from_secs(60));
        let request = |method: &str, params: &str| {
            format!(r#"{{"method":"{method}","jsonrpc":"2.0","id":null,"params":{params}}}"#)
        };
        assert_eq!(
            write_request("m", "{}", None),
            request("m", r#"{"metadata":{"timeout":null}}"#)
        );
        assert_eq!(
            write_request("m", r#"{"a":1}"#, minute),
            request("m", r#"{"a":1,"metadata":{"timeout":60000}}"#)
        );
        assert_eq!(write_further("m", r#"{"a":1}"#), request("m", r#"{"a":1}"#));
        assert_eq!(write_result("{}"), r#"{"jsonrpc":"2.0","result":{},"id":null}"#);
        let error = RemoteError { class: "ErrorParse".to_owned(), message: "a \"b\"".to_owned() };
        assert_eq!(write_error(&error, "d", 65, UnixMillis(1_795_334_936_070)), ERROR);
    }
}

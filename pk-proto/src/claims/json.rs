//! Canonical JSON: the canonical text of a JSON value (docs/WIRE.md section 6; npm `canonicalize`,
//! RFC 8785).
//!
//! Peers sign the canonical text, and a receiver of the reference encodes a value again before it
//! verifies. A text is therefore accepted here only if it *is* its canonical encoding: members
//! sorted by UTF-16 code units without duplicates, no white space, strings and numbers as
//! `JSON.stringify` writes them. Values are decoded only on demand.

use alloc::borrow::Cow;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::cmp::Ordering;

use serde::{Deserialize, Serialize};

/// Maximum nesting of objects and lists, which limits recursion for any text.
pub const MAX_JSON_DEPTH: usize = 32;

/// The largest integer that every implementation of JSON represents exactly: 2^53 - 1.
pub const MAX_JSON_INTEGER: u64 = (1 << 53) - 1;

/// Why a text is not canonical JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[non_exhaustive]
pub enum JsonFault {
    /// Not JSON, or not the canonical text of a value.
    #[error("not the canonical text of a JSON value")]
    Malformed,
    /// Members in the wrong order.
    #[error("members are not sorted")]
    Order,
    /// A member twice.
    #[error("a member occurs twice")]
    Duplicate,
    /// An integer beyond 2^53 - 1.
    #[error("an integer beyond 2^53 - 1")]
    Integer,
    /// Nested deeper than [`MAX_JSON_DEPTH`].
    #[error("nested deeper than {MAX_JSON_DEPTH}")]
    Depth,
}

/// Members of a canonical object in order: name, and canonical text of the value.
pub(crate) type Members<'a> = Vec<(Cow<'a, str>, &'a str)>;

/// Parses an object. The whole text must be canonical; values remain text.
pub(crate) fn object(text: &str) -> Result<Members<'_>, JsonFault> {
    let mut reader = Reader { text, at: 0 };
    let mut members = Vec::new();
    reader.object(MAX_JSON_DEPTH, |name, value| members.push((name, value)))?;
    if reader.at == text.len() { Ok(members) } else { Err(JsonFault::Malformed) }
}

/// Returns the string of a canonical value, if it is one.
pub(crate) fn string(value: &str) -> Option<Cow<'_, str>> {
    let mut reader = Reader { text: value, at: 0 };
    let string = reader.string().ok()?;
    (reader.at == value.len()).then_some(string)
}

/// Returns the integer of a canonical value, if it is a non-negative one.
pub(crate) fn integer(value: &str) -> Option<u64> {
    value.bytes().all(|byte| byte.is_ascii_digit()).then(|| value.parse().ok()).flatten()
}

/// Appends a string as `JSON.stringify` writes it.
pub(crate) fn write_string(out: &mut String, string: &str) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    out.push('"');
    for char in string.chars() {
        match char {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\u{8}' => out.push_str("\\b"),
            '\t' => out.push_str("\\t"),
            '\n' => out.push_str("\\n"),
            '\u{c}' => out.push_str("\\f"),
            '\r' => out.push_str("\\r"),
            '\0'..'\u{20}' => {
                let code = usize::try_from(u32::from(char)).unwrap_or_default();
                out.push_str("\\u00");
                out.extend(
                    [code >> 4, code & 15]
                        .iter()
                        .filter_map(|digit| HEX.get(*digit))
                        .map(|digit| char::from(*digit)),
                );
            }
            char => out.push(char),
        }
    }
    out.push('"');
}

/// Returns the order of two member names: by UTF-16 code units.
pub(crate) fn order(a: &str, b: &str) -> Ordering {
    // UTF-8 and UTF-16 agree below the surrogates.
    if a.is_ascii() && b.is_ascii() { a.cmp(b) } else { a.encode_utf16().cmp(b.encode_utf16()) }
}

/// Parses one canonical value after the other.
struct Reader<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Reader<'a> {
    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    /// Consumes this byte if it is next.
    fn take(&mut self, byte: u8) -> bool {
        let is = self.peek() == Some(byte);
        self.at += usize::from(is);
        is
    }

    fn expect(&mut self, byte: u8) -> Result<(), JsonFault> {
        if self.take(byte) { Ok(()) } else { Err(JsonFault::Malformed) }
    }

    fn since(&self, from: usize) -> Result<&'a str, JsonFault> {
        self.text.get(from..self.at).ok_or(JsonFault::Malformed)
    }

    /// Consumes a value. `depth` levels may follow below it.
    fn value(&mut self, depth: usize) -> Result<(), JsonFault> {
        match self.peek() {
            Some(b'{') => self.object(depth, |_, _| {}),
            Some(b'[') => self.list(depth),
            Some(b'"') => self.string().map(drop),
            Some(b'-' | b'0'..=b'9') => self.number(),
            _ => ["null", "true", "false"]
                .iter()
                .find_map(|word| self.word(word))
                .ok_or(JsonFault::Malformed),
        }
    }

    fn word(&mut self, word: &str) -> Option<()> {
        self.text.get(self.at..)?.starts_with(word).then(|| self.at += word.len())
    }

    fn object(
        &mut self,
        depth: usize,
        mut member: impl FnMut(Cow<'a, str>, &'a str),
    ) -> Result<(), JsonFault> {
        let depth = depth.checked_sub(1).ok_or(JsonFault::Depth)?;
        self.expect(b'{')?;
        if self.take(b'}') {
            return Ok(());
        }
        let mut last: Option<Cow<'a, str>> = None;
        loop {
            let name = self.string()?;
            match last.as_ref().map(|last| order(last, &name)) {
                Some(Ordering::Greater) => return Err(JsonFault::Order),
                Some(Ordering::Equal) => return Err(JsonFault::Duplicate),
                Some(Ordering::Less) | None => {}
            }
            self.expect(b':')?;
            let from = self.at;
            self.value(depth)?;
            member(name.clone(), self.since(from)?);
            last = Some(name);
            if self.take(b'}') {
                return Ok(());
            }
            self.expect(b',')?;
        }
    }

    fn list(&mut self, depth: usize) -> Result<(), JsonFault> {
        let depth = depth.checked_sub(1).ok_or(JsonFault::Depth)?;
        self.expect(b'[')?;
        if self.take(b']') {
            return Ok(());
        }
        loop {
            self.value(depth)?;
            if self.take(b']') {
                return Ok(());
            }
            self.expect(b',')?;
        }
    }

    fn string(&mut self) -> Result<Cow<'a, str>, JsonFault> {
        let start = self.at;
        self.expect(b'"')?;
        let mut escaped = false;
        loop {
            let rest = self.text.as_bytes().get(self.at..).unwrap_or_default();
            let plain = rest.iter().position(|byte| matches!(byte, b'"' | b'\\' | 0..0x20));
            self.at += plain.ok_or(JsonFault::Malformed)?;
            match self.peek() {
                Some(b'"') => break,
                Some(b'\\') => {
                    escaped = true;
                    self.at += 2;
                }
                _ => return Err(JsonFault::Malformed),
            }
        }
        let inner = self.since(start + 1)?;
        self.at += 1;
        if !escaped {
            return Ok(Cow::Borrowed(inner));
        }
        let string = unescape(inner).ok_or(JsonFault::Malformed)?;
        // Each character has only one canonical escape.
        let mut canonical = String::with_capacity(inner.len() + 2);
        write_string(&mut canonical, &string);
        if canonical == self.since(start)? {
            Ok(Cow::Owned(string))
        } else {
            Err(JsonFault::Malformed)
        }
    }

    fn number(&mut self) -> Result<(), JsonFault> {
        let start = self.at;
        while matches!(self.peek(), Some(b'0'..=b'9' | b'+' | b'-' | b'.' | b'e')) {
            self.at += 1;
        }
        let text = self.since(start)?;
        let digits = text.strip_prefix('-').unwrap_or(text);
        if digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return match (digits.len(), digits.starts_with('0')) {
                (0, _) | (2.., true) => Err(JsonFault::Malformed),
                // JSON has a negative zero, but `JSON.stringify` does not write it.
                (_, true) if text != digits => Err(JsonFault::Malformed),
                _ if digits.parse().is_ok_and(|value: u64| value <= MAX_JSON_INTEGER) => Ok(()),
                _ => Err(JsonFault::Integer),
            };
        }
        if is_canonical_fraction(digits) { Ok(()) } else { Err(JsonFault::Malformed) }
    }
}

/// Undoes the escapes of `JSON.stringify`; `None` for any other.
fn unescape(inner: &str) -> Option<String> {
    let mut string = String::with_capacity(inner.len());
    let mut chars = inner.chars();
    while let Some(char) = chars.next() {
        string.push(match char {
            '\\' => match chars.next()? {
                '"' => '"',
                '\\' => '\\',
                'b' => '\u{8}',
                't' => '\t',
                'n' => '\n',
                'f' => '\u{c}',
                'r' => '\r',
                'u' => {
                    let code = chars.as_str().get(..4)?;
                    chars.nth(3);
                    // `JSON.stringify` writes characters unescaped, and only a lone surrogate,
                    // which is not a character, as `\ud800`.
                    char::from_u32(u32::from_str_radix(code, 16).ok()?)?
                }
                _ => return None,
            },
            char => char,
        });
    }
    Some(string)
}

/// Returns whether a positive number that is not an integer is written like ECMAScript's
/// `Number::toString`: with the fewest digits that identify the double, in its layout.
fn is_canonical_fraction(text: &str) -> bool {
    /// The longest is `0.0000012345678901234567`, or `1.2345678901234567e+100`.
    const MAX_LEN: usize = 25;
    if text.len() > MAX_LEN {
        return false;
    }
    let Ok(number) = serde_json::from_str::<serde_json::Number>(text) else { return false };
    let number = number.to_string();
    let (mantissa, exponent) = number.split_once(['e', 'E']).unwrap_or((&number, "0"));
    let Ok(exponent) = exponent.parse::<i32>() else { return false };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let all = [whole, fraction].concat();
    let digits = all.trim_start_matches('0');
    let leading = all.len() - digits.len();
    let digits = digits.trim_end_matches('0');
    // The number is 0.DIGITS times ten to the power of `point`.
    let (Ok(whole), Ok(leading)) = (i32::try_from(whole.len()), i32::try_from(leading)) else {
        return false;
    };
    let point = whole - leading + exponent;
    !digits.is_empty() && layout(digits, point).is_some_and(|canonical| canonical == text)
}

/// Returns ECMAScript's layout of 0.DIGITS times ten to the power of `point`, if it has a point or
/// an exponent.
fn layout(digits: &str, point: i32) -> Option<String> {
    let mut text = String::new();
    match point {
        1..=21 => {
            let (whole, fraction) = digits.split_at_checked(usize::try_from(point).ok()?)?;
            text.push_str(whole);
            text.push('.');
            text.push_str(fraction);
            if fraction.is_empty() {
                return None;
            }
        }
        -5..=0 => {
            text.push_str("0.");
            (point..0).for_each(|_| text.push('0'));
            text.push_str(digits);
        }
        _ => {
            let (first, rest) = digits.split_at_checked(1)?;
            text.push_str(first);
            if !rest.is_empty() {
                text.push('.');
                text.push_str(rest);
            }
            let exponent = point - 1;
            text.push_str(if exponent < 0 { "e-" } else { "e+" });
            text.push_str(&exponent.unsigned_abs().to_string());
        }
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use std::format;

    use super::*;

    fn value(text: &str) -> Result<(), JsonFault> {
        object(&format!("{{\"a\":{text}}}")).map(drop)
    }

    #[test]
    fn members_are_read_in_order_with_decoded_names_and_textual_values() {
        let text = r#"{"":0,"a\n\u001f":"x","b":{"c":[1,[],{}]},"é":null,"€":true}"#;
        let members = object(text).unwrap();
        let expected = [
            ("", "0"),
            ("a\n\u{1f}", "\"x\""),
            ("b", "{\"c\":[1,[],{}]}"),
            ("é", "null"),
            ("€", "true"),
        ];
        assert_eq!(
            members.iter().map(|(name, value)| (&**name, *value)).collect::<Vec<_>>(),
            expected
        );
        assert_eq!(object("{}"), Ok(Vec::new()));
    }

    #[test]
    fn members_are_sorted_by_utf_16_code_units_not_by_characters() {
        // U+FF61 is below U+1F600 as a character, but its unit is above the surrogate D83D.
        assert!(object("{\"\u{1f600}\":1,\"\u{ff61}\":2}").is_ok());
        assert_eq!(object("{\"\u{ff61}\":2,\"\u{1f600}\":1}"), Err(JsonFault::Order));
    }

    #[test]
    fn each_deviation_from_the_canonical_text_is_named() {
        use JsonFault::{Depth, Duplicate, Integer, Malformed, Order};
        for (text, fault) in [
            ("", Malformed),
            ("[]", Malformed),
            ("{} ", Malformed),
            (" {}", Malformed),
            ("{}{}", Malformed),
            ("{", Malformed),
            ("{\"a\"", Malformed),
            ("{\"a\":", Malformed),
            ("{\"a\":1", Malformed),
            ("{\"a\":1,}", Malformed),
            ("{\"a\" :1}", Malformed),
            ("{\"a\": 1}", Malformed),
            ("{\"b\":1,\"a\":1}", Order),
            ("{\"a\":1,\"a\":1}", Duplicate),
            ("{\"a\":{\"b\":1,\"b\":1}}", Duplicate),
            ("{\"\\u0061\":1}", Malformed),
            ("{\"a\":\"\\/\"}", Malformed),
            ("{\"a\":\"\\u000A\"}", Malformed),
            ("{\"a\":\"\\u000a\"}", Malformed),
            ("{\"a\":\"\\u001F\"}", Malformed),
            ("{\"a\":\"\\ud83d\\ude00\"}", Malformed),
            ("{\"a\":\"\\ud800\"}", Malformed),
            ("{\"a\":\"\u{1}\"}", Malformed),
            ("{\"a\":\"\\", Malformed),
            ("{\"a\":\"\\\"}", Malformed),
            ("{\"a\":\"\\u00", Malformed),
            ("{\"a\":\"\\u00é\"}", Malformed),
            ("{\"a\":True}", Malformed),
            ("{\"a\":nul}", Malformed),
            ("{\"a\":[1 ,2]}", Malformed),
            ("{\"a\":[1,]}", Malformed),
            ("{\"a\":9007199254740992}", Integer),
            ("{\"a\":-9007199254740992}", Integer),
            ("{\"a\":99999999999999999999999999}", Integer),
        ] {
            assert_eq!(object(text), Err(fault), "{text}");
        }
        let nest = |depth: usize| {
            object(&format!("{}{}{}", "{\"a\":".repeat(depth), "{}", "}".repeat(depth))).map(drop)
        };
        assert_eq!(nest(MAX_JSON_DEPTH - 1), Ok(()));
        assert_eq!(nest(MAX_JSON_DEPTH), Err(Depth));
        assert_eq!(value(&"[".repeat(60_000)), Err(Depth));
    }

    /// The right column is `JSON.stringify(JSON.parse(left))` in Node.js, or the left where that is
    /// the same.
    #[test]
    fn numbers_are_those_that_json_stringify_writes() {
        for text in [
            "0",
            "-1",
            "9007199254740991",
            "-9007199254740991",
            "1.5",
            "-0.1",
            "0.000001",
            "1e-7",
            "1.5e-7",
            "1e+21",
            "1.5e+21",
            "123456789.125",
            "5e-324",
            "1.7976931348623157e+308",
            "2.2250738585072014e-308",
            "0.30000000000000004",
            "4.35",
            "0.000001234567890123456",
            "1234567890.1234567",
            "9.5367431640625e-7",
            "1.2345678901234567e+100",
        ] {
            assert_eq!(value(text), Ok(()), "{text}");
        }
        for text in [
            "-0",
            "01",
            "1.0",
            "1.50",
            "1e21",
            "1E+21",
            "1.5e21",
            "1e+20",
            "10e+21",
            "0.0000001",
            "1e-6",
            "0.1e+1",
            "1e400",
            "1e+309",
            "1e-400",
            ".5",
            "5.",
            "1.",
            "-",
            "--1",
            "+1",
            "1e",
            "1e+",
            "0.30000000000000005",
            "1.79769313486231571e+308",
            "9007199254740993.5",
            "123456789012345680000.5",
            "0e+21",
            "0.0",
            "-0.0",
            "1.1.1",
            "1-1",
        ] {
            assert_eq!(value(text), Err(JsonFault::Malformed), "{text}");
        }
    }

    #[test]
    fn string_is_written_as_it_is_read() {
        for char in ('\0'..='\u{ff}').chain(['€', '\u{2028}', '\u{1f600}']) {
            let mut text = String::new();
            let expected = format!("a{char}b");
            write_string(&mut text, &expected);
            assert_eq!(string(&text).as_deref(), Some(&*expected));
            assert_eq!(text, serde_json::to_string(&expected).unwrap());
        }
        assert_eq!(string("\"a\"b"), None);
        assert_eq!(string("1"), None);
    }
}

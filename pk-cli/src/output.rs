//! Lines on stdout. A reader that went away is no reason to fail: what was to be done has been done.

use std::fmt::Display;
use std::io::{Write, stdout};

use serde::Serialize;

/// Prints one line.
pub(crate) fn line(text: impl Display) {
    drop(writeln!(stdout().lock(), "{text}"));
}

/// Prints one line of JSON.
pub(crate) fn json(value: &impl Serialize) {
    if let Ok(text) = serde_json::to_string(value) {
        line(text);
    }
}

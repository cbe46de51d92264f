//! Lines on stdout. A reader that went away is no reason to fail: what was to be done has been done.

use std::fmt::Display;
use std::io::{Write, stdout};

use serde::Serialize;

/// Prints a text for people.
pub(crate) fn line(text: impl Display) {
    drop(writeln!(stdout().lock(), "{}", shown(text)));
}

/// A text as people may see it: what peers have said in it does not move their cursor or colour their screen.
pub(crate) fn shown(text: impl Display) -> String {
    let mut shown = String::new();
    for char in text.to_string().chars() {
        if char.is_control() && char != '\n' {
            shown.extend(char.escape_default());
        } else {
            shown.push(char);
        }
    }
    shown
}

/// Prints one line of JSON.
pub(crate) fn json(value: &impl Serialize) {
    if let Ok(text) = serde_json::to_string(value) {
        drop(writeln!(stdout().lock(), "{text}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_shown_as_such() {
        assert_eq!(shown("✓ a\tb\u{1b}[2J\r\u{9b}1m\nc"), "✓ a\\tb\\u{1b}[2J\\r\\u{9b}1m\nc");
    }
}

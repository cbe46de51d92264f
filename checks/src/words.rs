//! A list of words that documents, comments, messages and names do not use.
//!
//! The rules behind the list are in CONTRIBUTING.md. The list holds words for which there is a
//! plain technical term, and which earlier versions of this repository used often.

use std::path::Path;

use crate::Violation;

/// Phrases that are not used, and what to write in place of each.
const PHRASES: &[(&str, &str)] = &[
    ("whoever", "name the actor"),
    ("whomever", "name the actor"),
    ("whom", "name the actor"),
    ("nobody", "\"no node\", \"no request\", \"no caller\""),
    ("ourselves", "\"the local node\""),
    ("in vain", "\"without effect\", or say what failed"),
    ("anew", "\"again\" or the verb with \"re\""),
    ("called off", "\"cancelled\""),
    ("calls off", "\"cancels\""),
    ("call off", "\"cancel\""),
    ("broken off", "\"cancelled\" or \"closed\""),
    ("given up", "\"cancelled\" or \"abandoned\""),
    ("told", "say what is sent, returned or reported, and to what"),
    ("tells of", "\"reports\""),
    ("heard", "\"received\""),
    ("overheard", "\"observed\""),
    ("under way", "\"in progress\""),
    ("begun", "\"started\""),
    ("stands", "\"is\", \"is stored\", \"is committed\""),
    ("folder", "\"directory\""),
    ("folders", "\"directories\""),
    ("as may be", "name the limit"),
    ("is no more", "\"has ended\""),
    ("the dice", "\"the random streams\""),
    ("amiss", "say what fails"),
    ("any more", "\"no longer\""),
    ("anybody", "name the actor"),
    ("everybody", "\"every node\", \"all peers\""),
    ("somebody", "\"another node\", \"a caller\""),
    ("dialler", "\"dialer\""),
    ("diallers", "\"dialers\""),
    ("dialled", "\"dialed\""),
    ("dialling", "\"dialing\""),
    ("goes on", "\"continues\""),
    ("go on", "\"continue\""),
    ("going on", "\"in progress\""),
    ("now and then", "\"sometimes\""),
    ("what became of", "\"the outcome of\""),
    ("in a moment", "name the delay"),
    ("sees to it", "say what is done"),
    ("how manyth", "\"the number of\""),
    ("for ever", "\"forever\", or name the limit"),
    ("says nothing", "say what is unknown, or not sent"),
];

/// Checks a text: each line that contains one of the phrases outside of backticks is a violation.
pub fn check(file: &Path, text: &str) -> Vec<Violation> {
    let mut violations = Vec::new();
    for (at, line) in text.lines().enumerate() {
        let words = words(line);
        for (phrase, instead) in PHRASES {
            if words.contains(&format!(" {phrase} ")) {
                let what = format!("\"{phrase}\": write {instead}");
                violations.push(Violation { file: file.to_owned(), line: at + 1, what });
            }
        }
    }
    violations
}

/// Checks the comments and the string literals of a Rust source. A literal without a space is a
/// name, for example of a field in JSON, and is left out.
pub fn check_rust(file: &Path, text: &str) -> Vec<Violation> {
    check(file, &prose(text))
}

/// A Rust source with everything except comments and texts in string literals replaced by spaces.
/// Line breaks stay, so that the lines have their numbers.
fn prose(source: &str) -> String {
    let mut prose = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(first) = rest.chars().next() {
        let (skipped, kept) = match first {
            '/' if rest.starts_with("//") => (0, rest.find('\n').unwrap_or(rest.len())),
            '/' if rest.starts_with("/*") => (0, rest.find("*/").map_or(rest.len(), |at| at + 2)),
            '"' => (0, string(rest)),
            'r' | 'b' if raw_string(rest).is_some() => (0, raw_string(rest).unwrap_or(1)),
            '\'' => (character(rest), 0),
            // A prefix of a string is one only where a word begins.
            _ if is_word(first) => (rest.find(|c| !is_word(c)).unwrap_or(rest.len()), 0),
            _ => (first.len_utf8(), 0),
        };
        let (code, after) = rest.split_at(skipped);
        prose.extend(code.chars().map(|c| if c == '\n' { c } else { ' ' }));
        let (text, after) = after.split_at(kept);
        let is_name = first != '/' && !text.contains(' ');
        prose.push_str(if is_name { " " } else { text });
        rest = after;
    }
    prose
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// The length of the string literal at the start of `rest`, with its quotes.
fn string(rest: &str) -> usize {
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    rest.len()
}

/// The length of the raw string literal at the start of `rest`; `None` if there is none.
fn raw_string(rest: &str) -> Option<usize> {
    let hashes = rest.strip_prefix('b').unwrap_or(rest).strip_prefix('r')?;
    let quoted = hashes.trim_start_matches('#');
    let end = format!("\"{}", "#".repeat(hashes.len() - quoted.len()));
    let content = quoted.strip_prefix('"')?;
    let length = content.find(&end).map_or(content.len(), |at| at + end.len());
    Some(rest.len() - content.len() + length)
}

/// The length of the character literal, or of the start of the lifetime, at the start of `rest`.
fn character(rest: &str) -> usize {
    let content = rest.strip_prefix('\'').unwrap_or(rest);
    if let Some(escape) = content.strip_prefix('\\') {
        return escape
            .char_indices()
            .skip(1)
            .find(|(_, c)| *c == '\'')
            .map_or(rest.len(), |(at, _)| at + 3);
    }
    let mut chars = content.char_indices().skip(1);
    chars.next().filter(|(_, c)| *c == '\'').map_or(1, |(at, _)| at + 2)
}

/// The words of a line in lower case, each with a space around it. An identifier is one word.
/// Inline code, between backticks, and targets of links are left out.
fn words(line: &str) -> String {
    let mut words = String::from(" ");
    for text in line.split('`').step_by(2).map(without_target) {
        for word in text.split(|c| !is_word(c)).filter(|word| !word.is_empty()) {
            words.push_str(&word.to_lowercase());
            words.push(' ');
        }
    }
    words
}

/// A text without the target of a link at its start, as it follows inline code: `](target)`.
fn without_target(text: &str) -> &str {
    text.strip_prefix("](").and_then(|link| link.split_once(')')).map_or(text, |(_, rest)| rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<usize> {
        check(Path::new("a.rs"), text).iter().map(|violation| violation.line).collect()
    }

    #[test]
    fn every_phrase_is_found() {
        for (phrase, _) in PHRASES {
            assert_eq!(lines(&format!("fine\n/// It is {phrase}, and so on.\n")), [2], "{phrase}");
        }
    }

    #[test]
    fn phrase_is_found_at_the_ends_of_a_line_and_in_upper_case() {
        assert_eq!(lines("Whoever sends\nsent by Nobody"), [1, 2]);
    }

    #[test]
    fn part_of_another_word_or_identifier_is_not_found() {
        assert_eq!(lines("fn nobody_else() { begun_at } // canewas"), []);
    }

    #[test]
    fn inline_code_is_not_checked_and_the_text_beside_it_is() {
        assert_eq!(lines("the [`Heard`](Input::Heard)\n[`x`](told) is told `y`\n```told"), [2]);
    }

    #[test]
    fn comments_and_strings_of_a_source_are_checked_and_code_is_not() {
        let rust = |text: &str| -> Vec<usize> {
            check_rust(Path::new("a.rs"), text).iter().map(|violation| violation.line).collect()
        };
        assert_eq!(
            rust("/// told\n//! told\n// told\n/* told\ntold */\nlet told = told(told);\n"),
            [1, 2, 3, 4, 5]
        );
        assert_eq!(
            rust(
                "#[error(\"told \\\"x\")]\nf(r#\"\"told \"#, told)\nf(b\"a\", told, br\" told\", told)\n"
            ),
            [1, 2, 3]
        );
        assert_eq!(
            rust("fn f<'a>(c: 'static) { if c == '\"' || c == '\\'' { told } } // told\n"),
            [1]
        );
        assert_eq!(
            rust("if c == '\"' { told }\nif c == '\\\\' { told }\nlet told = 1; // told\n"),
            [3]
        );
        assert_eq!(rust("json[\"told\"] = told;\n"), []);
        assert_eq!(rust("let x = 'a';\nlet told: &'a told = told;\n"), []);
    }
}

//! Names of functions, tests above all, that are not plain technical English.
//!
//! The name of a test states a condition and its result (CONTRIBUTING.md, Language). The lists hold
//! words that names in earlier versions of this repository used: persons in place of nodes and
//! requests, and figures of speech.

use std::path::Path;

use crate::Violation;

/// Words that a name does not start with, if another word follows.
const STARTS: &[&str] =
    &["a", "an", "the", "who", "whom", "whose", "what", "whichever", "nor", "they", "we"];

/// Words that no name contains.
const WORDS: &[&str] = &[
    "nobody",
    "somebody",
    "everybody",
    "anybody",
    "someone",
    "everyone",
    "whom",
    "whoever",
    "whomever",
    "whatever",
    "ourselves",
    "oneself",
    "told",
    "tells",
    "hear",
    "hears",
    "says",
    "vain",
    "anew",
    "amiss",
    "puppet",
    "puppets",
    "liar",
    "liars",
    "dice",
];

/// Checks a Rust source: each definition of a function with such a name is a violation.
pub fn check(file: &Path, text: &str) -> Vec<Violation> {
    let mut violations = Vec::new();
    for (at, line) in text.lines().enumerate() {
        let Some(name) = defined(line) else { continue };
        let starts = STARTS
            .iter()
            .find(|start| name.strip_prefix(**start).is_some_and(|rest| rest.starts_with('_')));
        let word = name.split('_').find(|word| WORDS.contains(word));
        if let Some(word) = starts.copied().or(word) {
            let what = format!(
                "function {name}: \"{word}\": name the actor, the condition and the result"
            );
            violations.push(Violation { file: file.to_owned(), line: at + 1, what });
        }
    }
    violations
}

/// The name of the function whose definition starts on a line. Only modifiers precede `fn`, so that
/// comments and most strings are left out.
fn defined(line: &str) -> Option<&str> {
    let (before, after) = line.split_once("fn ")?;
    let is_modifier = |word: &str| {
        word.starts_with("pub") || ["async", "const", "unsafe", "default"].contains(&word)
    };
    let name = after.split(|c: char| !c.is_alphanumeric() && c != '_').next()?;
    before.split_whitespace().all(is_modifier).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<usize> {
        check(Path::new("a.rs"), text).iter().map(|violation| violation.line).collect()
    }

    #[test]
    fn every_start_and_every_word_is_found() {
        for start in STARTS {
            assert_eq!(lines(&format!("\n    pub(crate) async fn {start}_is_there() {{}}")), [2]);
        }
        for word in WORDS {
            assert_eq!(lines(&format!("fn {word}() {{}}\nfn node_{word}_it<R>() {{}}")), [1, 2]);
        }
    }

    #[test]
    fn planted_test_name_is_found() {
        let test = "#[test]\nfn who_goes_on_and_on_is_closed() {}\n";
        assert_eq!(
            check(Path::new("a.rs"), test).first().map(ToString::to_string).as_deref(),
            Some(
                "a.rs:2: function who_goes_on_and_on_is_closed: \"who\": name the actor, the \
                 condition and the result"
            )
        );
    }

    #[test]
    fn part_of_a_word_and_text_outside_of_definitions_is_not_found() {
        assert_eq!(
            lines("fn whole_table() {}\nfn a() {}\nfn retold() {}\nfn within_an_hour() {}"),
            []
        );
        assert_eq!(
            lines("// fn puppet() {}\nlet x = \"fn puppet() {}\"; puppet();\nself.who_asks();"),
            []
        );
    }
}

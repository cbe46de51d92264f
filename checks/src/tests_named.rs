//! Tests that a document names exist and run.
//!
//! A document names a test as `PATH::NAME`, with the path of the file relative to the
//! root.

use std::path::Path;

use crate::Violation;
use crate::references::Texts;

/// Checks a document.
pub fn check(texts: &Texts, document: &Path, text: &str) -> Vec<Violation> {
    let mut violations = Vec::new();
    for (at, line) in text.lines().enumerate() {
        for (file, test) in named(line) {
            let what = match texts.get(Path::new(file)).map(|source| item(source, test)) {
                None => format!("{file} does not exist"),
                Some(None) => format!("{file} has no test {test}"),
                Some(Some(item)) if item.contains("#[ignore") => {
                    format!("{file}::{test} is ignored, so it shows nothing")
                }
                Some(Some(_)) => continue,
            };
            violations.push(Violation { file: document.to_owned(), line: at + 1, what });
        }
    }
    violations
}

/// The tests that a line names.
pub fn named(line: &str) -> impl Iterator<Item = (&str, &str)> {
    let quoted = line.split('`').skip(1).step_by(2);
    quoted.filter_map(|text| text.split_once("::")).filter(|(file, _)| file.ends_with(".rs"))
}

/// What precedes a function, from the last blank line on: its attributes and comments.
fn item<'a>(source: &'a str, test: &str) -> Option<&'a str> {
    // A test over all runtimes is generic.
    let at = ["(", "<"].iter().find_map(|end| source.find(&format!("fn {test}{end}")))?;
    source[..at].rsplit("\n\n").next()
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    #[test]
    fn absent_files_and_absent_or_ignored_tests_are_reported() {
        let source = "#[test]\nfn there() {}\n\n#[test]\n#[ignore]\nfn skipped() {}\n\nasync fn both<R: Rt>() {}\n";
        let texts = [(PathBuf::from("a/b.rs"), source.to_owned())].into_iter().collect();
        let found = |text| {
            let violations = check(&texts, Path::new("LIST"), text);
            violations.iter().map(Violation::to_string).collect::<Vec<_>>()
        };
        assert_eq!(found("| x | `a/b.rs::there`, `a/b.rs::both` |"), [""; 0]);
        assert_eq!(found("\n`a/c.rs::there`"), ["LIST:2: a/c.rs does not exist"]);
        assert_eq!(found("`a/b.rs::the`"), ["LIST:1: a/b.rs has no test the"]);
        assert_eq!(
            found("`a/b.rs::skipped`"),
            ["LIST:1: a/b.rs::skipped is ignored, so it shows nothing"]
        );
    }
}

//! Text that is not wrapped at 100 columns (CONTRIBUTING.md, Language).
//!
//! Checked are the prose of Markdown documents and the comments of Rust sources. Tables, headings,
//! blocks of code and lines without a space to wrap at are left as they are; rustfmt wraps the
//! code.

use std::path::Path;

use crate::Violation;

/// Maximum length of a line, in characters.
const COLUMNS: usize = 100;

/// Checks a Markdown document or a Rust source.
pub fn check(file: &Path, text: &str) -> Vec<Violation> {
    let is_rust = file.extension().is_some_and(|extension| extension == "rs");
    let mut violations = Vec::new();
    let mut in_code = false;
    for (at, line) in text.lines().enumerate() {
        let prose = if is_rust { comment(line) } else { Some(line) };
        let Some(prose) = prose.map(str::trim) else { continue };
        if prose.starts_with("```") {
            in_code = !in_code;
        }
        let columns = line.chars().count();
        if columns > COLUMNS && !in_code && !is_fixed(prose) {
            let what = format!("{columns} columns: wrap the text at {COLUMNS}");
            violations.push(Violation { file: file.to_owned(), line: at + 1, what });
        }
    }
    violations
}

/// The text of a line that is only a comment.
fn comment(line: &str) -> Option<&str> {
    let rest = line.trim_start().strip_prefix("//")?;
    Some(rest.strip_prefix(['/', '!']).unwrap_or(rest))
}

/// Whether a line cannot be wrapped: a row of a table, a heading, or one word, such as a link or a
/// hash, after the mark of its list.
fn is_fixed(prose: &str) -> bool {
    prose.starts_with(['|', '#']) || !prose.trim_start_matches(['-', '*', ' ']).contains(' ')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(file: &str, text: &str) -> Vec<usize> {
        check(Path::new(file), text).iter().map(|violation| violation.line).collect()
    }

    #[test]
    fn planted_long_lines_are_found() {
        let long = "word ".repeat(21);
        assert_eq!(lines("a.md", &format!("short\n{long}\n  - {long}")), [2, 3]);
        let comments = format!("fn a() {{}}\n/// {long}\n    //! {long}\n// {long}");
        assert_eq!(lines("a.rs", &comments), [2, 3, 4]);
        // The limit itself, in characters and not in bytes.
        let exact = format!("– {}", "x".repeat(98));
        assert_eq!(lines("a.md", &format!("{exact}\n{exact}x")), [2]);
        // After a block of code.
        assert_eq!(lines("a.md", &format!("```\n{long}\n```\n{long}")), [4]);
    }

    #[test]
    fn code_tables_headings_and_long_words_are_not_found() {
        let long = "word ".repeat(21);
        assert_eq!(lines("a.md", &format!("| {long} |\n# {long}\n- {}", "x".repeat(120))), []);
        assert_eq!(lines("a.rs", &format!("let a = \"{long}\"; // {long}")), []);
        assert_eq!(lines("a.rs", &format!("//! ```\n//! {long}\n//! ```")), []);
    }
}

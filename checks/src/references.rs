//! References to documents: each leads to a file and a heading in this repository, or to an RFC.
//!
//! Checked are:
//!
//! - links of Markdown documents with a relative target,
//! - names of documents (`README.md`) and, in documents and comments, of sources
//!   (`connect/choice.rs`),
//! - headings by their number, `docs/WIRE.md section 3.4`, or by their text, `docs/DESIGN.md,
//!   Searches`. A section without a document is one of the file that contains the reference; those
//!   of RFCs are not looked up.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::Violation;

/// Phrases that refer to documents outside of the repository.
const ABSENT: &[&str] = &["../shared", "MEASURED"];

/// The texts of a repository, by path relative to its root.
pub type Texts = BTreeMap<PathBuf, String>;

/// Checks all texts.
pub fn check(texts: &Texts) -> Vec<Violation> {
    let mut violations = Vec::new();
    for (file, text) in texts {
        let mut context = Context::default();
        let lines: Vec<_> = text.lines().map(|line| prose(file, line)).collect();
        for (at, line) in lines.iter().enumerate() {
            let mut violation =
                |what| violations.push(Violation { file: file.clone(), line: at + 1, what });
            if is_markdown(file) {
                links(line)
                    .filter_map(|target| broken(texts, file, target))
                    .for_each(&mut violation);
            }
            for phrase in ABSENT.iter().filter(|phrase| line.contains(**phrase)) {
                violation(format!(
                    "\"{phrase}\" refers to a document that is not in this repository"
                ));
            }
            for name in names(line) {
                let missing =
                    match Path::new(name).extension().and_then(|extension| extension.to_str()) {
                        Some("md") => find(texts, file, name).is_none(),
                        Some("rs") => {
                            names_sources(file) && !texts.keys().any(|other| other.ends_with(name))
                        }
                        _ => false,
                    };
                if missing {
                    violation(format!("{name} does not exist"));
                }
            }
            sections(texts, file, line, &mut context, &mut violation);
            let next = lines.get(at + 1).copied().unwrap_or_default();
            headings(texts, file, line, next, &mut violation);
        }
    }
    violations
}

/// The part of a line that people read: all of it, but in Rust only the comment.
fn prose<'a>(file: &Path, line: &'a str) -> &'a str {
    if file.extension().is_none_or(|extension| extension != "rs") {
        return line;
    }
    let start = if line.trim_start().starts_with("//") { Some(0) } else { line.find(" // ") };
    start.and_then(|start| line.get(start..)).unwrap_or_default()
}

fn is_markdown(file: &Path) -> bool {
    file.extension().is_some_and(|extension| extension == "md")
}

/// Whether the sources that a file names have to exist: a changelog names those of its time, a
/// script those that it makes.
fn names_sources(file: &Path) -> bool {
    let of_rust = file.extension().is_some_and(|extension| extension == "rs");
    of_rust || (is_markdown(file) && !file.ends_with("CHANGELOG.md"))
}

/// Names of files in a line.
fn names(line: &str) -> impl Iterator<Item = &str> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '/' | '.');
    let words = line.split(move |c| !is_name(c)).map(|word| word.trim_end_matches('.'));
    words.filter(|word| word.len() > 3 && !word.starts_with('.') && !word.contains("//"))
}

/// A document by its path relative to the file that names it, to its crate, or to the root.
fn find<'a>(texts: &'a Texts, file: &Path, name: &str) -> Option<&'a String> {
    file.ancestors().skip(1).find_map(|folder| texts.get(&normal(&folder.join(name))))
}

/// Targets of the Markdown links of a line.
fn links(line: &str) -> impl Iterator<Item = &str> {
    line.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(target, _)| target)
}

/// Why a link does not work; `None` if it does, or leads elsewhere.
fn broken(texts: &Texts, file: &Path, target: &str) -> Option<String> {
    if target.contains("://") || target.starts_with("mailto:") {
        return None;
    }
    let (path, anchor) =
        target.split_once('#').map_or((target, None), |(path, anchor)| (path, Some(anchor)));
    let folder = file.parent().unwrap_or(Path::new(""));
    let leads_to = if path.is_empty() { file.to_owned() } else { normal(&folder.join(path)) };
    let Some(text) = texts.get(&leads_to) else {
        let below = texts.keys().any(|other| other.starts_with(&leads_to));
        return (!below).then(|| format!("link to {target}: there is no such file"));
    };
    let anchor = anchor?;
    let exists = text.lines().filter(|line| line.starts_with('#')).any(|line| slug(line) == anchor);
    (!exists).then(|| format!("link to {target}: there is no such heading"))
}

/// The anchor of a heading, as GitHub makes it.
fn slug(heading: &str) -> String {
    let text = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = text.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

/// What the line before says about a reference that is wrapped.
#[derive(Default)]
struct Context<'a> {
    /// The last document or RFC.
    document: Option<&'a str>,
    /// The last word.
    word: &'a str,
}

/// Checks the numbers of the sections that a line refers to.
fn sections<'a>(
    texts: &Texts,
    file: &Path,
    line: &'a str,
    context: &mut Context<'a>,
    violation: &mut impl FnMut(String),
) {
    let mut document = None;
    for word in words(line) {
        if word.ends_with(".md") || word == "RFC" {
            document = Some(word);
        }
        let is_number = matches!(context.word, "section" | "sections" | "Section" | "Sections");
        if let Some(number) = number(word).filter(|_| is_number) {
            let document = document.or(context.document);
            if document != Some("RFC") && !has_section(texts, file, document, number) {
                let name = document.map_or_else(|| file.display().to_string(), str::to_owned);
                violation(format!("{name} has no section {number}"));
            }
        }
        context.word = word;
    }
    context.document = document;
}

/// The words of a line, without marks of comments and punctuation.
fn words(line: &str) -> impl Iterator<Item = &str> {
    let is_end =
        |c: char| c.is_whitespace() || matches!(c, '`' | '"' | '(' | ')' | '[' | ']' | ',' | ';');
    let words = line.split(is_end).map(|word| word.trim_end_matches(['.', ':']));
    words.filter(|word| !word.is_empty() && !word.starts_with("//"))
}

/// Checks the headings that a line refers to by their text. What follows the name of the document
/// may be on the `next` line.
fn headings(
    texts: &Texts,
    file: &Path,
    line: &str,
    next: &str,
    violation: &mut impl FnMut(String),
) {
    let next: Vec<_> = next.split_whitespace().filter(|word| !word.starts_with("//")).collect();
    let next = next.join(" ");
    for (at, _) in line.match_indices(".md,") {
        let (before, after) = line.split_at(at + ".md".len());
        let Some(name) = names(before).last() else { continue };
        let text = format!("{} {next}", after.trim_start_matches(',').trim());
        let text = text.trim_start();
        let first = text.split([' ', ')', ';', ',']).next().unwrap_or_default();
        if !first.starts_with(char::is_uppercase) || first.trim_end_matches('.').ends_with(".md") {
            continue;
        }
        let document = find(texts, file, name);
        let headings =
            document.into_iter().flat_map(|text| text.lines()).filter(|line| line.starts_with('#'));
        let mut headings = headings.map(|heading| heading.trim_start_matches('#').trim());
        if document.is_some() && !headings.any(|heading| text.starts_with(heading)) {
            violation(format!("{name} has no heading \"{first} …\""));
        }
    }
}

/// `3.4` in `3.4`, `3.4.` and `3.4:`.
fn number(word: &str) -> Option<&str> {
    let end = word.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(word.len());
    let number = word.get(..end)?.trim_end_matches('.');
    (!number.is_empty()).then_some(number)
}

/// Whether a document, or else the file itself, has a heading with a number.
fn has_section(texts: &Texts, file: &Path, document: Option<&str>, number: &str) -> bool {
    let text = match document {
        Some(name) => find(texts, file, name),
        None => texts.get(file),
    };
    let is_heading = |line: &str| {
        let heading = line.trim_start_matches('#');
        heading.len() < line.len()
            && heading.split_whitespace().next().map(|first| first.trim_end_matches('.'))
                == Some(number)
    };
    text.is_some_and(|text| text.lines().any(is_heading))
}

/// A path without `.` and `..`.
fn normal(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for part in path {
        match part.to_str() {
            Some(".") => {}
            Some("..") => drop(normal.pop()),
            _ => normal.push(part),
        }
    }
    normal
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(file: &str, text: &str) -> Vec<String> {
        let files = [
            (
                "docs/WIRE.md",
                "# Wire\n\n## 1. Ids\n\n## 2. QUIC `a`\n\n### 2.1 Packets\n\n## Key renewal\n",
            ),
            ("README.md", "# Read me\n"),
            ("pk/src/net/mod.rs", ""),
            (file, text),
        ];
        let texts =
            files.map(|(path, text)| (PathBuf::from(path), text.to_owned())).into_iter().collect();
        check(&texts).into_iter().map(|violation| violation.what).collect()
    }

    #[test]
    fn references_that_lead_somewhere_are_accepted() {
        let text = "[a](docs/WIRE.md#2-quic-a) [b](README.md) [c](https://example.com/x.html) [d](docs) [e](#top)\n\
                    # Top\n## 4. Four\nSee section 4, `net/mod.rs` and pk/src/net/mod.rs.\n";
        assert_eq!(found("a.md", text), [""; 0]);
        for text in [
            "//! See \"docs/WIRE.md section 2.1\", docs/WIRE.md, section 1, and README.md.",
            "/// As docs/WIRE.md section\n/// 2.1 says, and RFC 9000 sections\n/// 8 and 10.2.",
            "/// (docs/WIRE.md, Key renewal), (docs/WIRE.md, Key\n/// renewal), (README.md, or docs/WIRE.md, README.md)",
        ] {
            assert_eq!(found("pk/src/lib.rs", text), [""; 0], "{text}");
        }
    }

    #[test]
    fn missing_documents_headings_and_sections_are_reported() {
        for (file, text, what) in [
            (
                "a.md",
                "[a](docs/WIRE.md#3-more)",
                "link to docs/WIRE.md#3-more: there is no such heading",
            ),
            ("a.md", "[a](src/none)", "link to src/none: there is no such file"),
            ("a.md", "see section 3", "a.md has no section 3"),
            ("a.md", "see `net/none.rs`", "net/none.rs does not exist"),
            ("a.rs", "// docs/NONE.md says why", "docs/NONE.md does not exist"),
            ("a.rs", "let a = b; // docs/NONE.md says why", "docs/NONE.md does not exist"),
            ("a.rs", "// (docs/WIRE.md section 3)", "docs/WIRE.md has no section 3"),
            ("a.rs", "// (docs/WIRE.md section 2.2)", "docs/WIRE.md has no section 2.2"),
            ("a.rs", "// docs/WIRE.md\n// section 3", "docs/WIRE.md has no section 3"),
            ("a.rs", "// docs/WIRE.md section\n// 3", "docs/WIRE.md has no section 3"),
            ("a.rs", "// (docs/WIRE.md, Key loss)", "docs/WIRE.md has no heading \"Key …\""),
            ("a.rs", "// (docs/WIRE.md,\n// Lookup)", "docs/WIRE.md has no heading \"Lookup …\""),
            ("a.rs", "// as in DESIGN section 3, rule 8", "a.rs has no section 3"),
        ] {
            assert_eq!(found(file, text), [what], "{text}");
        }
    }

    #[test]
    fn text_of_a_program_and_history_are_no_references() {
        assert_eq!(found("a.rs", "let name = \"docs/NONE.md\";"), [""; 0]);
        assert_eq!(found("CHANGELOG.md", "`net/none.rs` is new"), [""; 0]);
    }

    #[test]
    fn documents_outside_of_the_repository_are_reported() {
        for phrase in ABSENT {
            assert!(!found("a.rs", &format!("// {phrase} 3, rule 8")).is_empty(), "{phrase}");
        }
    }
}

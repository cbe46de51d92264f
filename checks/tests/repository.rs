//! The checks, on this repository.
#![allow(clippy::unwrap_used, reason = "a test that cannot continue has failed")]

use std::fmt::Display;
use std::path::{Path, PathBuf};

use pk_checks::imports::ImportGraph;
use pk_checks::layers::{self, Layers};
use pk_checks::source::{Crate, members, texts};
use pk_checks::{columns, names, references, tests_named, words};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Every crate of the workspace, by its directory.
fn crates() -> Vec<(String, Crate)> {
    let read = |name: String| {
        let sources = Crate::read(&root().join(&name).join("src")).unwrap();
        assert!(!sources.files.is_empty(), "{name} has no sources");
        (name, sources)
    };
    members(&root()).unwrap().into_iter().map(read).collect()
}

fn assert_none(found: &[impl Display]) {
    let lines: Vec<_> = found.iter().map(ToString::to_string).collect();
    assert!(lines.is_empty(), "{} violations:\n{}", lines.len(), lines.join("\n"));
}

#[test]
fn no_crate_has_an_import_cycle() {
    let mut found = Vec::new();
    for (name, sources) in crates() {
        for cycle in ImportGraph::new(&sources).cycles() {
            let files: Vec<_> = cycle.iter().map(|file| file.display().to_string()).collect();
            found.push(format!("{name}: {} files: {}", cycle.len(), files.join(" ")));
        }
    }
    assert_none(&found);
}

#[test]
fn no_file_imports_from_a_higher_layer() {
    let architecture = std::fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let crates = crates();
    let mut found = Vec::new();
    for (name, sources) in &crates {
        if let Some(layers) = Layers::from_document(&architecture, name) {
            let violations = layers::check(sources, &ImportGraph::new(sources), &layers);
            found.extend(violations.iter().map(|violation| format!("{name}: {violation}")));
        }
    }
    let tables =
        architecture.split("<!-- layers: ").skip(1).filter_map(|rest| rest.split_once(" -->"));
    let tables: Vec<_> = tables.map(|(name, _)| name).collect();
    assert!(!tables.is_empty(), "ARCHITECTURE.md has no table of layers");
    let unknown = tables.iter().filter(|name| crates.iter().all(|(other, _)| other != *name));
    found.extend(unknown.map(|name| {
        format!("{name}: ARCHITECTURE.md has a table of layers, but there is no such crate")
    }));
    assert_none(&found);
}

/// The list of words, which contains all of them.
const WORD_LIST: &str = "checks/src/words.rs";

#[test]
fn documents_and_sources_use_plain_words() {
    let mut violations = Vec::new();
    for (file, text) in
        texts(&root()).unwrap().iter().filter(|(file, _)| *file != Path::new(WORD_LIST))
    {
        if file.extension().is_some_and(|extension| extension == "md") {
            violations.extend(words::check(file, text));
        } else if file.extension().is_some_and(|extension| extension == "rs") {
            violations.extend(words::check_rust(file, text));
        }
    }
    assert_none(&violations);
}

#[test]
fn text_is_wrapped() {
    let texts = texts(&root()).unwrap();
    let prose = texts.iter().filter(|(file, _)| {
        file.extension().is_some_and(|extension| extension == "md" || extension == "rs")
    });
    assert_none(&prose.flat_map(|(file, text)| columns::check(file, text)).collect::<Vec<_>>());
}

#[test]
fn functions_have_plain_names() {
    let texts = texts(&root()).unwrap();
    let sources = texts.iter().filter(|(file, _)| file.extension().is_some_and(|it| it == "rs"));
    assert_none(&sources.flat_map(|(file, text)| names::check(file, text)).collect::<Vec<_>>());
}

/// The check of references, whose tests contain ones that lead nowhere.
const REFERENCE_EXAMPLES: &str = "checks/src/references.rs";

#[test]
fn references_lead_to_something_in_this_repository() {
    let violations = references::check(&texts(&root()).unwrap()).into_iter();
    let violations: Vec<_> =
        violations.filter(|violation| violation.file != Path::new(REFERENCE_EXAMPLES)).collect();
    assert_none(&violations);
}

#[test]
fn documents_name_tests_that_exist_and_run() {
    let texts = texts(&root()).unwrap();
    let documents = texts
        .iter()
        .filter(|(file, _)| file.extension().is_some_and(|extension| extension == "md"));
    let (mut violations, mut named) = (Vec::new(), 0);
    for (file, text) in documents {
        named += text.lines().flat_map(tests_named::named).count();
        violations.extend(tests_named::check(&texts, file, text));
    }
    assert_none(&violations);
    assert!(named > 100, "only {named} tests are named, although docs/FAULTS.md lists more");
}

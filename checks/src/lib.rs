//! Checks of this repository that no compiler makes.
//!
//! Each check is a function from the files of a tree to a list of violations. `tests/repository.rs`
//! runs them on this repository, so that `cargo test` includes them; every check also has a test
//! with a planted violation.

pub mod columns;
pub mod imports;
pub mod layers;
pub mod names;
pub mod references;
pub mod source;
pub mod tests_named;
pub mod words;

use std::fmt;
use std::path::PathBuf;

/// A place in the repository that breaks a rule.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Violation {
    /// Path of the file, relative to the checked tree.
    pub file: PathBuf,
    /// Line, from 1; 0 if the violation concerns the whole file.
    pub line: usize,
    /// What is wrong and what to do.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file.display(), self.line, self.what)
    }
}

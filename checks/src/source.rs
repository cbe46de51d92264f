//! What is checked: Rust sources as syntax trees without their tests, and all texts of a tree.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use syn::{Attribute, Item};

use crate::references::Texts;

/// The sources of one crate.
#[derive(Debug, Default)]
pub struct Crate {
    /// Every file below `src`, by its path relative to it.
    pub files: BTreeMap<PathBuf, syn::File>,
}

impl Crate {
    /// Reads and parses all `.rs` files below a `src` directory. Test modules (`#[cfg(test)]`,
    /// files named `tests.rs` and directories named `tests`) are left out.
    ///
    /// # Errors
    ///
    /// A file cannot be read, or is not Rust.
    pub fn read(src: &Path) -> io::Result<Self> {
        let mut files = BTreeMap::new();
        collect(src, Path::new(""), &mut files)?;
        Ok(Self { files })
    }
}

/// The directories of the crates of a workspace, from the `members` of its manifest.
///
/// # Errors
///
/// The manifest cannot be read, or names no members.
pub fn members(root: &Path) -> io::Result<Vec<String>> {
    let manifest = fs::read_to_string(root.join("Cargo.toml"))?;
    let list = manifest.split_once("\nmembers = [").and_then(|(_, rest)| rest.split_once(']'));
    let (list, _) = list.ok_or_else(|| io::Error::other("the manifest has no members"))?;
    Ok(list.split('"').skip(1).step_by(2).map(str::to_owned).collect())
}

/// The texts of a tree that people write: documents, sources, manifests and scripts. Directories of
/// cargo, git and npm are left out, and links to other places are not followed.
///
/// # Errors
///
/// A directory or file cannot be read.
pub fn texts(root: &Path) -> io::Result<Texts> {
    let mut texts = Texts::new();
    read_texts(root, Path::new(""), &mut texts)?;
    Ok(texts)
}

fn read_texts(root: &Path, below: &Path, texts: &mut Texts) -> io::Result<()> {
    // The mark of a directory that can be made again, such as a target directory of cargo.
    if root.join(below).join("CACHEDIR.TAG").exists() {
        return Ok(());
    }
    for entry in fs::read_dir(root.join(below))? {
        let entry = entry?;
        let (name, path) = (entry.file_name(), below.join(entry.file_name()));
        let kind = entry.file_type()?;
        if kind.is_dir() && !["target", ".git", "node_modules"].iter().any(|other| name == *other) {
            read_texts(root, &path, texts)?;
        } else if kind.is_file() && is_text(&path) {
            // What is no UTF-8 is no text of ours.
            if let Ok(text) = String::from_utf8(fs::read(root.join(&path))?) {
                texts.insert(path, text);
            }
        }
    }
    Ok(())
}

fn is_text(path: &Path) -> bool {
    let script = || path.parent().is_some_and(|folder| folder == Path::new(".ci"));
    match path.extension() {
        Some(extension) => {
            ["md", "rs", "toml", "py", "sh", "yml", "yaml"].iter().any(|other| extension == *other)
        }
        None => script(),
    }
}

fn collect(src: &Path, below: &Path, files: &mut BTreeMap<PathBuf, syn::File>) -> io::Result<()> {
    for entry in fs::read_dir(src.join(below))? {
        let entry = entry?;
        let path = below.join(entry.file_name());
        let name = entry.file_name();
        if entry.file_type()?.is_dir() {
            if name != "tests" {
                collect(src, &path, files)?;
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") && !is_tests(&name) {
            let text = fs::read_to_string(src.join(&path))?;
            let mut file = syn::parse_file(&text)
                .map_err(|error| io::Error::other(format!("{}: {error}", path.display())))?;
            file.items.retain(|item| !is_test(attributes(item)));
            files.insert(path, file);
        }
    }
    Ok(())
}

fn is_tests(name: &std::ffi::OsStr) -> bool {
    name.to_str().is_some_and(|name| name == "tests.rs" || name.ends_with("_tests.rs"))
}

/// Whether an item is compiled for tests only.
fn is_test(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let list = attribute.meta.require_list();
        list.is_ok_and(|list| list.path.is_ident("cfg") && list.tokens.to_string() == "test")
    })
}

fn attributes(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Macro(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        Item::Type(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let tree = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = tree.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        tree
    }

    #[test]
    fn texts_are_all_but_what_is_built_or_fetched() {
        let tree = tree(&[
            ("README.md", "read"),
            (".ci/run", "#!"),
            ("a/src/lib.rs", "//!"),
            ("a/src/data.bin", "x"),
            ("target/doc/x.rs", ""),
            ("other/CACHEDIR.TAG", ""),
            ("other/x.rs", ""),
            ("node_modules/x/y.rs", ""),
            (".git/x.rs", ""),
        ]);
        let texts = texts(tree.path()).unwrap();
        let paths: Vec<_> = texts.keys().map(|path| path.display().to_string()).collect();
        assert_eq!(paths, [".ci/run", "README.md", "a/src/lib.rs"]);
    }

    #[test]
    fn members_are_those_of_the_manifest() {
        let tree = tree(&[(
            "Cargo.toml",
            "[workspace]\nmembers = [\"a\",\n  \"b/c\"]\nexclude = [\"d\"]\n",
        )]);
        assert_eq!(members(tree.path()).unwrap(), ["a", "b/c"]);
        assert!(members(&tree.path().join("none")).is_err());
    }
}

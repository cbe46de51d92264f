//! Layers: a file imports only from its own layer or from one below.
//!
//! The layers of a crate are the rows of a table in ARCHITECTURE.md, so that what is documented is
//! what is checked. The table begins behind the comment `<!-- layers: CRATE -->`; each row has the
//! name of the layer in its first column, and in its second column the files and directories of the
//! layer, each in backticks, relative to `src`. The lowest layer comes first. If the third column
//! begins with "siblings", the files and directories of the layer do not import each other either.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::Violation;
use crate::imports::ImportGraph;
use crate::source::Crate;

/// The layers of a crate, the lowest first.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Layers(Vec<Layer>);

/// One row of the table.
#[derive(Debug, Default, PartialEq, Eq)]
struct Layer {
    name: String,
    paths: Vec<PathBuf>,
    /// Its paths do not import each other.
    siblings: bool,
}

impl Layers {
    /// The layers that a document defines for a crate; `None` if it has no table for it.
    pub fn from_document(text: &str, package: &str) -> Option<Self> {
        let marker = format!("<!-- layers: {package} -->");
        let rows = text.split_once(&marker)?.1.lines().skip_while(|line| !line.starts_with('|'));
        let rows = rows.take_while(|line| line.starts_with('|')).skip(2);
        Some(Self(rows.map(row).collect()))
    }

    /// The layers as a map from each path to the position of its layer.
    fn positions(&self) -> BTreeMap<&Path, usize> {
        let mut positions = BTreeMap::new();
        for (at, layer) in self.0.iter().enumerate() {
            positions.extend(layer.paths.iter().map(|path| (path.as_path(), at)));
        }
        positions
    }
}

/// Reads a row.
fn row(line: &str) -> Layer {
    let mut columns = line.trim_matches('|').split('|').map(str::trim);
    let name = columns.next().unwrap_or_default().to_owned();
    let quoted = columns.next().unwrap_or_default().split('`').skip(1).step_by(2);
    let paths = quoted.map(|path| PathBuf::from(path.trim_end_matches('/'))).collect();
    Layer { name, paths, siblings: columns.next().unwrap_or_default().starts_with("siblings") }
}

/// Checks a crate: no file without a layer, no layer without a file, no import from a layer above
/// or between siblings.
pub fn check(sources: &Crate, graph: &ImportGraph, layers: &Layers) -> Vec<Violation> {
    let positions = layers.positions();
    let place = |file: &Path| file.ancestors().find_map(|path| positions.get_key_value(path));
    let layer = |at: usize| {
        layers.0.get(at).map_or(("", false), |layer| (layer.name.as_str(), layer.siblings))
    };
    let mut violations = Vec::new();
    let mut violation = |file: &Path, what: String| {
        violations.push(Violation { file: file.to_owned(), line: 0, what });
    };
    for file in sources.files.keys() {
        if place(file).is_none() {
            violation(
                file,
                "belongs to no layer; add it to the table of layers in ARCHITECTURE.md".to_owned(),
            );
        }
    }
    for path in positions.keys() {
        if !sources.files.keys().any(|file| file.starts_with(path)) {
            violation(
                path,
                "is in the table of layers in ARCHITECTURE.md, but does not exist".to_owned(),
            );
        }
    }
    for (file, used) in &graph.edges {
        for (defining, names) in used {
            let (Some((own_path, own)), Some((other_path, other))) = (place(file), place(defining))
            else {
                continue;
            };
            let ((own_name, siblings), (other_name, _)) = (layer(*own), layer(*other));
            let names = || names.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
            let defining = defining.display();
            if other > own {
                let what = format!(
                    "imports {} from {defining} of the higher layer `{other_name}`",
                    names()
                );
                violation(file, format!("layer `{own_name}` {what}"));
            } else if other == own && siblings && own_path != other_path {
                violation(
                    file,
                    format!("imports {} from {defining}, a sibling in layer `{own_name}`", names()),
                );
            }
        }
    }
    violations
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCUMENT: &str = "\
text\n\n<!-- layers: demo -->\n\n| layer | files |\n|---|---|\n\
| types | `id.rs`, `time.rs` |\n| machines | `connect/`, `rpc.rs` | siblings: none imports another |\n\
| root | `lib.rs` |\n\nmore\n| not | `a` |\n";

    fn demo(connect: &str, id: &str) -> Vec<Violation> {
        with_rpc("", connect, id)
    }

    fn with_rpc(rpc: &str, connect: &str, id: &str) -> Vec<Violation> {
        let connect = [
            ("connect/mod.rs", connect),
            ("connect/race.rs", "use super::Table; pub struct Race;"),
        ];
        let files = [("lib.rs", "mod id;"), ("id.rs", id), ("time.rs", ""), ("rpc.rs", rpc)];
        let files = files.into_iter().chain(connect);
        let parse =
            |(path, text): (&str, &str)| (PathBuf::from(path), syn::parse_file(text).unwrap());
        let sources = Crate { files: files.map(parse).collect() };
        let layers = Layers::from_document(DOCUMENT, "demo").unwrap();
        check(&sources, &ImportGraph::new(&sources), &layers)
    }

    #[test]
    fn downward_import_is_allowed() {
        assert_eq!(demo("use crate::id::Id; pub struct Table;", "pub struct Id;"), []);
    }

    #[test]
    fn upward_import_is_reported() {
        let found = demo("pub struct Table;", "use crate::connect::Table;");
        assert_eq!(found.len(), 1);
        assert!(
            found[0].to_string().contains("layer `types` imports Table from connect/mod.rs"),
            "{}",
            found[0]
        );
    }

    #[test]
    fn import_between_siblings_is_reported() {
        let found = with_rpc("use crate::connect::Table;", "pub struct Table;", "");
        assert_eq!(found.len(), 1);
        assert!(
            found[0].to_string().contains("imports Table from connect/mod.rs, a sibling"),
            "{}",
            found[0]
        );
    }

    #[test]
    fn file_without_layer_and_layer_without_file_are_reported() {
        let files = [("lib.rs", ""), ("id.rs", ""), ("connect.rs", "")];
        let parse =
            |(path, text): (&str, &str)| (PathBuf::from(path), syn::parse_file(text).unwrap());
        let sources = Crate { files: files.map(parse).into_iter().collect() };
        let layers = Layers::from_document(DOCUMENT, "demo").unwrap();
        let found: Vec<_> = check(&sources, &ImportGraph::new(&sources), &layers)
            .into_iter()
            .map(|violation| violation.file)
            .collect();
        assert_eq!(found, ["connect.rs", "connect", "rpc.rs", "time.rs"].map(PathBuf::from));
    }

    #[test]
    fn document_without_table_has_no_layers() {
        assert_eq!(Layers::from_document(DOCUMENT, "other"), None);
    }
}

//! The import graph of a crate: which file uses an item that another file defines.
//!
//! An import counts for the file that *defines* the item, not for the module that re-exports it, so
//! that a re-export neither hides nor creates a cycle. Paths in code (`crate::a::b()`) count like
//! `use` declarations.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use syn::visit::{self, Visit};
use syn::{Item, UseTree, Visibility};

use crate::source::Crate;

/// A module path below the crate root; empty for the root.
type Module = Vec<String>;

/// For each file the files whose items it uses, with the names of these items.
#[derive(Debug, Default)]
pub struct ImportGraph {
    /// Using file → defining file → names.
    pub edges: BTreeMap<PathBuf, BTreeMap<PathBuf, BTreeSet<String>>>,
}

impl ImportGraph {
    /// The import graph of a crate.
    pub fn new(sources: &Crate) -> Self {
        let index = Index::new(sources);
        let mut edges: BTreeMap<PathBuf, BTreeMap<PathBuf, BTreeSet<String>>> = BTreeMap::new();
        for (file, uses) in &index.uses {
            let used = edges.entry(file.clone()).or_default();
            for path in uses {
                if let Some(defining) = index.resolve(path, 0).filter(|defining| defining != file) {
                    used.entry(defining).or_default().extend(path.last().cloned());
                }
            }
        }
        Self { edges }
    }

    /// The import cycles: each a set of files that all depend on each other, the largest first.
    pub fn cycles(&self) -> Vec<Vec<PathBuf>> {
        let reach: BTreeMap<_, _> =
            self.edges.keys().map(|file| (file, self.reachable(file))).collect();
        let mut seen = BTreeSet::new();
        let mut cycles = Vec::new();
        for (file, reached) in &reach {
            if seen.contains(*file) || !reached.contains(*file) {
                continue;
            }
            let both = |other: &&PathBuf| reach.get(other).is_some_and(|back| back.contains(*file));
            let cycle: Vec<_> = reached.iter().copied().filter(both).cloned().collect();
            seen.extend(cycle.iter().cloned());
            cycles.push(cycle);
        }
        cycles.sort_by_key(|cycle| std::cmp::Reverse(cycle.len()));
        cycles
    }

    /// The files that can be reached over at least one import.
    fn reachable(&self, from: &Path) -> BTreeSet<&PathBuf> {
        let mut reached = BTreeSet::new();
        let mut next: Vec<_> = self.edges.get(from).into_iter().flat_map(BTreeMap::keys).collect();
        while let Some(file) = next.pop() {
            if reached.insert(file) {
                next.extend(self.edges.get(file).into_iter().flat_map(BTreeMap::keys));
            }
        }
        reached
    }
}

/// What the files of a crate define, re-export and use.
#[derive(Debug, Default)]
struct Index {
    modules: BTreeMap<Module, PathBuf>,
    defined: BTreeMap<Module, BTreeSet<String>>,
    /// Module → name → path of the item that it refers to.
    reexports: BTreeMap<Module, BTreeMap<String, Module>>,
    /// Module → modules whose items it re-exports with `*`.
    globs: BTreeMap<Module, Vec<Module>>,
    uses: BTreeMap<PathBuf, Vec<Module>>,
}

impl Index {
    fn new(sources: &Crate) -> Self {
        let mut index = Self::default();
        for path in sources.files.keys() {
            index.modules.insert(module_of(path), path.clone());
        }
        for (path, file) in &sources.files {
            let module = module_of(path);
            let defined = index.defined.entry(module.clone()).or_default();
            defined.extend(file.items.iter().filter_map(defined_name));
            let mut uses = Vec::new();
            for item in &file.items {
                if let Item::Use(item) = item {
                    let public = !matches!(item.vis, Visibility::Inherited);
                    index.declare(&module, public, &item.tree, &[], &mut uses);
                }
            }
            let mut paths = PathsInCode { index: &index, module: &module, found: Vec::new() };
            paths.visit_file(file);
            uses.extend(paths.found);
            index.uses.insert(path.clone(), uses);
        }
        index
    }

    /// Takes in one `use` declaration.
    fn declare(
        &mut self,
        module: &Module,
        public: bool,
        tree: &UseTree,
        prefix: &[String],
        uses: &mut Vec<Module>,
    ) {
        let joined = |name: &syn::Ident| [prefix, &[name.to_string()]].concat();
        match tree {
            UseTree::Path(path) => {
                self.declare(module, public, &path.tree, &joined(&path.ident), uses);
            }
            UseTree::Group(group) => {
                group
                    .items
                    .iter()
                    .for_each(|tree| self.declare(module, public, tree, prefix, uses));
            }
            UseTree::Glob(_) => {
                if let Some(target) = self.absolute(module, prefix) {
                    if public {
                        self.globs.entry(module.clone()).or_default().push(target.clone());
                    }
                    uses.push(target);
                }
            }
            UseTree::Name(syn::UseName { ident })
            | UseTree::Rename(syn::UseRename { ident, .. }) => {
                let path = if ident == "self" { prefix.to_vec() } else { joined(ident) };
                let name = match tree {
                    UseTree::Rename(rename) => rename.rename.to_string(),
                    _ => path.last().cloned().unwrap_or_default(),
                };
                if let Some(target) = self.absolute(module, &path) {
                    if public {
                        self.reexports
                            .entry(module.clone())
                            .or_default()
                            .insert(name, target.clone());
                    }
                    uses.push(target);
                }
            }
        }
    }

    /// The path from the crate root; `None` if it leads into another crate.
    fn absolute(&self, module: &Module, path: &[String]) -> Option<Module> {
        let (first, rest) = path.split_first()?;
        match first.as_str() {
            "crate" => Some(rest.to_vec()),
            "self" => Some([module, rest].concat()),
            "super" => {
                let ups = path.iter().take_while(|part| *part == "super").count();
                let above = module.get(..module.len().checked_sub(ups)?)?;
                Some([above, path.get(ups..)?].concat())
            }
            _ => {
                let child = [module.as_slice(), std::slice::from_ref(first)].concat();
                self.modules.contains_key(&child).then(|| [module, path].concat())
            }
        }
    }

    /// The file that defines the item at a path.
    fn resolve(&self, path: &[String], depth: usize) -> Option<PathBuf> {
        if depth > 8 {
            return None;
        }
        if let Some(file) = self.modules.get(path) {
            return Some(file.clone());
        }
        let (module, rest) = (0..path.len()).rev().find_map(|end| {
            let (module, rest) = path.split_at(end);
            self.modules.contains_key(module).then_some((module, rest))
        })?;
        let (name, inner) = rest.split_first()?;
        let file = self.modules.get(module).cloned();
        if self.defined.get(module).is_some_and(|defined| defined.contains(name)) {
            return file;
        }
        if let Some(target) = self.reexports.get(module).and_then(|names| names.get(name)) {
            return self.resolve(&[target, inner].concat(), depth + 1);
        }
        let globs = self.globs.get(module).into_iter().flatten();
        let through = globs.filter(|target| self.names(target, name, depth + 1));
        let found = through
            .filter_map(|target| self.resolve(&[target.as_slice(), rest].concat(), depth + 1))
            .next();
        // Otherwise a macro defines it.
        found.or(file)
    }

    /// Whether a module defines or re-exports a name.
    fn names(&self, module: &Module, name: &String, depth: usize) -> bool {
        let globs = || self.globs.get(module).into_iter().flatten();
        depth <= 8
            && (self.defined.get(module).is_some_and(|defined| defined.contains(name))
                || self.reexports.get(module).is_some_and(|names| names.contains_key(name))
                || globs().any(|target| self.names(target, name, depth + 1)))
    }
}

/// The module of a file: its path without the extension and without `mod` at its end.
fn module_of(path: &Path) -> Module {
    let mut module: Module =
        path.with_extension("").iter().map(|part| part.to_string_lossy().into_owned()).collect();
    if module.last().is_some_and(|last| last == "mod") {
        module.pop();
    }
    if matches!(module.as_slice(), [only] if only == "lib" || only == "main") {
        module.clear();
    }
    module
}

fn defined_name(item: &Item) -> Option<String> {
    Some(match item {
        Item::Const(item) => item.ident.to_string(),
        Item::Enum(item) => item.ident.to_string(),
        Item::Fn(item) => item.sig.ident.to_string(),
        Item::Macro(item) => item.ident.as_ref()?.to_string(),
        Item::Mod(item) if item.content.is_some() => item.ident.to_string(),
        Item::Static(item) => item.ident.to_string(),
        Item::Struct(item) => item.ident.to_string(),
        Item::Trait(item) => item.ident.to_string(),
        Item::Type(item) => item.ident.to_string(),
        Item::Union(item) => item.ident.to_string(),
        _ => return None,
    })
}

/// Paths outside of `use` declarations that lead into the same crate.
struct PathsInCode<'a> {
    index: &'a Index,
    module: &'a Module,
    found: Vec<Module>,
}

impl<'ast> Visit<'ast> for PathsInCode<'_> {
    fn visit_item_use(&mut self, _: &'ast syn::ItemUse) {}

    // `pub(in crate::a)` names a module, but uses nothing of it.
    fn visit_vis_restricted(&mut self, _: &'ast syn::VisRestricted) {}

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let parts: Vec<_> = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        if let [first, _, ..] = parts.as_slice()
            && matches!(first.as_str(), "crate" | "super" | "self")
            && let Some(target) = self.index.absolute(self.module, &parts)
        {
            self.found.push(target);
        }
        visit::visit_path(self, path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn graph(files: &[(&str, &str)]) -> ImportGraph {
        let parse =
            |(path, text): &(&str, &str)| (PathBuf::from(path), syn::parse_file(text).unwrap());
        ImportGraph::new(&Crate { files: files.iter().map(parse).collect() })
    }

    fn edge(graph: &ImportGraph, from: &str, to: &str) -> bool {
        graph.edges.get(Path::new(from)).is_some_and(|used| used.contains_key(Path::new(to)))
    }

    #[test]
    fn import_through_reexport_counts_for_the_defining_file() {
        let files = [
            ("lib.rs", "mod a; mod b;"),
            ("a/mod.rs", "mod deep; pub use self::deep::Thing;"),
            ("a/deep.rs", "pub struct Thing;"),
            ("b.rs", "use crate::a::Thing;"),
        ];
        let graph = graph(&files);
        assert!(edge(&graph, "b.rs", "a/deep.rs") && !edge(&graph, "b.rs", "a/mod.rs"));
    }

    #[test]
    fn import_through_glob_counts_for_the_defining_file() {
        let files = [
            ("lib.rs", "mod a; mod b;"),
            ("a/mod.rs", "mod deep; pub use deep::*;"),
            ("a/deep.rs", "pub fn thing() {}"),
            ("b.rs", "use crate::a::{thing};"),
        ];
        assert!(edge(&graph(&files), "b.rs", "a/deep.rs"));
    }

    #[test]
    fn cycle_over_three_files_is_found_once() {
        let files = [
            ("lib.rs", "mod a; mod b; mod c; mod d;"),
            ("a.rs", "use crate::b::B; pub struct A;"),
            ("b.rs", "fn f() { crate::c::c() } pub struct B;"),
            ("c.rs", "use super::a::A; pub fn c() {}"),
            ("d.rs", "use crate::a::A;"),
        ];
        let cycles = graph(&files).cycles();
        assert_eq!(cycles, [["a.rs", "b.rs", "c.rs"].map(PathBuf::from)]);
    }

    #[test]
    fn parent_and_child_that_use_each_other_are_a_cycle() {
        let files = [
            ("lib.rs", "mod a; use a::A; pub struct Root;"),
            ("a.rs", "use super::Root; pub struct A;"),
        ];
        assert_eq!(graph(&files).cycles().len(), 1);
    }

    #[test]
    fn restricted_visibility_is_no_import() {
        let files = [
            ("lib.rs", "mod a;"),
            ("a/mod.rs", "use b::B;"),
            ("a/b.rs", "pub(in crate::a) struct B;"),
        ];
        assert!(graph(&files).cycles().is_empty());
        let files = [
            ("lib.rs", "mod a;"),
            ("a/mod.rs", "use b::B; pub fn f() {}"),
            ("a/b.rs", "pub(crate) struct B; fn g() { crate::a::f() }"),
        ];
        assert_eq!(graph(&files).cycles().len(), 1);
    }

    #[test]
    fn declaration_of_a_module_is_no_import() {
        let files = [("lib.rs", "mod a; pub struct Root;"), ("a.rs", "use crate::Root;")];
        assert!(graph(&files).cycles().is_empty());
    }
}

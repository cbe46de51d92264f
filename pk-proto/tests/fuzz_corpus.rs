//! Replays the committed corpus of every fuzz target of a parser.

#[path = "../../fuzz/bodies.rs"]
mod bodies;

use std::fs;
use std::path::Path;

#[test]
fn corpus_of_every_target_passes() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus");
    for (target, body) in bodies::TARGETS {
        let mut files: Vec<_> =
            fs::read_dir(corpus.join(target)).unwrap().map(|file| file.unwrap().path()).collect();
        files.sort();
        let mut taken = 0;
        for file in &files {
            // Printed only if the test fails.
            println!("{}", file.display());
            taken += usize::from(body(&fs::read(file).unwrap()));
        }
        let refused = files.len() - taken;
        assert!(
            taken > 0 && refused > 0,
            "{target}: {taken} good inputs and {refused} bad ones; a corpus has both"
        );
    }
}

#[test]
fn every_target_has_a_corpus_and_every_corpus_a_target() {
    let names = |folder: &str| {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz").join(folder);
        let mut names: Vec<String> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned())
            .collect();
        names.sort();
        names
    };
    let machines = bodies::MACHINES.iter().copied();
    let mut targets: Vec<_> =
        bodies::TARGETS.iter().map(|(name, _)| *name).chain(machines).map(str::to_owned).collect();
    targets.sort();
    assert_eq!(names("fuzz_targets"), targets);
    assert_eq!(names("corpus"), targets);
}

//! Replays the committed corpus of the fuzz target `mdns`, and random scripts.
#![allow(missing_docs, clippy::unwrap_used, reason = "a test that cannot continue has failed")]

use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};

#[path = "../../fuzz/mdns.rs"]
mod body;

#[test]
fn corpus_of_mdns_passes() {
    let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/corpus/mdns");
    let mut found = 0;
    for file in std::fs::read_dir(corpus).unwrap() {
        found += usize::from(body::mdns(&std::fs::read(file.unwrap().path()).unwrap()));
    }
    assert!(found > 0);
}

#[test]
fn random_scripts_pass() {
    let mut random = ChaCha8Rng::from_seed([7; 32]);
    let mut found = 0;
    for script in 0..60 {
        let mut data = vec![0; 3 * (10 + script)];
        random.fill_bytes(&mut data);
        found += usize::from(body::mdns(&data));
    }
    assert!(found > 2, "{found} scripts had instances to find");
}

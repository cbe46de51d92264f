//! Replays the committed corpora of the fuzz targets `datagrams` and `relay`, and random scripts.
#![allow(missing_docs, clippy::unwrap_used, reason = "a test that cannot continue has failed")]

#[path = "../../fuzz/datagrams.rs"]
mod body;
#[path = "../../fuzz/ending.rs"]
mod ending;
#[path = "../../fuzz/relay.rs"]
mod relay;

#[test]
fn corpus_of_datagrams_passes() {
    let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/corpus/datagrams");
    let mut exchanged = 0;
    for file in std::fs::read_dir(corpus).unwrap() {
        exchanged += usize::from(body::datagrams(&std::fs::read(file.unwrap().path()).unwrap()));
    }
    assert!(exchanged > 0);
}

#[test]
fn random_scripts_pass() {
    for script in 0..60u32 {
        let mut random = blake3::Hasher::new().update(&script.to_le_bytes()).finalize_xof();
        let mut data = vec![0; 3 * (20 + script as usize * 4)];
        random.fill(&mut data);
        // Every script begins with a connection.
        let begin = [14, 0, 0, 0, 0, 7, 0, 0, 7, 0, 0, 7, 0, 0, 7, 14, 0, 2];
        body::datagrams(&[&begin[..], &data].concat());
    }
}

#[test]
fn corpus_of_relay_passes() {
    let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/corpus/relay");
    let mut opened = 0;
    for file in std::fs::read_dir(corpus).unwrap() {
        opened += usize::from(relay::relay(&std::fs::read(file.unwrap().path()).unwrap()));
    }
    assert!(opened > 0);
}

#[test]
fn random_scripts_of_a_hostile_peer_pass() {
    let mut opened = 0;
    for script in 0..60u32 {
        let mut random =
            blake3::Hasher::new().update(b"relay").update(&script.to_le_bytes()).finalize_xof();
        let mut data = vec![0; 3 * (5 + script as usize * 2)];
        random.fill(&mut data);
        // Every script begins with a circuit to the node.
        let begin = [4, 0, 0, 0, 0, 31, 0, 0, 31];
        opened += usize::from(relay::relay(&[&begin[..], &data].concat()));
    }
    assert_eq!(opened, 60);
}

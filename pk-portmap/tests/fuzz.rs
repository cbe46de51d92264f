//! Replays the committed corpus of the fuzz target `gateway`, and changes of it.
#![allow(missing_docs, clippy::unwrap_used, reason = "a test that cannot continue has failed")]

#[path = "../../fuzz/gateway.rs"]
mod body;

fn corpus() -> Vec<Vec<u8>> {
    let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/corpus/gateway");
    let files = std::fs::read_dir(corpus).unwrap();
    files.map(|file| std::fs::read(file.unwrap().path()).unwrap()).collect()
}

#[test]
fn corpus_of_gateway_passes_and_grants_every_request() {
    let granted = corpus().iter().filter(|data| body::gateway(data)).count();
    assert!(granted >= 5, "{granted}");
}

#[test]
fn every_change_of_a_byte_of_the_corpus_passes() {
    for data in corpus() {
        for at in 0..data.len() {
            for byte in 0..=255 {
                let mut changed = data.clone();
                changed[at] = byte;
                body::gateway(&changed);
            }
            body::gateway(&data[..at]);
        }
    }
}

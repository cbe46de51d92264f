//! The targets of `fuzz/` that drive whole machines: their committed corpus, and scripts from a
//! seed.

use std::fs;
use std::path::Path;

use pk_sim::Coverage;
use pk_sim::fuzz::{Run, machine, pair};

/// Runs the committed corpus of a target.
fn replay(target: &str, body: fn(&[u8]) -> Run) -> Vec<Run> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target);
    let mut files: Vec<_> =
        fs::read_dir(corpus).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    let run = |file: &std::path::PathBuf| {
        // Shown only if it fails.
        println!("{}", file.display());
        body(&fs::read(file).unwrap())
    };
    files.iter().map(run).collect()
}

fn coverage(runs: &[Run]) -> Coverage {
    let mut coverage = Coverage::default();
    runs.iter().for_each(|run| coverage.add(&run.coverage));
    coverage
}

/// Scripts from a seed: short, long, and of every kind of driver.
fn random(count: u64, length: usize, body: fn(&[u8]) -> Run) -> Vec<Run> {
    (0..count).map(|seed| body(&noise(seed, length))).collect()
}

/// A new input, output, request or kind of timer that neither the corpus nor random scripts reach
/// fails this test. `cargo fuzz run -O -s none machine` finds a script that does, if the target can
/// make one; commit it. Scripts of the corpus whose names begin with `hand-` were written for
/// sequences of several steps.
#[test]
fn machine_scripts_pass_and_reach_every_variant() {
    let mut runs = replay("machine", machine);
    runs.extend(random(1500, 700, machine));
    let coverage = coverage(&runs);
    let missing =
        [coverage.missing(), coverage.missing_requests(), coverage.missing_timers()].concat();
    assert!(missing.is_empty(), "{missing:?}");
    let sum = |of: fn(&Run) -> u64| runs.iter().map(of).sum::<u64>();
    let ends = (sum(|run| run.quiet), sum(|run| run.replayed), sum(|run| run.restarts));
    assert!(ends.0 > 100 && ends.1 > 10_000 && ends.2 > 500, "{ends:?}");
    assert!(
        sum(|run| run.checks.requests) > 0
            && sum(|run| run.checks.gauges) > 0
            && sum(|run| run.checks.nodes) > 0
    );
    assert!(
        sum(|run| run.checks.stored) > 0
            && sum(|run| run.checks.timers) > 0
            && sum(|run| run.checks.sends) > 0
    );
    for event in [
        "ClaimAdded",
        "ClaimApprovalRequested",
        "ClaimUnconfirmed",
        "ClaimConfirmed",
        "IdentityRenewed",
        "PeerMisbehaved",
        "LeaseLost",
        "NodeRemoved",
    ] {
        assert!(coverage.count(&format!("Event::{event}")) > 0, "{event} never happened");
    }
}

#[test]
fn pair_scripts_pass_and_nodes_agree() {
    let mut runs = replay("pair", pair);
    runs.extend(random(60, 300, pair));
    let coverage = coverage(&runs);
    let sum = |of: fn(&Run) -> u64| runs.iter().map(of).sum::<u64>();
    assert!(
        sum(|run| run.agreed) >= runs.len() as u64
            && sum(|run| run.replayed) > 0
            && sum(|run| run.restarts) > 0
    );
    for event in [
        "ClaimAdded",
        "ClaimApprovalRequested",
        "ClaimUnconfirmed",
        "ClaimConfirmed",
        "IdentityRenewed",
        "ConnectionClosed",
    ] {
        assert!(coverage.count(&format!("Event::{event}")) > 0, "{event} never happened");
    }
}

/// Pseudorandom bytes.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut noise = vec![0; length];
    blake3::Hasher::new().update(&seed.to_be_bytes()).finalize_xof().fill(&mut noise);
    noise
}

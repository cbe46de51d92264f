//! `pk find`, `pk ping`, `pk closest` and `pk buckets` against a running network.

use std::time::{Duration, Instant};

use crate::process::{Agent, pk, pk_ok};

const UNKNOWN: &str = "vha4e7nbk17opbvaircmjpeiteb56e2dv3ma146vjei403d0fdte0";

#[test]
fn one_shots_find_ping_and_list_running_nodes() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().to_str().unwrap();
    let own = pk_ok(&["keygen", "--dir", dir]).stdout;
    let a = Agent::start(&["--runtime", "smol"]);
    let mut b = Agent::start(&["--seed-node", &a.seed_node()]);
    b.event("joined");
    let seed = a.seed_node();
    let common = ["--dir", dir, "--seed-node", &seed];
    let run = |args: &[&str]| pk(&[args, &common].concat());

    let found = run(&["find", &b.id]);
    assert_eq!(found.code, Some(0), "{found}");
    assert!(found.stdout.contains(&format!("{} is at 127.0.0.1:{}", b.id, b.port)), "{found}");
    let found = run(&["find", &b.id, "--json", "--runtime", "smol"]);
    assert_eq!(found.code, Some(0), "{found}");
    assert_eq!(found.json()[0]["address"], format!("127.0.0.1:{}", b.port));
    assert_eq!(found.json()[0]["contact"]["mode"], "direct");

    let ping = run(&["ping", &b.id]);
    assert_eq!(ping.code, Some(0), "{ping}");
    assert!(ping.stdout.contains("answers in"), "{ping}");
    let ping = run(&["ping", &b.id, "--json"]);
    assert!(ping.json()[0]["rttMs"].as_f64().is_some_and(|ms| ms > 0.0), "{ping}");

    let closest = run(&["closest", UNKNOWN]);
    assert_eq!(closest.code, Some(0), "{closest}");
    assert!(closest.stdout.starts_with(&format!("2 nodes closest to {UNKNOWN} in ")), "{closest}");
    assert!(closest.stdout.contains(&a.id) && closest.stdout.contains(&b.id), "{closest}");
    let closest = run(&["closest", &b.id, "--count", "1", "--json"]);
    assert_eq!(closest.json()[0]["complete"], true, "{closest}");
    assert_eq!(closest.json()[0]["nodes"].as_array().unwrap().len(), 1, "{closest}");
    assert_eq!(closest.json()[0]["nodes"][0]["nodeId"], b.id, "{closest}");

    let buckets = run(&["buckets"]);
    assert_eq!(buckets.code, Some(0), "{buckets}");
    assert!(buckets.stdout.contains(&a.id) && buckets.stdout.contains(&b.id), "{buckets}");
    let buckets = run(&["buckets", "--json"]);
    assert_eq!(buckets.json()[0]["nodes"], 2, "{buckets}");

    let absent = run(&["find", UNKNOWN]);
    assert_eq!((absent.code, absent.stdout.as_str()), (Some(1), ""), "{absent}");
    assert!(absent.stderr.contains("was not found") && absent.stderr.contains("tip:"), "{absent}");
    let absent = run(&["ping", UNKNOWN, "--json"]);
    assert_eq!(
        (absent.code, &absent.json()[0]["error"]["name"]),
        (Some(1), &"NotFound".into()),
        "{absent}"
    );

    let itself = run(&["ping", own.trim()]);
    assert_eq!(itself.code, Some(1), "{itself}");
    assert!(itself.stderr.contains("itself"), "{itself}");
    a.end();
    b.end();
}

#[test]
fn error_names_each_seed_if_none_answers() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().to_str().unwrap();
    pk_ok(&["keygen", "--dir", dir]);
    let dead = format!("pk://{UNKNOWN}@127.0.0.1:9");
    let unknown = format!("pk://{UNKNOWN}@no-such-host.invalid:9");
    let begun = Instant::now();
    let args =
        ["buckets", "--dir", dir, "--seed-node", &dead, "--seed-node", &unknown, "--timeout", "3"];
    let ended = pk(&args);
    assert_eq!(ended.code, Some(1), "{ended}");
    assert!(ended.stderr.contains("no seed node could be reached"), "{ended}");
    for seed in [&dead, &unknown] {
        assert!(ended.stderr.contains(seed), "{ended}");
    }
    assert!(begun.elapsed() < Duration::from_secs(20));
}

//! The scenario `relays` at few nodes, under all checkers: relays that misbehave keep no nodes
//! apart. `PK_SEEDS=100 cargo test -p pk-sim --test nodes hostile_relays` tries more seeds.

use pk_sim::scenario::{Options, Scenario, run};

/// Seeds of a run without the variable.
const SEEDS: u64 = 2;

#[test]
fn nodes_that_need_a_relay_find_each_other_among_relays_that_misbehave() {
    let seeds = std::env::var("PK_SEEDS").map_or(SEEDS, |seeds| seeds.parse().unwrap());
    let scenario = Scenario::built_in("relays").unwrap().unwrap();
    assert!(scenario.checkers);
    let (mut searches, mut found, mut relayed, mut lies) = (0.0, 0.0, 0.0, 0.0);
    for seed in 0..seeds {
        let options = Options { nodes: Some(20), seed, ..Options::default() };
        let outcome = run(&scenario, &options).unwrap().outcome;
        let get = |figure| outcome.get(figure).unwrap();
        searches += get("searches");
        found += get("searches") * get("found_rate");
        relayed += get("relayed");
        lies += get("lies");
        let rate = get("found_rate");
        assert!(rate >= 0.9 && get("requests_lost") == 0.0, "seed {seed}: {rate}");
    }
    println!(
        "{seeds} seeds: {found} of {searches} found, {relayed} relayed connections, {lies} lies"
    );
    assert!(found >= 0.97 * searches, "{found} of {searches}");
    assert!(relayed > 0.0 && lies > 0.0);
}

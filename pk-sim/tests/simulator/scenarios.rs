//! Scenarios: same seed, same run; twins, churn, partitions and attacks do what they say.

use pk_sim::scenario::{Options, Outcome, Scenario, run};

fn outcome(text: &str, options: &Options) -> Outcome {
    let start = if text.contains("start =") { "" } else { "start = \"warm\"\n" };
    let text = format!("about = \"a test\"\n{start}{text}");
    run(&Scenario::parse("test.toml", &text).unwrap(), options).unwrap().outcome
}

fn seed(seed: u64) -> Options {
    Options { seed, ..Options::default() }
}

const SMALL: &str = "nodes = 30\nhours = 0.2\nstart = \"join\"\n\
    [[event]]\nat_s = 60\ndo = \"kill\"\npercent = 20\n\
    [[event]]\nat_s = 61\ndo = \"join\"\ncount = 5\nfor_s = 10\n\
    [[event]]\nat_s = 100\ndo = \"search\"\ncount = 40\nfor_s = 100\n";

#[test]
fn same_seed_has_the_same_run() {
    let (first, again, other) =
        (outcome(SMALL, &seed(7)), outcome(SMALL, &seed(7)), outcome(SMALL, &seed(8)));
    assert_eq!(first.trace_hash, again.trace_hash);
    assert_ne!(first.trace_hash, other.trace_hash);
    let figures = |outcome: &Outcome| {
        let machine =
            ["cpu_s", "rss_bytes", "bytes_per_node", "cpu_ms_per_search", "cpu_s_per_node_day"];
        let kept = outcome.figures.iter().filter(|(name, _)| !machine.contains(*name));
        kept.map(|(name, value)| (*name, *value)).collect::<Vec<_>>()
    };
    assert_eq!(figures(&first), figures(&again));
    assert_eq!((first.get("joins"), first.get("join_failures")), (Some(5.0), Some(0.0)));
    assert!(first.get("searches") >= Some(38.0) && first.get("found_rate") >= Some(0.9));
    assert_eq!(first.get("gone_known"), Some(0.0), "the dead have left after ten minutes");
    assert!(first.ok(), "nothing was expected");
}

#[test]
fn same_run_with_all_checkers_has_the_same_hash() {
    let checked = SMALL.replace("hours", "checkers = true\nhours");
    assert_eq!(outcome(SMALL, &seed(3)).trace_hash, outcome(&checked, &seed(3)).trace_hash);
}

#[test]
fn parts_of_a_large_network_start_one_after_the_other_and_know_each_other() {
    let text = "nodes = 150\nhours = 0.02\n[warm]\nat_once = 100\nevery_s = 40\n";
    let parts = outcome(text, &seed(2));
    let at_once = outcome(&text.replace("at_once = 100", "at_once = 150"), &seed(2));
    let waited = parts.get("virtual_s").unwrap() - at_once.get("virtual_s").unwrap();
    assert!((39.0..=41.0).contains(&waited), "{waited}");
    for run in [parts, at_once] {
        assert!(run.get("closest20_known") >= Some(0.99), "{:?}", run.get("closest20_known"));
    }
}

#[test]
fn difference_to_the_twin_without_searches_is_their_dials() {
    // Without background dials that hide the difference.
    let text = "nodes = 60\nhours = 0.3\ntwin = true\n\
        [config]\nretry_delay_s = 0\ncollect_interval_s = 3600\nrefresh_delay_s = 36000\n\
        [[event]]\nat_s = 800\ndo = \"search\"\ncount = 20\nfor_s = 20\n";
    let with = outcome(text, &seed(1));
    let dials = with.get("search_dials").unwrap();
    let own = with.get("own_attempts").unwrap();
    assert!(own > 5.0 && (0.3 * own..=1.2 * own).contains(&dials), "{dials} {own}");
    // No node was killed that could be searched for: a run without searches has no such figure.
    let nothing = text.replace("count = 20", "count = 1\npairs = \"dead\"");
    assert_eq!(outcome(&nothing, &seed(1)).get("search_dials"), None);
}

#[test]
fn partition_separates_and_heals() {
    let text = |heal: u32| {
        format!(
            "nodes = 24\nhours = 0.5\n[[event]]\nat_s = 60\ndo = \"partition\"\n\
             [[event]]\nat_s = {heal}\ndo = \"heal\"\n\
             [[event]]\nat_s = 400\ndo = \"search\"\ncount = 20\nfor_s = 20\npairs = \"across\"\n"
        )
    };
    assert_eq!(outcome(&text(1700), &seed(1)).get("across_found_rate"), Some(0.0));
    assert_eq!(outcome(&text(120), &seed(1)).get("across_found_rate"), Some(1.0));
}

#[test]
fn churn_replaces_nodes_and_counts_the_dead() {
    let text = "nodes = 20\nhours = 0.5\n[[event]]\nat_s = 0\ndo = \"churn\"\nlifetime_s = 900\n\
        [measure]\nsnapshot_from_s = 900\nsnapshot_every_s = 300\n";
    let churned = outcome(text, &seed(1));
    // Twenty nodes that live for a quarter of an hour: forty deaths in half an hour.
    let joins = churned.get("joins").unwrap();
    assert!((20.0..65.0).contains(&joins), "{joins}");
    let (dead, worst) =
        (churned.get("dead_contacts").unwrap(), churned.get("worst_dead_contacts").unwrap());
    assert!(dead > 0.0 && worst >= dead && worst < 1.0, "{dead} {worst}");
    let known = churned.get("closest20_known").unwrap();
    assert!(known > 0.3 && known <= 1.0, "{known}");
}

#[test]
fn attack_is_counted() {
    let text = "nodes = 30\nhours = 0.3\n[[event]]\nat_s = 60\ndo = \"attack\"\nbehavior = \"colluding\"\n\
        count = 40\nnetworks = 20\nnear_bits = 6\nevery_s = 60\nfor_s = 600\n";
    let attacked = outcome(text, &seed(1));
    let kept = attacked.get("honest_kept").unwrap();
    assert!((0.1..=1.0).contains(&kept), "{kept}");
    assert!(attacked.get("victim_dials").is_some());
}

#[test]
fn returned_node_is_not_counted_as_lost() {
    let text =
        "nodes = 20\nhours = 0.3\n[[event]]\nat_s = 60\ndo = \"away\"\ncount = 3\nfor_s = 30\n";
    assert_eq!(outcome(text, &seed(1)).get("contacts_lost"), Some(0.0));
    assert_eq!(outcome("nodes = 20\nhours = 0.1\n", &seed(1)).get("contacts_lost"), None);
}

#[test]
fn run_ends_early_when_it_is_cancelled() {
    let options = Options::default();
    options.stop.store(true, std::sync::atomic::Ordering::Relaxed);
    let scenario = Scenario::built_in("idle").unwrap().unwrap();
    assert!(run(&scenario, &options).is_err());
}

#[test]
fn fewer_hours_leave_out_later_events_and_more_nodes_are_more() {
    let options = Options { hours: Some(0.02), nodes: Some(12), ..Options::default() };
    let short = outcome(SMALL, &options);
    assert_eq!((short.nodes, short.get("searches")), (12, None));
    assert!(short.get("virtual_s") < Some(300.0));
}

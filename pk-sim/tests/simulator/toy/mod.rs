//! Three walks through all inputs and outputs, with toy machines.

mod claim;
mod kit;
mod renewal;
mod search;

#[test]
fn search_through_a_relay_is_deterministic() {
    let (_, digest) = search::walk(1);
    assert_eq!(search::walk(1).1, digest);
    for seed in 2..20 {
        assert_ne!(search::walk(seed).1, digest);
    }
}

#[test]
fn claim_completes_after_its_initiator_was_killed_before_the_last_message() {
    assert_eq!(claim::walk(1), claim::walk(1));
}

#[test]
fn claim_is_consistent_after_a_kill_of_either_side_at_any_step() {
    let (linked, unlinked) = claim::sweep();
    assert!(linked > 20 && unlinked > 20, "{linked} {unlinked}");
}

#[test]
fn renewal_with_open_connections_is_deterministic() {
    assert_eq!(renewal::walk(1), renewal::walk(1));
}

#[test]
fn renewal_is_consistent_after_a_kill_at_any_step() {
    let (old, new) = renewal::sweep();
    assert!(old > 0 && new > 20, "{old} {new}");
}

/// Every output and every input occurs in one of the walks.
#[test]
fn walks_contain_every_input_and_output() {
    let mut spoken = search::walk(1).0;
    spoken.add(&claim::walk(1).0);
    spoken.add(&renewal::walk(1).0);
    // `tests/nodes/suspected.rs` tests the inputs about silent connections.
    let missing = [
        // `tests/nodes/relay.rs` tests relaying.
        "Output::AttachCircuit",
        "Output::JoinCircuit",
        "Output::CloseCircuit",
        "Output::ProbePath",
        "Input::LocalAddresses",
        "Input::Suspected",
        "Input::Heard",
        "Input::CircuitClosed",
        // `tests/nodes/external.rs` tests external addresses.
        "Input::External",
    ];
    assert_eq!(spoken.missing(), missing, "{spoken:?}");
}

//! Three walks through the whole vocabulary, played by toys: that it reads naturally, before the
//! real core is built on it.
#![allow(clippy::unwrap_used, clippy::panic, reason = "toys")]
#![allow(unreachable_pub, reason = "one crate of several files")]

#[path = "toy/claim.rs"]
mod claim;
#[path = "toy/kit.rs"]
mod kit;
#[path = "toy/renewal.rs"]
mod renewal;
#[path = "toy/search.rs"]
mod search;

#[test]
fn a_search_through_a_relay_with_punching() {
    let (_, digest) = search::walk(1);
    assert_eq!(search::walk(1).1, digest);
    for seed in 2..20 {
        assert_ne!(search::walk(seed).1, digest);
    }
}

#[test]
fn a_claim_whose_initiator_is_killed_before_its_last_word() {
    assert_eq!(claim::walk(1), claim::walk(1));
}

#[test]
fn a_claim_whose_initiator_or_responder_is_killed_at_any_moment() {
    let (linked, unlinked) = claim::sweep();
    assert!(linked > 20 && unlinked > 20, "{linked} {unlinked}");
}

#[test]
fn a_key_renewal_with_open_connections() {
    assert_eq!(renewal::walk(1), renewal::walk(1));
}

#[test]
fn a_key_renewal_that_is_killed_at_any_moment() {
    let (old, new) = renewal::sweep();
    assert!(old > 0 && new > 20, "{old} {new}");
}

/// Every output and every input occurs in one of the walks.
#[test]
fn the_walks_speak_the_whole_vocabulary() {
    let mut spoken = search::walk(1).0;
    spoken.add(&claim::walk(1).0);
    spoken.add(&renewal::walk(1).0);
    // What the transport says of silent connections is the matter of `tests/suspected.rs`.
    assert_eq!(spoken.missing(), ["Input::Suspected", "Input::Heard"], "{spoken:?}");
}

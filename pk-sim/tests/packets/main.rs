//! Whole nodes over virtual datagrams, in virtual time.
//!
//! The modules of `scenarios` are also run by `examples/packets.rs`, which prints their figures as
//! one table.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot continue has failed")]
#![allow(missing_docs, unreachable_pub, reason = "a test")]

mod determinism;
mod faults;
mod follow;
mod handshakes;
mod joining;
mod limits;
mod relay;
mod scenarios;

use scenarios::Row;

/// Prints rows, and fails if one misses its goal.
fn assert_goals(rows: &[Row]) {
    scenarios::print(rows);
    let missed: Vec<_> = rows.iter().filter(|row| !row.holds).collect();
    assert!(missed.is_empty(), "{missed:#?}");
}

#[test]
fn moved_end_is_reached_within_round_trips_of_its_next_packet() {
    assert_goals(&scenarios::migration::rows());
}

#[test]
fn restart_is_detected_with_the_next_packet() {
    assert_goals(&scenarios::restart::rows());
}

#[test]
fn requests_succeed_in_spite_of_loss_reordering_and_duplication() {
    assert_goals(&scenarios::network::rows());
}

#[test]
fn every_mtu_works_and_may_drop_while_connected() {
    assert_goals(&scenarios::mtu::rows());
}

#[test]
fn node_protocol_continues_beside_application_streams() {
    assert_goals(&scenarios::streams::rows());
}

#[test]
fn one_stream_carries_ten_mebibytes_a_second() {
    assert_goals(&scenarios::throughput::rows());
}

#[test]
fn relayed_connections_are_fast_and_cost_their_relay_little() {
    assert_goals(&scenarios::relay::rows());
}

#[test]
fn hostile_sender_fills_no_more_memory_than_documented() {
    assert_goals(&scenarios::memory::rows());
}

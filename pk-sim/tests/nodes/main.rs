//! Nodes in the simulator: what each machine of `pk-proto` does, alone, beside scripted peers, and
//! in networks. One program, because each further one compiles the simulator again.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]
#![allow(unreachable_pub, reason = "one crate of many files")]

mod abuse;
mod bucket_life;
mod candidates;
mod chain_data;
mod chaos;
mod claims;
mod clocks;
mod closest;
mod common;
mod connections;
mod cost;
mod defects;
mod detach;
mod determinism;
mod diversity;
mod early;
mod edges;
mod ends;
mod external;
mod false_answers;
mod find;
mod fuzz_found;
mod graph;
mod grown;
mod hostile;
mod hostile_relays;
mod idle;
mod instrument;
mod limits;
mod mdns;
mod memory;
mod misbehaving;
mod mixed;
mod mixed_claims;
mod networks;
mod phases;
mod polykey;
mod races;
mod recorded;
mod refresh;
mod relay;
mod relay_races;
mod renewal;
mod requests;
mod restart;
mod signalling;
mod streams;
mod suspected;
mod sync;
mod unserved;
mod upkeep;

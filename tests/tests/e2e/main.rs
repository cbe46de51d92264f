//! The end-to-end cases. All of them are one program, so that slots (see `pk_tests::case`) and
//! output are in one place.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test that cannot continue has failed"
)]

mod answers;
mod certificates;
mod claims;
mod closing;
mod config;
mod crowd;
mod embedders;
mod events;
mod graph;
mod hostile;
mod idle;
mod killed;
mod leaks;
mod lifecycle;
mod mixed;
mod names;
mod network;
mod rejected;
mod signal;
mod streams;

/// The program of nodes in processes of their own.
const NODE: &str = env!("CARGO_BIN_EXE_pk-test-node");

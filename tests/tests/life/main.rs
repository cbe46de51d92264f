//! Nodes over several runs: its directory, its keys, the local network. All cases are one program,
//! so that slots (see `pk_tests::case`) and output are in one place.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test that cannot continue has failed"
)]

mod directory;
mod faults;
mod kills;
mod kit;
mod local;
mod recording;
mod refused;
mod renewal;
mod signer;
mod upgrade;

/// The program of a node in a directory.
const AGENT: &str = env!("CARGO_BIN_EXE_pk-test-agent");

//! The life of a node beyond one run: its folder, its keys, the local network. All cases are one program, so that slots (see
//! `pk_tests::case`) and output are in one place.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod faults;
mod folder;
mod kit;
mod local;
mod recording;
mod refused;
mod renewal;
mod violence;

/// The program of a node in a folder.
const AGENT: &str = env!("CARGO_BIN_EXE_pk-test-agent");

//! The program `pk` as a user runs it: its exit codes, its messages, and several processes that
//! connect to each other.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a helper of tests fails as a test does")]

mod agent;
mod claims;
mod demo;
mod directory;
mod keys;
mod one_shots;
mod output;
#[allow(dead_code, reason = "shared with the tests behind NATs")]
mod process;
mod renew;
mod replay;
mod signals;
mod stdio;
mod upgrade;
mod usage;

//! What real environments do to real `pk` processes: clocks, networks, disks.
//!
//! A test that needs a tool which is not here says so on stderr and passes, except in CI
//! (`CI=true`), where everything has to be there.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a helper of tests fails as a test does")]

mod clocks;
#[path = "../nat/internet.rs"]
#[allow(dead_code, reason = "shared with the tests behind NATs")]
mod internet;
mod lan;
#[path = "../nat/lan.rs"]
mod lan_kit;
mod names;
#[path = "../cli/process.rs"]
#[allow(dead_code, reason = "shared with the other tests of the program")]
mod process;
mod rejected;
mod restart;
mod roaming;
mod store;

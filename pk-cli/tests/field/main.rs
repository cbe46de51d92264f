//! Real `pk` processes in real environments: clocks, networks, disks.
//!
//! A test whose tool is missing prints so on stderr and passes, except in CI (`CI=true`), where all
//! tools are required.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a helper of tests fails as a test does")]

mod clocks;
#[cfg(target_os = "linux")]
#[path = "../nat/gateway.rs"]
mod gateway;
#[path = "../nat/internet.rs"]
#[allow(dead_code, reason = "shared with the tests behind NATs")]
mod internet;
mod lan;
#[path = "../nat/lan.rs"]
mod lan_kit;
mod names;
#[cfg(target_os = "linux")]
mod port_mapping;
#[path = "../cli/process.rs"]
#[allow(dead_code, reason = "shared with the other tests of the program")]
mod process;
mod rejected;
mod restart;
mod roaming;
mod store;

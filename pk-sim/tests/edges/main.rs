//! Values at their edges: times, counts, addresses, generations of keys, and what requests report
//! at a limit.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

mod addresses;
#[path = "../common/mod.rs"]
mod common;
mod configs;
mod counts;
mod renewals;
mod reports;
mod times;

//! Edge cases: times, counts, addresses, generations of keys, and the results of requests at a
//! limit.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

mod addresses;
#[path = "../common/mod.rs"]
mod common;
mod configs;
mod counts;
mod renewals;
mod reports;
mod times;

//! Chains of others, read over the network and verified (DESIGN section 6), in virtual time.
#![allow(clippy::unwrap_used, clippy::panic, unreachable_pub, reason = "tests")]

#[path = "../common/mod.rs"]
mod common;
mod honest;
mod hostile;
mod kit;

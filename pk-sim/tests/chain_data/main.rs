//! Chains of others, read over the network and verified (docs/DESIGN.md, Claims), in virtual time.
#![allow(clippy::unwrap_used, clippy::panic, unreachable_pub, reason = "tests")]

#[path = "../common/mod.rs"]
mod common;
mod gaps;
mod honest;
mod hostile;
mod kit;

//! Cross-signing between real nodes in the simulator.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

#[path = "../common/mod.rs"]
mod common;
mod crash;
mod cycles;
mod hostile;
mod hostile_answers;
mod kit;
mod life;
mod limits;
mod links;
mod other_types;
mod random_faults;
mod turns;
mod unknown;
mod victim;

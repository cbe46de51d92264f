//! Whole nodes over virtual datagrams, in virtual time.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot continue has failed")]
#![allow(clippy::indexing_slicing, missing_docs, unreachable_pub, reason = "a test")]

mod follow;
mod handshakes;
mod joining;
mod migration;
mod restart;
mod streams;
mod world;

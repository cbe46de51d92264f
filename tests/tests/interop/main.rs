//! Tests against real nodes of Polykey 1.15.1, over real sockets, and against scripted peers that
//! violate its dialect.
//!
//! The real ones need Node.js 20 or later and npm. Without them their cases do nothing and print so
//! on stderr; with `PK_INTEROP=required` or `CI=true` they fail; with `PK_INTEROP=off` they do
//! nothing and print nothing.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test that cannot continue has failed"
)]

#[macro_use]
mod kit;

mod abuse;
mod claims;
mod find;
mod idle;
mod isolation;
mod mdns;
mod meet;
mod methods;
mod network;
mod restart;
mod rotation;
mod runner;
mod signalling;

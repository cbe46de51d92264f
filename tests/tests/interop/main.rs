//! Against real nodes of Polykey 1.15.1, over real sockets; and against peers made by hand that
//! speak its dialect badly.
//!
//! The real ones need Node.js 20 or later and npm. Without them their cases do nothing and say so
//! on stderr; with `PK_INTEROP=required` or `CI=true` they fail; with `PK_INTEROP=off` they do
//! nothing and say nothing.
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
mod meet;
mod methods;
mod network;
mod restart;
mod rotation;
mod runner;
mod signalling;

//! The harness of the end-to-end tests: real nodes over real sockets on loopback.
//!
//! Every case is written once, generic over the runtime, and instantiated for each of them by
//! [`cases!`]; its name and its output contain the runtime. Waits are bounded, and their failures
//! name the condition; deadlines are long enough for a slow machine.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test that cannot continue has failed"
)]

pub mod case;
pub mod certs;
pub mod child;
pub mod firewall;
pub mod log;
pub mod names;
pub mod node;
pub mod raw;
pub mod signer;
pub mod socket;
pub mod wait;
pub mod watched;

pub use case::Rt;
pub use pk_driver_smol::Smol;
pub use pk_driver_tokio::Tokio;

//! The Polykey node layer as a pure state machine.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(any(test, feature = "std", feature = "arbitrary"))]
extern crate std;

mod address;
pub mod cert;
mod config;
mod connect;
mod cx;
mod error;
mod graph;
mod id;
pub mod io;
mod lookup;
mod manager;
mod metrics;
mod request;
mod rpc;
mod seed_node;
mod signature;
mod time;
mod timers;

pub use address::*;
pub use config::*;
pub use error::*;
pub use graph::*;
pub use id::*;
pub use io::*;
pub use manager::*;
pub use metrics::*;
pub use request::*;
pub use rpc::*;
pub use seed_node::*;
pub use signature::*;
pub use time::*;

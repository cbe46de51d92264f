//! The Polykey node layer as a pure state machine.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(any(test, feature = "std"))]
extern crate std;

pub mod cert;
mod id;
mod signature;

pub use id::*;
pub use signature::*;

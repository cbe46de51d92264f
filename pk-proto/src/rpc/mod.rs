//! Streams and the calls on them.

mod frame;

pub use frame::FrameFault;

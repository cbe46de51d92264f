//! Searches of a real `NodeManager` in simulated networks, driven event by event in virtual time.

pub mod cells;
pub mod net;
pub mod node;

//! pk-sim

//! pk-driver

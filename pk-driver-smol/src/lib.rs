//! pk-driver-smol

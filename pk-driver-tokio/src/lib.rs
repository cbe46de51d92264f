//! pk-driver-tokio

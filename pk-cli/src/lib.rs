//! pk-cli

//! pk-tests

//! Polykey certificates.

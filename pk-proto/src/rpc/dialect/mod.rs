//! How messages become bytes, for each dialect.

pub mod native;
pub mod polykey;

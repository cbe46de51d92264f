//! The protocol of a connection.

use serde::{Deserialize, Serialize};

/// The protocol of a connection, selected by its ALPN (docs/DESIGN.md, Dialects).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub enum Dialect {
    /// `pk/1`.
    Native,
    /// `quic`, Polykey 1.x.
    Polykey,
}

impl Dialect {
    /// Returns the ALPN protocol name on the wire.
    pub const fn alpn(self) -> &'static [u8] {
        match self {
            Self::Native => b"pk/1",
            Self::Polykey => b"quic",
        }
    }

    /// Returns the dialect of an ALPN protocol name.
    pub fn from_alpn(alpn: &[u8]) -> Option<Self> {
        [Self::Native, Self::Polykey].into_iter().find(|dialect| dialect.alpn() == alpn)
    }
}

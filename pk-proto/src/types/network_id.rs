//! Names of networks of nodes.

use alloc::string::String;
use core::fmt;
use core::str::FromStr;

use serde::{Deserialize, Serialize};

/// Maximum length of a name, in bytes.
const MAX_LEN: usize = 255;

/// Name of a network of nodes (docs/DESIGN.md, Network isolation), such as a domain: 1 to 255 bytes
/// of UTF-8 without control characters. Names are compared byte by byte.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NetworkId(String);

/// A text that is not the name of a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NetworkIdError {
    /// It is empty.
    #[error("the name of a network must not be empty")]
    Empty,
    /// It is too long.
    #[error("the name of a network has {0} bytes; it must have at most {MAX_LEN}")]
    TooLong(usize),
    /// It contains a control character.
    #[error("the name of a network must not contain control characters")]
    Control,
}

impl NetworkId {
    /// Returns the name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for NetworkId {
    type Error = NetworkIdError;

    fn try_from(name: String) -> Result<Self, NetworkIdError> {
        if name.is_empty() {
            return Err(NetworkIdError::Empty);
        }
        if name.len() > MAX_LEN {
            return Err(NetworkIdError::TooLong(name.len()));
        }
        if name.chars().any(char::is_control) {
            return Err(NetworkIdError::Control);
        }
        Ok(Self(name))
    }
}

impl FromStr for NetworkId {
    type Err = NetworkIdError;

    fn from_str(name: &str) -> Result<Self, NetworkIdError> {
        String::from(name).try_into()
    }
}

impl From<NetworkId> for String {
    fn from(network: NetworkId) -> Self {
        network.0
    }
}

impl fmt::Display for NetworkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn names_have_a_length_and_no_control_characters() {
        let longest = "n".repeat(255);
        for name in ["a", "mainnet.polykey.com", "r\u{e9}seau", "two words", &longest] {
            assert_eq!(name.parse::<NetworkId>().unwrap().to_string(), name);
        }
        for (name, error) in [
            ("", NetworkIdError::Empty),
            (&"n".repeat(256)[..], NetworkIdError::TooLong(256)),
            ("a\nb", NetworkIdError::Control),
            ("\u{85}", NetworkIdError::Control),
        ] {
            assert_eq!(name.parse::<NetworkId>(), Err(error));
        }
    }

    #[test]
    fn invalid_stored_name_is_refused() {
        let stored = postcard::to_allocvec(&"mainnet").unwrap();
        let network: NetworkId = postcard::from_bytes(&stored).unwrap();
        assert_eq!(postcard::to_allocvec(&network).unwrap(), stored);
        assert!(postcard::from_bytes::<NetworkId>(&postcard::to_allocvec("").unwrap()).is_err());
    }
}

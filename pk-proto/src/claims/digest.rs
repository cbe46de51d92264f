//! The digest of a signed claim, which the next claim contains.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::str::FromStr;

use blake2::digest::consts::U32;
use serde::{Deserialize, Serialize};

/// A digest algorithm of claims, named as in the multicodec table.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
#[non_exhaustive]
pub enum DigestAlgorithm {
    /// BLAKE3, 32 bytes.
    #[default]
    Blake3,
    /// BLAKE2b, 32 bytes, which the reference writes.
    Blake2b256,
    /// SHA-256; only for verification.
    Sha256,
    /// SHA-512; only for verification.
    Sha512,
}

impl DigestAlgorithm {
    /// All algorithms, which are supported for verification.
    pub const ALL: [Self; 4] = [Self::Blake3, Self::Blake2b256, Self::Sha256, Self::Sha512];

    /// Code and length in bytes of a multihash; both are varints.
    const fn prefix(self) -> &'static [u8] {
        match self {
            Self::Blake3 => &[0x1e, 32],
            Self::Blake2b256 => &[0xa0, 0xe4, 0x02, 32],
            Self::Sha256 => &[0x12, 32],
            Self::Sha512 => &[0x13, 64],
        }
    }

    const fn len(self) -> usize {
        match self {
            Self::Sha512 => 64,
            _ => 32,
        }
    }

    /// Returns the digest of these bytes.
    pub fn digest(self, bytes: &[u8]) -> Digest {
        let mut digest = Digest { algorithm: self, bytes: [0; 64] };
        let mut set =
            |bytes: &[u8]| digest.bytes.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
        match self {
            Self::Blake3 => set(blake3::hash(bytes).as_bytes()),
            Self::Blake2b256 => set(&<blake2::Blake2b<U32> as blake2::Digest>::digest(bytes)),
            Self::Sha256 => set(&<sha2::Sha256 as sha2::Digest>::digest(bytes)),
            Self::Sha512 => set(&<sha2::Sha512 as sha2::Digest>::digest(bytes)),
        }
        digest
    }
}

/// A digest and its algorithm.
///
/// The text form ([`Display`](fmt::Display), [`FromStr`], serde) is a multihash in multibase
/// base58btc: `z…` (docs/WIRE.md section 6). No other text is a digest.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest {
    algorithm: DigestAlgorithm,
    /// Zero after the length of the algorithm.
    bytes: [u8; 64],
}

impl Digest {
    /// Returns the algorithm.
    pub const fn algorithm(&self) -> DigestAlgorithm {
        self.algorithm
    }

    /// Returns the 32 or 64 bytes.
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.algorithm.len()).unwrap_or_default()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::from("z");
        text.push_str(
            &bs58::encode([self.algorithm.prefix(), self.as_bytes()].concat()).into_string(),
        );
        f.pad(&text)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// Why a text is not a [`Digest`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[non_exhaustive]
pub enum ParseDigestError {
    /// Not a multihash in multibase base58btc.
    #[error("a digest must be `z` and a multihash in base58btc")]
    Malformed,
    /// A multihash with another algorithm than [`DigestAlgorithm::ALL`], or of another length.
    #[error("the digest is not BLAKE3, BLAKE2b-256, SHA2-256 or SHA2-512 of full length")]
    Unsupported,
}

impl FromStr for Digest {
    type Err = ParseDigestError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        /// SHA2-512 needs 91. Decoding base58 is quadratic, so that the length is checked first.
        const MAX_LEN: usize = 128;
        let rest = text
            .strip_prefix('z')
            .filter(|rest| rest.len() < MAX_LEN)
            .ok_or(ParseDigestError::Malformed)?;
        let multihash: Vec<u8> =
            bs58::decode(rest).into_vec().map_err(|_| ParseDigestError::Malformed)?;
        let found = DigestAlgorithm::ALL.into_iter().find_map(|algorithm| {
            let digest = multihash.strip_prefix(algorithm.prefix())?;
            (digest.len() == algorithm.len()).then_some((algorithm, digest))
        });
        let (algorithm, digest) = found.ok_or(ParseDigestError::Unsupported)?;
        let mut bytes = [0; 64];
        bytes.iter_mut().zip(digest).for_each(|(to, from)| *to = *from);
        Ok(Self { algorithm, bytes })
    }
}

impl Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        alloc::borrow::Cow::<'de, str>::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use std::format;
    use std::string::ToString;

    use super::*;

    /// Published test vectors of each function for the message "abc".
    #[test]
    fn digests_match_published_vectors() {
        for (algorithm, hex) in [
            (
                DigestAlgorithm::Blake3,
                "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85",
            ),
            (
                DigestAlgorithm::Blake2b256,
                "bddd813c634239723171ef3fee98579b94964e3bb1cb3e427262c8c068d52319",
            ),
            (
                DigestAlgorithm::Sha256,
                "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
            ),
            (
                DigestAlgorithm::Sha512,
                "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f",
            ),
        ] {
            let digest = algorithm.digest(b"abc");
            assert_eq!(data_encoding::HEXLOWER.encode(digest.as_bytes()), hex);
            assert_eq!(digest.to_string().parse(), Ok(digest), "{algorithm:?}");
            assert_eq!(format!("{digest:?}"), format!("{digest}"));
        }
    }

    #[test]
    fn digest_has_one_text_form() {
        let text = DigestAlgorithm::Blake3.digest(b"").to_string();
        for bad in
            ["", "z", &text[1..], &text.replace('z', "Z"), &format!("{text}0"), &"z".repeat(1000)]
        {
            assert!(bad.parse::<Digest>().is_err(), "{bad}");
        }
        let of = |multihash: &[u8]| {
            format!("z{}", bs58::encode(multihash).into_string()).parse::<Digest>()
        };
        let with = |prefix: &[u8], len| of(&[prefix, &[7; 64][..len]].concat());
        assert!(with(&[0x1e, 32], 32).is_ok());
        // A truncated digest, an unknown function, trailing bytes, a length that is not minimal.
        for (prefix, len) in [
            (&[0x1e, 20][..], 20),
            (&[0x16, 32], 32),
            (&[0x1e, 32], 33),
            (&[0x1e, 0xa0, 0], 32),
            (&[0x1e, 32], 31),
        ] {
            assert_eq!(with(prefix, len), Err(ParseDigestError::Unsupported), "{prefix:?} {len}");
        }
    }
}

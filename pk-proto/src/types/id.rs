//! Identifiers: node ids, and ids of connections, streams and work in progress.

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::cmp::Ordering;
use core::fmt;
use core::str::FromStr;

use data_encoding::Encoding;
use data_encoding_macro::new_encoding;
use serde::{Deserialize, Serialize};

/// RFC 4648 base32hex, lower case, no padding; trailing bits must be zero (docs/WIRE.md section 1).
pub(crate) const BASE32HEX: Encoding =
    new_encoding! { symbols: "0123456789abcdefghijklmnopqrstuv", };
const BASE32HEX_UPPER: Encoding = new_encoding! { symbols: "0123456789ABCDEFGHIJKLMNOPQRSTUV", };

/// Id of a node: the 32 bytes of its Ed25519 public key (docs/WIRE.md section 1).
///
/// The text form ([`Display`](fmt::Display), [`FromStr`], serde of human-readable formats) is
/// multibase base32hex: `v` and 52 characters. Parsing also accepts the multibase prefixes `V`, `z`
/// and `f`, as the reference does; only `v` is written.
///
/// Any 32 bytes are a `NodeId`. Whether they are a usable key is checked when a signature is
/// verified.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct NodeId([u8; 32]);

impl NodeId {
    /// Length of the raw form in bytes.
    pub const LEN: usize = 32;
    /// Length of the text form in characters.
    pub const TEXT_LEN: usize = 53;

    /// Returns the id with these bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Returns the raw public key.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Returns the XOR distance between two ids.
    pub fn distance(&self, other: &Self) -> Distance {
        let mut bytes = self.0;
        bytes.iter_mut().zip(other.0).for_each(|(a, b)| *a ^= b);
        Distance(bytes)
    }

    /// Returns the bucket of `other` relative to `self`; `None` for the same id, which has no
    /// bucket.
    pub fn bucket_index(&self, other: &Self) -> Option<BucketIndex> {
        self.distance(other).bucket_index()
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::with_capacity(Self::TEXT_LEN);
        text.push('v');
        BASE32HEX.encode_append(&self.0, &mut text);
        f.pad(&text)
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// Why a text is not a [`NodeId`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ParseNodeIdError {
    /// The text is empty.
    #[error("a node id is empty; it must be `v` and 52 characters of 0-9 and a-v")]
    Empty,
    /// The first character is none of `v`, `V`, `z`, `f`.
    #[error("a node id must start with `v` (base32hex), not with `{0}`")]
    Prefix(char),
    /// A character or a trailing bit is not valid in the encoding.
    #[error("a node id has a character or trailing bits that its encoding does not allow")]
    Encoding,
    /// The text decodes, but not to 32 bytes.
    #[error("a node id must have 32 bytes, not {0}")]
    Length(usize),
}

impl FromStr for NodeId {
    type Err = ParseNodeIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let prefix = text.chars().next().ok_or(ParseNodeIdError::Empty)?;
        let rest = text.get(prefix.len_utf8()..).unwrap_or_default();
        // No encoding needs more than 65 characters for 32 bytes; limit the length first, because
        // base58 decoding is quadratic.
        if rest.len() > 2 * Self::LEN {
            return Err(ParseNodeIdError::Length(rest.len() / 2));
        }
        let decode = |encoding: &Encoding| {
            encoding.decode(rest.as_bytes()).map_err(|_| ParseNodeIdError::Encoding)
        };
        let bytes: Vec<u8> = match prefix {
            'v' => decode(&BASE32HEX)?,
            'V' => decode(&BASE32HEX_UPPER)?,
            'f' => decode(&data_encoding::HEXLOWER)?,
            'z' => bs58::decode(rest).into_vec().map_err(|_| ParseNodeIdError::Encoding)?,
            other => return Err(ParseNodeIdError::Prefix(other)),
        };
        let bytes = <[u8; 32]>::try_from(bytes.as_slice())
            .map_err(|_| ParseNodeIdError::Length(bytes.len()))?;
        Ok(Self(bytes))
    }
}

impl Serialize for NodeId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.collect_str(self)
        } else {
            self.0.serialize(serializer)
        }
    }
}

impl<'de> Deserialize<'de> for NodeId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            let text = alloc::borrow::Cow::<'de, str>::deserialize(deserializer)?;
            text.parse().map_err(serde::de::Error::custom)
        } else {
            <[u8; 32]>::deserialize(deserializer).map(Self)
        }
    }
}

/// Implements the order of bytes, which is that of big-endian words. Ids mostly differ in their
/// first word, and trees of them compare a lot.
macro_rules! ordered_by_words {
    ($($type:ty)*) => {$(
        impl Ord for $type {
            fn cmp(&self, other: &Self) -> Ordering {
                words(&self.0).cmp(words(&other.0))
            }
        }

        impl PartialOrd for $type {
            fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
                Some(self.cmp(other))
            }
        }
    )*};
}

ordered_by_words! { NodeId Distance }

/// Returns 32 bytes as big-endian words.
fn words(bytes: &[u8; 32]) -> impl Iterator<Item = u64> {
    let (chunks, _) = bytes.as_chunks::<8>();
    chunks.iter().map(|chunk| u64::from_be_bytes(*chunk))
}

/// The XOR of two ids, compared as a big-endian unsigned integer (Kademlia).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Distance([u8; 32]);

impl Distance {
    /// Distance of an id to itself.
    pub const ZERO: Self = Self([0; 32]);

    /// Returns the distance with these big-endian bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Returns the big-endian bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Returns floor(log2(distance)); `None` for zero.
    pub fn bucket_index(&self) -> Option<BucketIndex> {
        let (above, word) = (0..).zip(words(&self.0)).find(|(_, word)| *word != 0)?;
        // At most 3 words are above, and leading_zeros <= 63, so the index fits.
        u8::try_from(255 - 64 * above - word.leading_zeros()).ok().map(BucketIndex)
    }
}

impl fmt::Debug for Distance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&data_encoding::HEXLOWER.encode(&self.0))
    }
}

/// Returns an id that sorts by time, of a certificate or a claim (docs/WIRE.md section 1):
/// big-endian unix seconds (36 bits), fraction of the second in 1/4096 (12), `0111`, sequence
/// number (12), `10`, tail (62). Excess bits are truncated.
pub(crate) const fn sortable(unix_millis: u64, seq: u16, tail: u64) -> u128 {
    let seconds = (unix_millis / 1000) as u128 & 0xf_ffff_ffff;
    let fraction = (unix_millis % 1000 * 4096 / 1000) as u128;
    let seq = (seq & 0xfff) as u128;
    let tail = (tail & (u64::MAX >> 2)) as u128;
    seconds << 92 | fraction << 80 | 0b0111 << 76 | seq << 64 | 0b10 << 62 | tail
}

/// Index of a bucket: floor(log2(distance)), 0 (one possible id) to 255 (the farther half of all
/// ids).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub struct BucketIndex(pub u8);

impl fmt::Display for BucketIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// Declares a newtype over `u64` that identifies one thing for the whole life of a machine and is
/// never reused.
macro_rules! number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
        pub struct $name(#[cfg_attr(feature = "arbitrary", arbitrary(with = crate::types::generators::number))] pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

number! {
    /// Id of a connection. The core assigns even ids (in [`Output::Dial`](crate::Output::Dial)),
    /// the driver odd ones to incoming connections.
    ConnectionId
}
number! {
    /// Id of a bidirectional stream. The core assigns even ids (in
    /// [`Output::OpenStream`](crate::Output::OpenStream)), the driver odd ones.
    StreamId
}
number! {
    /// Id of a request of the embedder, which ends with exactly one
    /// [`Event::Done`](crate::Event::Done).
    RequestId
}
number! {
    /// Id of a lease, which keeps a connection from being closed for idleness.
    LeaseId
}
number! {
    /// Id of an approval requested from the embedder for a claim of a peer;
    /// [`Event::ClaimApprovalRequested`](crate::Event::ClaimApprovalRequested).
    ApprovalId
}
number! {
    /// Id of an effect with a completion: a signature, a write, a read, a name resolution, a
    /// browse, an identity change.
    EffectId
}

impl ConnectionId {
    /// Returns whether the core assigned the id: the connection was dialed.
    pub const fn is_ours(self) -> bool {
        self.0.is_multiple_of(2)
    }
}

impl StreamId {
    /// Returns whether the core assigned the id: the stream was opened locally.
    pub const fn is_ours(self) -> bool {
        self.0.is_multiple_of(2)
    }
}

/// Id of a dial race.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct RaceId(pub(crate) u64);

/// A [`NodeId`] in its valid text form.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeIdEncoded(String);

impl NodeIdEncoded {
    /// Returns the text: `v` and 52 characters.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<NodeId> for NodeIdEncoded {
    fn from(id: NodeId) -> Self {
        Self(id.to_string())
    }
}

impl From<&NodeIdEncoded> for NodeId {
    fn from(encoded: &NodeIdEncoded) -> Self {
        // The text was written by `NodeId`.
        encoded.0.parse().unwrap_or(Self::from_bytes([0; 32]))
    }
}

impl FromStr for NodeIdEncoded {
    type Err = ParseNodeIdError;

    /// Parses what [`NodeId`] parses, and stores the form that is written.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse::<NodeId>().map(Self::from)
    }
}

impl fmt::Display for NodeIdEncoded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_ordered_by_their_bytes() {
        let zero = [0; 32];
        for place in 0..32 {
            for other in 0..32 {
                let (mut a, mut b) = (zero, zero);
                (a[place], b[other]) = (1, 200);
                let expected = a.cmp(&b);
                assert_eq!(NodeId::from_bytes(a).cmp(&NodeId::from_bytes(b)), expected);
                assert_eq!(Distance::from_bytes(a).cmp(&Distance::from_bytes(b)), expected);
                assert_eq!(
                    NodeId::from_bytes(a).partial_cmp(&NodeId::from_bytes(b)),
                    Some(expected)
                );
            }
        }
    }

    #[test]
    fn encoded_id_is_always_valid() {
        let id = NodeId::from_bytes([7; 32]);
        let encoded = NodeIdEncoded::from(id);
        assert_eq!((NodeId::from(&encoded), encoded.as_str().len()), (id, NodeId::TEXT_LEN));
        let hex = alloc::format!("f{}", data_encoding::HEXLOWER.encode(id.as_bytes()));
        assert_eq!(hex.parse::<NodeIdEncoded>().unwrap().to_string(), id.to_string());
        assert_eq!("v".parse::<NodeIdEncoded>(), Err(ParseNodeIdError::Length(0)));
    }
}

//! Claim ids: 128 bits that sort by time.

use alloc::borrow::Cow;
use alloc::string::String;
use core::fmt;
use core::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::types::id::{BASE32HEX, NodeId, sortable};
use crate::types::time::UnixMillis;

/// Id of a claim (`jti`): its creation time, a sequence number within that time, and its owner
/// (docs/WIRE.md section 1).
///
/// Its order is the order of the claims of one owner. The text form ([`Display`](fmt::Display),
/// [`FromStr`], serde of human-readable formats) is multibase base32hex, `v` and 26 characters; no
/// other text is an id.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClaimId([u8; 16]);

impl ClaimId {
    /// Length of the raw form in bytes.
    pub const LEN: usize = 16;
    /// Length of the text form in characters.
    pub const TEXT_LEN: usize = 27;

    /// Returns the id with these big-endian bytes.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// Returns the big-endian bytes. They sort like the ids, so that they are the key of a stored
    /// claim.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// Returns the next id of `owner` at this time: greater than `last`, the newest id that was
    /// ever created or stored, whatever the clock does.
    ///
    /// While the clock does not advance or is behind, the sequence number increases, and after 4096
    /// ids the 1/4096 second does. `None` only if `last` is greater than every possible id, of the
    /// year 4147.
    pub fn next(owner: &NodeId, unix: UnixMillis, last: Option<Self>) -> Option<Self> {
        let [a, b, c, d, e, f, g, h, ..] = *owner.as_bytes();
        let tail = u64::from_be_bytes([a, b, c, d, e, f, g, h]) >> 2;
        let first = sortable(unix.0, 0, tail);
        let Some(last) = last.map(|last| u128::from_be_bytes(last.0)) else {
            return Some(Self(first.to_be_bytes()));
        };
        let moment = last >> TIME_SHIFT;
        let at = |moment: u128, seq: u128| moment << TIME_SHIFT | seq << SEQ_SHIFT | first & FIXED;
        let seq = last >> SEQ_SHIFT & MAX_SEQ;
        // Within one time the sequence number decides, not the tail, which changes with a renewal.
        let same_moment = (seq < MAX_SEQ).then(|| at(moment, seq + 1));
        let next_moment = (moment < MAX_MOMENT).then(|| at(moment + 1, 0));
        let candidates =
            [(first >> TIME_SHIFT > moment).then_some(first), same_moment, next_moment];
        candidates.into_iter().flatten().find(|id| *id > last).map(|id| Self(id.to_be_bytes()))
    }
}

const TIME_SHIFT: u32 = 80;
const SEQ_SHIFT: u32 = 64;
const MAX_SEQ: u128 = 0xfff;
const MAX_MOMENT: u128 = (1 << 48) - 1;
/// The bits that are neither time nor sequence number.
const FIXED: u128 = (0xf << 76) | ((1 << 64) - 1);

impl fmt::Display for ClaimId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::with_capacity(Self::TEXT_LEN);
        text.push('v');
        BASE32HEX.encode_append(&self.0, &mut text);
        f.pad(&text)
    }
}

impl fmt::Debug for ClaimId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// Why a text is not a [`ClaimId`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a claim id must be `v` and 26 characters of 0-9 and a-v")]
pub struct ParseClaimIdError;

impl FromStr for ClaimId {
    type Err = ParseClaimIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // The length first, because decoding allocates.
        let rest = text
            .strip_prefix('v')
            .filter(|_| text.len() == Self::TEXT_LEN)
            .ok_or(ParseClaimIdError)?;
        let bytes = BASE32HEX.decode(rest.as_bytes()).map_err(|_| ParseClaimIdError)?;
        <[u8; 16]>::try_from(bytes).map(Self).map_err(|_| ParseClaimIdError)
    }
}

impl Serialize for ClaimId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.collect_str(self)
        } else {
            self.0.serialize(serializer)
        }
    }
}

impl<'de> Deserialize<'de> for ClaimId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            Cow::<'de, str>::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
        } else {
            <[u8; 16]>::deserialize(deserializer).map(Self)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::format;

    use super::*;

    const OWNER: NodeId = NodeId::from_bytes([0x11; 32]);
    const NOW: UnixMillis = UnixMillis(1_700_000_000_123);

    fn next(unix: u64, last: Option<ClaimId>) -> ClaimId {
        let id = ClaimId::next(&OWNER, UnixMillis(unix), last).unwrap();
        assert!(last.is_none_or(|last| id > last), "{last:?} {id:?}");
        id
    }

    #[test]
    fn ids_increase_while_the_clock_does_not() {
        let mut id = next(NOW.0, None);
        assert_eq!(format!("{id:?}"), format!("{id}"));
        let moment = id;
        for seq in 1..=0xfff_u16 {
            id = next(NOW.0 - u64::from(seq), Some(id));
            assert_eq!(
                id,
                ClaimId(sortable(NOW.0, seq, u64::from_be_bytes([0x11; 8]) >> 2).to_be_bytes())
            );
        }
        // The sequence is used up: the time counts on by 1/4096 second, until the clock is ahead
        // again.
        let over = next(0, Some(id));
        let time = |id: ClaimId| u128::from_be_bytes(id.0) >> TIME_SHIFT;
        assert_eq!(time(over), time(moment) + 1);
        assert_eq!(u128::from_be_bytes(over.0) >> SEQ_SHIFT & MAX_SEQ, 0);
        let late = next(NOW.0 + 1000, Some(over));
        assert_eq!(late, next(NOW.0 + 1000, None));
    }

    #[test]
    fn id_is_greater_than_one_of_another_key_and_one_of_another_layout() {
        let other = NodeId::from_bytes([0xff; 32]);
        let last = ClaimId::next(&other, NOW, None).unwrap();
        next(NOW.0, Some(last));
        next(0, Some(last));
        for last in [[0; 16], [0xff, 0, 0, 0, 0, 0, 0xf0, 0, 0, 0, 0, 0, 0, 0, 0, 0], [0x7f; 16]] {
            next(NOW.0, Some(ClaimId(last)));
        }
        assert_eq!(ClaimId::next(&OWNER, NOW, Some(ClaimId([0xff; 16]))), None);
    }

    #[test]
    fn id_has_one_text_form() {
        let id = next(NOW.0, None);
        let text = format!("{id}");
        assert_eq!(text.len(), ClaimId::TEXT_LEN);
        assert_eq!(text.parse(), Ok(id));
        for bad in [
            "",
            "v",
            &text[1..],
            &text.to_uppercase(),
            &format!("{text}0"),
            &text.replace('v', "w"),
            "v0000000000000000000000000é",
        ] {
            assert_eq!(bad.parse::<ClaimId>(), Err(ParseClaimIdError), "{bad}");
        }
        // A trailing bit that is part of no byte.
        assert_eq!("v00000000000000000000000001".parse::<ClaimId>(), Err(ParseClaimIdError));
    }
}

//! A set of bucket indices in 256 bits.

use crate::types::id::{BucketIndex, Distance};

/// A set of bucket indices; bit `i` of word `w` represents the index `64 * w + i`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct BucketSet([u64; 4]);

impl BucketSet {
    /// Returns the indices of the bits that are set in a distance.
    pub(crate) fn of(distance: &Distance) -> Self {
        let mut words = [0; 4];
        let (chunks, _) = distance.as_bytes().as_chunks::<8>();
        words
            .iter_mut()
            .rev()
            .zip(chunks)
            .for_each(|(word, chunk)| *word = u64::from_be_bytes(*chunk));
        Self(words)
    }

    /// Returns whether the index is in the set.
    pub(crate) fn contains(&self, index: BucketIndex) -> bool {
        let (word, bit) = place(index);
        self.0.get(word).is_some_and(|word| word & bit != 0)
    }

    /// Adds an index.
    pub(crate) fn insert(&mut self, index: BucketIndex) {
        let (word, bit) = place(index);
        self.0.get_mut(word).into_iter().for_each(|word| *word |= bit);
    }

    /// Removes an index.
    pub(crate) fn remove(&mut self, index: BucketIndex) {
        let (word, bit) = place(index);
        self.0.get_mut(word).into_iter().for_each(|word| *word &= !bit);
    }

    /// Returns the number of indices greater than this one.
    pub(crate) fn count_above(&self, index: BucketIndex) -> usize {
        let (word, bit) = place(index);
        // The bits above `bit` are those of its complement and below it: !(bit | (bit - 1)).
        let within = self.0.get(word).map_or(0, |w| (w & !(bit | (bit - 1))).count_ones());
        let above: u32 = self.0.iter().skip(word + 1).map(|w| w.count_ones()).sum();
        (within + above) as usize
    }

    /// Returns the intersection.
    pub(crate) fn and(&self, other: &Self) -> Self {
        let mut words = self.0;
        words.iter_mut().zip(other.0).for_each(|(word, other)| *word &= other);
        Self(words)
    }

    /// Returns the indices that are in this set and not in the other.
    pub(crate) fn without(&self, other: &Self) -> Self {
        let mut words = self.0;
        words.iter_mut().zip(other.0).for_each(|(word, other)| *word &= !other);
        Self(words)
    }

    /// Removes and returns the smallest index.
    pub(crate) fn pop_first(&mut self) -> Option<BucketIndex> {
        let (i, word) = self.0.iter_mut().enumerate().find(|(_, word)| **word != 0)?;
        let bit = word.trailing_zeros();
        *word &= !(1 << bit);
        index(i, bit)
    }

    /// Removes and returns the greatest index.
    pub(crate) fn pop_last(&mut self) -> Option<BucketIndex> {
        let (i, word) = self.0.iter_mut().enumerate().rfind(|(_, word)| **word != 0)?;
        let bit = 63 - word.leading_zeros();
        *word &= !(1 << bit);
        index(i, bit)
    }
}

/// Returns the word and the bit of an index.
fn place(index: BucketIndex) -> (usize, u64) {
    (usize::from(index.0 / 64), 1 << (index.0 % 64))
}

/// The inverse of [`place`]; always `Some` for a word below 4 and a bit below 64.
fn index(word: usize, bit: u32) -> Option<BucketIndex> {
    u8::try_from(64 * word + bit as usize).ok().map(BucketIndex)
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::*;

    const MEMBERS: [u8; 9] = [0, 1, 63, 64, 127, 128, 200, 254, 255];

    fn set(members: &[u8]) -> BucketSet {
        let mut set = BucketSet::default();
        members.iter().for_each(|i| set.insert(BucketIndex(*i)));
        set
    }

    fn ascending(mut set: BucketSet) -> Vec<u8> {
        core::iter::from_fn(|| set.pop_first()).map(|i| i.0).collect()
    }

    #[test]
    fn every_index_is_a_member_once_inserted_and_none_once_removed() {
        for i in 0..=255 {
            let mut one = set(&[i]);
            assert!((0..=255).all(|j| one.contains(BucketIndex(j)) == (i == j)));
            assert_eq!(ascending(one), [i]);
            one.remove(BucketIndex(i));
            assert_eq!(one, BucketSet::default());
        }
    }

    #[test]
    fn indices_come_out_in_order_from_both_ends() {
        let mut last = set(&MEMBERS);
        let mut descending: Vec<u8> =
            core::iter::from_fn(|| last.pop_last()).map(|i| i.0).collect();
        descending.reverse();
        assert_eq!(descending, MEMBERS);
        assert_eq!(ascending(set(&MEMBERS)), MEMBERS);
    }

    #[test]
    fn counts_above_agree_with_counting() {
        let set = set(&MEMBERS);
        for i in 0..=255 {
            assert_eq!(
                set.count_above(BucketIndex(i)),
                MEMBERS.iter().filter(|m| **m > i).count(),
                "{i}"
            );
        }
    }

    #[test]
    fn intersection_and_difference() {
        let (a, b) = (set(&[0, 64, 200]), set(&[64, 200, 255]));
        assert_eq!(ascending(a.and(&b)), [64, 200]);
        assert_eq!(ascending(a.without(&b)), [0]);
    }

    #[test]
    fn distance_has_the_indices_of_its_bits() {
        let mut bytes = [0; 32];
        (bytes[0], bytes[23], bytes[31]) = (0x81, 0x02, 0x05);
        assert_eq!(ascending(BucketSet::of(&Distance::from_bytes(bytes))), [0, 2, 65, 248, 255]);
        assert_eq!(BucketSet::of(&Distance::ZERO), BucketSet::default());
    }
}

//! The bytes of a fuzzer, read as a script.

use std::time::Duration;

use arbitrary::{Arbitrary, Unstructured};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::cast::Cast;

/// Bytes that are read from the front. At the end everything is zero.
#[derive(Debug)]
pub(super) struct Script<'a>(Unstructured<'a>);

impl<'a> Script<'a> {
    pub(super) fn new(data: &'a [u8]) -> Self {
        Self(Unstructured::new(data))
    }

    pub(super) fn is_over(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn byte(&mut self) -> u8 {
        self.0.arbitrary().unwrap_or(0)
    }

    /// A choice below `end`.
    pub(super) fn below(&mut self, end: usize) -> usize {
        if end <= 1 { 0 } else { usize::from(self.byte()) % end }
    }

    /// One of these, if there are any.
    pub(super) fn pick<T: Copy>(&mut self, from: impl IntoIterator<Item = T>) -> Option<T> {
        let from: Vec<_> = from.into_iter().collect();
        let index = self.below(from.len());
        from.get(index).copied()
    }

    /// An arbitrary value, without placeholders.
    pub(super) fn value<T: Arbitrary<'a> + Serialize + DeserializeOwned>(&mut self) -> Option<T> {
        Cast::get().fill(&self.raw::<T>()?)
    }

    /// An arbitrary value as it is.
    pub(super) fn raw<T: Arbitrary<'a>>(&mut self) -> Option<T> {
        self.0.arbitrary().ok()
    }

    /// Some bytes, as they are.
    pub(super) fn bytes(&mut self) -> &'a [u8] {
        let length = usize::from(self.byte()).min(self.0.len());
        self.0.bytes(length).unwrap_or_default()
    }

    /// A pause: none, short, or up to a month.
    pub(super) fn pause(&mut self) -> Duration {
        let scale = self.byte();
        let length = u64::from(self.byte());
        match scale % 8 {
            0 => Duration::ZERO,
            1 => Duration::from_micros(length),
            2 | 3 => Duration::from_millis(length),
            4 | 5 => Duration::from_millis(length * 100),
            6 => Duration::from_secs(length * 60),
            _ => Duration::from_secs(length * 10_800),
        }
    }
}

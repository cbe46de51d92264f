//! Chance, all of it from one seed.

use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};

/// One generator per purpose, so that a new draw for one shifts no other.
#[derive(Debug, Clone)]
pub(crate) struct Dice {
    /// Delays and losses on the way.
    pub(crate) links: Die,
    /// What a transport draws for itself: shared ids, and where it cuts data.
    pub(crate) transport: Die,
    /// Which writes survive a crash, and which fail.
    pub(crate) stores: Die,
    /// Whom the graph checker asks for.
    pub(crate) probes: Die,
}

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        let die = |stream| Die::new(seed, stream);
        Self { links: die(1), transport: die(2), stores: die(3), probes: die(4) }
    }
}

/// A seeded generator of integers.
#[derive(Debug, Clone)]
pub(crate) struct Die(ChaCha8Rng);

impl Die {
    pub(crate) fn new(seed: u64, stream: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(stream);
        Self(rng)
    }

    /// 0 to `end - 1`; 0 if `end` is 0. The bias of the remainder is below 2^-40 for every use here.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        if end == 0 { 0 } else { self.0.next_u64() % end }
    }

    /// Whether a chance of `per_mille` in 1000 comes true. Draws nothing if it cannot.
    pub(crate) fn happens(&mut self, per_mille: u16) -> bool {
        per_mille > 0 && self.below(1000) < u64::from(per_mille)
    }

    pub(crate) fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        self.0.fill_bytes(&mut bytes);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_of_its_own_for_each_purpose() {
        let (mut a, mut b) = (Dice::new(7), Dice::new(7));
        a.links.below(10);
        assert_eq!(a.transport.bytes::<32>(), b.transport.bytes::<32>());
        assert_ne!(a.links.bytes::<32>(), b.links.bytes::<32>());
    }

    #[test]
    fn chances_come_true_about_as_often_as_they_say() {
        let mut die = Die::new(1, 1);
        let hits = (0..10_000).filter(|_| die.happens(250)).count();
        assert!((2300..2700).contains(&hits), "{hits}");
        assert_eq!((0..1000).filter(|_| die.happens(0)).count(), 0);
        assert_eq!((0..1000).filter(|_| die.happens(1000)).count(), 1000);
    }
}

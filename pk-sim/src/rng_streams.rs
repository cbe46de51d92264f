//! Random streams, all from one seed.

use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};

/// One generator per purpose, so that a new draw for one does not change another.
#[derive(Debug, Clone)]
pub(crate) struct RngStreams {
    /// Delays and losses of packets.
    pub(crate) links: RngStream,
    /// Draws of the transport: shared ids, and where data is cut.
    pub(crate) transport: RngStream,
    /// Which writes survive a crash, and which fail.
    pub(crate) stores: RngStream,
    /// Targets of the graph checker.
    pub(crate) probes: RngStream,
}

impl RngStreams {
    pub(crate) fn new(seed: u64) -> Self {
        let rng_stream = |stream| RngStream::new(seed, stream);
        Self {
            links: rng_stream(1),
            transport: rng_stream(2),
            stores: rng_stream(3),
            probes: rng_stream(4),
        }
    }
}

/// A seeded generator of integers.
#[derive(Debug, Clone)]
pub(crate) struct RngStream(ChaCha8Rng);

impl RngStream {
    pub(crate) fn new(seed: u64, stream: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(stream);
        Self(rng)
    }

    /// Returns a number from 0 to `end - 1`, or 0 if `end` is 0. The bias of the remainder is below
    /// 2^-40 for every use here.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        if end == 0 { 0 } else { self.0.next_u64() % end }
    }

    /// Returns `true` with a probability of `per_mille` in 1000. Draws nothing if it is 0.
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
    fn each_purpose_has_its_own_stream() {
        let (mut a, mut b) = (RngStreams::new(7), RngStreams::new(7));
        a.links.below(10);
        assert_eq!(a.transport.bytes::<32>(), b.transport.bytes::<32>());
        assert_ne!(a.links.bytes::<32>(), b.links.bytes::<32>());
    }

    #[test]
    fn events_occur_about_as_often_as_their_probability() {
        let mut rng_stream = RngStream::new(1, 1);
        let hits = (0..10_000).filter(|_| rng_stream.happens(250)).count();
        assert!((2300..2700).contains(&hits), "{hits}");
        assert_eq!((0..1000).filter(|_| rng_stream.happens(0)).count(), 0);
        assert_eq!((0..1000).filter(|_| rng_stream.happens(1000)).count(), 1000);
    }
}

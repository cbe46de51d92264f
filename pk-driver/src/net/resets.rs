//! The limit of stateless resets (see [`pk_quic::resets`]), applied where they are sent.
//!
//! quinn sends a reset immediately after it has requested its token, under the lock of the
//! endpoint. A datagram with a short header that ends with the last token is therefore a reset; the
//! probability that an encrypted packet of a connection ends with it is 2^-64.

use std::fmt;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use pk_proto::Network;
use pk_quic::resets::{ResetKey, ResetLimit, has_reset_form};
use quinn_proto::crypto::{CryptoError, HmacKey};
use zeroize::Zeroizing;

use pk_host::Clock;

/// Length of a reset token, in bytes.
const TOKEN: usize = 16;

/// The reset key of an endpoint, and the limit of what it sends.
pub(super) struct Resets {
    key: ResetKey,
    /// First half of the last token.
    last: AtomicU64,
    limit: Mutex<ResetLimit>,
    clock: Clock,
    sent: AtomicU64,
    dropped: AtomicU64,
}

impl Resets {
    pub(super) fn new(key: Zeroizing<[u8; 32]>) -> Self {
        Self {
            key: ResetKey::new(key),
            last: AtomicU64::new(0),
            limit: Mutex::new(ResetLimit::default()),
            clock: Clock::new(),
            sent: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
        }
    }

    /// Returns whether a datagram may be sent: `false` for a reset to a network whose limit is
    /// reached.
    pub(super) fn admits(&self, to: IpAddr, datagram: &[u8]) -> bool {
        if !self.is_reset(datagram) {
            return true;
        }
        let now = self.clock.now();
        let admitted =
            self.limit.lock().unwrap_or_else(PoisonError::into_inner).take(Network::of(to), now);
        let counter = if admitted { &self.sent } else { &self.dropped };
        counter.fetch_add(1, Ordering::Relaxed);
        admitted
    }

    /// Returns the resets that were sent, and those that were not because of the limit.
    pub(super) fn counts(&self) -> (u64, u64) {
        (self.sent.load(Ordering::Relaxed), self.dropped.load(Ordering::Relaxed))
    }

    fn is_reset(&self, datagram: &[u8]) -> bool {
        has_reset_form(datagram)
            && datagram
                .len()
                .checked_sub(TOKEN)
                .and_then(|at| datagram.get(at..))
                .and_then(first_half)
                == Some(self.last.load(Ordering::Acquire))
    }
}

fn first_half(token: &[u8]) -> Option<u64> {
    token.first_chunk().map(|half| u64::from_be_bytes(*half))
}

impl fmt::Debug for Resets {
    /// Does not print the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resets").field("counts", &self.counts()).finish_non_exhaustive()
    }
}

impl HmacKey for Resets {
    fn sign(&self, data: &[u8], signature_out: &mut [u8]) {
        self.key.sign(data, signature_out);
        self.last.store(first_half(signature_out).unwrap_or_default(), Ordering::Release);
    }

    fn signature_len(&self) -> usize {
        self.key.signature_len()
    }

    fn verify(&self, data: &[u8], signature: &[u8]) -> Result<(), CryptoError> {
        self.key.verify(data, signature)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Resets to one network that may be sent at once.
    const BURST: u32 = 128;

    fn resets(secret: u8) -> Resets {
        Resets::new(Zeroizing::new([secret; 32]))
    }

    fn token(resets: &Resets, cid: &[u8]) -> [u8; TOKEN] {
        let mut token = [0; TOKEN];
        resets.sign(cid, &mut token);
        token
    }

    fn reset(token: [u8; TOKEN]) -> Vec<u8> {
        [&[0x41, 2, 3, 4, 5][..], &token].concat()
    }

    #[test]
    fn each_network_has_its_own_limit() {
        let resets = resets(1);
        let datagram = reset(token(&resets, b"cid"));
        let admitted = |ip: &str| {
            (0..BURST * 2).filter(|_| resets.admits(ip.parse().unwrap(), &datagram)).count()
        };
        let burst = BURST as usize;
        // A slow machine lets some more pass.
        assert!((burst..burst + 32).contains(&admitted("192.0.2.1")));
        assert!(admitted("192.0.2.200") < 32, "the same /24");
        assert!(admitted("192.0.3.1") >= burst && admitted("2001:db8:0:1::1") >= burst);
        assert!(admitted("2001:db8:0:2::1") < 32, "the same /48");
        let (sent, dropped) = resets.counts();
        assert_eq!(sent + dropped, 5 * u64::from(BURST * 2));
        assert!(dropped >= u64::from(BURST * 2));
    }

    #[test]
    fn only_resets_are_limited() {
        let resets = resets(1);
        let last = token(&resets, b"cid");
        let ip = IpAddr::from([192, 0, 2, 1]);
        let mut long = reset(last);
        long[0] = 0xc1;
        for other in
            [long, reset([9; TOKEN]), vec![0x41; 3], Vec::new(), reset(last)[..20].to_vec()]
        {
            assert!((0..BURST * 3).all(|_| resets.admits(ip, &other)), "{other:?}");
        }
        assert_eq!(resets.counts(), (0, 0));
    }
}

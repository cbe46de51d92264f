//! Stateless resets (RFC 9000 section 10.3): the key of their tokens, and the limit of how many are
//! sent.
//!
//! quinn-proto limits resets to one per interval for the whole endpoint, so that of many peers that
//! use connections of a restarted node only the first would be informed. That limit is disabled;
//! here each network has its own. A reset is always smaller than the datagram that caused it, so
//! that the limit bounds reflected packets, not amplification.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use pk_proto::{Instant, Network};
use quinn_proto::crypto::{CryptoError, HmacKey};
use zeroize::Zeroizing;

/// Length of a reset token, in bytes.
const TOKEN: usize = 16;

/// The two highest bits of the first byte of a packet with a short header (RFC 9000 section 17.3).
const FORM: u8 = 0xc0;
const SHORT: u8 = 0x40;

/// Resets to one network that may be sent at once, and the time after which one more is allowed.
const BURST: u32 = 128;
const REFILL: Duration = Duration::from_millis(20);

/// Networks that are counted separately; all others share one count.
const NETWORKS: usize = 1024;

/// Returns whether a datagram that belongs to no connection has the form of a reset.
pub(crate) fn has_reset_form(datagram: &[u8]) -> bool {
    datagram.first().is_some_and(|first| first & FORM == SHORT) && datagram.len() > TOKEN
}

/// The key of reset tokens.
#[derive(Clone)]
pub(crate) struct ResetKey(Zeroizing<[u8; 32]>);

impl ResetKey {
    /// Returns the key with these bytes.
    pub(crate) fn new(key: Zeroizing<[u8; 32]>) -> Self {
        Self(key)
    }

    /// Returns the token of a connection id.
    pub(crate) fn token(&self, cid: &[u8]) -> [u8; TOKEN] {
        let mut token = [0; TOKEN];
        blake3::Hasher::new_keyed(&self.0).update(cid).finalize_xof().fill(&mut token);
        token
    }
}

impl fmt::Debug for ResetKey {
    /// Does not print the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ResetKey(..)")
    }
}

impl HmacKey for ResetKey {
    fn sign(&self, data: &[u8], signature_out: &mut [u8]) {
        for (to, from) in signature_out.iter_mut().zip(self.token(data)) {
            *to = from;
        }
    }

    fn signature_len(&self) -> usize {
        TOKEN
    }

    fn verify(&self, data: &[u8], signature: &[u8]) -> Result<(), CryptoError> {
        // Compares hashes, so that the time does not depend on the content.
        let [expected, given] = [&self.token(data)[..], signature].map(blake3::hash);
        if expected == given { Ok(()) } else { Err(CryptoError) }
    }
}

/// Counts resets by network. A count is the time at which the burst is available again.
#[derive(Debug, Default)]
pub(crate) struct ResetLimit {
    networks: BTreeMap<Network, Instant>,
    others: Instant,
}

impl ResetLimit {
    /// Counts a reset to a network. Returns whether it may be sent.
    pub(crate) fn take(&mut self, network: Network, now: Instant) -> bool {
        if self.networks.len() >= NETWORKS && !self.networks.contains_key(&network) {
            // A full count carries no information.
            self.networks.retain(|_, full_at| *full_at > now);
        }
        let full_at = match self.networks.len() < NETWORKS || self.networks.contains_key(&network) {
            true => self.networks.entry(network).or_default(),
            false => &mut self.others,
        };
        let next = (*full_at).max(now) + REFILL;
        let admitted = next.since(now) <= REFILL * BURST;
        if admitted {
            *full_at = next;
        }
        admitted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reset_tokens_survive_a_restart_and_differ_between_secrets() {
        let [first, second, other] =
            [1, 1, 2].map(|secret| ResetKey::new(Zeroizing::new([secret; 32])));
        assert_eq!(first.token(b"cid"), second.token(b"cid"));
        assert_ne!(first.token(b"cid"), first.token(b"dic"));
        assert_ne!(first.token(b"cid"), other.token(b"cid"));
        assert!(first.verify(b"cid", &second.token(b"cid")).is_ok());
        assert!(first.verify(b"cid", &other.token(b"cid")).is_err());
    }

    #[test]
    fn reset_is_recognized_by_its_form() {
        assert!(has_reset_form(&[0x41; 21]));
        assert!(!has_reset_form(&[0xc1; 21]) && !has_reset_form(&[0x41; 16]));
        assert!(!has_reset_form(&[]));
    }

    #[test]
    fn limit_refills_and_its_memory_is_bounded() {
        let at = |ms| Instant::ORIGIN + Duration::from_millis(ms);
        let network = |n: u32| Network::of(std::net::Ipv4Addr::from_bits(n << 8).into());
        let mut limit = ResetLimit::default();
        assert!((0..BURST).all(|_| limit.take(network(1), at(0))));
        assert!(
            !limit.take(network(1), at(0))
                && limit.take(network(1), at(20))
                && !limit.take(network(1), at(20))
        );
        // As many networks as there are: those beyond the limit share one count.
        let taken =
            (2..4 + NETWORKS as u32 + BURST).filter(|n| limit.take(network(*n), at(30))).count();
        assert_eq!((taken, limit.networks.len()), (NETWORKS - 1 + BURST as usize, NETWORKS));
        assert!(limit.take(network(1 << 20), at(60_000)));
        assert_eq!(limit.networks.len(), 1, "what is full again is forgotten");
    }
}

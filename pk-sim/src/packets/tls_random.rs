//! TLS whose random numbers and keys come from a seed, so that equal runs have equal bytes.

use std::sync::atomic::{AtomicU64, Ordering};

use curve25519_dalek::montgomery::MontgomeryPoint;
use pk_quic::TlsRandom;
use rustls::crypto::{
    ActiveKeyExchange, GetRandomFailed, SecureRandom, SharedSecret, SupportedKxGroup,
};
use rustls::{Error, NamedGroup};

/// Returns the random numbers of one node. rustls requires that they live as long as the process,
/// so that the memory, about 100 bytes, is not freed.
pub(super) fn tls_random(seed: [u8; 32]) -> TlsRandom {
    let numbers: &'static Numbers = Box::leak(Box::new(Numbers { seed, drawn: AtomicU64::new(0) }));
    TlsRandom { numbers, exchange: Box::leak(Box::new(X25519(numbers))) }
}

#[derive(Debug)]
struct Numbers {
    seed: [u8; 32],
    drawn: AtomicU64,
}

impl Numbers {
    fn draw(&self, out: &mut [u8]) {
        let number = self.drawn.fetch_add(1, Ordering::Relaxed);
        let mut hasher = blake3::Hasher::new_keyed(&self.seed);
        hasher.update(&number.to_le_bytes()).finalize_xof().fill(out);
    }
}

impl SecureRandom for Numbers {
    fn fill(&self, out: &mut [u8]) -> Result<(), GetRandomFailed> {
        self.draw(out);
        Ok(())
    }
}

/// The key exchange X25519 (RFC 7748) with private keys from the seed.
#[derive(Debug)]
struct X25519(&'static Numbers);

impl SupportedKxGroup for X25519 {
    fn start(&self) -> Result<Box<dyn ActiveKeyExchange>, Error> {
        let mut private = [0; 32];
        self.0.draw(&mut private);
        let public = MontgomeryPoint::mul_base_clamped(private);
        Ok(Box::new(Exchange { private, public }))
    }

    fn name(&self) -> NamedGroup {
        NamedGroup::X25519
    }
}

struct Exchange {
    private: [u8; 32],
    public: MontgomeryPoint,
}

impl ActiveKeyExchange for Exchange {
    fn complete(self: Box<Self>, peer: &[u8]) -> Result<SharedSecret, Error> {
        let peer = <[u8; 32]>::try_from(peer)
            .map_err(|_| Error::General("a key share of another length".to_owned()))?;
        let shared = MontgomeryPoint(peer).mul_clamped(self.private);
        Ok(SharedSecret::from(&shared.to_bytes()[..]))
    }

    fn pub_key(&self) -> &[u8] {
        self.public.as_bytes()
    }

    fn group(&self) -> NamedGroup {
        NamedGroup::X25519
    }
}

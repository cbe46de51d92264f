//! The common rule of signature validity for certificates, tokens and signalling (docs/DESIGN.md,
//! Signature validity).

use bytes::Bytes;
use ed25519_dalek::VerifyingKey;
use serde::{Deserialize, Serialize};

use super::id::NodeId;

/// Verifies an Ed25519 signature of `message` by the node `key`.
///
/// The rule: the key is the canonical encoding of a curve point that is not of small order; R is
/// canonical and not of small order; S is reduced; and R = S·B − k·A holds exactly, without
/// multiplication by the cofactor. libsodium, and so the reference, decides the same. A key with a
/// torsion component is valid; its owner must search for signatures that satisfy the equation.
///
/// Costs one double-base scalar multiplication, regardless of the outcome after the first checks.
///
/// # Errors
///
/// The part of the rule that is violated.
pub fn verify(key: &NodeId, message: &[u8], signature: &[u8; 64]) -> Result<(), SignatureFault> {
    Key::new(key)?.verify(message, signature)
}

/// A canonical key that is not weak, for verifying several signatures of the same node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Key(VerifyingKey);

impl Key {
    pub(crate) fn new(id: &NodeId) -> Result<Self, SignatureFault> {
        let point = VerifyingKey::from_bytes(id.as_bytes()).map_err(|_| SignatureFault::NotAKey)?;
        if !is_canonical(id.as_bytes()) {
            return Err(SignatureFault::NonCanonicalKey);
        }
        if point.is_weak() {
            return Err(SignatureFault::WeakKey);
        }
        Ok(Self(point))
    }

    pub(crate) fn verify(
        &self,
        message: &[u8],
        signature: &[u8; 64],
    ) -> Result<(), SignatureFault> {
        self.0
            .verify_strict(message, &ed25519_dalek::Signature::from_bytes(signature))
            .map_err(|_| SignatureFault::Mismatch)
    }
}

/// Returns whether these bytes are the canonical encoding of their point. Decoding a point reduces
/// the y coordinate modulo p = 2^255 - 19, and ignores the sign where x = 0, which is where y is 1
/// or -1, so that one point would have several ids.
fn is_canonical(bytes: &[u8; 32]) -> bool {
    const fn little_endian(low: u8, middle: u8, high: u8) -> [u8; 32] {
        let mut bytes = [middle; 32];
        bytes[0] = low;
        bytes[31] = high;
        bytes
    }
    const P: [u8; 32] = little_endian(0xed, 0xff, 0x7f);
    const ONE_WITH_SIGN: [u8; 32] = little_endian(1, 0, 0x80);
    const MINUS_ONE_WITH_SIGN: [u8; 32] = little_endian(0xec, 0xff, 0xff);
    let mut y = *bytes;
    let [.., high] = &mut y;
    *high &= 0x7f;
    y.iter().rev().lt(P.iter().rev()) && *bytes != ONE_WITH_SIGN && *bytes != MINUS_ONE_WITH_SIGN
}

/// Why a signature is not valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
#[non_exhaustive]
pub enum SignatureFault {
    /// The node id is not a curve point, so that no signature by it is valid.
    #[error("the node id is not an Ed25519 public key")]
    NotAKey,
    /// The node id is a second encoding of a point that has another id.
    #[error("the node id is a non-canonical encoding of an Ed25519 public key")]
    NonCanonicalKey,
    /// The node id is a point of small order: signatures can be forged.
    #[error("the node id is an Ed25519 public key of small order")]
    WeakKey,
    /// The signature is malformed, or belongs to another message or key.
    #[error("the Ed25519 signature does not belong to this message and node id")]
    Mismatch,
}

/// The 64 bytes of an Ed25519 signature.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Signature(pub [u8; 64]);

impl core::fmt::Debug for Signature {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(&data_encoding::BASE64URL_NOPAD.encode(&self.0))
    }
}

impl Serialize for Signature {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Signature {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes = Bytes::deserialize(deserializer)?;
        <[u8; 64]>::try_from(&bytes[..])
            .map(Self)
            .map_err(|_| serde::de::Error::custom("a signature has 64 bytes"))
    }
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use ed25519_dalek::{Signer, SigningKey};

    use super::*;

    fn hex<const N: usize>(text: &str) -> [u8; N] {
        data_encoding::HEXLOWER.decode(text.as_bytes()).unwrap().try_into().unwrap()
    }

    fn check(key: &str, message: &[u8], signature: &str) -> Result<(), SignatureFault> {
        verify(&NodeId::from_bytes(hex(key)), message, &hex(signature))
    }

    #[test]
    fn honest_signature_is_valid_and_every_flipped_bit_breaks_it() {
        let key = SigningKey::from_bytes(&[1; 32]);
        let id = NodeId::from_bytes(key.verifying_key().to_bytes());
        let signature = key.sign(b"message").to_bytes();
        assert_eq!(verify(&id, b"message", &signature), Ok(()));
        assert_eq!(verify(&id, b"massage", &signature), Err(SignatureFault::Mismatch));
        for bit in 0..512 {
            let mut flipped = signature;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(
                verify(&id, b"message", &flipped),
                Err(SignatureFault::Mismatch),
                "bit {bit}"
            );
        }
    }

    #[test]
    fn canonical_encodings_are_those_of_points() {
        let mut cases: Vec<[u8; 32]> = Vec::new();
        for low in 0..=u8::MAX {
            for (middle, high) in [(0, 0), (0, 0x80), (0xff, 0x7f), (0xff, 0xff)] {
                let mut bytes = [middle; 32];
                (bytes[0], bytes[31]) = (low, high);
                cases.push(bytes);
                cases.push(SigningKey::from_bytes(&bytes).verifying_key().to_bytes());
            }
        }
        let (mut canonical, mut other) = (0, 0);
        for bytes in cases {
            let Ok(point) = VerifyingKey::from_bytes(&bytes) else { continue };
            let expected = point.to_edwards().compress().as_bytes() == &bytes;
            assert_eq!(is_canonical(&bytes), expected, "{bytes:?}");
            *(if expected { &mut canonical } else { &mut other }) += 1;
        }
        assert!(canonical > 1000 && other >= 20, "{canonical} {other}");
    }

    /// The 12 cases of "Taming the many EdDSAs" (Chalkias, Garillot, Nikolaenko;
    /// github.com/novifinancial/ed25519-speccheck). libsodium accepts case 3 and no other.
    #[test]
    fn speccheck_cases_are_decided_as_libsodium_decides_them() {
        use SignatureFault::{Mismatch, NonCanonicalKey, WeakKey};
        let small = "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa";
        let mixed = "cdb267ce40c5cd45306fa5d2f29731459387dbf9eb933b7bd5aed9a765b88d4d";
        let other_mixed = "f7badec5b8abeaf699583992219b7b223f1df3fbbea919844e3f7c554a43dd43";
        let honest = "442aad9f089ad9e14647b1ef9099a1ff4798d78589e66f28eca69c11f582a623";
        let non_canonical = "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff";
        #[rustfmt::skip]
        let cases = [
            ("8c93255d71dcab10e8f379c26200f3c7bd5f09d9bc3068d3ef4edeb4853022b6", small,
             "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a0000000000000000000000000000000000000000000000000000000000000000",
             Err(WeakKey)),
            ("9bd9f44f4dcc75bd531b56b2cd280b0bb38fc1cd6d1230e14861d861de092e79", small,
             "f7badec5b8abeaf699583992219b7b223f1df3fbbea919844e3f7c554a43dd43a5bb704786be79fc476f91d3f3f89b03984d8068dcf1bb7dfc6637b45450ac04",
             Err(WeakKey)),
            ("aebf3f2601a0c8c5d39cc7d8911642f740b78168218da8471772b35f9d35b9ab", other_mixed,
             "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa8c4bd45aecaca5b24fb97bc10ac27ac8751a7dfe1baff8b953ec9f5833ca260e",
             Err(Mismatch)),
            ("9bd9f44f4dcc75bd531b56b2cd280b0bb38fc1cd6d1230e14861d861de092e79", mixed,
             "9046a64750444938de19f227bb80485e92b83fdb4b6506c160484c016cc1852f87909e14428a7a1d62e9f22f3d3ad7802db02eb2e688b6c52fcd6648a98bd009",
             Ok(())),
            ("e47d62c63f830dc7a6851a0b1f33ae4bb2f507fb6cffec4011eaccd55b53f56c", mixed,
             "160a1cb0dc9c0258cd0a7d23e94d8fa878bcb1925f2c64246b2dee1796bed5125ec6bc982a269b723e0668e540911a9a6a58921d6925e434ab10aa7940551a09",
             Err(Mismatch)),
            ("e47d62c63f830dc7a6851a0b1f33ae4bb2f507fb6cffec4011eaccd55b53f56c", mixed,
             "21122a84e0b5fca4052f5b1235c80a537878b38f3142356b2c2384ebad4668b7e40bc836dac0f71076f9abe3a53f9c03c1ceeeddb658d0030494ace586687405",
             Err(Mismatch)),
            ("85e241a07d148b41e47d62c63f830dc7a6851a0b1f33ae4bb2f507fb6cffec40", honest,
             "e96f66be976d82e60150baecff9906684aebb1ef181f67a7189ac78ea23b6c0e547f7690a0e2ddcd04d87dbc3490dc19b3b3052f7ff0538cb68afb369ba3a514",
             Err(Mismatch)),
            ("85e241a07d148b41e47d62c63f830dc7a6851a0b1f33ae4bb2f507fb6cffec40", honest,
             "8ce5b96c8f26d0ab6c47958c9e68b937104cd36e13c33566acd2fe8d38aa19427e71f98a473474f2f13f06f97c20d58cc3f54b8bd0d272f42b695dd7e89a8c22",
             Err(Mismatch)),
            ("9bedc267423725d473888631ebf45988bad3db83851ee85c85e241a07d148b41", other_mixed,
             "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff03be9678ac102edcd92b0210bb34d7428d12ffc5df5f37e359941266a4e35f0f",
             Err(Mismatch)),
            ("9bedc267423725d473888631ebf45988bad3db83851ee85c85e241a07d148b41", other_mixed,
             "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffca8c5b64cd208982aa38d4936621a4775aa233aa0505711d8fdcfdaa943d4908",
             Err(Mismatch)),
            ("e96b7021eb39c1a163b6da4e3093dcd3f21387da4cc4572be588fafae23c155b", non_canonical,
             "a9d55260f765261eb9b84e106f665e00b867287a761990d7135963ee0a7d59dca5bb704786be79fc476f91d3f3f89b03984d8068dcf1bb7dfc6637b45450ac04",
             Err(NonCanonicalKey)),
            ("39a591f5321bbe07fd5a23dc2f39d025d74526615746727ceefd6e82ae65c06f", non_canonical,
             "a9d55260f765261eb9b84e106f665e00b867287a761990d7135963ee0a7d59dca5bb704786be79fc476f91d3f3f89b03984d8068dcf1bb7dfc6637b45450ac04",
             Err(NonCanonicalKey)),
        ];
        for (case, (message, key, signature, expected)) in cases.into_iter().enumerate() {
            assert_eq!(check(key, &hex::<32>(message), signature), expected, "case {case}");
        }
    }

    #[test]
    fn keys_of_small_order_are_weak() {
        let signature = "0".repeat(128);
        for key in [
            "0100000000000000000000000000000000000000000000000000000000000000",
            "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
            "0000000000000000000000000000000000000000000000000000000000000080",
            "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
            "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
            "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
            "0000000000000000000000000000000000000000000000000000000000000000",
            "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
        ] {
            assert_eq!(check(key, b"", &signature), Err(SignatureFault::WeakKey), "{key}");
        }
    }

    #[test]
    fn no_non_canonical_encoding_is_a_key() {
        // y of p to 2^255 - 1 with both signs, and x = 0 with the sign set (y = 1 and y = -1).
        let signature = [0; 64];
        let mut keys: Vec<[u8; 32]> = Vec::new();
        for low in 0xed..=0xff {
            let mut key = [0xff; 32];
            key[0] = low;
            keys.push(key);
            key[31] = 0x7f;
            keys.push(key);
        }
        let mut one = [0; 32];
        one[0] = 1;
        one[31] = 0x80;
        keys.push(one);
        let mut minus_one = [0xff; 32];
        minus_one[0] = 0xec;
        keys.push(minus_one);

        let faults =
            keys.iter().map(|key| verify(&NodeId::from_bytes(*key), b"", &signature).unwrap_err());
        let faults: Vec<_> = faults.collect();
        assert!(faults.iter().all(|fault| matches!(
            fault,
            SignatureFault::NonCanonicalKey | SignatureFault::NotAKey
        )));
        assert!(
            faults.iter().filter(|fault| **fault == SignatureFault::NonCanonicalKey).count() > 10,
            "{faults:?}"
        );
    }

    /// Signatures with R + T for an honest key (seed 01…) and each T of order 2, 4 and 8: S is
    /// right, so that a verifier that multiplies by the cofactor, dalek's batch among them, may
    /// accept.
    #[test]
    fn torsion_component_in_r_is_refused() {
        let key = "8a88e3dd7409f195fd52db2d3cba5d72ca6709bf1d94121bf3748801b40f6f5c";
        #[rustfmt::skip]
        let with_torsion = [
            "bfbf7c88493ce67e386a59a13ce61599553b50ee60c74cd2ff2cfdc864b3e664c20d863797994e6474a60e4cf1284d5fd357de15b0b5e0e1a1864e72b404dc02",
            "ff5eb6de06f48305580e62a1c1e2f1c2a2684eb9a4bfa971044608179f96c90dc3a5cb2616a56d2ebb9f5a06a451f0041b6f96011dc152618379e01007e61a0e",
            "e9e3475c9a6021d863a84093486dc2b1bedf1ee71f22736f91391010122ea249e33c32f9614376badb7ba02a4417c178f3c42ceb62f47a82ac7d1c492718c10e",
            "97c59126a103dc52c576d3c2b41a1cd793de4e4f70ec35ecfeb7ee285d09ca37cfbcdb2eafe212a4af721df9eab5aaf8ed3fa80824b1f54ee133f53bf9bd3403",
            "2e408377b6c31981c795a65ec319ea66aac4af119f38b32d00d302379b4c199bdfb1625860799eebe46e259fbed7e8015a3d11ea2bfe41932dc7fccd38567c01",
            "eea04921f90b7cfaa7f19d5e3e1d0e3d5d97b1465b40568efbb9f7e8606936f2d8f87ba47d909304b458e848f80240b46969fa34d20dfb14bd3226c5dee41206",
            "041cb8a3659fde279c57bf6cb7923d4e4120e118e0dd8c906ec6efefedd15db663731c9a177c14a8c26cd369676abd975ccb94b2d51fe8f3fff7f5a9c8b5ba0c",
        ];
        let without = "563a6ed95efc23ad3a892c3d4be5e3286c21b1b08f13ca13014811d7a2f635c895813b5233ba838b91cb05987e817f8e1e515790d924b4061476e0f13fec1603";
        assert_eq!(check(key, b"torsion in R", without), Ok(()));
        for signature in with_torsion {
            assert_eq!(
                check(key, b"torsion in R", signature),
                Err(SignatureFault::Mismatch),
                "{signature}"
            );
        }
    }

    /// The honest key plus a point of order 8, signing with the honest scalar: valid only where k
    /// happens to be divisible by 8, which depends on the message. This pins the accept set, which
    /// a batch has to equal.
    #[test]
    fn signature_of_a_mixed_key_that_needs_the_cofactor_is_refused() {
        let key = "9ea3f11f5bd34f0cd7147fd0a436c088f624c6100c1df6a53c0a29e05d60cea0";
        #[rustfmt::skip]
        let cases: [(&[u8], &str, _); 4] = [
            (b"mixed key 0", "c8bd755013fa2275ce0fdc526124b82962c95f6f6220da2f228ab41fae025b773251ee5c7de09524e79ab5b26ee1069e2a8a34eb736de81118f8d8754d183701", Ok(())),
            (b"mixed key 1", "e31cbe81ba14f378c4e15ab38e3cdef013d2b11acf2402622cb7d7482bc9a00046018141134de7b7e718fd4c6ab7d755bb160e7747b7532b90232d80dc801409", Err(SignatureFault::Mismatch)),
            (b"mixed key 2", "67f3274a8a39691d4cb2c569595526ad4965b7c51e0ac32dedef846a8f9e800e43cb4370f053175bdd11beef251cd28d9976601539d63e772abca0eb8fb9de02", Ok(())),
            (b"mixed key 3", "9a94ef3796993d820b57cf502cfd9711373a1036d46c4f02e893572c7a49a092e37c8fbbdb302c5823d62544af605bef97a5428091e514bb9bc5421cb62be601", Err(SignatureFault::Mismatch)),
        ];
        for (message, signature, expected) in cases {
            assert_eq!(check(key, message, signature), expected, "{message:?}");
        }
    }
}

//! QUIC connection ids: the local ones, and the shared id of a connection that is derived from the
//! ids of both ends.
//!
//! The reference derives the id of a connection from the ids that its two ends use for each other
//! (docs/WIRE.md section 2), and the connection with the smallest id is primary. A node that uses
//! its dialect must know the same ids. quinn-proto exposes neither, but it writes both ids in every
//! packet with a long header, which are those of a handshake. They are read from outgoing packets.
//!
//! A local id is a number that is used once and a tag of it, by a key that survives restarts: an
//! endpoint answers a packet of an unknown connection with a stateless reset only if its id is one
//! of its own.

use std::time::Duration;

use bytes::Bytes;
use data_encoding::BASE64URL_NOPAD;
use quinn_proto::{ConnectionId, ConnectionIdGenerator, InvalidCid};
use zeroize::Zeroizing;

/// Bit of the first byte that marks a packet with a long header (RFC 9000 section 17.2).
const LONG_HEADER: u8 = 0x80;

/// The two type bits of a long header, and their values for packets that end a handshake and for
/// first packets.
const PACKET_TYPE: u8 = 0x30;
const HANDSHAKE: u8 = 0x20;
const INITIAL: u8 = 0x00;

/// Maximum length of a connection id of QUIC version 1, in bytes.
const MAX_CID: usize = 20;

/// Lengths of the two parts of a local id, in bytes.
const NONCE: usize = 8;
const TAG: usize = 4;

/// Returns the shared id of a connection as the reference derives it: the ids of both ends, the
/// smaller one first.
pub(crate) fn shared_id(own: &ConnectionId, peer: &ConnectionId) -> Bytes {
    let (first, second) = if **own <= **peer { (own, peer) } else { (peer, own) };
    Bytes::from(BASE64URL_NOPAD.encode(&[&first[..], &second[..]].concat()))
}

/// Returns the long headers of the packets in a datagram. Packets with a short header come last,
/// and contain no ids.
pub(crate) fn long_headers(datagram: &[u8]) -> impl Iterator<Item = LongHeader> + '_ {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        let (header, behind) = LongHeader::parse(rest)?;
        rest = behind;
        Some(header)
    })
}

/// The unencrypted part of a packet with a long header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LongHeader {
    /// Id of the receiver.
    pub(crate) to: ConnectionId,
    /// Id of the sender.
    pub(crate) from: ConnectionId,
    /// Whether the packet is of the type that completes a handshake.
    pub(crate) is_handshake: bool,
}

impl LongHeader {
    /// Parses the first packet of a datagram. Returns the packets after it as well.
    fn parse(packet: &[u8]) -> Option<(Self, &[u8])> {
        let (first, rest) = packet.split_first()?;
        if first & LONG_HEADER == 0 {
            return None;
        }
        // After the version.
        let (to, rest) = cid(rest.get(4..)?)?;
        let (from, rest) = cid(rest)?;
        let kind = first & PACKET_TYPE;
        let header = Self { to, from, is_handshake: kind == HANDSHAKE };
        Some((header, behind(kind, rest).unwrap_or_default()))
    }
}

/// Returns what follows a packet, given everything after its ids.
fn behind(kind: u8, mut rest: &[u8]) -> Option<&[u8]> {
    if kind == INITIAL {
        let (token, bytes) = varint(rest)?;
        rest = bytes.get(token..)?;
    }
    let (len, rest) = varint(rest)?;
    rest.get(len..)
}

/// Parses a variable-length integer (RFC 9000 section 16). Returns the rest as well.
fn varint(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let first = *bytes.first()?;
    let (bytes, rest) = bytes.split_at_checked(1 << (first >> 6))?;
    let value = bytes
        .iter()
        .skip(1)
        .fold(u64::from(first & 0x3f), |value, byte| value << 8 | u64::from(*byte));
    Some((usize::try_from(value).ok()?, rest))
}

/// Parses a connection id after its length. Returns the rest as well.
fn cid(bytes: &[u8]) -> Option<(ConnectionId, &[u8])> {
    let (len, rest) = bytes.split_first()?;
    let (cid, rest) = rest.split_at_checked(usize::from(*len))?;
    (cid.len() <= MAX_CID).then(|| (ConnectionId::new(cid), rest))
}

/// Generates the local ids of an endpoint.
#[derive(Debug)]
pub(crate) struct Generator {
    key: Zeroizing<[u8; 32]>,
    seed: Zeroizing<[u8; 32]>,
    made: u64,
}

impl Generator {
    /// Returns a generator. `key` is the key of the tags; `seed` differs between endpoints, so that
    /// no id is generated twice.
    pub(crate) fn new(key: &[u8; 32], seed: &[u8; 32]) -> Self {
        Self { key: Zeroizing::new(*key), seed: Zeroizing::new(*seed), made: 0 }
    }

    fn tag(&self, nonce: &[u8]) -> [u8; TAG] {
        let mut tag = [0; TAG];
        blake3::Hasher::new_keyed(&self.key).update(nonce).finalize_xof().fill(&mut tag);
        tag
    }
}

impl ConnectionIdGenerator for Generator {
    fn generate_cid(&mut self) -> ConnectionId {
        let nonce = blake3::keyed_hash(&self.seed, &self.made.to_be_bytes());
        self.made += 1;
        let mut cid = [0; NONCE + TAG];
        let (to, tag) = cid.split_at_mut(NONCE);
        to.copy_from_slice(&nonce.as_bytes()[..NONCE]);
        tag.copy_from_slice(&self.tag(to));
        ConnectionId::new(&cid)
    }

    fn validate(&self, cid: &ConnectionId) -> Result<(), InvalidCid> {
        match cid.split_at_checked(NONCE) {
            Some((nonce, tag)) if tag == self.tag(nonce) => Ok(()),
            _ => Err(InvalidCid),
        }
    }

    fn cid_len(&self) -> usize {
        NONCE + TAG
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The parts of a first packet that are read: with a token of 3 bytes and a payload of 64.
    fn packet(to: &[u8], from: &[u8]) -> Vec<u8> {
        let len = |cid: &[u8]| u8::try_from(cid.len()).unwrap();
        [&[0xc0, 0, 0, 0, 1, len(to)], to, &[len(from)], from, &[3, 1, 2, 3], &[0x40, 64], &[9; 64]]
            .concat()
    }

    /// A packet of the kind that ends a handshake.
    fn handshake(to: &[u8], from: &[u8]) -> Vec<u8> {
        let len = |cid: &[u8]| u8::try_from(cid.len()).unwrap();
        [&[0xe0, 0, 0, 0, 1, len(to)], to, &[len(from)], from, &[20], &[9; 20]].concat()
    }

    fn ids(datagram: &[u8]) -> Vec<(Vec<u8>, bool)> {
        long_headers(datagram).map(|header| (header.to.to_vec(), header.is_handshake)).collect()
    }

    #[test]
    fn headers_of_all_packets_of_a_datagram_are_read() {
        let coalesced =
            [packet(&[1; 20], &[7; 12]), handshake(&[2; 20], &[7; 12]), vec![0x40; 30]].concat();
        assert_eq!(ids(&coalesced), [(vec![1; 20], false), (vec![2; 20], true)]);
        assert_eq!(long_headers(&coalesced).next().unwrap().from[..], [7; 12]);
        assert_eq!(ids(&[0x40; 30]), []);
        assert_eq!(ids(&packet(&[1; 21], &[7; 12])), [], "an id is too long");
        for len in 0..6 + 20 + 1 + 12 {
            assert_eq!(ids(&packet(&[1; 20], &[7; 12])[..len]), [], "{len} bytes");
        }
    }

    #[test]
    fn shared_id_has_the_smaller_id_first() {
        let (small, large) = (ConnectionId::new(&[0; 20]), ConnectionId::new(&[0xff; 12]));
        let name = BASE64URL_NOPAD.encode(&[&[0; 20][..], &[0xff; 12]].concat());
        assert_eq!(shared_id(&small, &large), name);
        assert_eq!(shared_id(&large, &small), name);
    }

    #[test]
    fn endpoint_recognizes_its_ids_after_a_restart_and_repeats_none() {
        let [mut first, mut second] = [1, 2].map(|seed| Generator::new(&[7; 32], &[seed; 32]));
        let made: std::collections::BTreeSet<_> =
            (0..100).flat_map(|_| [first.generate_cid(), second.generate_cid()]).collect();
        assert_eq!(made.len(), 200);
        assert!(made.iter().all(|cid| cid.len() == first.cid_len() && first.validate(cid).is_ok()));
        let stranger = Generator::new(&[8; 32], &[1; 32]);
        assert!(made.iter().all(|cid| stranger.validate(cid).is_err()));
        for len in [0, NONCE, 20] {
            assert!(first.validate(&ConnectionId::new(&[0; 20][..len])).is_err());
        }
    }

    #[test]
    fn integers_have_one_to_eight_bytes() {
        for (bytes, value) in [
            (&[0x25][..], 37),
            (&[0x40, 0x25], 37),
            (&[0x7b, 0xbd], 15_293),
            (&[0x9d, 0x7f, 0x3e, 0x7d], 494_878_333),
            (&[0xc2, 0x19, 0x7c, 0x5e, 0xff, 0x14, 0xe8, 0x8c], 151_288_809_941_952_652),
        ] {
            assert_eq!(varint(&[bytes, &[7]].concat()), Some((value, &[7][..])));
            assert_eq!(varint(&bytes[..bytes.len() - 1]), None);
        }
    }
}

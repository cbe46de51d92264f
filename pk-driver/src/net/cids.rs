//! QUIC connection ids: those that we make, and the name that they give a connection on both its ends.
//!
//! The reference names a connection after the ids that its two ends use for each other (WIRE.md section 2), and calls the
//! connection with the smallest name primary; so a node that speaks its dialect has to know the same ids. quinn tells
//! neither, but asks for its own ([`ConnectionIdGenerator`]), on the thread that begins a handshake and before anything of
//! it is sent; and it writes both on every packet with a long header, which are those of a handshake. So the ids of
//! handshakes under way are noted, and the socket shows us what it sends.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use data_encoding::BASE64URL_NOPAD;
use quinn::udp::Transmit;
use quinn_proto::{ConnectionId, ConnectionIdGenerator, HashedConnectionIdGenerator, InvalidCid};

/// The first byte of a packet with a long header has this bit (RFC 9000 section 17.2).
const LONG_HEADER: u8 = 0x80;

/// The two bits of its type, and those that say that it is one of the kind that ends a handshake, or one of the first.
const PACKET_TYPE: u8 = 0x30;
const HANDSHAKE: u8 = 0x20;
const INITIAL: u8 = 0x00;

/// The longest connection id of QUIC version 1, in bytes.
const MAX_CID: usize = 20;

thread_local! {
    /// What this thread is about: `Some` while it begins a handshake, and then the id that was made for it.
    static BEGINNING: Cell<Option<Option<ConnectionId>>> = const { Cell::new(None) };
}

/// Handshakes under way, by our id. Clones are the same.
#[derive(Debug, Clone, Default)]
pub(super) struct Cids(Arc<Mutex<Noted>>);

type Noted = BTreeMap<ConnectionId, Seen>;

/// What was seen of a handshake.
#[derive(Debug, Clone, Copy, Default)]
struct Seen {
    /// The peer's id.
    peer: Option<ConnectionId>,
    /// We have sent a packet of the kind that ends a handshake.
    handshake: bool,
    /// No such packet may leave any more.
    withdrawn: bool,
}

impl Cids {
    /// Begins a handshake by `begin`, which makes quinn begin just one, and watches it. `None` if it began none.
    pub(super) fn watch<T>(&self, begin: impl FnOnce() -> T) -> (T, Option<Watch>) {
        BEGINNING.set(Some(None));
        let begun = begin();
        let own = BEGINNING.take().flatten();
        (begun, own.map(|own| Watch { cids: self.clone(), own }))
    }

    /// Makes the ids of an endpoint, and notes those of handshakes.
    pub(super) fn generator(&self) -> Box<dyn ConnectionIdGenerator> {
        Box::new(Generator { cids: self.clone(), inner: HashedConnectionIdGenerator::new() })
    }

    /// Looks at what is about to be sent. Says whether it may be.
    pub(super) fn sends(&self, transmit: &Transmit<'_>) -> bool {
        let size = transmit.segment_size.unwrap_or(transmit.contents.len()).max(1);
        transmit.contents.chunks(size).all(|datagram| self.sends_datagram(datagram))
    }

    fn sends_datagram(&self, mut datagram: &[u8]) -> bool {
        // Packets with a short header come last, and tell nothing.
        while let Some(header) = LongHeader::parse(datagram) {
            if let Some(seen) = self.lock().get_mut(&header.from) {
                if header.is_handshake && seen.withdrawn {
                    return false;
                }
                seen.handshake |= header.is_handshake;
                seen.peer = Some(header.to);
            }
            datagram = header.rest;
        }
        true
    }

    fn lock(&self) -> MutexGuard<'_, Noted> {
        // Only single operations of the map happen under this lock, so that a poisoned one still holds a whole map.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One handshake under way. Its ids are forgotten when it is dropped.
#[derive(Debug)]
pub(super) struct Watch {
    cids: Cids,
    own: ConnectionId,
}

impl Watch {
    /// The name of the connection in the reference's words. `None` if nothing was sent yet.
    pub(super) fn name(&self) -> Option<Bytes> {
        let peer = self.cids.lock().get(&self.own)?.peer?;
        let (first, second) = if *self.own <= *peer { (self.own, peer) } else { (peer, self.own) };
        Some(Bytes::from(BASE64URL_NOPAD.encode(&[&first[..], &second[..]].concat())))
    }

    /// Sees to it that the handshake never ends for the peer, if that is still to be had. What is sent when the connection is
    /// dropped, while this is kept or after, does not end it either.
    pub(super) fn withdraw(&self) -> bool {
        let mut cids = self.cids.lock();
        let Some(seen) = cids.get_mut(&self.own) else { return true };
        seen.withdrawn = !seen.handshake;
        seen.withdrawn
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.cids.lock().remove(&self.own);
    }
}

/// A packet with a long header, as far as it is not encrypted, and what follows it in its datagram.
struct LongHeader<'a> {
    to: ConnectionId,
    from: ConnectionId,
    is_handshake: bool,
    rest: &'a [u8],
}

impl<'a> LongHeader<'a> {
    fn parse(packet: &'a [u8]) -> Option<Self> {
        let (first, rest) = packet.split_first()?;
        if first & LONG_HEADER == 0 {
            return None;
        }
        // Behind the version.
        let (to, rest) = cid(rest.get(4..)?)?;
        let (from, rest) = cid(rest)?;
        let kind = first & PACKET_TYPE;
        Some(Self { to, from, is_handshake: kind == HANDSHAKE, rest: behind(kind, rest).unwrap_or_default() })
    }
}

/// What follows a packet of which this is everything behind its ids.
fn behind(kind: u8, mut rest: &[u8]) -> Option<&[u8]> {
    if kind == INITIAL {
        let (token, bytes) = varint(rest)?;
        rest = bytes.get(token..)?;
    }
    let (len, rest) = varint(rest)?;
    rest.get(len..)
}

/// A variable-length integer (RFC 9000 section 16), and what follows.
fn varint(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let first = *bytes.first()?;
    let (bytes, rest) = bytes.split_at_checked(1 << (first >> 6))?;
    let value = bytes.iter().skip(1).fold(u64::from(first & 0x3f), |value, byte| value << 8 | u64::from(*byte));
    Some((usize::try_from(value).ok()?, rest))
}

/// A connection id after its length, and what follows.
fn cid(bytes: &[u8]) -> Option<(ConnectionId, &[u8])> {
    let (len, rest) = bytes.split_first()?;
    let (cid, rest) = rest.split_at_checked(usize::from(*len))?;
    (cid.len() <= MAX_CID).then(|| (ConnectionId::new(cid), rest))
}

/// quinn's own generator, overheard.
struct Generator {
    cids: Cids,
    inner: HashedConnectionIdGenerator,
}

impl ConnectionIdGenerator for Generator {
    fn generate_cid(&mut self) -> ConnectionId {
        let cid = self.inner.generate_cid();
        if let Some(noted) = BEGINNING.get() {
            let mut cids = self.cids.lock();
            // Made anew, if the one before was in use.
            noted.and_then(|noted| cids.remove(&noted));
            cids.insert(cid, Seen::default());
            BEGINNING.set(Some(Some(cid)));
        }
        cid
    }

    fn validate(&self, cid: &ConnectionId) -> Result<(), InvalidCid> {
        self.inner.validate(cid)
    }

    fn cid_len(&self) -> usize {
        self.inner.cid_len()
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        self.inner.cid_lifetime()
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;

    /// A first packet, as far as anybody looks at it: with a token of 3 bytes and a payload of 64.
    fn packet(to: &[u8], from: &[u8]) -> Vec<u8> {
        let len = |cid: &[u8]| u8::try_from(cid.len()).unwrap();
        [&[0xc0, 0, 0, 0, 1, len(to)], to, &[len(from)], from, &[3, 1, 2, 3], &[0x40, 64], &[9; 64]].concat()
    }

    /// One of the kind that ends a handshake.
    fn handshake(to: &[u8], from: &[u8]) -> Vec<u8> {
        let len = |cid: &[u8]| u8::try_from(cid.len()).unwrap();
        [&[0xe0, 0, 0, 0, 1, len(to)], to, &[len(from)], from, &[20], &[9; 20]].concat()
    }

    fn send(cids: &Cids, contents: &[u8], segment_size: Option<usize>) -> bool {
        let destination = SocketAddr::from(([127, 0, 0, 1], 9));
        cids.sends(&Transmit { destination, ecn: None, contents, segment_size, src_ip: None })
    }

    fn begin(cids: &Cids) -> Watch {
        let mut generator = cids.generator();
        cids.watch(|| generator.generate_cid()).1.unwrap()
    }

    #[test]
    fn the_name_is_both_ids_the_smaller_first_and_the_last_one_of_the_peer_counts() {
        let cids = Cids::default();
        let watch = begin(&cids);
        assert_eq!(watch.name(), None);
        send(&cids, &packet(&[0xff; 20], &watch.own), None);
        let name = BASE64URL_NOPAD.encode(&[&watch.own[..], &[0xff; 20]].concat());
        assert_eq!(watch.name().unwrap(), name);
        // In the second segment of what is sent at once.
        let segments = [packet(&[0xff; 20], &watch.own), packet(&[0; 20], &watch.own)];
        send(&cids, &segments.concat(), Some(segments[0].len()));
        let name = BASE64URL_NOPAD.encode(&[&[0; 20], &watch.own[..]].concat());
        assert_eq!(watch.name().unwrap(), name);
    }

    #[test]
    fn nothing_else_is_noted_and_nothing_is_kept() {
        let cids = Cids::default();
        let mut generator = cids.generator();
        generator.generate_cid();
        assert!(cids.watch(|| ()).1.is_none());
        assert_eq!(cids.lock().len(), 0);
        let watch = cids.watch(|| (generator.generate_cid(), generator.generate_cid())).1.unwrap();
        assert_eq!(cids.lock().len(), 1, "the one that was in use is not ours");
        send(&cids, &packet(&[1; 20], &[2; 8]), None);
        send(&cids, &[&[0x40], &packet(&[1; 20], &watch.own)[1..]].concat(), None);
        for len in 0..6 + 20 + 1 + 8 {
            assert!(send(&cids, &packet(&[1; 20], &watch.own)[..len], None));
        }
        send(&cids, &packet(&[1; 21], &watch.own), None);
        assert_eq!((watch.name(), cids.lock().len()), (None, 1));
        drop(watch);
        assert_eq!(cids.lock().len(), 0);
    }

    #[test]
    fn what_is_withdrawn_in_time_never_ends_its_handshake() {
        let cids = Cids::default();
        let (watch, other) = (begin(&cids), begin(&cids));
        let peer = [5; 20];
        assert!(send(&cids, &packet(&peer, &watch.own), None));
        assert!(watch.withdraw());
        assert!(send(&cids, &packet(&peer, &watch.own), None), "it goes on, and is closed by such a packet");
        let coalesced = [packet(&peer, &watch.own), handshake(&peer, &watch.own), vec![0x40; 30]].concat();
        assert!(!send(&cids, &coalesced, None));
        assert!(!send(&cids, &handshake(&peer, &watch.own), None));
        // Another one is not touched; and what has left has left.
        let coalesced = [packet(&peer, &other.own), handshake(&peer, &other.own)].concat();
        assert!(send(&cids, &coalesced, None));
        assert!(!other.withdraw());
        assert!(send(&cids, &handshake(&peer, &other.own), None));
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

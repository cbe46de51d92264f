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

/// The longest connection id of QUIC version 1, in bytes.
const MAX_CID: usize = 20;

thread_local! {
    /// What this thread is about: `Some` while it begins a handshake, and then the id that was made for it.
    static BEGINNING: Cell<Option<Option<ConnectionId>>> = const { Cell::new(None) };
}

/// Handshakes under way: our id, and the peer's as soon as it is known. Clones are the same.
#[derive(Debug, Clone, Default)]
pub(super) struct Cids(Arc<Mutex<BTreeMap<ConnectionId, Option<ConnectionId>>>>);

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

    /// Looks at what is sent.
    pub(super) fn sent(&self, transmit: &Transmit<'_>) {
        let size = transmit.segment_size.unwrap_or(transmit.contents.len()).max(1);
        for packet in transmit.contents.chunks(size) {
            // A datagram that begins with a short header has no long one in it: those go first.
            if let Some((to, from)) = long_header(packet)
                && let Some(peer) = self.lock().get_mut(&from)
            {
                *peer = Some(to);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<ConnectionId, Option<ConnectionId>>> {
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
        let peer = self.cids.lock().get(&self.own).copied().flatten()?;
        let (first, second) = if *self.own <= *peer { (self.own, peer) } else { (peer, self.own) };
        Some(Bytes::from(BASE64URL_NOPAD.encode(&[&first[..], &second[..]].concat())))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.cids.lock().remove(&self.own);
    }
}

/// Where a packet goes to and comes from, if it has a long header.
fn long_header(packet: &[u8]) -> Option<(ConnectionId, ConnectionId)> {
    let (first, rest) = packet.split_first()?;
    if first & LONG_HEADER == 0 {
        return None;
    }
    // Behind the version.
    let (to, rest) = cid(rest.get(4..)?)?;
    let (from, _) = cid(rest)?;
    Some((to, from))
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
            cids.insert(cid, None);
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

    /// A packet with a long header, as far as anybody looks at it.
    fn packet(to: &[u8], from: &[u8]) -> Vec<u8> {
        let len = |cid: &[u8]| u8::try_from(cid.len()).unwrap();
        [&[0xc0, 0, 0, 0, 1, len(to)], to, &[len(from)], from, &[9; 40]].concat()
    }

    fn send(cids: &Cids, contents: &[u8], segment_size: Option<usize>) {
        let destination = SocketAddr::from(([127, 0, 0, 1], 9));
        cids.sent(&Transmit { destination, ecn: None, contents, segment_size, src_ip: None });
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
            send(&cids, &packet(&[1; 20], &watch.own)[..len], None);
        }
        send(&cids, &packet(&[1; 21], &watch.own), None);
        assert_eq!((watch.name(), cids.lock().len()), (None, 1));
        drop(watch);
        assert_eq!(cids.lock().len(), 0);
    }
}

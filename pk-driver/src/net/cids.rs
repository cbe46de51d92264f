//! Connection ids of handshakes in progress (see [`pk_quic::cids`]).
//!
//! quinn does not expose the ids of a connection, but it requests local ids from a
//! [`ConnectionIdGenerator`], on the thread that starts a handshake and before anything is sent. The
//! ids of handshakes in progress are therefore recorded, and the socket passes outgoing packets to
//! this module.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::Duration;

use bytes::Bytes;
use pk_quic::cids::{Generator, long_headers, shared_id};
use quinn::udp::Transmit;
use quinn_proto::{ConnectionId, ConnectionIdGenerator, InvalidCid};

thread_local! {
    /// `Some` while this thread starts a handshake; then the id that was generated for it.
    static BEGINNING: Cell<Option<Option<ConnectionId>>> = const { Cell::new(None) };
}

/// Handshakes in progress, by local id. Clones share one map.
#[derive(Debug, Clone, Default)]
pub(super) struct Cids(Arc<Mutex<Noted>>);

type Noted = BTreeMap<ConnectionId, Seen>;

/// Classification of an outgoing datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sends {
    /// Possibly the first datagram of the handshake with this local id; [`Cids::sent`] receives the
    /// outcome.
    First(ConnectionId),
    /// A datagram that must not be sent.
    Withdrawn,
    /// Anything else.
    Other,
}

/// What was recorded of a handshake.
#[derive(Debug, Default)]
struct Seen {
    /// Id of the peer.
    peer: Option<ConnectionId>,
    /// Whether a packet was sent that ends the handshake.
    handshake: bool,
    /// Whether such a packet must not be sent from now on.
    withdrawn: bool,
    /// Whether the system accepted the first datagram, or its error.
    outcome: Option<Result<(), String>>,
    /// Woken if the system rejects the first datagram.
    waker: Option<Waker>,
}

impl Cids {
    /// Starts a handshake with `begin`, which makes quinn start exactly one, and watches it.
    /// Returns `None` if it started none.
    pub(super) fn watch<T>(&self, begin: impl FnOnce() -> T) -> (T, Option<Watch>) {
        BEGINNING.set(Some(None));
        let begun = begin();
        let own = BEGINNING.take().flatten();
        (begun, own.map(|own| Watch { cids: self.clone(), own }))
    }

    /// Returns a generator of the ids of an endpoint, which records those of handshakes. `key` is
    /// the key of their tags; `seed` differs between endpoints, so that no id is generated twice.
    pub(super) fn generator(
        &self,
        key: &[u8; 32],
        seed: &[u8; 32],
    ) -> Box<dyn ConnectionIdGenerator> {
        Box::new(Recorder { cids: self.clone(), inner: Generator::new(key, seed) })
    }

    /// Classifies an outgoing datagram.
    pub(super) fn sends(&self, transmit: &Transmit<'_>) -> Sends {
        let size = transmit.segment_size.unwrap_or(transmit.contents.len()).max(1);
        let mut sends = Sends::Other;
        for datagram in transmit.contents.chunks(size) {
            match self.sends_datagram(datagram) {
                Sends::Withdrawn => return Sends::Withdrawn,
                Sends::First(own) => sends = Sends::First(own),
                Sends::Other => {}
            }
        }
        sends
    }

    fn sends_datagram(&self, datagram: &[u8]) -> Sends {
        let mut sends = Sends::Other;
        for header in long_headers(datagram) {
            if let Some(seen) = self.lock().get_mut(&header.from) {
                if header.is_handshake && seen.withdrawn {
                    return Sends::Withdrawn;
                }
                if seen.outcome.is_none() {
                    sends = Sends::First(header.from);
                }
                seen.handshake |= header.is_handshake;
                seen.peer = Some(header.to);
            }
        }
        sends
    }

    /// Records the outcome of the first datagram of a handshake. Later ones may fail: the network
    /// may have recovered by then.
    pub(super) fn sent(&self, own: &ConnectionId, outcome: Result<(), String>) {
        if let Some(seen) = self.lock().get_mut(own)
            && seen.outcome.is_none()
        {
            if outcome.is_err()
                && let Some(waker) = &seen.waker
            {
                waker.wake_by_ref();
            }
            seen.outcome = Some(outcome);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Noted> {
        // Only single operations of the map happen under this lock, so that a poisoned one contains
        // a consistent map.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One handshake in progress. Its ids are removed when it is dropped.
#[derive(Debug)]
pub(super) struct Watch {
    cids: Cids,
    own: ConnectionId,
}

impl Watch {
    /// Returns the connection id as the reference derives it; `None` if nothing was sent yet.
    pub(super) fn name(&self) -> Option<Bytes> {
        let peer = self.cids.lock().get(&self.own)?.peer?;
        Some(shared_id(&self.own, &peer))
    }

    /// Wakes `waker` if the system rejects the first datagram.
    pub(super) fn wake(&self, waker: &Waker) {
        if let Some(seen) = self.cids.lock().get_mut(&self.own) {
            if matches!(seen.outcome, Some(Err(_))) {
                waker.wake_by_ref();
            }
            seen.waker = Some(waker.clone());
        }
    }

    /// Returns why the system rejected the first datagram. If it did, sending others is useless.
    pub(super) fn rejected(&self) -> Option<String> {
        self.cids.lock().get(&self.own)?.outcome.clone()?.err()
    }

    /// Prevents the handshake from completing at the peer, and returns whether that is still
    /// possible. Packets sent when the connection is dropped, while this is held or later, do not
    /// complete it either.
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

/// The generator of an endpoint, which records ids while a handshake starts.
struct Recorder {
    cids: Cids,
    inner: Generator,
}

impl ConnectionIdGenerator for Recorder {
    fn generate_cid(&mut self) -> ConnectionId {
        let cid = self.inner.generate_cid();
        if let Some(noted) = BEGINNING.get() {
            let mut cids = self.cids.lock();
            // Generated again if the previous one was in use.
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

    use data_encoding::BASE64URL_NOPAD;

    use super::*;

    /// Builds a first packet with the parts that the parser reads: a token of 3 bytes and a payload
    /// of 64.
    fn packet(to: &[u8], from: &[u8]) -> Vec<u8> {
        let len = |cid: &[u8]| u8::try_from(cid.len()).unwrap();
        [&[0xc0, 0, 0, 0, 1, len(to)], to, &[len(from)], from, &[3, 1, 2, 3], &[0x40, 64], &[9; 64]]
            .concat()
    }

    /// Builds a packet of the kind that ends a handshake.
    fn handshake(to: &[u8], from: &[u8]) -> Vec<u8> {
        let len = |cid: &[u8]| u8::try_from(cid.len()).unwrap();
        [&[0xe0, 0, 0, 0, 1, len(to)], to, &[len(from)], from, &[20], &[9; 20]].concat()
    }

    /// Returns whether the packet may be sent.
    fn send(cids: &Cids, contents: &[u8], segment_size: Option<usize>) -> bool {
        let destination = SocketAddr::from(([127, 0, 0, 1], 9));
        cids.sends(&Transmit { destination, ecn: None, contents, segment_size, src_ip: None })
            != Sends::Withdrawn
    }

    /// Returns the generator of one start of an endpoint.
    fn generator(cids: &Cids, seed: u8) -> Box<dyn ConnectionIdGenerator> {
        cids.generator(&[7; 32], &[seed; 32])
    }

    fn begin(cids: &Cids) -> Watch {
        static SEED: std::sync::atomic::AtomicU8 = std::sync::atomic::AtomicU8::new(10);
        let mut generator =
            generator(cids, SEED.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
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
        // In the second segment of one transmit.
        let segments = [packet(&[0xff; 20], &watch.own), packet(&[0; 20], &watch.own)];
        send(&cids, &segments.concat(), Some(segments[0].len()));
        let name = BASE64URL_NOPAD.encode(&[&[0; 20], &watch.own[..]].concat());
        assert_eq!(watch.name().unwrap(), name);
    }

    #[test]
    fn nothing_else_is_noted_and_nothing_is_kept() {
        let cids = Cids::default();
        let mut generator = generator(&cids, 1);
        generator.generate_cid();
        assert!(cids.watch(|| ()).1.is_none());
        assert_eq!(cids.lock().len(), 0);
        let watch = cids.watch(|| (generator.generate_cid(), generator.generate_cid())).1.unwrap();
        assert_eq!(cids.lock().len(), 1, "the one that was in use is not ours");
        send(&cids, &packet(&[1; 20], &[2; 8]), None);
        send(&cids, &[&[0x40], &packet(&[1; 20], &watch.own)[1..]].concat(), None);
        for len in 0..6 + 20 + 1 + 12 {
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
        assert!(
            send(&cids, &packet(&peer, &watch.own), None),
            "the handshake continues, and such a packet closes it"
        );
        let coalesced =
            [packet(&peer, &watch.own), handshake(&peer, &watch.own), vec![0x40; 30]].concat();
        assert!(!send(&cids, &coalesced, None));
        assert!(!send(&cids, &handshake(&peer, &watch.own), None));
        // Another handshake is not affected. A handshake whose last packet was sent is not
        // withdrawn.
        let coalesced = [packet(&peer, &other.own), handshake(&peer, &other.own)].concat();
        assert!(send(&cids, &coalesced, None));
        assert!(!other.withdraw());
        assert!(send(&cids, &handshake(&peer, &other.own), None));
    }

    #[test]
    fn only_the_first_datagram_of_a_handshake_fails_it() {
        let destination = SocketAddr::from(([127, 0, 0, 1], 9));
        let cids = Cids::default();
        let (watch, other) = (begin(&cids), begin(&cids));
        let sends = |watch: &Watch| {
            let contents = &packet(&[5; 20], &watch.own);
            cids.sends(&Transmit {
                destination,
                ecn: None,
                contents,
                segment_size: None,
                src_ip: None,
            })
        };
        assert_eq!(sends(&watch), Sends::First(watch.own));
        cids.sent(&watch.own, Err("no route".to_owned()));
        assert_eq!((sends(&watch), watch.rejected()), (Sends::Other, Some("no route".to_owned())));
        assert_eq!(sends(&other), Sends::First(other.own));
        cids.sent(&other.own, Ok(()));
        cids.sent(&other.own, Err("no buffer".to_owned()));
        assert_eq!((sends(&other), other.rejected()), (Sends::Other, None));
    }
}

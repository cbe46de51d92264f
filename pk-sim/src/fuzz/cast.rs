//! The keys and identities behind the placeholder ids of arbitrary values.

use std::sync::OnceLock;

use pk_proto::{BucketIndex, Identity, NodeId, UnixMillis};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::host::EPOCH;
use crate::host::identity::{Key, genesis, renew};

/// Placeholders 1 to this one are peers with a key.
pub(super) const PEERS: u8 = 7;
/// Number of them that are as far away from the node as possible.
const FAR: usize = 5;
/// Number of keys that the node under test can have, one after the other.
const GENERATIONS: u8 = 6;
/// Bytes of the text of an id.
const TEXT: usize = NodeId::TEXT_LEN;

/// All identities. Created once, because certificates are expensive.
#[derive(Debug)]
pub(super) struct Cast {
    own: Vec<(Key, Identity)>,
    peers: Vec<Key>,
    ids: [NodeId; 16],
}

impl Cast {
    pub(super) fn get() -> &'static Self {
        static CAST: OnceLock<Cast> = OnceLock::new();
        CAST.get_or_init(Self::new)
    }

    fn new() -> Self {
        let key = |index: u64| Key::numbered(0xf0, index);
        let unix = |generation: u64| UnixMillis(EPOCH - 86_400_000 + 60_000 * generation);
        let first = genesis(&key(0), unix(0));
        let mut own = vec![(key(0), first)];
        for generation in 1..u64::from(GENERATIONS) {
            let (old, identity) = &own[own.len() - 1];
            let new = key(generation << 32);
            let identity = renew(identity, old, &new, unix(generation));
            own.push((new, identity));
        }
        let me = own[1].0.id();
        // Most of them in the farthest bucket, so that a few fill it.
        let far = |key: &Key| me.bucket_index(&key.id()) == Some(BucketIndex(255));
        let (far, near): (Vec<_>, Vec<_>) = (1..64).map(key).partition(far);
        let peers: Vec<_> =
            far.into_iter().take(FAR).chain(near).take(usize::from(PEERS)).collect();
        let ids = std::array::from_fn(|number| match number {
            0 => me,
            1..=7 => peers[number - 1].id(),
            8 => own[0].0.id(),
            // Neighbours of the node, in its nearest buckets, without keys.
            _ => {
                let mut id = *me.as_bytes();
                id[31] ^= number as u8;
                NodeId::from_bytes(id)
            }
        });
        Self { own, peers, ids }
    }

    /// Returns the identity of the node under test in a generation of its keys, 0 or more.
    pub(super) fn identity(&self, generation: usize) -> &Identity {
        &self.own[generation.min(self.own.len() - 1)].1
    }

    /// The generation of an id of the node under test.
    pub(super) fn generation(&self, own: &NodeId) -> Option<usize> {
        self.own.iter().position(|(key, _)| key.id() == *own)
    }

    /// Returns the key of an id, if the run has it.
    pub(super) fn key(&self, id: &NodeId) -> Option<&Key> {
        self.own.iter().map(|(key, _)| key).chain(&self.peers).find(|key| key.id() == *id)
    }

    /// Returns the id of a placeholder.
    pub(super) fn id(&self, number: u8) -> NodeId {
        self.ids[usize::from(number % 16)]
    }

    /// A peer with a key, 0 or more.
    pub(super) fn peer(&self, number: u8) -> &Key {
        &self.peers[usize::from(number % PEERS)]
    }

    /// A value with every placeholder replaced, wherever it is in it: the encoded form of an id has
    /// one length.
    pub(super) fn fill<T: Serialize + DeserializeOwned>(&self, value: &T) -> Option<T> {
        fill(value, |number| self.id(number))
    }
}

/// Returns a value with its placeholders replaced by the ids that `who` returns. `None` if it
/// cannot be encoded and decoded.
pub(super) fn fill<T: Serialize + DeserializeOwned>(
    value: &T,
    who: impl Fn(u8) -> NodeId,
) -> Option<T> {
    let mut bytes = postcard::to_allocvec(value).ok()?;
    let number =
        |byte: u8| (byte & 0xf0 == NodeId::numbered(0).as_bytes()[0]).then_some(byte & 0x0f);
    let mut at = 0;
    while at < bytes.len() {
        let rest = &mut bytes[at..];
        if let (Some(number), Some(id)) = (number(rest[0]), rest.get_mut(..32))
            && id == NodeId::numbered(number).as_bytes()
        {
            id.copy_from_slice(who(number).as_bytes());
            at += 32;
        } else if rest[0] == b'v'
            && let Some(text) = rest.get_mut(..TEXT)
            && let Some(number) =
                (0..16).find(|number| NodeId::numbered(*number).to_string().as_bytes() == text)
        {
            text.copy_from_slice(who(number).to_string().as_bytes());
            at += TEXT;
        } else {
            at += 1;
        }
    }
    postcard::from_bytes(&bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use pk_proto::claims::ClaimContent;
    use pk_proto::{Request, RequestOptions};

    #[test]
    fn placeholders_are_replaced_in_bytes_and_texts() {
        let cast = Cast::get();
        let (placeholder, id) = (NodeId::numbered(3), cast.id(3));
        let content = |of: NodeId| ClaimContent {
            typ: "x".into(),
            issuer: Some(of.to_string()),
            subject: None,
            members: "{}".into(),
        };
        let request = |of| Request::ClaimNetwork {
            target: of,
            content: content(of),
            options: RequestOptions::default(),
        };
        assert_eq!(cast.fill(&request(placeholder)), Some(request(id)));
        assert_eq!(cast.fill(&request(id)), Some(request(id)));
        assert!(cast.key(&id).is_some() && cast.key(&cast.id(9)).is_none());
        assert_eq!(cast.generation(&cast.id(0)), Some(1));
    }
}

//! Gestalts: which nodes are linked with which by verified claims.
//!
//! A link is known from the chain of one of its two nodes, or of both; from each chain the newest claim counts, and of the two
//! the one with the newer id. A key that a node has renewed is another node to everybody who only knows the key, so a renewal
//! is a link as well, proven by the certificates of the node.
//!
//! Everything here is a function of rows: rows to write, rows that were read. A row is never read before it is written: the
//! claims of one chain come in the order of their ids.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::claim::ClaimLinkNode;
use super::id::ClaimId;
use crate::id::NodeId;
use crate::io::{StoreOp, StoreRange, StoreRow, Table};
use crate::store::{SnapshotError, decode, encode};

/// What links two nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum GestaltProof {
    /// They are two keys of one node.
    Renewal,
    /// A claim of the chain of one of them: the newest that is known.
    Claim {
        /// Whose chain.
        owner: NodeId,
        /// The claim.
        id: ClaimId,
    },
}

/// A node that another one is linked with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct GestaltLink {
    /// One node.
    pub node: NodeId,
    /// The other one.
    pub other: NodeId,
    /// What links them.
    pub proof: GestaltProof,
}

/// The nodes that are linked with one, over any number of links.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Gestalt {
    /// The nodes, in the order of how many links they are away from the first one, which is the one asked for.
    pub nodes: Vec<NodeId>,
    /// The links between them; each one once, from the node that comes first.
    pub links: Vec<GestaltLink>,
    /// Whether there is more, beyond a limit.
    pub more: bool,
}

/// The rows that say that a verified claim of the chain of `owner` links two nodes. They replace those of an older claim of
/// the same chain; they belong into the transaction of the claim.
pub(crate) fn link_rows(owner: &NodeId, link: &ClaimLinkNode, id: ClaimId) -> [StoreOp; 2] {
    rows(&link.issuer, &link.subject, owner, GestaltProof::Claim { owner: *owner, id })
}

/// The rows that say that two ids are one node, by its certificates.
pub(crate) fn renewal_rows(new: &NodeId, old: &NodeId) -> [StoreOp; 2] {
    rows(new, old, new, GestaltProof::Renewal)
}

fn rows(a: &NodeId, b: &NodeId, by: &NodeId, proof: GestaltProof) -> [StoreOp; 2] {
    [(a, b), (b, a)].map(|(from, to)| {
        let key = [&from.as_bytes()[..], to.as_bytes(), by.as_bytes()].concat();
        StoreOp::Put { table: Table::Gestalt, key: key.into(), value: encode(&proof) }
    })
}

/// The row that says up to which claim the links of a chain are in the table. `root` is the oldest id of its owner, which no
/// renewal changes.
pub(crate) fn seen_row(root: &NodeId, id: ClaimId) -> StoreOp {
    StoreOp::Put { table: Table::Gestalt, key: Bytes::copy_from_slice(root.as_bytes()), value: encode(&id) }
}

/// Where that row is.
pub(crate) fn seen_range(root: &NodeId) -> StoreRange {
    let from = Bytes::copy_from_slice(root.as_bytes());
    // The next key there can be.
    let to = Some([root.as_bytes(), &[0][..]].concat().into());
    StoreRange { table: Table::Gestalt, from, to, descending: false }
}

/// Reads that row; `None` if there is none.
pub(crate) fn read_seen(rows: &[StoreRow]) -> Result<Option<ClaimId>, SnapshotError> {
    rows.first().map(|(_, value)| decode(Table::Gestalt, value)).transpose()
}

/// Walks from a node along its links, one read after the other.
///
/// Ask for [`next`](Self::next) and hand in what was read with [`loaded`](Self::loaded) until there is nothing to read.
#[derive(Debug)]
pub(crate) struct GestaltWalk {
    found: Gestalt,
    /// Nodes whose links are not read yet, and from which key on.
    ahead: VecDeque<(NodeId, Bytes)>,
    /// Only the first node's links are of interest.
    direct: bool,
    node_limit: usize,
    link_limit: usize,
    /// The links of the node that is being read, by the other node.
    reading: BTreeMap<NodeId, GestaltProof>,
}

impl GestaltWalk {
    /// From a node along all links, or only along its own if `direct`; up to this many nodes and links.
    pub(crate) fn new(node: NodeId, direct: bool, node_limit: usize, link_limit: usize) -> Self {
        Self {
            found: Gestalt { nodes: alloc::vec![node], ..Gestalt::default() },
            ahead: VecDeque::from([(node, Self::first_key(&node))]),
            direct,
            node_limit,
            link_limit,
            reading: BTreeMap::new(),
        }
    }

    /// What to read next; `None` at the end.
    pub(crate) fn next(&self) -> Option<StoreRange> {
        let (node, from) = self.ahead.front()?;
        // No key of the node is above this one, which has more bytes than any.
        let to = Some([&node.as_bytes()[..], &[0xff; 65]].concat().into());
        Some(StoreRange { table: Table::Gestalt, from: from.clone(), to, descending: false })
    }

    /// Takes what was read, and whether the range holds more.
    ///
    /// # Errors
    /// A row that cannot be read.
    pub(crate) fn loaded(&mut self, rows: &[StoreRow], more: bool) -> Result<(), SnapshotError> {
        let Some((node, from)) = self.ahead.front_mut() else { return Ok(()) };
        let node = *node;
        for (key, value) in rows {
            let other = key.get(NodeId::LEN..2 * NodeId::LEN).and_then(|other| <[u8; 32]>::try_from(other).ok());
            let other = NodeId::from_bytes(other.ok_or(SnapshotError::Corrupt(Table::Gestalt))?);
            let proof = decode(Table::Gestalt, value)?;
            let known = self.reading.entry(other).or_insert(proof);
            if newer(&proof, known) {
                *known = proof;
            }
        }
        let full = self.reading.len() + self.found.links.len() > self.link_limit;
        if let (true, false, Some((last, _))) = (more, full, rows.last()) {
            *from = [last, &[0][..]].concat().into();
            return Ok(());
        }
        self.found.more |= more;
        self.ahead.pop_front();
        for (other, proof) in core::mem::take(&mut self.reading) {
            self.link(GestaltLink { node, other, proof });
        }
        Ok(())
    }

    /// What was found; nothing is left of the walk.
    pub(crate) fn finish(&mut self) -> Gestalt {
        core::mem::take(&mut self.found)
    }

    fn link(&mut self, link: GestaltLink) {
        let place = |node: &NodeId| self.found.nodes.iter().position(|found| found == node);
        match (place(&link.node), place(&link.other)) {
            // Told already, from the other side.
            (Some(from), Some(to)) if !self.direct && to < from && !self.is_ahead(&link.other) => return,
            (_, Some(_)) => {}
            (_, None) if self.found.nodes.len() < self.node_limit => {
                self.found.nodes.push(link.other);
                if !self.direct {
                    self.ahead.push_back((link.other, Self::first_key(&link.other)));
                }
            }
            (_, None) => {
                self.found.more = true;
                return;
            }
        }
        if self.found.links.len() < self.link_limit {
            self.found.links.push(link);
        } else {
            self.found.more = true;
        }
    }

    /// Whether a node's own links are still to be read.
    fn is_ahead(&self, node: &NodeId) -> bool {
        self.ahead.iter().any(|(ahead, _)| ahead == node)
    }

    /// Behind the row that says up to which claim a chain was seen.
    fn first_key(node: &NodeId) -> Bytes {
        [node.as_bytes(), &[0][..]].concat().into()
    }
}

/// Which of two proofs is told: a renewal is for good; of claims the newer id counts.
fn newer(proof: &GestaltProof, known: &GestaltProof) -> bool {
    match (proof, known) {
        (GestaltProof::Renewal, GestaltProof::Claim { .. }) => true,
        (GestaltProof::Claim { id, .. }, GestaltProof::Claim { id: known, .. }) => id > known,
        (_, GestaltProof::Renewal) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::UnixMillis;

    fn node(byte: u8) -> NodeId {
        NodeId::from_bytes([byte; 32])
    }

    fn claim(owner: u8, unix: u64) -> ClaimId {
        ClaimId::next(&node(owner), UnixMillis(unix), None).unwrap()
    }

    fn linked(owner: u8, a: u8, b: u8, unix: u64) -> [StoreOp; 2] {
        link_rows(&node(owner), &ClaimLinkNode { issuer: node(a), subject: node(b) }, claim(owner, unix))
    }

    /// A store of rows that answers in pages of at most `page` rows.
    struct Rows(BTreeMap<Bytes, Bytes>, usize);

    impl Rows {
        fn new(page: usize, ops: impl IntoIterator<Item = StoreOp>) -> Self {
            let mut rows = BTreeMap::new();
            for op in ops {
                let StoreOp::Put { table: Table::Gestalt, key, value } = op else { panic!("{op:?}") };
                rows.insert(key, value);
            }
            Self(rows, page)
        }

        fn load(&self, range: &StoreRange) -> (Vec<StoreRow>, bool) {
            let rows = self.0.range(range.from.clone()..range.to.clone().unwrap());
            let mut rows: Vec<StoreRow> = rows.map(|(key, value)| (key.clone(), value.clone())).collect();
            let more = rows.len() > self.1;
            rows.truncate(self.1);
            (rows, more)
        }

        fn walk(&self, mut walk: GestaltWalk) -> Gestalt {
            while let Some(range) = walk.next() {
                let (rows, more) = self.load(&range);
                walk.loaded(&rows, more).unwrap();
            }
            walk.finish()
        }

        fn gestalt(&self, of: u8) -> Gestalt {
            self.walk(GestaltWalk::new(node(of), false, 100, 100))
        }
    }

    fn link(from: u8, other: u8, owner: u8, unix: u64) -> GestaltLink {
        let proof = GestaltProof::Claim { owner: node(owner), id: claim(owner, unix) };
        GestaltLink { node: node(from), other: node(other), proof }
    }

    #[test]
    fn the_newest_claim_of_a_chain_replaces_the_one_before_and_of_two_chains_the_newer_counts() {
        let ops = [linked(1, 1, 2, 1000), linked(2, 1, 2, 3000), linked(1, 2, 1, 2000)];
        let rows = Rows::new(1, ops.into_iter().flatten());
        assert_eq!(rows.0.len(), 4);
        assert_eq!(rows.gestalt(1).links, [link(1, 2, 2, 3000)]);
        assert_eq!(rows.gestalt(2).links, [link(2, 1, 2, 3000)]);
    }

    #[test]
    fn a_gestalt_is_everything_within_reach_with_each_link_once() {
        // A ring of four with a tail, and a pair elsewhere.
        let pairs = [(1, 2), (2, 3), (3, 4), (4, 1), (4, 5), (8, 9)];
        for page in [1, 2, 100] {
            let rows = Rows::new(page, pairs.iter().flat_map(|(a, b)| linked(*a, *a, *b, 1000)));
            let gestalt = rows.gestalt(1);
            assert_eq!(gestalt.nodes, [1, 2, 4, 3, 5].map(node));
            assert_eq!(
                gestalt.links,
                [
                    link(1, 2, 1, 1000),
                    link(1, 4, 4, 1000),
                    link(2, 3, 2, 1000),
                    link(4, 3, 3, 1000),
                    link(4, 5, 4, 1000)
                ]
            );
            assert!(!gestalt.more);
            assert_eq!(rows.gestalt(9).nodes, [9, 8].map(node));
            assert_eq!(rows.gestalt(7), Gestalt { nodes: [node(7)].into(), ..Gestalt::default() });
            let direct = rows.walk(GestaltWalk::new(node(4), true, 100, 100));
            assert_eq!(direct.nodes, [4, 1, 3, 5].map(node));
            assert_eq!(direct.links.len(), 3);
        }
    }

    #[test]
    fn limits_hold_and_are_told() {
        let rows = Rows::new(3, (2..=50).flat_map(|other| linked(1, 1, other, 1000)));
        for (nodes, links) in [(10, 100), (100, 10), (10, 10), (1, 100)] {
            let gestalt = rows.walk(GestaltWalk::new(node(1), false, nodes, links));
            assert!(gestalt.more);
            assert!(gestalt.nodes.len() <= nodes && gestalt.links.len() <= links, "{gestalt:?}");
        }
        let gestalt = rows.walk(GestaltWalk::new(node(1), false, 50, 49));
        assert_eq!((gestalt.nodes.len(), gestalt.links.len(), gestalt.more), (50, 49, false));
    }

    #[test]
    fn a_renewal_keeps_the_links_of_both_keys_in_one_gestalt() {
        let mut ops: Vec<StoreOp> = linked(1, 1, 2, 1000).into();
        ops.extend(renewal_rows(&node(11), &node(1)));
        ops.extend(linked(11, 3, 11, 2000));
        ops.push(seen_row(&node(1), claim(1, 1000)));
        let rows = Rows::new(1, ops);
        for of in [1, 2, 3, 11] {
            let mut nodes = rows.gestalt(of).nodes;
            nodes.sort();
            assert_eq!(nodes, [1, 2, 3, 11].map(node), "{of}");
        }
        let renewal = GestaltLink { node: node(11), other: node(1), proof: GestaltProof::Renewal };
        assert!(rows.gestalt(11).links.contains(&renewal));
    }

    #[test]
    fn how_far_a_chain_was_seen_is_read_back() {
        let rows = Rows::new(9, [seen_row(&node(1), claim(1, 5000))].into_iter().chain(linked(1, 1, 2, 1000)));
        let seen = |of| read_seen(&rows.load(&seen_range(&node(of))).0);
        assert_eq!(seen(1), Ok(Some(claim(1, 5000))));
        assert_eq!(seen(2), Ok(None));
    }

    #[test]
    fn a_damaged_row_is_an_error_and_no_panic() {
        let key = [&[1; 32][..], &[2; 32], &[1; 32]].concat();
        for (key, value) in
            [(key.clone(), &[][..]), (key.clone(), &[1, 9]), (key, &[2, 0]), ([1; 33].to_vec(), &[1, 0])]
        {
            let mut walk = GestaltWalk::new(node(1), false, 9, 9);
            assert!(walk.loaded(&[(key.into(), Bytes::copy_from_slice(value))], false).is_err());
        }
    }
}

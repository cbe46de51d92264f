//! Gestalts: nodes that are linked by verified claims.
//!
//! A link is known from the chain of one of its two nodes, or of both; from each chain the newest
//! claim counts, and of the two the one with the newer id. A renewed key is another node to nodes
//! that only know the key, so that a renewal is a link as well, proved by the certificates of the
//! node.
//!
//! Everything here is a function of rows: rows to write, and rows that were read. A row is never
//! read before it is written, because the claims of one chain arrive in the order of their ids.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::claim::ClaimLinkNode;
use super::id::ClaimId;
use crate::store::row::{SnapshotError, decode, encode};
use crate::store::table::{StoreOp, StoreRange, StoreRow, Table};
use crate::types::id::NodeId;

/// Proof of a link between two nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum GestaltProof {
    /// They are two keys of one node.
    Renewal,
    /// A claim of the chain of one of them: the newest known one.
    Claim {
        /// Owner of the chain.
        owner: NodeId,
        /// Id of the claim.
        id: ClaimId,
    },
}

/// A link between two nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct GestaltLink {
    /// First node.
    pub node: NodeId,
    /// Second node.
    pub other: NodeId,
    /// Proof of the link.
    pub proof: GestaltProof,
}

/// The nodes that are linked with a node, over any number of links.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Gestalt {
    /// Nodes in the order of their number of links from the first one, which is the requested one.
    pub nodes: Vec<NodeId>,
    /// Links between them; each once, from the node that comes first.
    pub links: Vec<GestaltLink>,
    /// Whether a limit was reached and there is more.
    pub more: bool,
}

/// Returns the rows of a link by a verified claim of the chain of `owner`. They replace those of an
/// older claim of the same chain, and belong in the transaction of the claim.
pub(crate) fn link_rows(owner: &NodeId, link: &ClaimLinkNode, id: ClaimId) -> [StoreOp; 2] {
    rows(&link.issuer, &link.subject, owner, GestaltProof::Claim { owner: *owner, id })
}

/// Returns the rows of a link between two ids of one node, proved by its certificates.
pub(crate) fn renewal_rows(new: &NodeId, old: &NodeId) -> [StoreOp; 2] {
    rows(new, old, new, GestaltProof::Renewal)
}

fn rows(a: &NodeId, b: &NodeId, by: &NodeId, proof: GestaltProof) -> [StoreOp; 2] {
    [(a, b), (b, a)].map(|(from, to)| {
        let key = [&from.as_bytes()[..], to.as_bytes(), by.as_bytes()].concat();
        StoreOp::Put { table: Table::Gestalt, key: key.into(), value: encode(&proof) }
    })
}

/// Returns the row with the last claim of a chain whose links are in the table. `root` is the
/// oldest id of its owner, which no renewal changes.
pub(crate) fn seen_row(root: &NodeId, id: ClaimId) -> StoreOp {
    StoreOp::Put {
        table: Table::Gestalt,
        key: Bytes::copy_from_slice(root.as_bytes()),
        value: encode(&id),
    }
}

/// Returns the range of that row.
pub(crate) fn seen_range(root: &NodeId) -> StoreRange {
    let from = Bytes::copy_from_slice(root.as_bytes());
    // The next possible key.
    let to = Some([root.as_bytes(), &[0][..]].concat().into());
    StoreRange { table: Table::Gestalt, from, to, descending: false }
}

/// Parses that row; `None` if there is none.
pub(crate) fn read_seen(rows: &[StoreRow]) -> Result<Option<ClaimId>, SnapshotError> {
    rows.first().map(|(_, value)| decode(Table::Gestalt, value)).transpose()
}

/// Traverses the links from a node, one read at a time.
///
/// Call [`next`](Self::next), read the range and pass the rows to [`loaded`](Self::loaded), until
/// there is nothing to read.
#[derive(Debug)]
pub(crate) struct GestaltWalk {
    found: Gestalt,
    /// Nodes whose links are not read yet, with the key to start from.
    ahead: VecDeque<(NodeId, Bytes)>,
    /// Whether only the links of the first node are read.
    direct: bool,
    node_limit: usize,
    link_limit: usize,
    /// Links of the node that is being read, by the other node.
    reading: BTreeMap<NodeId, GestaltProof>,
}

impl GestaltWalk {
    /// Starts from a node along all links, or only along its own if `direct`; up to these numbers
    /// of nodes and links.
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

    /// Returns the next range to read; `None` at the end.
    pub(crate) fn next(&self) -> Option<StoreRange> {
        let (node, from) = self.ahead.front()?;
        // No key of the node is above this one, which is longer than any.
        let to = Some([&node.as_bytes()[..], &[0xff; 65]].concat().into());
        Some(StoreRange { table: Table::Gestalt, from: from.clone(), to, descending: false })
    }

    /// Takes rows that were read, and whether the range contains more.
    ///
    /// # Errors
    /// A row cannot be parsed.
    pub(crate) fn loaded(&mut self, rows: &[StoreRow], more: bool) -> Result<(), SnapshotError> {
        let Some((node, from)) = self.ahead.front_mut() else { return Ok(()) };
        let node = *node;
        for (key, value) in rows {
            let other = key
                .get(NodeId::LEN..2 * NodeId::LEN)
                .and_then(|other| <[u8; 32]>::try_from(other).ok());
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

    /// Returns the result; the walk is empty afterwards.
    pub(crate) fn finish(&mut self) -> Gestalt {
        core::mem::take(&mut self.found)
    }

    fn link(&mut self, link: GestaltLink) {
        let place = |node: &NodeId| self.found.nodes.iter().position(|found| found == node);
        match (place(&link.node), place(&link.other)) {
            // Already returned from the other side.
            (Some(from), Some(to)) if !self.direct && to < from && !self.is_ahead(&link.other) => {
                return;
            }
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

    /// Returns whether the links of a node are still to be read.
    fn is_ahead(&self, node: &NodeId) -> bool {
        self.ahead.iter().any(|(ahead, _)| ahead == node)
    }

    /// After the row with the last claim of a chain.
    fn first_key(node: &NodeId) -> Bytes {
        [node.as_bytes(), &[0][..]].concat().into()
    }
}

/// Returns which of two proofs is used: a renewal is permanent; of claims the newer id counts.
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
    use crate::types::time::UnixMillis;

    fn node(byte: u8) -> NodeId {
        NodeId::from_bytes([byte; 32])
    }

    fn claim(owner: u8, unix: u64) -> ClaimId {
        ClaimId::next(&node(owner), UnixMillis(unix), None).unwrap()
    }

    fn linked(owner: u8, a: u8, b: u8, unix: u64) -> [StoreOp; 2] {
        link_rows(
            &node(owner),
            &ClaimLinkNode { issuer: node(a), subject: node(b) },
            claim(owner, unix),
        )
    }

    /// A store of rows that answers in pages of at most `page` rows.
    struct Rows(BTreeMap<Bytes, Bytes>, usize);

    impl Rows {
        fn new(page: usize, ops: impl IntoIterator<Item = StoreOp>) -> Self {
            let mut rows = BTreeMap::new();
            for op in ops {
                let StoreOp::Put { table: Table::Gestalt, key, value } = op else {
                    panic!("{op:?}")
                };
                rows.insert(key, value);
            }
            Self(rows, page)
        }

        fn load(&self, range: &StoreRange) -> (Vec<StoreRow>, bool) {
            let rows = self.0.range(range.from.clone()..range.to.clone().unwrap());
            let mut rows: Vec<StoreRow> =
                rows.map(|(key, value)| (key.clone(), value.clone())).collect();
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
    fn newest_claim_of_a_chain_and_newer_claim_of_two_chains_are_the_link() {
        let ops = [linked(1, 1, 2, 1000), linked(2, 1, 2, 3000), linked(1, 2, 1, 2000)];
        let rows = Rows::new(1, ops.into_iter().flatten());
        assert_eq!(rows.0.len(), 4);
        assert_eq!(rows.gestalt(1).links, [link(1, 2, 2, 3000)]);
        assert_eq!(rows.gestalt(2).links, [link(2, 1, 2, 3000)]);
    }

    #[test]
    fn gestalt_has_all_reachable_nodes_and_each_link_once() {
        // A ring of four with a tail, and a separate pair.
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
    fn limits_apply_and_are_reported() {
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
    fn renewal_keeps_the_links_of_both_keys_in_one_gestalt() {
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
    fn last_seen_claim_of_a_chain_is_read_back() {
        let rows = Rows::new(
            9,
            [seen_row(&node(1), claim(1, 5000))].into_iter().chain(linked(1, 1, 2, 1000)),
        );
        let seen = |of| read_seen(&rows.load(&seen_range(&node(of))).0);
        assert_eq!(seen(1), Ok(Some(claim(1, 5000))));
        assert_eq!(seen(2), Ok(None));
    }

    #[test]
    fn damaged_row_is_an_error_and_no_panic() {
        let key = [&[1; 32][..], &[2; 32], &[1; 32]].concat();
        for (key, value) in [
            (key.clone(), &[][..]),
            (key.clone(), &[1, 9]),
            (key, &[2, 0]),
            ([1; 33].to_vec(), &[1, 0]),
        ] {
            let mut walk = GestaltWalk::new(node(1), false, 9, 9);
            assert!(walk.loaded(&[(key.into(), Bytes::copy_from_slice(value))], false).is_err());
        }
    }
}

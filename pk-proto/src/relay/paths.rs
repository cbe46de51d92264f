//! Relayed paths that this node is an end of.
//!
//! A path is a stream of a connection with a relay, the *carrier*, and has an address that exists
//! only between the core and the transport. A connection that is dialed to that address, or arrives
//! from it, is relayed.

use alloc::collections::BTreeMap;
use core::net::SocketAddr;

use super::circuits::Seen;
use crate::shares::{Full, Limits, Shares, Source};
use crate::types::address::NodeAddress;
use crate::types::id::{ConnectionId, NodeId, StreamId};
use crate::types::sockets::relayed_address;

/// All paths of this node.
#[derive(Debug, Default)]
pub(crate) struct Paths {
    paths: BTreeMap<StreamId, Path>,
    by_addr: BTreeMap<SocketAddr, StreamId>,
    by_conn: BTreeMap<ConnectionId, StreamId>,
    /// Paths that relays have opened, by relay.
    shares: Shares,
    next: u64,
}

/// One path.
#[derive(Debug, Clone)]
pub(crate) struct Path {
    /// Node at the other end.
    pub(crate) peer: NodeId,
    /// Connection with the relay.
    pub(crate) carrier: ConnectionId,
    /// Address of the peer, as named by the relay.
    pub(crate) named: Option<NodeAddress>,
    /// Whether the relay sees both ends at one IP address.
    pub(crate) same_network: bool,
    /// Whether addresses of the peer in the local network were taken.
    near: bool,
    /// Address of the path.
    pub(crate) addr: SocketAddr,
    /// Connection that uses the path.
    pub(crate) conn: Option<ConnectionId>,
    /// Whether the transport was asked to end it.
    closing: bool,
    /// Relay that has offered it, if this node has not requested it.
    offered_by: Option<Source>,
}

impl Paths {
    /// Takes room for a path that a relay offers: one relay may offer a quarter of `limit`.
    ///
    /// # Errors
    /// The limit that is reached. Nothing is counted.
    pub(crate) fn admit(&mut self, relay: &Source, limit: usize) -> Result<(), Full> {
        if self.paths.len() >= limit {
            return Err(Full::Table);
        }
        self.shares.take(relay, &Limits::new(limit, 100).per_node(limit.div_ceil(4)))
    }

    /// Adds a path through a relay, and returns its address. `offered_by`: for which
    /// [`admit`](Self::admit) has taken room.
    pub(crate) fn add(
        &mut self,
        stream: StreamId,
        carrier: ConnectionId,
        peer: NodeId,
        seen: Seen,
        offered_by: Option<Source>,
    ) -> SocketAddr {
        self.next = self.next.wrapping_add(1);
        let addr = relayed_address(carrier.0, self.next);
        self.by_addr.insert(addr, stream);
        let Seen { address: named, same_network } = seen;
        let path = Path {
            peer,
            carrier,
            named,
            same_network,
            near: false,
            addr,
            conn: None,
            closing: false,
            offered_by,
        };
        self.paths.insert(stream, path);
        addr
    }

    /// Removes a path whose stream has ended.
    pub(crate) fn remove(&mut self, stream: StreamId) -> Option<Path> {
        let path = self.paths.remove(&stream)?;
        self.by_addr.remove(&path.addr);
        if let Some(conn) = path.conn {
            self.by_conn.remove(&conn);
        }
        if let Some(relay) = &path.offered_by {
            self.shares.give_back(relay);
        }
        Some(path)
    }

    pub(crate) fn get(&self, stream: StreamId) -> Option<&Path> {
        self.paths.get(&stream)
    }

    /// Returns the path with an address.
    pub(crate) fn at(&self, addr: &SocketAddr) -> Option<(StreamId, &Path)> {
        let stream = *self.by_addr.get(addr)?;
        Some((stream, self.paths.get(&stream)?))
    }

    /// Returns the path that a connection uses, or has used until it became direct.
    pub(crate) fn of(&self, conn: ConnectionId) -> Option<(StreamId, &Path)> {
        let stream = *self.by_conn.get(&conn)?;
        Some((stream, self.paths.get(&stream)?))
    }

    /// A connection uses a path.
    pub(crate) fn used(&mut self, stream: StreamId, conn: ConnectionId) {
        if let Some(path) = self.paths.get_mut(&stream) {
            path.conn = Some(conn);
            self.by_conn.insert(conn, stream);
        }
    }

    /// Addresses in the local network are taken from the peer of a connection, once for its path.
    /// Returns the connection with the relay.
    pub(crate) fn take_candidates(&mut self, conn: ConnectionId) -> Option<ConnectionId> {
        let path = self.paths.get_mut(self.by_conn.get(&conn)?)?;
        (!core::mem::replace(&mut path.near, true)).then_some(path.carrier)
    }

    /// Marks a path that the transport is asked to end. Returns `false` if it was asked before.
    pub(crate) fn close(&mut self, stream: StreamId) -> bool {
        let path = self.paths.get_mut(&stream);
        path.is_some_and(|path| !core::mem::replace(&mut path.closing, true))
    }

    /// Returns the number of paths.
    pub(crate) fn len(&self) -> usize {
        self.paths.len()
    }

    /// Forgets all paths, because the node has stopped.
    pub(crate) fn clear(&mut self) {
        self.paths.clear();
        self.by_addr.clear();
        self.by_conn.clear();
        self.shares = Shares::default();
    }
}

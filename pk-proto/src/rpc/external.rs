//! External addresses: where routers pass packets on to a node (docs/DESIGN.md, Port mapping). A
//! node sends its own to each peer that has accepted the connection, on the control stream.

use alloc::boxed::Box;
use core::net::SocketAddr;

use super::event::RpcEvent;
use super::table::{Greeting, Rpc};
use crate::machine::cx::Cx;
use crate::types::address::NodeAddress;
use crate::types::id::ConnectionId;
use crate::types::sockets::undialable;
use crate::wire::codec;
use crate::wire::native::hello::Hello;

/// External addresses that are taken from one connection. An honest node sends one, and another one
/// when that changes.
const EXTERNALS: u8 = 8;

impl Rpc {
    /// The external address of the local node has changed.
    pub(crate) fn set_external(&mut self, cx: &mut Cx, addr: Option<SocketAddr>) {
        let address = addr.filter(|addr| undialable(addr).is_none()).map(NodeAddress::from_socket);
        if self.external == address {
            return;
        }
        self.external = address;
        let accepted = |(conn, connection): (&ConnectionId, &super::table::PerConnection)| {
            (connection.greeting == Greeting::Complete).then_some(*conn)
        };
        let accepted: alloc::vec::Vec<_> = self.connections.iter().filter_map(accepted).collect();
        for conn in accepted {
            self.name_external(cx, conn);
        }
    }

    /// Sends the external address of the local node, or that there is none, if the peer understands
    /// it.
    pub(super) fn name_external(&mut self, cx: &mut Cx, conn: ConnectionId) {
        let Some(connection) = self.connections.get(&conn) else { return };
        let (features, control) = (connection.features, connection.control);
        if features & Hello::EXTERNAL != 0
            && let Some(control) = control
            && let Some(bytes) = codec::external(self.external.clone())
        {
            self.send(cx, control, bytes, false);
        }
    }

    /// The peer has sent its external address, or that it has none any longer. An address beyond
    /// the limit only withdraws the one before.
    pub(super) fn external_named(
        &mut self,
        cx: &mut Cx,
        conn: ConnectionId,
        address: Option<NodeAddress>,
    ) {
        let Some(connection) = self.connections.get_mut(&conn) else { return };
        connection.externals = connection.externals.saturating_add(u8::from(address.is_some()));
        let taken = address.filter(|_| {
            let is_taken = connection.externals <= EXTERNALS;
            cx.metrics.externals_refused += u64::from(!is_taken);
            is_taken
        });
        let former = core::mem::replace(&mut connection.external, taken.map(Box::new));
        let former = former.map(|former| *former);
        self.events.push_back(RpcEvent::External { conn, former });
    }

    /// Returns the external address that the peer of a connection has sent.
    pub(crate) fn external_of(&self, conn: ConnectionId) -> Option<&NodeAddress> {
        self.connections.get(&conn)?.external.as_deref()
    }
}

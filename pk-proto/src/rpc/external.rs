//! External addresses: where routers pass packets on to a node (docs/DESIGN.md, Port mapping). A
//! node sends its own to each peer that has accepted the connection, on the control stream.

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

    /// Sends the external address of the local node, if there is one and the peer understands it.
    pub(super) fn name_external(&mut self, cx: &mut Cx, conn: ConnectionId) {
        let Some(connection) = self.connections.get(&conn) else { return };
        let (features, control) = (connection.features, connection.control);
        if features & Hello::EXTERNAL != 0
            && let Some(control) = control
            && let Some(bytes) = self.external.clone().and_then(codec::external)
        {
            self.send(cx, control, bytes, false);
        }
    }

    /// The peer has sent its external address.
    pub(super) fn external_named(&mut self, cx: &mut Cx, conn: ConnectionId, address: NodeAddress) {
        let Some(connection) = self.connections.get_mut(&conn) else { return };
        connection.externals = connection.externals.saturating_add(1);
        if connection.externals > EXTERNALS {
            cx.metrics.externals_refused += 1;
        } else {
            self.events.push_back(RpcEvent::External { conn, address });
        }
    }
}

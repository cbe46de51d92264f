//! In place of the local network, where this program was built without it: it has nothing to say.

use std::net::SocketAddr;

use pk_proto::{EffectId, Input, Instant, NodeId};

use crate::cx::Cx;
use crate::tasks::Tasks;

pub(crate) struct Mdns;

impl Mdns {
    pub(crate) fn new(_: SocketAddr) -> Self {
        Self
    }

    pub(crate) fn advertise(&mut self, cx: &mut Cx, _: NodeId, _: Option<u16>) {
        cx.metrics.advertisements_ignored += 1;
    }

    pub(crate) fn browse(&mut self, cx: &mut Cx, id: EffectId, _: NodeId, _: Instant) {
        cx.input(Input::Discovered { id, addrs: Vec::new(), done: true });
    }

    pub(crate) fn end_browse(&mut self, _: &mut Cx, _: EffectId) {}

    pub(crate) fn resume(&mut self, _: &mut Cx) {}

    pub(crate) fn poll(&mut self, _: &mut Cx) {}

    pub(crate) fn close(&mut self, _: &Tasks) {}
}

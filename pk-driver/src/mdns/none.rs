//! Replaces mDNS in programs that are built without it. It does nothing.

use std::net::SocketAddr;

use pk_proto::{EffectId, Instant, NodeId};
use pk_quic::Response;

use crate::config::MdnsConfig;
use crate::cx::Cx;
use crate::error::StartError;
use crate::system::tasks::Tasks;

/// Succeeds: no interface is used.
pub(crate) fn check(_: &MdnsConfig) -> Result<(), StartError> {
    Ok(())
}

pub(crate) struct Mdns;

impl Mdns {
    pub(crate) fn new(_: SocketAddr, _: Tasks) -> Self {
        Self
    }

    pub(crate) fn rebound(&mut self, _: &mut Cx, _: SocketAddr) {}

    pub(crate) fn advertise(&mut self, cx: &mut Cx, _: NodeId, _: Option<u16>) {
        cx.metrics.advertisements_ignored += 1;
    }

    pub(crate) fn browse(&mut self, cx: &mut Cx, id: EffectId, _: NodeId, _: Instant) {
        cx.answer(Response::Discovered { id, addrs: Vec::new(), done: true });
    }

    pub(crate) fn end_browse(&mut self, _: &mut Cx, _: EffectId) {}

    pub(crate) fn resume(&mut self, _: &mut Cx) {}

    pub(crate) fn poll(&mut self, _: &mut Cx) {}

    pub(crate) fn poll_group(&mut self, _: &mut Cx) {}

    pub(crate) fn addresses_changed(&mut self, _: &mut Cx) {}

    pub(crate) fn close(&mut self, _: &mut Cx, _: &Tasks) {}
}

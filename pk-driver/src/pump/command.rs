//! Commands for a pump, and its published status.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pk_proto::NodeId;

use crate::cx::Cx;
use crate::metrics::DriverMetrics;
use crate::port_mapping::lease::PortMapping;
use crate::pump::handle_registry::HandleRegistry;

/// A call of the embedder. It runs on the pump's task and must not block.
pub(crate) type Command = Box<dyn FnOnce(&mut HandleRegistry, &mut Cx) + Send>;

/// Status that can be read without a call into the pump.
#[derive(Debug)]
pub(crate) struct SharedStatus(Mutex<NodeStatus>);

#[derive(Debug, Clone)]
pub(crate) struct NodeStatus {
    pub(crate) own_id: NodeId,
    pub(crate) addrs: Vec<SocketAddr>,
    pub(crate) metrics: DriverMetrics,
    pub(crate) port_mapping: Option<PortMapping>,
}

impl SharedStatus {
    pub(crate) fn new(own_id: NodeId, addr: SocketAddr) -> Arc<Self> {
        Arc::new(Self(Mutex::new(NodeStatus {
            own_id,
            addrs: vec![addr],
            metrics: DriverMetrics::default(),
            port_mapping: None,
        })))
    }

    pub(crate) fn read(&self) -> MutexGuard<'_, NodeStatus> {
        // Only assignments happen under this lock, so that a poisoned one is consistent.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Checks the certificate. The pump calls it, and calls it again after the returned time.
pub(crate) type CertificateCheck = Box<dyn FnMut() -> Duration + Send>;

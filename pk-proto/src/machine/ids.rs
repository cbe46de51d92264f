//! The ids that the core assigns.

use crate::types::id::{ApprovalId, ConnectionId, LeaseId, RequestId, StreamId};

/// Assigns the ids of the core.
#[derive(Debug, Default)]
pub(crate) struct Ids {
    connections: u64,
    streams: u64,
    requests: u64,
    leases: u64,
    approvals: u64,
}

impl Ids {
    pub(crate) fn connection(&mut self) -> ConnectionId {
        ConnectionId(step(&mut self.connections, 2))
    }

    pub(crate) fn stream(&mut self) -> StreamId {
        StreamId(step(&mut self.streams, 2))
    }

    pub(crate) fn request(&mut self) -> RequestId {
        RequestId(step(&mut self.requests, 1))
    }

    pub(crate) fn lease(&mut self) -> LeaseId {
        LeaseId(step(&mut self.leases, 1))
    }

    pub(crate) fn approval(&mut self) -> ApprovalId {
        ApprovalId(step(&mut self.approvals, 1))
    }
}

/// Returns the next id. 2^63 steps are never reached; saturation documents that it cannot wrap.
fn step(counter: &mut u64, by: u64) -> u64 {
    let id = *counter;
    *counter = counter.saturating_add(by);
    id
}

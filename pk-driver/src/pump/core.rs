//! The interface of the core that the pump uses, so that tests can replace the core by a scripted
//! one.

use pk_proto::{Input, Instant, LeaseId, NodeId, NodeManager, Output, RequestId};

/// The methods of [`NodeManager`] that the pump itself calls. Commands of the embedder call the
/// others.
pub(crate) trait Core: Send + Unpin + 'static {
    fn handle_input(&mut self, input: Input, now: Instant);
    fn handle_timeout(&mut self, now: Instant);
    fn poll_output(&mut self) -> Option<Output>;
    fn poll_timeout(&self) -> Option<Instant>;
    fn cancel(&mut self, id: RequestId, now: Instant);
    fn release(&mut self, lease: LeaseId, now: Instant);
    fn refuse_protocol(&mut self, protocol: &str, now: Instant);
    fn stop(&mut self, now: Instant);
    fn own_id(&self) -> NodeId;
    fn take_recording(&mut self) -> Option<Vec<u8>>;
}

impl Core for NodeManager {
    fn handle_input(&mut self, input: Input, now: Instant) {
        self.handle_input(input, now);
    }

    fn handle_timeout(&mut self, now: Instant) {
        self.handle_timeout(now);
    }

    fn poll_output(&mut self) -> Option<Output> {
        self.poll_output()
    }

    fn poll_timeout(&self) -> Option<Instant> {
        self.poll_timeout()
    }

    fn cancel(&mut self, id: RequestId, now: Instant) {
        self.cancel(id, now);
    }

    fn release(&mut self, lease: LeaseId, now: Instant) {
        self.release(lease, now);
    }

    fn refuse_protocol(&mut self, protocol: &str, now: Instant) {
        self.refuse_protocol(protocol, now);
    }

    fn stop(&mut self, now: Instant) {
        self.stop(now);
    }

    fn own_id(&self) -> NodeId {
        self.own_id()
    }

    fn take_recording(&mut self) -> Option<Vec<u8>> {
        self.take_recording()
    }
}

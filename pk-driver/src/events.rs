//! What a node tells everybody who listens.

use pk_proto::Event;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

/// The events of a node, from when this was made. Each listener gets all of them, unless it falls behind.
#[derive(Debug)]
pub struct Events(Option<broadcast::Receiver<Event>>);

/// What [`Events::next`] gives.
#[allow(
    clippy::large_enum_variant,
    reason = "nearly all of them are events, one at a time; a box for each would cost more"
)]
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// Something happened.
    Event(Event),
    /// This listener has fallen behind, and this many events are lost to it; the next is the oldest that is kept.
    Lagged(u64),
}

impl Events {
    pub(crate) fn new(events: Option<broadcast::Receiver<Event>>) -> Self {
        Self(events)
    }

    /// The next event; `None` once the node has shut down and all are told. Dropping the future loses none.
    pub async fn next(&mut self) -> Option<Notice> {
        match self.0.as_mut()?.recv().await {
            Ok(event) => Some(Notice::Event(event)),
            Err(RecvError::Lagged(lost)) => Some(Notice::Lagged(lost)),
            Err(RecvError::Closed) => None,
        }
    }
}

//! Events of a node, for any number of listeners.

use pk_proto::Event;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

/// The events of a node from the creation of this listener on. Each listener receives all events,
/// unless it falls behind.
#[derive(Debug)]
pub struct Events(Option<broadcast::Receiver<Event>>);

/// Result of [`Events::next`].
#[allow(
    clippy::large_enum_variant,
    reason = "almost all values are events, one at a time; a box for each would cost more"
)]
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EventOrLag {
    /// An event of the core.
    Event(Event),
    /// Number of events lost because this listener fell behind. The next event is the oldest stored
    /// one.
    Lagged(u64),
}

impl Events {
    pub(crate) fn new(events: Option<broadcast::Receiver<Event>>) -> Self {
        Self(events)
    }

    /// Returns the next event, or `None` after the node has shut down and all events were returned.
    /// Cancel safe: dropping the future loses no event.
    pub async fn next(&mut self) -> Option<EventOrLag> {
        match self.0.as_mut()?.recv().await {
            Ok(event) => Some(EventOrLag::Event(event)),
            Err(RecvError::Lagged(lost)) => Some(EventOrLag::Lagged(lost)),
            Err(RecvError::Closed) => None,
        }
    }
}

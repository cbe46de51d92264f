//! Events of a node, for any number of listeners.

use pk_proto::Event;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

use crate::port_mapping::lease::PortMappingEvent;
use crate::pump::event::NodeEvent;

/// The events of a node from the creation of this listener on. Each listener receives all events,
/// unless it falls behind.
#[derive(Debug)]
pub struct Events(Option<broadcast::Receiver<NodeEvent>>);

/// Result of [`Events::next`].
#[allow(
    clippy::large_enum_variant,
    reason = "almost all values are events, one at a time; a box for each would cost more"
)]
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EventOrLag {
    /// An event of the core.
    Event(Event),
    /// The router has mapped the port of the node, or not
    /// ([`PortMappingConfig`](crate::PortMappingConfig)).
    PortMapping(PortMappingEvent),
    /// Number of events lost because this listener fell behind. The next event is the oldest stored
    /// one.
    Lagged(u64),
}

impl Events {
    pub(crate) fn new(events: Option<broadcast::Receiver<NodeEvent>>) -> Self {
        Self(events)
    }

    /// Returns the next event, or `None` after the node has shut down and all events were returned.
    /// Cancel safe: dropping the future loses no event.
    pub async fn next(&mut self) -> Option<EventOrLag> {
        match self.0.as_mut()?.recv().await {
            Ok(NodeEvent::Core(event)) => Some(EventOrLag::Event(event)),
            Ok(NodeEvent::PortMapping(event)) => Some(EventOrLag::PortMapping(event)),
            Err(RecvError::Lagged(lost)) => Some(EventOrLag::Lagged(lost)),
            Err(RecvError::Closed) => None,
        }
    }
}

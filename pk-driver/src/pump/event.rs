//! What a node reports to its listeners.

use pk_proto::Event;

use crate::port_mapping::lease::PortMappingEvent;

/// An event of a node.
#[allow(clippy::large_enum_variant, reason = "almost all values are events of the core")]
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NodeEvent {
    /// Of the core.
    Core(Event),
    /// Of the port mapping.
    PortMapping(PortMappingEvent),
}

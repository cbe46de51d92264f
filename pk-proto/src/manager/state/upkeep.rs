//! State of the upkeep of the node graph.

use crate::upkeep::far::Far;

/// The state machines of the upkeep.
#[derive(Debug, Default)]
pub(in crate::manager) struct Upkeep {
    pub(in crate::manager) far: Far,
}

/// Purpose of a dial to a contact in the background.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::manager) enum Errand {
    /// A connection to the farther half of all ids.
    Far,
    /// The contact was not connected for long, and another node would take its place.
    Newcomer,
}

//! State of the upkeep of the node graph.

use crate::upkeep::failing::Failing;
use crate::upkeep::far::Far;
use crate::upkeep::lost::Lost;
use crate::upkeep::pace::Pace;
use crate::upkeep::presence::Presence;
use crate::upkeep::reach::Reaches;

/// The state machines of the upkeep.
#[derive(Debug, Default)]
pub(in crate::manager) struct Upkeep {
    pub(in crate::manager) far: Far,
    pub(in crate::manager) failing: Failing,
    pub(in crate::manager) lost: Lost,
    pub(in crate::manager) presence: Presence,
    pub(in crate::manager) pace: Pace,
    pub(in crate::manager) reaches: Reaches,
    /// Dials of searches that have ended, which continue.
    pub(in crate::manager) watched: usize,
    /// Whether a near contact is dialed for a connection that stays open.
    pub(in crate::manager) dials_near: bool,
    /// Whether a contact is dialed as a second witness.
    pub(in crate::manager) calls_witness: bool,
}

/// Purpose of a dial to a contact in the background.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::manager) enum Errand {
    /// A connection to the farther half of all ids.
    Far,
    /// A connection to a near contact, because this node is behind a NAT.
    Near,
    /// The contact was not connected for long, and another node would take its place.
    Newcomer,
    /// The contact was not seen for the longest time.
    Check,
    /// The contact has failed before.
    Recheck,
    /// A search that has ended dialed it, and it was silent until then.
    Watch,
    /// The contact has left the graph because it did not respond.
    Lost,
    /// A node whose response proves that the failures of another one count.
    Witness,
}

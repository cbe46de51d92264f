//! Context of a call into any component, with its timers and the phase.

pub(crate) mod cx;
pub(crate) mod dial;
pub(crate) mod effects;
pub(crate) mod experience;
pub(crate) mod ids;
pub(crate) mod phase;
pub(crate) mod record;
pub(crate) mod timer;
pub(crate) mod timers;

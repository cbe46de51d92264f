//! Decisions of the upkeep of the node graph (docs/DESIGN.md, Upkeep of the graph). Each file is a
//! small state machine that dials nothing; `manager/upkeep/` executes what they decide.

pub(crate) mod failing;
pub(crate) mod far;
pub(crate) mod lost;
pub(crate) mod pace;
pub(crate) mod presence;
pub(crate) mod reach;

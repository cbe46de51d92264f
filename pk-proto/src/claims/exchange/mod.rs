//! Cross-signing (docs/WIRE.md section 7): two nodes, the initiator X and the responder Y, each
//! append a claim that links them to their own chain, signed by both.
//!
//! ```text
//! X [`Initiator`]                                          Y [`Responder`]
//!   drafts and signs Cx ──────── Cx[X] ───────────────────▶  may X? signs Cx; drafts and signs Cy;
//!                                                            writes down that it has agreed
//!   ◀─────────────────────────── Cx[X,Y], then Cy[Y] ──────
//!   signs Cy; writes Cx, its link, and that Y may not have its own: the point of no return
//!      ───────────────────────── Cy[Y,X] ─────────────────▶  writes Cy, its link, and with what Cx was answered
//!   ◀─────────────────────────── the end ──────────────────
//!   all is done
//! ```
//!
//! Both sides are enums whose steps own exactly what is known by then; a transition consumes the
//! step. Nothing here has side effects: a transition returns what is to be signed, sent or written.
//!
//! **A crash at any moment neither loses nor duplicates a claim.** The id of Cx identifies the
//! exchange. X resumes with the stored Cx when Y is next connected. Y answers the same Cx with the
//! same signature and the same Cy, as long as that can still be appended; if its chain has changed,
//! Cy was never appended and never will be, and is replaced. The reference does not store what it
//! has answered, so that on its dialect X first searches Y's chain for the claim that it has
//! signed.

mod initiator;
pub(crate) mod parties;
mod responder;

pub(crate) use self::initiator::{Initiator, Next};
pub use self::parties::{ClaimStep, ExchangeFault};
pub(crate) use self::responder::{Responder, Theirs, content};

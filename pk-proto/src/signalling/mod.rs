//! Hole-punch signalling: what is signed, and the limits that prevent abuse (docs/WIRE.md section
//! 8; docs/DESIGN.md, Signalling).
//!
//! A source asks a relay that is connected to both. The relay returns the target's address and
//! informs the target, which punches towards the source. On `pk/1` each request has an expiry and a
//! nonce, which every signature covers, so that no request works twice; Polykey 1.x has neither
//! ([`SignalTerms`]). `manager/signalling.rs` implements the three roles.

pub(crate) mod freshness;
pub(crate) mod guard;
pub(crate) mod punches;

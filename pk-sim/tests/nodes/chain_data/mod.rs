//! Chains of others, read over the network and verified (docs/DESIGN.md, Claims), in virtual time.

mod gaps;
mod honest;
mod hostile;
mod kit;

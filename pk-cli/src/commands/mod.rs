//! The commands that do one thing and end.

pub(crate) mod allow;
pub(crate) mod buckets;
pub(crate) mod cert;
pub(crate) mod chain;
pub(crate) mod claim;
pub(crate) mod closest;
pub(crate) mod find;
pub(crate) mod keys;
mod one_shot;
pub(crate) mod renew;
pub(crate) mod replay;
pub(crate) mod sim;

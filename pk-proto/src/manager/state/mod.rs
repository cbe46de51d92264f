//! The state of requests, exchanges and transactions: data, and functions that use no other part of
//! the node. The files of `manager/` use it.

pub(super) mod allow_list;
pub(super) mod bucket_gc;
pub(super) mod chain;
pub(super) mod claims;
pub(super) mod forks;
pub(super) mod incoming;
pub(super) mod incoming_table;
pub(super) mod known_nodes;
pub(super) mod network_claim;
pub(super) mod outgoing;
pub(super) mod reading;
pub(super) mod renewal;
pub(super) mod repeats;
pub(super) mod request_table;
pub(super) mod self_issued;
pub(super) mod signalling;
pub(super) mod stage;
pub(super) mod sync;
pub(super) mod upkeep;
pub(super) mod writes;

//! Whether a candidate can be contacted, and at what cost.

/// Cost of contacting a candidate, the least first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Cost {
    /// A call on a live connection.
    Connected,
    /// A connected node is connected to it and can signal.
    Signalled,
    /// A dial of stored or reported addresses.
    Dialed,
}

/// Whether a candidate can be contacted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    Now(Cost),
    /// The limit of dials in progress is reached.
    Later,
    /// The limit of attempts is reached.
    Limited,
    /// There is no connection, no address and no relay.
    Nowhere,
}

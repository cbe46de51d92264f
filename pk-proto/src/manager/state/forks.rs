//! The search for forks in the local chain.

use crate::claims::Claim;

/// Progress of the check.
#[derive(Debug, Default)]
pub(in crate::manager) struct ForkWatch {
    /// Oldest claim that was checked.
    pub(in crate::manager) newer: Option<Claim>,
    pub(in crate::manager) count: usize,
}

impl ForkWatch {
    /// Checks the next older claim. Returns this claim and the newer one if both have the same
    /// predecessor or the same number.
    pub(in crate::manager) fn look(&mut self, older: Claim) -> Option<(Claim, Claim)> {
        self.count += 1;
        let newer = self.newer.replace(older.clone())?;
        let forked = newer.prev_claim_id() == older.prev_claim_id() || newer.seq() == older.seq();
        forked.then_some((older, newer))
    }
}

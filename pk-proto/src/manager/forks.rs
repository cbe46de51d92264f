//! Checks once after the start whether the local chain is forked. An earlier version could append
//! two claims to one claim when a write failed.
//!
//! It reads the newest [`LIMIT`] claims, a page at a time, and checks only that each claim follows
//! the one before it. Signatures are not verified.

use core::ops::Bound;

use super::node::NodeManager;
use super::state::forks::ForkWatch;
use super::store_reads::own_claim;
use crate::api::event::Event;
use crate::claims::ClaimId;
use crate::claims::rows::claims_range;
use crate::machine::effects::LoadOwner;
use crate::store::row::SnapshotError;
use crate::store::table::StoreRow;

/// Maximum number of claims that are checked.
const LIMIT: usize = 4096;
/// Maximum size of a page in bytes; a page has at least one claim.
const PAGE: u64 = 64 * 1024;

impl NodeManager {
    /// Starts the check, if the local chain is not empty.
    pub(super) fn watch_forks(&mut self) {
        if self.claims.has_chain() {
            self.read_older(None);
        }
    }

    fn read_older(&mut self, than: Option<ClaimId>) {
        let to = than.map_or(Bound::Unbounded, Bound::Excluded);
        self.load(LoadOwner::Forks, claims_range(Bound::Unbounded, to, true), PAGE);
    }

    /// Checks a page of claims, newest first, and reads the next page. Emits `ChainForked` and
    /// stops at the first fork.
    pub(super) fn forks_read(
        &mut self,
        rows: &[StoreRow],
        more: bool,
    ) -> Result<(), SnapshotError> {
        for (key, value) in rows {
            if let Some((one, other)) = self.forks.look(own_claim(key, value)?) {
                let event = Event::ChainForked { seq: other.seq(), claims: [one.id(), other.id()] };
                self.cx.event(event);
                self.forks = ForkWatch::default();
                return Ok(());
            }
        }
        match &self.forks.newer {
            Some(oldest) if more && self.forks.count < LIMIT => self.read_older(Some(oldest.id())),
            _ => self.forks = ForkWatch::default(),
        }
        Ok(())
    }
}

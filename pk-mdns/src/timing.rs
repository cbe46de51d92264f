//! Times of RFC 6762, and the random parts of them.

use std::time::Duration;

use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};

/// Time between two probes, and from the last one to the announcement (RFC 6762 section 8.1).
pub(crate) const PROBE_GAP: Duration = Duration::from_millis(250);
/// Number of probes.
pub(crate) const PROBES: u8 = 3;
/// Number of announcements (RFC 6762 section 8.3).
pub(crate) const ANNOUNCEMENTS: u8 = 2;
/// Time between announcements, and the minimum time between two multicasts of a record (RFC 6762
/// section 6).
pub(crate) const SECOND: Duration = Duration::from_secs(1);
/// Longest delay before an instance in conflict is probed again.
pub(crate) const MAX_CONFLICT_DELAY: Duration = Duration::from_secs(60);
/// Time in which a former port is not taken for a conflict, because its datagrams may still arrive.
pub(crate) const FORMER: Duration = Duration::from_secs(10);
/// Longest delay between two queries of a browse (RFC 6762 section 5.2).
pub(crate) const MAX_QUERY_GAP: Duration = Duration::from_secs(3600);
/// Lifetime of records with host names, and of others, in seconds (RFC 6762 section 10).
pub(crate) const HOST_TTL: u32 = 120;
pub(crate) const OTHER_TTL: u32 = 4500;
/// Maximum lifetime of a record for a resolver that is no multicast one (RFC 6762 section 6.7), in
/// seconds.
pub(crate) const LEGACY_TTL: u32 = 10;
/// Maximum lifetime that is believed, in seconds.
pub(crate) const MAX_TTL: u32 = 24 * 3600;

/// Random delays.
#[derive(Debug)]
pub(crate) struct Delays(ChaCha8Rng);

impl Delays {
    pub(crate) fn new(seed: [u8; 32]) -> Self {
        Self(ChaCha8Rng::from_seed(seed))
    }

    fn between(&mut self, least: u64, most: u64) -> Duration {
        let span = most.saturating_sub(least) + 1;
        Duration::from_millis(least + u64::from(self.0.next_u32()) % span)
    }

    /// Before a first query (RFC 6762 section 5.2) and before a response that others may give as
    /// well (RFC 6762 section 6).
    pub(crate) fn shared(&mut self) -> Duration {
        self.between(20, 120)
    }

    /// Before a response to a query whose known answers continue (RFC 6762 section 7.2).
    pub(crate) fn truncated(&mut self) -> Duration {
        self.between(400, 500)
    }

    /// Before the first probe (RFC 6762 section 8.1).
    pub(crate) fn probe(&mut self) -> Duration {
        self.between(0, 250)
    }
}

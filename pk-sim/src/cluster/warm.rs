//! Warm starts: nodes whose tables are filled from the true network, without joins.

use std::time::Duration;

use pk_proto::{NodeId, Snapshot, UnixMillis};

use super::{Cluster, Kind};
use crate::host::EPOCH;
use crate::host::id::HostId;
use crate::machine::directory::{Directory, contact};
use crate::rng_streams::RngStream;

/// How tables are filled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Warm {
    /// Contacts of each bucket, if the network has as many. Default 20, range 1–255.
    pub bucket: usize,
    /// Time since the contacts were connected. Default 60 s, any value.
    pub age: Duration,
    /// Whether the contacts are also in the store of the node, which a restart and the checker of
    /// stores need. Default `true`; `false` saves about 60 kB for each node.
    pub stored: bool,
}

impl Default for Warm {
    fn default() -> Self {
        Self { bucket: 20, age: Duration::from_secs(60), stored: true }
    }
}

impl Cluster {
    /// Starts nodes that are not running, each with a table that is filled from all hosts of
    /// `hosts`: all nodes of a bucket, or random ones if it has more than `warm.bucket`. Peers that
    /// misbehave are started, too, and are in the tables. Hosts behind NATs are in no table.
    pub fn start_warm(&mut self, hosts: &[HostId], warm: Warm) {
        let directory = self.warm_directory(hosts);
        for host in hosts {
            self.start_warm_one(*host, &directory, warm);
        }
    }

    /// Returns the hosts that [`start_warm`](Self::start_warm) writes into tables.
    pub fn warm_directory(&self, hosts: &[HostId]) -> Directory {
        let public = hosts.iter().filter(|host| !self.network().is_behind_nat(**host));
        Directory::new(public.map(|host| (self.nodes[*host].id, self.host(*host).addrs()[0])))
    }

    /// Starts one host with a table that is filled from a directory.
    pub fn start_warm_one(&mut self, host: HostId, directory: &Directory, warm: Warm) {
        if !matches!(self.nodes[host].kind, Kind::Node(_)) {
            self.start_from(host, None);
            return;
        }
        let own = self.nodes[host].id;
        let connected = UnixMillis(
            self.unix(host).0.saturating_sub(u64::try_from(warm.age.as_millis()).unwrap_or(EPOCH)),
        );
        let mut die = RngStream::new(self.seed ^ ((host as u64) << 24), 11);
        let contacts = table(directory, &own, warm.bucket, &mut die)
            .into_iter()
            .map(|(id, addr)| (id, contact(addr, connected)))
            .collect();
        let snapshot = Snapshot { contacts, ..Snapshot::default() };
        if warm.stored {
            self.host_mut(host).store.seed(snapshot.graph_rows(own));
            self.start_from(host, None);
        } else {
            self.start_from(host, Some(snapshot));
        }
    }
}

/// Returns the contacts of a node that knows the true network.
fn table(
    directory: &Directory,
    own: &NodeId,
    limit: usize,
    die: &mut RngStream,
) -> Vec<(NodeId, std::net::SocketAddr)> {
    let mut table = Vec::new();
    let mut left = directory.len();
    for depth in 0..256 {
        let bucket = directory.beside(own, depth);
        left -= bucket.len();
        if bucket.len() <= limit {
            table.extend_from_slice(bucket);
        } else {
            // Evenly spread from a random start: distinct, and each as probable as any other.
            let from = die.below(bucket.len() as u64) as usize;
            let at = |place: usize| (from + place * bucket.len() / limit) % bucket.len();
            table.extend((0..limit).map(|place| bucket[at(place)]));
        }
        if left <= 1 {
            break;
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::identity::Key;
    use std::collections::{BTreeMap, BTreeSet};

    #[test]
    fn table_has_full_buckets_and_all_near_nodes() {
        let addr = "20.0.0.1:1".parse().unwrap();
        let ids: Vec<_> = (0..300).map(|index| Key::numbered(8, index).id()).collect();
        let directory = Directory::new(ids.iter().map(|id| (*id, addr)));
        let mut die = RngStream::new(1, 1);
        for own in &ids[..5] {
            let table = table(&directory, own, 20, &mut die);
            let known: BTreeSet<_> = table.iter().map(|(id, _)| *id).collect();
            assert_eq!(known.len(), table.len(), "distinct");
            let mut buckets = BTreeMap::<_, (usize, usize)>::new();
            for id in ids.iter().filter(|id| *id != own) {
                let bucket = buckets.entry(own.bucket_index(id)).or_default();
                bucket.0 += 1;
                bucket.1 += usize::from(known.contains(id));
            }
            assert!(!known.contains(own));
            for (bucket, (all, in_table)) in buckets {
                assert_eq!(in_table, all.min(20), "{bucket:?}");
            }
        }
    }
}

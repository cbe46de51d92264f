//! Random faults: claims in all directions, between nodes of both dialects, with kills, failing
//! disks, renewals and partitions. In the end every claim has its counterpart.

use pk_proto::{Dialect, Reply};
use pk_sim::{Cluster, HostId, Link};

use super::kit::*;
use crate::common::{SECOND, ms};

const NODES: usize = 4;

/// Pseudorandom numbers, equal for every run of a seed.
struct TestRng(u64);

impl TestRng {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit as u64) as usize
    }
}

fn world(seed: u64) -> Cluster {
    let link = Link::ms(30).jitter(ms(20)).loss(30);
    let mut cluster = nodes(NODES, |_| {}).seed(seed).link(link).build();
    for node in 0..NODES {
        let host = cluster.host_mut(node);
        host.sign_delay = Some(ms(1));
        host.store.delay = ms(2);
        host.dialects = match node % 3 {
            0 => vec![Dialect::Native, Dialect::Polykey],
            1 => vec![Dialect::Polykey],
            _ => vec![Dialect::Polykey, Dialect::Native],
        };
        cluster.start_node(node);
    }
    cluster.drive(SECOND);
    connect_all(&mut cluster);
    cluster
}

/// Every node connects with every other node.
fn connect_all(cluster: &mut Cluster) {
    for from in 0..NODES {
        for to in from + 1..NODES {
            assert!(
                matches!(cluster.connect(from, to), Ok(Reply::Connect(_))),
                "{from} and {to} cannot meet"
            );
        }
    }
    cluster.drive(SECOND);
}

fn random_action(cluster: &mut Cluster, rng: &mut TestRng, renewals: &mut u32) {
    let node: HostId = rng.below(NODES);
    match rng.below(20) {
        0 if cluster.machine(node).is_some() => cluster.kill_after(node, rng.below(40) as u64 + 1),
        1 if cluster.machine(node).is_some() => cluster.kill(node),
        2 => cluster
            .partition(&[&[node], &[(node + 1) % NODES, (node + 2) % NODES, (node + 3) % NODES]]),
        3 | 4 => cluster.heal(),
        5 => cluster.host_mut(node).store.fail_per_mille = [0, 0, 200][rng.below(3)],
        6 if *renewals > 0 && cluster.machine(node).is_some() => {
            *renewals -= u32::from(cluster.begin_renewal(node).is_ok());
        }
        7 | 8 if cluster.machine(node).is_some() => {
            let request = own_claim(cluster, node);
            drop(cluster.try_request(node, request));
        }
        _ if cluster.machine(node).is_some() => {
            let request = claim(cluster, (node + 1 + rng.below(NODES - 1)) % NODES);
            drop(cluster.try_request(node, request));
        }
        _ => {
            cluster.start_node(node);
        }
    }
    cluster.drive(ms(rng.below(400) as u64));
}

#[test]
fn every_claim_has_its_counterpart_after_random_faults() {
    let (mut claims, mut doubts, mut stale) = (0, 0, 0);
    for seed in 1..=8 {
        let (mut cluster, mut rng, mut renewals) = (world(seed), TestRng(0x9e37_79b9 + seed), 2);
        for _ in 0..120 {
            random_action(&mut cluster, &mut rng, &mut renewals);
        }
        // No more faults: all nodes run and connect.
        cluster.heal();
        for node in 0..NODES {
            cluster.host_mut(node).store.fail_per_mille = 0;
            if cluster.machine(node).is_none() {
                cluster.start_node(node);
            }
            // A scheduled kill that has not happened yet.
            cluster.kill_after(node, u64::MAX / 2);
        }
        cluster.drive(120 * SECOND);
        for _ in 0..3 {
            connect_all(&mut cluster);
            cluster.drive(60 * SECOND);
        }
        for node in 0..NODES {
            assert_settled(&cluster, node);
            claims += chain(&mut cluster, node).len();
            let doubt = |event: &pk_proto::Event| {
                matches!(event, pk_proto::Event::ClaimUnconfirmed { .. }).then_some(())
            };
            doubts += events(&cluster, node, doubt).len();
            stale += cluster.node(node).metrics().claims_stale;
        }
        for from in 0..NODES {
            for to in (0..NODES).filter(|to| *to != from) {
                let [mine, theirs] = [from, to].map(|owner| count(&mut cluster, owner, from, to));
                assert_eq!(
                    mine, theirs,
                    "seed {seed}: claims of {from} with {to}, in the chains of both"
                );
            }
        }
        cluster.stop_all();
    }
    assert!(
        claims > 200 && doubts > 5 && stale > 0,
        "{claims} claims, {doubts} doubts, {stale} overtaken"
    );
}

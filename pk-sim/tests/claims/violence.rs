//! Everything at once: claims in all directions, between nodes of both dialects, while processes
//! die, disks fail, keys change and the network falls apart. In the end no claim of one side is
//! without that of the other.

use pk_proto::{Dialect, Reply};
use pk_sim::{Cluster, HostId, Link};

use crate::common::{SECOND, ms};
use crate::kit::*;

const NODES: usize = 4;

/// Numbers that look like chance, the same for every run of a seed.
struct Dice(u64);

impl Dice {
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
    meet(&mut cluster);
    cluster
}

/// Every node connects with every other node.
fn meet(cluster: &mut Cluster) {
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

fn one_thing(cluster: &mut Cluster, dice: &mut Dice, renewals: &mut u32) {
    let node: HostId = dice.below(NODES);
    match dice.below(20) {
        0 if cluster.machine(node).is_some() => cluster.kill_after(node, dice.below(40) as u64 + 1),
        1 if cluster.machine(node).is_some() => cluster.kill(node),
        2 => cluster
            .partition(&[&[node], &[(node + 1) % NODES, (node + 2) % NODES, (node + 3) % NODES]]),
        3 | 4 => cluster.heal(),
        5 => cluster.host_mut(node).store.fail_per_mille = [0, 0, 200][dice.below(3)],
        6 if *renewals > 0 && cluster.machine(node).is_some() => {
            *renewals -= u32::from(cluster.begin_renewal(node).is_ok());
        }
        7 | 8 if cluster.machine(node).is_some() => {
            let request = own_claim(cluster, node);
            drop(cluster.try_request(node, request));
        }
        _ if cluster.machine(node).is_some() => {
            let request = claim(cluster, (node + 1 + dice.below(NODES - 1)) % NODES);
            drop(cluster.try_request(node, request));
        }
        _ => {
            cluster.start_node(node);
        }
    }
    cluster.drive(ms(dice.below(400) as u64));
}

#[test]
fn no_claim_of_one_side_is_without_that_of_the_other() {
    let (mut claims, mut doubts, mut stale) = (0, 0, 0);
    for seed in 1..=8 {
        let (mut cluster, mut dice, mut renewals) = (world(seed), Dice(0x9e37_79b9 + seed), 2);
        for _ in 0..120 {
            one_thing(&mut cluster, &mut dice, &mut renewals);
        }
        // Calm: no faults, all nodes run, all nodes connect.
        cluster.heal();
        for node in 0..NODES {
            cluster.host_mut(node).store.fail_per_mille = 0;
            if cluster.machine(node).is_none() {
                cluster.start_node(node);
            }
            // A death that was ordered and has not come.
            cluster.kill_after(node, u64::MAX / 2);
        }
        cluster.drive(120 * SECOND);
        for _ in 0..3 {
            meet(&mut cluster);
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

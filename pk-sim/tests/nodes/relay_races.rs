//! Which relays a dial race asks and when, and which dials it may start (docs/DESIGN.md, Relaying).

use pk_proto::{Config, FindOutcome, RelayPolicy, Request};
use pk_sim::{Cluster, HostId};

use crate::common::relays::{RELAY, SOURCE, TARGET, separate, start_around};
use crate::common::{NO, SECOND, absent, add_contact_at, address, find};

/// Two nodes that cannot reach each other, and relays that both are connected to: 0, 3, 4 and so
/// on. `change` may change the settings of each.
fn apart(seed: u64, relays: usize, change: impl Fn(HostId, &mut Config)) -> Cluster {
    let mut builder = Cluster::quiet().nodes(2 + relays).seed(seed);
    for node in 0..2 + relays {
        builder = builder.config_of(node, |config| change(node, config));
    }
    let mut cluster = builder.build();
    separate(&mut cluster);
    let relays: Vec<_> = (0..2 + relays).filter(|node| ![SOURCE, TARGET].contains(node)).collect();
    start_around(&mut cluster, &relays);
    cluster
}

fn search(cluster: &mut Cluster) -> FindOutcome {
    let target = cluster.id(TARGET);
    find(cluster, SOURCE, target)
}

/// One node is no contact of another any longer.
fn forget(cluster: &mut Cluster, node: HostId, other: HostId) {
    let other = cluster.id(other);
    assert!(cluster.call(node, |node, now| node.unset_node(other, now).unwrap()));
}

#[test]
fn dial_by_relay_has_a_place_while_silent_dials_occupy_the_others() {
    const LIMIT: usize = 16;
    let mut cluster = apart(1, 1, |_, config| config.dial_limit = LIMIT);
    let silent: Vec<_> = (0..30)
        .map(|number| Request::Connect {
            target: absent(number),
            address: address(&format!("203.0.113.{number}:1")),
            options: NO,
        })
        .collect();
    for request in silent {
        cluster.request(SOURCE, request);
    }
    cluster.drive(SECOND);
    let metrics = cluster.node(SOURCE).metrics();
    assert!(metrics.dials_delayed > 0 && metrics.connections_pending < LIMIT as u64, "{metrics:?}");
    let outcome = search(&mut cluster);
    assert!(outcome.found.is_some() && outcome.stats.elapsed < 4 * SECOND, "{outcome:?}");
    assert_eq!(cluster.node(SOURCE).metrics().connections_relayed, 1);
}

#[test]
fn nodes_are_asked_to_signal_after_three_dials_of_many() {
    let mut cluster = apart(2, 1, |_, _| {});
    let target = cluster.id(TARGET);
    for port in 40_001..40_005 {
        add_contact_at(&mut cluster, SOURCE, target, address(&format!("198.51.100.1:{port}")));
    }
    let outcome = search(&mut cluster);
    // Three dials take 750 ms, the attempt by relay follows a second after signalling.
    assert!(outcome.found.is_some() && outcome.stats.elapsed < 2 * SECOND, "{outcome:?}");
    assert!(cluster.node(SOURCE).metrics().dials > 4, "{outcome:?}");
}

#[test]
fn relay_serves_known_nodes_at_either_end_of_a_circuit() {
    let found = |unknown: &[HostId]| {
        let mut cluster = apart(3, 1, |_, config| config.relay.policy = RelayPolicy::Known);
        for node in unknown {
            forget(&mut cluster, RELAY, *node);
        }
        let found = search(&mut cluster).found.is_some();
        let refused = cluster.node(RELAY).metrics().circuits_refused;
        assert_eq!(refused, u64::from(!found), "unknown: {unknown:?}");
        found
    };
    assert!(found(&[]) && found(&[SOURCE]) && found(&[TARGET]));
    assert!(!found(&[SOURCE, TARGET]));
}

#[test]
fn race_asks_further_relays_if_many_refuse() {
    // Nodes 0, 3, …, 9; only the last one relays.
    let mut cluster = apart(4, 8, |node, config| {
        if node != 9 {
            config.relay.policy = RelayPolicy::Off;
        }
    });
    let outcome = search(&mut cluster);
    assert!(outcome.found.is_some() && outcome.stats.elapsed < 4 * SECOND, "{outcome:?}");
    assert_eq!(cluster.node(9).metrics().circuits, 1);
    let requested = cluster.node(SOURCE).metrics().circuits_requested;
    assert!((2..=8).contains(&requested), "each is asked once: {requested}");
}

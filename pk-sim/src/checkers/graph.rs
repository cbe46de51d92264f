//! Every node is in its own bucket, once; no limit is exceeded; searches are exact.

use std::collections::BTreeSet;

use pk_proto::{Config, NodeContact, NodeId};

use super::violation::Violation;
use crate::machine::GraphView;

/// Checks a graph and the result of a search in it; returns the number of checked nodes.
pub(super) fn check(
    view: &GraphView<'_>,
    probe: NodeId,
    config: &Config,
) -> Result<u64, Violation> {
    let mut seen: BTreeSet<NodeId> = BTreeSet::new();
    let mut last = None;
    for (index, nodes) in &view.buckets {
        if last.is_some_and(|last| *index <= last) {
            return Err(violation(format!("bucket {index} comes after bucket {last:?}")));
        }
        last = Some(*index);
        if nodes.len() > config.bucket_limit {
            return Err(violation(format!("bucket {index} has {} nodes", nodes.len())));
        }
        if !nodes.is_sorted_by_key(|(node, _)| *node) {
            return Err(violation(format!("bucket {index} is not in the order of ids")));
        }
        for (node, contact) in nodes {
            match view.own.bucket_index(node) {
                None => return Err(violation(format!("the own id {node} is in bucket {index}"))),
                Some(right) if right != *index => {
                    return Err(violation(format!(
                        "{node} belongs into bucket {right}, not {index}"
                    )));
                }
                Some(_) => {}
            }
            if !seen.insert(*node) {
                return Err(violation(format!("{node} is in bucket {index} twice")));
            }
            check_contact(node, contact, config)?;
        }
    }
    let mut nearest: Vec<NodeId> = seen.iter().copied().collect();
    nearest.sort_by_cached_key(|node| probe.distance(node));
    nearest.truncate(config.bucket_limit);
    if view.closest != nearest {
        return Err(violation(format!(
            "closest to {probe} are {nearest:?}, not {:?}",
            view.closest
        )));
    }
    Ok(seen.len() as u64)
}

fn check_contact(node: &NodeId, contact: &NodeContact, config: &Config) -> Result<(), Violation> {
    let addresses: BTreeSet<_> = contact.iter().map(|(address, _)| address).collect();
    if !(1..=config.address_limit).contains(&contact.len()) {
        return Err(violation(format!("{node} has {} addresses", contact.len())));
    }
    if addresses.len() != contact.len() {
        return Err(violation(format!("{node} has an address twice")));
    }
    let times: Vec<_> = contact.iter().map(|(_, data)| data.connected_time).collect();
    if !times.is_sorted_by(|newer, older| newer >= older) {
        return Err(violation(format!("the addresses of {node} are not sorted by time")));
    }
    Ok(())
}

fn violation(what: String) -> Violation {
    Violation::new("graph", what)
}

#[cfg(test)]
mod tests {
    use super::*;
    use pk_proto::{BucketIndex, ContactMode, NodeContactAddressData, Scopes, UnixMillis};

    const PROBE: NodeId = id(77);

    const fn id(last: u8) -> NodeId {
        let mut bytes = [0; 32];
        bytes[31] = last;
        NodeId::from_bytes(bytes)
    }

    fn contact(addresses: u16) -> NodeContact {
        let data = NodeContactAddressData {
            mode: ContactMode::Direct,
            connected_time: UnixMillis(1),
            scopes: Scopes::GLOBAL,
        };
        (1..=addresses).map(|port| (format!("10.0.0.1:{port}").parse().unwrap(), data)).collect()
    }

    fn config() -> Config {
        let mut config = Config::default();
        config.bucket_limit = 2;
        config.address_limit = 2;
        config
    }

    fn view(contact: &NodeContact) -> GraphView<'_> {
        GraphView {
            own: id(0),
            buckets: vec![
                (BucketIndex(0), vec![(id(1), contact)]),
                (BucketIndex(2), vec![(id(4), contact), (id(5), contact)]),
            ],
            closest: vec![id(5), id(4)],
        }
    }

    fn found(view: &GraphView<'_>) -> String {
        check(view, PROBE, &config()).unwrap_err().what
    }

    #[test]
    fn valid_graph_passes() {
        assert_eq!(check(&view(&contact(2)), PROBE, &config()), Ok(3));
    }

    #[test]
    fn planted_bugs_are_caught() {
        let (good, many, none) = (contact(2), contact(3), contact(0));
        let mut wrong = view(&good);
        wrong.buckets[0].0 = BucketIndex(1);
        assert!(found(&wrong).contains("belongs into bucket 0"));

        let mut wrong = view(&good);
        wrong.buckets[0].1[0].0 = id(0);
        assert!(found(&wrong).contains("the own id"));

        let mut wrong = view(&good);
        wrong.buckets[1].1[0].0 = id(5);
        assert!(found(&wrong).contains("twice"));

        let mut wrong = view(&good);
        wrong.buckets[1].1.push((id(6), &good));
        assert!(found(&wrong).contains("has 3 nodes"));

        let mut wrong = view(&good);
        wrong.buckets[1].1.reverse();
        assert!(found(&wrong).contains("not in the order of ids"));

        let mut wrong = view(&good);
        wrong.buckets.reverse();
        assert!(found(&wrong).contains("comes after"));

        let mut wrong = view(&good);
        wrong.closest.reverse();
        assert!(found(&wrong).contains("closest to"));

        for (bad, count) in [(&many, 3), (&none, 0)] {
            let mut wrong = view(&good);
            wrong.buckets[0].1[0].1 = bad;
            assert!(found(&wrong).contains(&format!("has {count} addresses")));
        }
    }
}

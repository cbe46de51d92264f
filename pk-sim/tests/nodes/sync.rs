//! Joining the network.

use std::collections::BTreeSet;
use std::time::Duration;

use pk_proto::{
    DialFailure, Event, Failure, FindEnd, NodeId, Reply, Request, RequestError, RequestOptions,
    SeedFailure, SeedNode, Synced,
};
use pk_sim::{Cluster, HostId, Link};

use crate::common::*;

fn sync(seeds: &[SeedNode], blocking: bool) -> Request {
    Request::SyncNodeGraph { seeds: seeds.to_vec(), blocking, options: NO }
}

fn synced(result: Result<Reply, Failure>) -> Synced {
    match result {
        Ok(Reply::SyncNodeGraph(synced)) => synced,
        other => panic!("{other:?}"),
    }
}

fn seed(node: NodeId, text: &str) -> SeedNode {
    SeedNode { node, address: address(text) }
}

/// A network of 8 that has joined through 0, and 8, which has not.
fn network() -> Cluster {
    let mut cluster = Cluster::quiet().nodes(9).seed(3).start();
    for node in 1..8 {
        let seeds = [cluster.seed_node(0)];
        synced(cluster.ask(node, sync(&seeds, true)));
    }
    cluster
}

fn known(cluster: &Cluster, node: HostId) -> BTreeSet<HostId> {
    cluster.node(node).graph().iter().map(|(id, _)| cluster.number(id).unwrap()).collect()
}

#[test]
fn one_live_seed_is_enough_to_find_all_nodes() {
    let mut cluster = network();
    let seeds = [cluster.seed_node(3)];
    let begun = cluster.now();
    let joined = synced(cluster.ask(8, sync(&seeds, true)));
    assert_eq!((joined.seeds, joined.failed), (vec![cluster.id(3)], vec![]));
    let search = joined.search.unwrap();
    assert_consistent(&search);
    assert_eq!((search.ended, search.found), (FindEnd::Exhausted, None));
    assert_eq!(known(&cluster, 8), (0..8).collect());
    assert!(cluster.now().since(begun) < SECOND);
    // And every node connects to it.
    for node in 0..8 {
        assert!(known(&cluster, node).contains(&8), "{node}");
    }
    assert_quiet(&mut cluster, 8, "joined");
    cluster.stop_all();
}

#[test]
fn dead_seed_among_three_does_not_delay_the_join() {
    let mut cluster = network();
    let seeds = [0, 1, 2].map(|node| cluster.seed_node(node));
    cluster.kill(1);
    let begun = cluster.now();
    let joined = synced(cluster.ask(8, sync(&seeds, true)));
    let reached: BTreeSet<_> = joined.seeds.iter().map(|id| cluster.number(*id).unwrap()).collect();
    assert_eq!(reached, BTreeSet::from([0, 2]));
    assert_eq!(known(&cluster, 8), (0..8).filter(|node| *node != 1).collect());
    // The search for the local id ends with the dials of the dead node, which it must contact.
    assert!(cluster.now().since(begun) <= 16 * SECOND);
    let failed: Vec<_> = joined.failed.iter().map(|(seed, _)| seed.node).collect();
    assert_eq!(failed, [cluster.id(1)]);
    cluster.stop_all();

    // In the background it ends with the first connected seed.
    let mut cluster = network();
    let seeds = [0, 1, 2].map(|node| cluster.seed_node(node));
    cluster.kill(1);
    cluster.network_mut().set_link(8, 2, Link::ms(5));
    let begun = cluster.now();
    let joined = synced(cluster.ask(8, sync(&seeds, false)));
    assert_eq!(cluster.now().since(begun), ms(20));
    assert_eq!((joined.seeds, joined.search), (vec![cluster.id(2)], None));
    let late: BTreeSet<_> = joined
        .failed
        .into_iter()
        .map(|(seed, why)| (cluster.number(seed.node).unwrap(), why))
        .collect::<Vec<_>>()
        .into_iter()
        .map(|(node, why)| {
            assert_eq!(why, SeedFailure::NotWaitedFor);
            node
        })
        .collect();
    assert_eq!(late, BTreeSet::from([0, 1]));
    // The search continues without a request.
    let metrics = cluster.node(8).metrics();
    assert_eq!(metrics.requests_open, 0);
    assert!(metrics.timers > metrics.connections + 1, "{metrics:?}");
    cluster.drive(20 * SECOND);
    assert_eq!(known(&cluster, 8), (0..8).filter(|node| *node != 1).collect());
    assert_eq!(count_events(&cluster, 8, |event| matches!(event, Event::Done { .. })), 1);
    assert_quiet(&mut cluster, 8, "in the background");
    cluster.stop_all();
}

#[test]
fn when_no_seed_answers_one_error_names_each_cause() {
    for blocking in [true, false] {
        let mut cluster = Cluster::quiet().nodes(4).scripted_peers(1).seed(3).build();
        for node in [0, 2, 3] {
            cluster.start_node(node);
        }
        cluster.drive(Duration::ZERO);
        cluster.host_mut(2).refuse = Some((17, "full".to_owned()));
        cluster.network_mut().set_unreachable("198.51.100.1".parse().unwrap());
        let [own, dead, full] = [0, 1, 2].map(|node| cluster.seed_node(node));
        let other = SeedNode { node: absent(1), address: cluster.address(3) };
        let nowhere = seed(absent(2), "198.51.100.1:1");
        let unknown = seed(absent(3), "missing.example.org:1314");
        let seeds = [own, dead, full, other, nowhere, unknown];
        let begun = cluster.now();
        let result = cluster.ask(0, sync(&seeds, blocking));
        assert_eq!(cluster.now().since(begun), 15 * SECOND, "the patience for the silent one");
        let failure = result.unwrap_err();
        let text = failure.to_string();
        let Failure::NoSeedReached(failed) = failure else { panic!("{failure:?}") };
        assert_eq!(failed.len(), seeds.len());
        for (i, seed) in seeds.iter().enumerate() {
            let (_, why) = failed.iter().find(|(failed, _)| failed == seed).unwrap();
            let expected: &dyn Fn(&DialFailure) -> bool = match i {
                0 => {
                    assert_eq!(*why, SeedFailure::OwnNode);
                    continue;
                }
                1 => &|why| *why == DialFailure::TimedOut,
                2 => &|why| matches!(why, DialFailure::Rejected { code: 17, .. }),
                3 => &|why| matches!(why, DialFailure::Certificate(_)),
                4 => &|why| matches!(why, DialFailure::Transport(_)),
                _ => &|why| matches!(why, DialFailure::Resolve(_)),
            };
            let SeedFailure::Dial(dials) = why else { panic!("{seed}: {why:?}") };
            assert_eq!(dials.len(), 1, "{seed}");
            assert!(dials[0].0 == seed.address && expected(&dials[0].1), "{seed}: {dials:?}");
        }
        assert!(text.starts_with("no seed node could be reached: "), "{text}");
        for seed in &seeds {
            assert!(text.contains(&seed.to_string()), "{text}");
        }
        for cause in ["it is this node", "timed out", "full", "network unreachable", "no such host"]
        {
            assert!(text.contains(cause), "{cause}: {text}");
        }
        assert_quiet(&mut cluster, 0, "no seed");
        cluster.stop_all();
    }
}

#[test]
fn unresolved_name_does_not_prevent_a_join_by_another() {
    let mut cluster = network();
    let named = named(&mut cluster, 4);
    cluster.host_mut(8).resolve_delay = SECOND;
    let id = cluster.id(4);
    // The same node by two names, of which one is wrong, and another by a name without addresses.
    cluster.network_mut().set_name("empty.example.org", Ok(vec![]));
    let seeds = [
        seed(id, "missing.example.org:1314"),
        SeedNode { node: id, address: named },
        seed(cluster.id(5), "empty.example.org:1314"),
    ];
    let begun = cluster.now();
    let joined = synced(cluster.ask(8, sync(&seeds, true)));
    assert_eq!(joined.seeds, [id]);
    let [(failed, SeedFailure::Dial(why))] = &joined.failed[..] else {
        panic!("{:?}", joined.failed)
    };
    assert_eq!((failed, why.len()), (&seeds[2], 1));
    assert!(
        matches!(&why[0].1, DialFailure::Resolve(why) if why == "the name has no address"),
        "{why:?}"
    );
    assert!(cluster.now().since(begun) < 2 * SECOND);
    assert_eq!(known(&cluster, 8), (0..8).collect());
    cluster.stop_all();
}

#[test]
fn all_addresses_of_a_name_are_tried() {
    let mut cluster = network();
    let real = match cluster.address(2).host {
        pk_proto::Host::Ip(ip) => ip,
        other => panic!("{other}"),
    };
    let dead = ["198.51.100.1", "198.51.100.2"].map(|text| text.parse().unwrap());
    cluster.network_mut().set_name("seeds.example.org", Ok(vec![dead[0], dead[1], real]));
    let seeds = [seed(cluster.id(2), "seeds.example.org:1314")];
    let begun = cluster.now();
    let joined = synced(cluster.ask(8, sync(&seeds, false)));
    assert_eq!(joined.seeds, [cluster.id(2)]);
    // 20 ms for the name, two delays for the dead, two round trips for the third.
    assert_eq!(cluster.now().since(begun), ms(20 + 2 * 250 + 40));
    assert_eq!(cluster.node(8).metrics().dials, 3);
    cluster.stop_all();
}

#[test]
fn several_addresses_of_one_seed_race_each_other() {
    let mut cluster = network();
    let id = cluster.id(2);
    let seeds = [seed(id, "198.51.100.1:1"), cluster.seed_node(2), seed(id, "198.51.100.2:1")];
    let begun = cluster.now();
    let joined = synced(cluster.ask(8, sync(&seeds, false)));
    assert_eq!((joined.seeds, joined.failed), (vec![id], vec![]));
    assert_eq!(cluster.now().since(begun), ms(250 + 40));
    cluster.stop_all();

    // All fail: each address is named with its own failure, once.
    let mut cluster = network();
    let id = cluster.id(2);
    cluster.network_mut().set_unreachable("198.51.100.1".parse().unwrap());
    let seeds = [seed(id, "198.51.100.1:1"), seed(id, "198.51.100.2:1")];
    let Err(Failure::NoSeedReached(failed)) = cluster.ask(8, sync(&seeds, true)) else {
        panic!("reached")
    };
    let unreachable = DialFailure::Transport("network unreachable".into());
    let expected = [(0, unreachable), (1, DialFailure::TimedOut)].map(|(i, why)| {
        (seeds[i].clone(), SeedFailure::Dial(vec![(seeds[i].address.clone(), why)]))
    });
    assert_eq!(failed, expected);
    cluster.stop_all();
}

#[test]
fn local_id_among_the_seeds_is_reported_and_ignored() {
    let mut cluster = network();
    let seeds = [cluster.seed_node(8), cluster.seed_node(0)];
    let joined = synced(cluster.ask(8, sync(&seeds, true)));
    assert_eq!(joined.seeds, [cluster.id(0)]);
    assert_eq!(joined.failed, [(seeds[0].clone(), SeedFailure::OwnNode)]);
    cluster.stop_all();
}

#[test]
fn connected_seed_is_not_dialed() {
    let mut cluster = network();
    connect(&mut cluster, 8, 0);
    let dials = cluster.node(8).metrics().dials;
    let seeds = [seed(cluster.id(0), "198.51.100.1:1")];
    let joined = synced(cluster.ask(8, sync(&seeds, false)));
    assert_eq!((joined.seeds, cluster.node(8).metrics().dials), (vec![cluster.id(0)], dials));
    cluster.drive(SECOND);
    assert_eq!(known(&cluster, 8), (0..8).collect());
    cluster.stop_all();
}

#[test]
fn join_without_seeds_starts_from_the_graph() {
    let mut cluster = network();
    assert_eq!(cluster.try_request(8, sync(&[], true)), Err(RequestError::NoSeeds));
    add_contact(&mut cluster, 8, 6);
    let joined = synced(cluster.ask(8, sync(&[], true)));
    assert_eq!((joined.seeds, joined.failed), (vec![], vec![]));
    assert_eq!(joined.search.unwrap().ended, FindEnd::Exhausted);
    assert_eq!(known(&cluster, 8), (0..8).collect());
    let joined = synced(cluster.ask(8, sync(&[], false)));
    assert_eq!((joined.seeds, joined.failed, joined.search), (vec![], vec![], None));
    cluster.drive(SECOND);
    assert_quiet(&mut cluster, 8, "no seeds");
    cluster.stop_all();
}

#[test]
fn cancelled_join_cancels_all_its_parts() {
    // During its dials, and during its search.
    for after in [0, 5, 100, 150] {
        let mut cluster = network();
        cluster.kill(5);
        let seeds =
            [cluster.seed_node(0), cluster.seed_node(5), seed(absent(1), "missing.example.org:1")];
        let id = cluster.request(8, sync(&seeds, true));
        cluster.drive(ms(after));
        assert_eq!(cluster.done(8, id), None, "5 is waited for");
        cluster.cancel(8, id);
        assert_eq!(cluster.done(8, id), Some(&Err(Failure::Cancelled)));
        assert_eq!(cluster.node(8).metrics().requests_open, 0);
        cluster.drive(ms(50));
        assert_quiet(&mut cluster, 8, &format!("after {after} ms"));
        cluster.stop_all();
    }
}

#[test]
fn deadline_ends_a_join_during_its_search() {
    let mut cluster = network();
    cluster.kill(5);
    let seeds = vec![cluster.seed_node(0)];
    let options = RequestOptions { deadline: Some(ms(150)), ..NO };
    let begun = cluster.now();
    let result = cluster.ask(8, Request::SyncNodeGraph { seeds, blocking: true, options });
    assert_eq!(cluster.now().since(begun), ms(150));
    // The found nodes are kept.
    let joined = synced(result);
    assert_eq!(
        (joined.seeds, joined.search.map(|search| search.ended)),
        (vec![cluster.id(0)], Some(FindEnd::Deadline))
    );
    assert_eq!(known(&cluster, 8), (0..8).filter(|node| *node != 5).collect());
    cluster.drive(ms(20));
    assert_quiet(&mut cluster, 8, "deadline");
    cluster.stop_all();
}

#[test]
fn two_joins_at_once_share_their_dials() {
    let mut cluster = network();
    let seeds = [cluster.seed_node(0)];
    let first = cluster.request(8, sync(&seeds, true));
    let second = cluster.request(8, sync(&seeds, true));
    for id in [first, second] {
        let joined = synced(cluster.await_done(8, id));
        assert_eq!(joined.seeds, [cluster.id(0)]);
        assert!(joined.search.is_some());
    }
    let metrics = cluster.node(8).metrics();
    assert_eq!((metrics.dials, metrics.connections), (8, 8), "each node once");
    cluster.stop_all();
}

#[test]
fn connect_timeout_of_a_join_applies_to_its_search() {
    let mut cluster = network();
    cluster.kill(5);
    let seeds = [cluster.seed_node(0)];
    let options = RequestOptions { deadline: None, connect_timeout: Some(ms(80)) };
    let begun = cluster.now();
    let request = Request::SyncNodeGraph { seeds: seeds.to_vec(), blocking: true, options };
    let joined = synced(cluster.ask(8, request));
    let search = joined.search.unwrap();
    assert_eq!((search.ended, search.stats.failures), (FindEnd::Exhausted, 1));
    let took = cluster.now().since(begun);
    assert!((ms(80)..SECOND).contains(&took), "{took:?}");
}

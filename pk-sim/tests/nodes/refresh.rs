//! Refreshes, retries and joins, in virtual time (docs/DESIGN.md, Node graph).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use pk_proto::native::{self, Message, V1};
use pk_proto::{
    BucketIndex, Config, ContactMode, Instant, NodeContactAddressData, NodeId, Output, Reply,
    Request, RequestError, RequestOptions, RpcRequest, Scopes, SetNodeOptions, UnixMillis,
};
use pk_sim::{Cluster, HostId};

use crate::common::*;

const HOUR: Duration = Duration::from_secs(3600);
const BUCKETS: std::ops::RangeInclusive<u8> = 0..=255;

/// The time until the next refresh of each bucket of a machine.
fn timers(bare: &Bare) -> BTreeMap<u8, Duration> {
    BUCKETS
        .filter_map(|index| {
            Some((index, bare.node.refresh_at(BucketIndex(index))?.since(bare.now)))
        })
        .collect()
}

/// An id in a bucket of a machine.
fn id_in(bare: &Bare, bucket: u8) -> NodeId {
    let mut bytes = *bare.node.own_id().as_bytes();
    bytes[31 - usize::from(bucket / 8)] ^= 1 << (bucket % 8);
    NodeId::from_bytes(bytes)
}

/// Adds a node to a bucket of a machine.
fn add_node_in(bare: &mut Bare, bucket: u8) {
    let data = NodeContactAddressData {
        mode: ContactMode::Direct,
        connected_time: UnixMillis(5),
        scopes: Scopes::GLOBAL,
    };
    let (node, address) = (id_in(bare, bucket), format!("77.0.{bucket}.1:1").parse().unwrap());
    bare.request(Request::SetNode { node, address, data, how: SetNodeOptions::default() });
}

/// A machine without retries, with a node in each of these buckets.
fn with_nodes_in(buckets: impl IntoIterator<Item = u8>, change: impl FnOnce(&mut Config)) -> Bare {
    let mut bare = Bare::new(|config| {
        config.retry_delay = Duration::ZERO;
        config.refresh_delay = HOUR;
        change(config);
    });
    buckets.into_iter().for_each(|bucket| add_node_in(&mut bare, bucket));
    bare
}

/// The number of refreshes that were started.
fn refreshes(bare: &Bare) -> u64 {
    bare.node.metrics().refreshes
}

// -- timers

#[test]
fn only_buckets_from_the_nearest_neighbour_on_are_refreshed() {
    let mut bare = with_nodes_in([], |_| {});
    assert_eq!(timers(&bare).keys().copied().collect::<Vec<_>>(), [255], "no node is known");
    for nearest in [255, 254, 250, 240] {
        add_node_in(&mut bare, nearest);
        assert_eq!(
            timers(&bare).into_keys().collect::<Vec<_>>(),
            (nearest..=255).collect::<Vec<_>>()
        );
    }
    // If the nearest node is removed, the timers of its buckets fire without effect.
    bare.node.unset_node(id_in(&bare, 240), bare.now).unwrap();
    bare.pass(3 * HOUR);
    let refreshed: Vec<_> =
        BUCKETS.filter(|index| bare.node.refreshed_at(BucketIndex(*index)).is_some()).collect();
    assert_eq!(refreshed, (250..=255).collect::<Vec<_>>());
}

#[test]
fn jitter_is_a_quarter_of_the_delay_either_way_and_can_be_set() {
    for (jitter, least, most) in [(500, 2700, 4500), (0, 3600, 3600), (1000, 1800, 5400)] {
        let mut drawn = Vec::new();
        let mut bare = with_nodes_in([255], |config| config.refresh_jitter = jitter);
        for _ in 0..400 {
            add_node_in(&mut bare, 255);
            drawn.push(timers(&bare)[&255].as_secs());
        }
        let (min, max) = (*drawn.iter().min().unwrap(), *drawn.iter().max().unwrap());
        assert!(least <= min && max <= most, "{jitter}: {min} to {max}");
        // The values nearly reach both limits.
        let width = most - least;
        assert!(min <= least + width / 20 && max >= most - width / 20, "{jitter}: {min} to {max}");
        let below = drawn.iter().filter(|drawn| **drawn < 3600).count();
        assert!(jitter == 0 || (150..250).contains(&below), "{below} of 400 are early");
    }
}

#[test]
fn zero_delay_disables_refreshes() {
    let mut bare = with_nodes_in(240..=255, |config| config.refresh_delay = Duration::ZERO);
    assert_eq!(timers(&bare).len(), 0);
    bare.pass(24 * HOUR);
    assert_eq!(refreshes(&bare), 0);
    // A requested refresh is still made.
    bare.request(Request::RefreshBucket {
        bucket: BucketIndex(255),
        options: RequestOptions::default(),
    });
    bare.pass(HOUR);
    assert_eq!((refreshes(&bare), timers(&bare).len()), (1, 0));
}

#[test]
fn added_or_updated_node_resets_only_the_timer_of_its_bucket() {
    let mut bare = with_nodes_in([255, 254], |_| {});
    bare.pass(2000 * SECOND);
    let before = timers(&bare);
    add_node_in(&mut bare, 254);
    let after = timers(&bare);
    assert_eq!(after[&255], before[&255]);
    assert!(after[&254] >= 2700 * SECOND, "{after:?}");
    // The same for a connection.
    let peer = (0..)
        .map(Bare::peer)
        .find(|peer| bare.node.own_id().bucket_index(peer) == Some(BucketIndex(255)))
        .unwrap();
    bare.accept(peer);
    assert!(timers(&bare)[&255] >= 2700 * SECOND);
}

#[test]
fn unused_bucket_is_refreshed_repeatedly() {
    let mut bare = with_nodes_in([255], |_| {});
    bare.pass(24 * HOUR);
    assert!((20..=30).contains(&refreshes(&bare)), "{}", refreshes(&bare));
}

#[test]
fn delay_of_a_bucket_can_be_set_at_once_or_lazily() {
    let mut bare = with_nodes_in([255], |_| {});
    let bucket = BucketIndex(255);
    let set = |bare: &mut Bare, seconds, lazy| {
        bare.node.set_refresh_delay(bucket, seconds * SECOND, lazy, bare.now).unwrap();
        timers(bare)[&255].as_secs()
    };
    assert_eq!(set(&mut bare, 100, false), 100);
    assert_eq!(set(&mut bare, 200, true), 100, "it is due earlier");
    assert_eq!(set(&mut bare, 50, true), 50);
    assert_eq!(set(&mut bare, 200, false), 200);
    bare.pass(199 * SECOND);
    assert_eq!(refreshes(&bare), 0);
    bare.pass(SECOND);
    assert_eq!(refreshes(&bare), 1);
    // A bucket without a timer gets one, which has no effect if the bucket is nearer than the
    // nearest node.
    bare.node.set_refresh_delay(BucketIndex(3), SECOND, true, bare.now).unwrap();
    assert!(timers(&bare).contains_key(&3));
    bare.pass(SECOND);
    assert_eq!((refreshes(&bare), timers(&bare).contains_key(&3)), (1, false));
    let day = Duration::from_secs(86_400);
    let range = RequestError::Option { name: "delay", range: "0 to 30 days" };
    assert_eq!(bare.node.set_refresh_delay(bucket, 31 * day, false, bare.now), Err(range));
    assert_eq!(bare.node.set_refresh_delay(bucket, 30 * day, false, bare.now), Ok(()));
    bare.node.stop(bare.now);
    assert_eq!(
        bare.node.set_refresh_delay(bucket, SECOND, false, bare.now),
        Err(RequestError::Stopping)
    );
    let mut early = Bare::starting(|_| {});
    assert_eq!(
        early.node.set_refresh_delay(bucket, SECOND, false, early.now),
        Err(RequestError::NotReady)
    );
}

/// The targets of the closest-nodes requests that a machine has sent since the last call.
fn requested_targets(bare: &mut Bare) -> Vec<NodeId> {
    let sent = bare.take().into_iter().filter_map(|output| match output {
        Output::SendStream { bytes, .. } => native::decode(bytes.get(4..)?).ok(),
        _ => None,
    });
    sent.filter_map(|message| match message {
        Message::V1(V1::Call { request: RpcRequest::Closest { target, .. }, .. }) => Some(target),
        _ => None,
    })
    .collect()
}

#[test]
fn refresh_searches_for_a_random_id_of_its_bucket() {
    let mut bare = with_nodes_in([], |_| {});
    let peer = Bare::peer(0);
    bare.accept(peer);
    let own = bare.node.own_id();
    for index in BUCKETS {
        let mut targets = BTreeSet::new();
        for _ in 0..3 {
            bare.take();
            let bucket = BucketIndex(index);
            let id =
                bare.request(Request::RefreshBucket { bucket, options: RequestOptions::default() });
            let asked = requested_targets(&mut bare);
            assert_eq!(asked.len(), 1, "{index}");
            assert_eq!(own.bucket_index(&asked[0]), Some(bucket));
            targets.extend(asked);
            bare.node.cancel(id, bare.now);
        }
        // Bucket 0 has one id, bucket 1 has two.
        assert!(targets.len() == 3 || index < 4, "{index}");
    }
}

// -- no burst

/// The maximum number of open requests of a machine, and the number of started refreshes for each
/// second.
fn watch(bare: &mut Bare, seconds: u32) -> (u64, Vec<u64>) {
    let mut most = bare.node.metrics().requests_open;
    let mut begun = vec![refreshes(bare)];
    for _ in 0..seconds {
        bare.pass(SECOND);
        most = most.max(bare.node.metrics().requests_open);
        begun.push(refreshes(bare));
    }
    (most, begun)
}

#[test]
fn refreshes_are_spread_over_the_delay_from_the_start_on() {
    for seed in 0..5 {
        let mut bare = with_nodes_in(200 + seed..=255, |_| {});
        let (most, begun) = watch(&mut bare, 3600);
        assert!(most <= 2, "{most} at a time");
        let each: Vec<_> = begun.chunks(600).map(|part| part[part.len() - 1] - part[0]).collect();
        assert!(
            each.iter().all(|count| *count <= 25),
            "{each:?} in ten minutes each, of {} in all",
            begun[3600]
        );
    }
}

#[test]
fn long_suspension_causes_no_burst_of_refreshes() {
    let mut bare = with_nodes_in(226..=255, |_| {});
    bare.suspend(8 * HOUR);
    assert!(refreshes(&bare) <= 2, "{}", refreshes(&bare));
    let (most, begun) = watch(&mut bare, 600);
    assert!(most <= 2, "{most} at a time");
    let fastest = begun.windows(11).map(|ten| ten[10] - ten[0]).max().unwrap();
    assert!(fastest <= 4, "{fastest} in ten seconds");
    assert_eq!(begun[600], 30, "but all of them soon");
    // And then once an hour again.
    let (_, begun) = watch(&mut bare, 1800);
    assert_eq!(begun[1800], 30);
}

// -- restarts

fn refreshed(cluster: &Cluster, node: HostId) -> BTreeMap<u8, UnixMillis> {
    BUCKETS
        .filter_map(|index| Some((index, cluster.node(node).refreshed_at(BucketIndex(index))?)))
        .collect()
}

fn due(cluster: &Cluster, node: HostId) -> BTreeMap<u8, Duration> {
    let due = |index| Some(cluster.node(node).refresh_at(BucketIndex(index))?.since(cluster.now()));
    BUCKETS.filter_map(|index| Some((index, due(index)?))).collect()
}

#[test]
fn refresh_times_survive_a_restart() {
    let mut cluster = Cluster::builder().nodes(12).seed(4).start();
    cluster.join_all();
    cluster.drive(2 * HOUR);
    let (before, timers) = (refreshed(&cluster, 5), due(&cluster, 5));
    assert!(before.len() > 2, "{before:?}");
    cluster.stop(5);
    cluster.restart(5);
    cluster.drive(Duration::ZERO);
    assert_eq!(refreshed(&cluster, 5), before);
    let after = due(&cluster, 5);
    assert_eq!(after.keys().collect::<Vec<_>>(), timers.keys().collect::<Vec<_>>());
    let now = cluster.unix(5).0;
    for (bucket, due) in &after {
        let age = Duration::from_millis(now - before[bucket].0);
        // If the last refresh is stored, the next is one delay after it, or soon if that time has
        // passed.
        let (least, most) = (2700 * SECOND, 4500 * SECOND);
        assert!(
            age + *due >= least && (*due <= 360 * SECOND || age + *due <= most),
            "{bucket}: {age:?} + {due:?}"
        );
    }
    cluster.stop_all();
}

#[test]
fn wall_clock_set_back_does_not_stop_refreshes() {
    let mut cluster = Cluster::builder().nodes(6).seed(4).start();
    cluster.join_all();
    cluster.drive(HOUR);
    cluster.stop(2);
    cluster.host_mut(2).clock_skew = -20 * 86_400_000;
    cluster.host_mut(2).identity = {
        // A certificate that is also valid at that time.
        let key = pk_sim::Key::numbered(4, 2);
        pk_sim::genesis(&key, UnixMillis(cluster.unix(2).0 - 86_400_000))
    };
    cluster.restart(2);
    cluster.drive(2 * HOUR);
    let now = cluster.unix(2);
    assert!(due(&cluster, 2).values().all(|due| *due <= 2 * HOUR));
    let fresh = refreshed(&cluster, 2).values().filter(|at| **at <= now).count();
    assert!(fresh >= 2, "{:?} at {now:?}", refreshed(&cluster, 2));
    cluster.stop_all();
}

#[test]
fn restarts_duplicate_no_timer() {
    let mut cluster = Cluster::builder()
        .nodes(12)
        .seed(4)
        .config(|config| config.retry_delay = Duration::ZERO)
        .start();
    cluster.join_all();
    let expected = due(&cluster, 5).len() as u64;
    for _ in 0..5 {
        cluster.stop(5);
        cluster.restart(5);
        cluster.drive(60 * SECOND);
        assert_eq!(due(&cluster, 5).len() as u64, expected);
        let metrics = cluster.node(5).metrics();
        // In addition, one for each connection.
        assert_eq!(metrics.timers, expected + metrics.connections, "{metrics:?}");
    }
    let begun = cluster.now();
    cluster.drive(2 * HOUR);
    let refreshes = cluster.node(5).metrics().refreshes;
    assert!(refreshes <= 4 * expected, "{refreshes} in {:?}", cluster.now().since(begun));
    cluster.stop_all();
}

// -- joining

/// The buckets of a node that have been refreshed since.
fn refreshed_since(cluster: &Cluster, node: HostId, since: UnixMillis) -> BTreeSet<u8> {
    refreshed(cluster, node)
        .into_iter()
        .filter(|(_, at)| *at >= since)
        .map(|(bucket, _)| bucket)
        .collect()
}

fn buckets_to_refresh(cluster: &Cluster, node: HostId) -> BTreeSet<u8> {
    let nearest = cluster.node(node).graph().buckets().next().unwrap().0.0;
    (nearest..=255).collect()
}

/// Checks that a join has refreshed every bucket from that of the nearest node on.
fn check_join(useful: &BTreeSet<u8>, refreshed: &BTreeSet<u8>) -> Result<(), String> {
    let missing: Vec<_> = useful.difference(refreshed).collect();
    if missing.is_empty() { Ok(()) } else { Err(format!("not refreshed: {missing:?}")) }
}

#[test]
fn join_refreshes_every_bucket_beyond_the_nearest_node() {
    for blocking in [true, false] {
        let mut cluster = Cluster::builder().nodes(30).seed(2).start();
        cluster.join_all();
        cluster.drive(60 * SECOND);
        // A node that was absent from the start.
        let late = 29;
        cluster.kill(late);
        cluster.host_mut(late).store = pk_sim::Store::default();
        cluster.start_node(late);
        cluster.drive(Duration::ZERO);
        let since = cluster.unix(late);
        let request = Request::SyncNodeGraph {
            seeds: vec![cluster.seed_node(0)],
            blocking,
            options: RequestOptions::default(),
        };
        assert!(matches!(cluster.ask(late, request), Ok(Reply::SyncNodeGraph(_))));
        cluster.drive(60 * SECOND);
        let (useful, refreshed) =
            (buckets_to_refresh(&cluster, late), refreshed_since(&cluster, late, since));
        assert!(useful.len() > 3, "{useful:?}");
        check_join(&useful, &refreshed).unwrap();
        // The defect of the reference: only from the bucket of the farthest found node on, which is
        // the last bucket.
        let farthest = *useful.last().unwrap();
        let planted = refreshed.into_iter().filter(|bucket| *bucket >= farthest).collect();
        assert!(check_join(&useful, &planted).is_err());
        cluster.stop_all();
    }
}

#[test]
fn network_converges_after_all_nodes_have_joined() {
    let mut cluster =
        Cluster::builder().nodes(40).seed(9).config(|config| config.bucket_limit = 5).start();
    cluster.join_all();
    cluster.drive(120 * SECOND);
    assert_eq!(cluster.assert_converged(), 40 * 39);
    assert!(cluster.check_counters().stored > 1000);
    cluster.stop_all();
}

// -- retrying

/// When a node has dialed contacts in the background.
fn dialed(cluster: &mut Cluster, node: HostId, time: Duration) -> Vec<Instant> {
    let end = cluster.now() + time;
    let mut before = cluster.node(node).metrics().upkeep_dials;
    let mut times = Vec::new();
    while cluster.step_by(end) {
        let dials = cluster.node(node).metrics().upkeep_dials;
        times.extend((before..dials).map(|_| cluster.now()));
        before = dials;
    }
    times
}

/// Nodes that retry, and neither refresh nor check contacts.
fn retrying(nodes: usize) -> Cluster {
    let mut cluster = Cluster::quiet()
        .nodes(nodes)
        .seed(6)
        .config(|config| {
            config.retry_delay = 45 * SECOND;
            config.upkeep.check_first = 24 * HOUR;
            config.upkeep.check_most = 24 * HOUR;
        })
        .start();
    cluster.join_all();
    cluster
}

fn is_connected_to_the_farther_half(cluster: &Cluster, node: HostId) -> bool {
    let own = cluster.id(node);
    let far = |peer| own.bucket_index(&peer) == Some(BucketIndex(255));
    cluster.node(node).connections().iter().any(|info| far(info.node))
}

#[test]
fn connection_to_the_farther_half_stays_open_and_makes_dials_unnecessary() {
    let mut cluster = retrying(8);
    cluster.drive(3 * HOUR);
    for node in 0..8 {
        assert!(is_connected_to_the_farther_half(&cluster, node), "{node}");
    }
    let before: u64 = (0..8).map(|node| cluster.node(node).metrics().dials).sum();
    cluster.drive(10 * HOUR);
    let after: u64 = (0..8).map(|node| cluster.node(node).metrics().dials).sum();
    assert_eq!(after, before);
    // Fewer than one connection of each node: it serves both ends.
    let connections: u64 = (0..8).map(|node| cluster.node(node).metrics().connections).sum();
    assert!(connections <= 2 * 8, "{connections}");
    cluster.stop_all();
}

#[test]
fn node_whose_far_connection_ends_dials_another_contact() {
    let mut cluster = retrying(12);
    cluster.drive(3 * HOUR);
    // A node that is not connected to all contacts of its farther half.
    let far = |cluster: &Cluster, node: HostId| -> Vec<HostId> {
        let own = cluster.id(node);
        let is_far =
            |other: &HostId| own.bucket_index(&cluster.id(*other)) == Some(BucketIndex(255));
        (0..12).filter(is_far).collect()
    };
    let connected = |cluster: &Cluster, node: HostId| -> Vec<HostId> {
        let infos = cluster.node(node).connections();
        let is_connected =
            |other: &HostId| infos.iter().any(|info| info.node == cluster.id(*other));
        far(cluster, node).into_iter().filter(is_connected).collect()
    };
    let node =
        (0..12).find(|node| connected(&cluster, *node).len() < far(&cluster, *node).len()).unwrap();
    let connected = connected(&cluster, node);
    connected.iter().for_each(|node| cluster.kill(*node));
    let again =
        cluster.drive_until(|cluster| is_connected_to_the_farther_half(cluster, 0), 180 * SECOND);
    cluster.drive(180 * SECOND);
    assert!(again && is_connected_to_the_farther_half(&cluster, 0));
    cluster.stop_all();
}

#[test]
fn isolated_node_dials_in_every_interval_and_searches_more_and_more_rarely() {
    let mut cluster = retrying(8);
    let others: Vec<_> = (1..8).collect();
    cluster.partition(&[&[0], &others]);
    cluster.drive_until(|cluster| cluster.node(0).connections().is_empty(), 60 * SECOND);
    cluster.drive(300 * SECOND);
    let (begun, searches) = (cluster.now(), cluster.node(0).metrics().refreshes);
    let times = dialed(&mut cluster, 0, HOUR);
    let mut per_interval = [0; 80];
    times.iter().for_each(|at| per_interval[at.since(begun).as_secs() as usize / 45] += 1);
    // A search in progress takes the place of the dials for at most a minute.
    assert!(per_interval.iter().all(|dials| *dials <= 3), "{per_interval:?}");
    assert!(per_interval.windows(3).all(|three| three.iter().sum::<u32>() > 0), "{per_interval:?}");
    let searches = cluster.node(0).metrics().refreshes - searches;
    assert!((2..=5).contains(&searches), "{searches}");
    cluster.stop_all();
}

#[test]
fn empty_graph_is_not_retried_and_zero_retry_delay_disables() {
    let mut cluster =
        Cluster::quiet().nodes(2).config(|config| config.retry_delay = 45 * SECOND).start();
    assert_eq!(dialed(&mut cluster, 0, 600 * SECOND), []);
    add_contact(&mut cluster, 0, 1);
    assert!(!dialed(&mut cluster, 0, 600 * SECOND).is_empty());
    cluster.stop_all();
    let mut cluster = Cluster::quiet().nodes(2).start();
    add_contact(&mut cluster, 0, 1);
    assert_eq!(dialed(&mut cluster, 0, 600 * SECOND), []);
    cluster.stop_all();
}

/// One isolated node, and two halves: the network is connected soon after the partition ends.
#[test]
fn retries_heal_a_partition() {
    let mut cluster = retrying(12);
    let others: Vec<_> = (1..12).collect();
    cluster.partition(&[&[0], &others]);
    cluster.drive(300 * SECOND);
    assert!(!is_connected_to_the_farther_half(&cluster, 0));
    cluster.heal();
    let healed =
        cluster.drive_until(|cluster| is_connected_to_the_farther_half(cluster, 0), 120 * SECOND);
    assert!(healed);
    cluster.stop_all();

    // Halves of a network that has lost its connections and its contacts of the other half.
    let mut cluster = retrying(12);
    let halves: [Vec<HostId>; 2] = [(0..6).collect(), (6..12).collect()];
    cluster.partition(&[&halves[0], &halves[1]]);
    cluster.drive(HOUR);
    cluster.heal();
    cluster.drive(10 * 60 * SECOND);
    assert_eq!(cluster.assert_converged(), 12 * 11);
    for node in 0..12 {
        let target = cluster.id((node + 6) % 12);
        assert!(find(&mut cluster, node, target).found.is_some());
    }
    cluster.stop_all();
}

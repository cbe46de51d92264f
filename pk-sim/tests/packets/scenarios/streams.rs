//! Pings, searches and claims beside application streams that are not read.

use std::time::Duration;

use pk_proto::claims::ClaimPolicy;
use pk_proto::{Failure, FindNodeOptions, Reply, Request, RequestOptions};
use pk_sim::{PacketWorld, Reader};

use super::{ROUND_TRIP, Row, ms};

/// Requests beside the streams; each is sent by both ends.
const KINDS: [&str; 3] = ["ping", "search", "claim"];

/// Application streams that each end opens.
struct Load {
    what: &'static str,
    streams: usize,
    bytes: u64,
}

pub fn rows() -> Vec<Row> {
    let (kib, mib) = (1024, 1024 * 1024);
    let none = slowest(&Load { what: "none", streams: 0, bytes: 0 });
    let mut rows = Vec::new();
    for load in [
        Load { what: "16 paused readers of 4 MiB each", streams: 16, bytes: 4 * mib },
        Load { what: "99 idle streams", streams: 99, bytes: 0 },
        Load { what: "250 unread streams of 64 KiB each", streams: 250, bytes: 64 * kib },
    ] {
        let with = slowest(&load);
        let figure = (0..KINDS.len()).map(|kind| {
            let [with, none] = [with[kind], none[kind]].map(|[to, back]| [ms(to), ms(back)]);
            format!("{} {} and {} ({} and {})", KINDS[kind], with[0], with[1], none[0], none[1])
        });
        let holds = with.iter().flatten().zip(none.iter().flatten());
        let holds = holds.clone().all(|(with, none)| *with <= *none + 2 * ROUND_TRIP);
        rows.push(Row::new(
            format!(
                "{}, of each end: the slowest of 10, from the dialer and from the acceptor (without)",
                load.what
            ),
            figure.collect::<Vec<_>>().join("; "),
            "+ ≤ 2 RTT",
            holds,
        ));
    }
    rows
}

/// The slowest request of each kind, of the dialer and of the acceptor.
fn slowest(load: &Load) -> [[Duration; 2]; 3] {
    let mut world =
        PacketWorld::with_hosts_of(70, 3, |host| host.config.claim_policy = ClaimPolicy::All);
    for n in 1..3 {
        world.join(n, 0);
    }
    world.ask(1, 2).or_else(|_| Ok::<_, Failure>(world.connect(1, 2))).unwrap();
    world.ask(0, 1).unwrap();
    for n in 0..2 {
        world.host_mut(n).reader = Reader::Paused;
    }
    for _ in 0..load.streams {
        for (from, to) in [(0, 1), (1, 0)] {
            let stream = world.open(from, to);
            world.write(from, stream, load.bytes);
        }
    }
    let mut slowest = [[Duration::ZERO; 2]; 3];
    for _ in 0..10 {
        for (direction, (from, to)) in [(0, 1), (1, 0)].into_iter().enumerate() {
            for (kind, slowest) in slowest.iter_mut().enumerate() {
                let request = request(&world, kind, to);
                let (took, result) = world.perform(from, request);
                succeeded(load, kind, &result);
                slowest[direction] = slowest[direction].max(took);
            }
        }
        world.pass(ROUND_TRIP / 2);
    }
    let total = load.streams as u64 * load.bytes;
    for n in 0..2 {
        assert_eq!(world.metrics(n).streams_unread, 0, "{}", load.what);
        // Everything arrives as soon as it is read.
        world.host_mut(n).reader = Reader::Eager;
        world.read_all(n);
        let received = |world: &PacketWorld| world.host(n).total_received();
        let complete = world.until(600 * ROUND_TRIP, |world| received(world) == total);
        assert!(complete, "{}: {} of {total}", load.what, received(&world));
    }
    world.stop_all();
    slowest
}

fn request(world: &PacketWorld, kind: usize, to: usize) -> Request {
    let options = RequestOptions::default();
    let target = world.id(to);
    match kind {
        0 => Request::PingNode { target, options },
        // A search for a node that is not connected, so that the peer receives a query.
        1 => {
            let target = pk_proto::NodeId::from_bytes([0x5a; 32]);
            Request::FindNode { target, find: FindNodeOptions { options, ..Default::default() } }
        }
        _ => Request::ClaimNode { target, options },
    }
}

fn succeeded(load: &Load, kind: usize, result: &Result<Reply, Failure>) {
    assert!(result.is_ok(), "{}: {} {result:?}", load.what, KINDS[kind]);
}

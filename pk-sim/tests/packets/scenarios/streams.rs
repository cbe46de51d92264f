//! Pings, searches and claims beside application streams that are not read.

use std::time::Duration;

use pk_proto::claims::ClaimPolicy;
use pk_proto::{Failure, FindNodeOptions, Reply, Request, RequestOptions};
use pk_sim::{PacketWorld, Reader};

use super::{ROUND_TRIP, Row, ms};

/// Requests beside the streams; each is sent by both ends.
const KINDS: [&str; 3] = ["ping", "search", "claim"];

/// Application streams of one end.
struct Load {
    what: &'static str,
    streams: usize,
    bytes: u64,
}

pub fn rows() -> Vec<Row> {
    let (KIB, MIB) = (1024, 1024 * 1024);
    let none = slowest(&Load { what: "none", streams: 0, bytes: 0 });
    let mut rows = Vec::new();
    for load in [
        Load { what: "16 paused readers of 4 MiB each", streams: 16, bytes: 4 * MIB },
        Load { what: "99 idle streams", streams: 99, bytes: 0 },
        Load { what: "250 unread streams of 64 KiB each", streams: 250, bytes: 64 * KIB },
    ] {
        let with = slowest(&load);
        let figure = (0..KINDS.len()).map(|kind| {
            let [with, none] = [with[kind], none[kind]].map(|[to, back]| [ms(to), ms(back)]);
            format!("{} {} and {} ({} and {})", KINDS[kind], with[0], with[1], none[0], none[1])
        });
        let holds = with.iter().flatten().zip(none.iter().flatten());
        let holds = holds.clone().all(|(with, none)| *with <= *none + 2 * ROUND_TRIP);
        rows.push(Row::new(
            format!("{}: slowest of both directions (and without)", load.what),
            figure.collect::<Vec<_>>().join("; "),
            "+ ≤ 2 RTT",
            holds,
        ));
    }
    rows
}

/// The slowest request of each kind, of the end that opens the streams and of the other one.
fn slowest(load: &Load) -> [[Duration; 2]; 3] {
    let mut world =
        PacketWorld::with_hosts_of(70, 3, |host| host.config.claim_policy = ClaimPolicy::All);
    for n in 1..3 {
        world.join(n, 0);
    }
    world.ask(1, 2).or_else(|_| Ok::<_, Failure>(world.connect(1, 2))).unwrap();
    world.ask(0, 1).unwrap();
    world.host_mut(1).reader = Reader::Paused;
    for _ in 0..load.streams {
        let stream = world.open(0, 1);
        world.write(0, stream, load.bytes);
    }
    let mut slowest = [[Duration::ZERO; 2]; 3];
    for _ in 0..10 {
        for (direction, (from, to)) in [(0, 1), (1, 0)].into_iter().enumerate() {
            for (kind, slowest) in slowest.iter_mut().enumerate() {
                let request = request(&world, kind, to);
                let (took, result) = world.perform(from, request);
                succeeded(load, kind, result);
                slowest[direction] = slowest[direction].max(took);
            }
        }
        world.pass(ROUND_TRIP / 2);
    }
    assert_eq!(world.metrics(1).streams_unread, 0, "{}", load.what);
    // Everything arrives as soon as it is read.
    world.host_mut(1).reader = Reader::Eager;
    world.read_all(1);
    let total = load.streams as u64 * load.bytes;
    assert!(
        world.until(600 * ROUND_TRIP, |world| world.host(1).total_received() == total),
        "{}: {} of {total}",
        load.what,
        world.host(1).total_received()
    );
    world.stop_all();
    slowest
}

fn request(world: &PacketWorld, kind: usize, to: usize) -> Request {
    let options = RequestOptions::default();
    let target = world.id(to);
    match kind {
        0 => Request::PingNode { target, options },
        // Of a node that is not connected, so that the peer is asked.
        1 => {
            let target = pk_proto::NodeId::from_bytes([0x5a; 32]);
            Request::FindNode { target, find: FindNodeOptions { options, ..Default::default() } }
        }
        _ => Request::ClaimNode { target, options },
    }
}

fn succeeded(load: &Load, kind: usize, result: Result<Reply, Failure>) {
    assert!(result.is_ok(), "{}: {} {result:?}", load.what, KINDS[kind]);
}

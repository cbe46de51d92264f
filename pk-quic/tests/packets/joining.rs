//! Nodes join, ask and search over good and bad networks.

use std::time::Duration;

use pk_proto::{FindNodeOptions, Reply, Request, SeedNode};

use crate::world::{MS, World, options};

#[test]
fn two_nodes_connect_and_ask_in_round_trips() {
    let mut world = World::with_hosts(1, 2);
    let connected = world.connect(0, 1);
    let matched_id = [world.ask(0, 1).unwrap(), world.ask(1, 0).unwrap()];
    println!("connected after {connected:?}, asked in {matched_id:?} at a round trip of 100 ms");
    assert!(connected <= 350 * MS, "{connected:?}");
    assert!(matched_id.iter().all(|took| *took <= 110 * MS), "{matched_id:?}");
    // An idle hour costs keep-alives, and the node protocol still works.
    let before = world.datagrams;
    world.pass(Duration::from_secs(60 * 20));
    println!("20 quiet minutes: {} datagrams", world.datagrams - before);
    assert!(world.ask(0, 1).is_ok());
}

#[test]
fn five_nodes_join_and_find_each_other_in_spite_of_loss_and_reordering() {
    for (loss, jitter, duplication, mtu) in [
        (0, 0, 0, 1472),
        (20, 30, 20, 1472),
        (50, 60, 100, 1400),
        (100, 80, 100, 1300),
        (200, 80, 100, 1200),
    ] {
        let mut world = World::with_hosts(7 + loss, 5);
        (world.loss, world.jitter, world.duplication) = (loss, jitter * MS, duplication);
        world.mtu = mtu;
        let mut slowest = Duration::ZERO;
        let seed = SeedNode { node: world.id(0), address: world.hosts[0].addr.into() };
        for n in 1..5 {
            let request = Request::SyncNodeGraph {
                seeds: vec![seed.clone()],
                blocking: true,
                options: options(Duration::from_secs(60)),
            };
            let (took, result) = world.perform(n, request, Duration::from_secs(90));
            slowest = slowest.max(took);
            assert!(result.is_ok(), "loss {loss}: {result:?}");
        }
        let mut matched_id = Duration::ZERO;
        for (from, to) in [(1, 4), (4, 1), (2, 3), (3, 2), (1, 2)] {
            let request = Request::FindNode {
                target: world.id(to),
                find: FindNodeOptions {
                    options: options(Duration::from_secs(60)),
                    ..FindNodeOptions::default()
                },
            };
            let (_, result) = world.perform(from, request, Duration::from_secs(90));
            let Ok(Reply::FindNode(outcome)) = result else { panic!("loss {loss}: {result:?}") };
            assert!(outcome.found.is_some(), "loss {loss}: {outcome:?}");
            matched_id = matched_id.max(world.ask(from, to).unwrap());
        }
        println!(
            "loss {} %, jitter {jitter} ms, duplicated {} %, MTU {mtu}: slowest join {slowest:?}, \
             slowest question {matched_id:?}",
            loss / 10,
            duplication / 10
        );
    }
}

#[test]
fn a_path_that_carries_less_than_before_interrupts_a_connection_for_seconds() {
    let mut world = World::with_hosts(3, 2);
    world.connect(0, 1);
    let stream = world.open(0, 1);
    world.write(0, stream, 2_000_000);
    world.pass(Duration::from_secs(1));
    world.mtu = 1200;
    assert!(
        world.until(Duration::from_secs(30), |world| {
            world.hosts[1].total_received() == 2_000_000
        })
    );
    println!("MTU 1472 to 1200 while sending: 2 MB after {:?}", world.now);
    assert!(world.ask(0, 1).unwrap() < Duration::from_secs(1));
}

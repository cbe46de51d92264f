//! Events, and listeners that do not read them.

use pk_driver::EventOrLag;
use pk_proto::{Event, NodeId, RequestOptions, SetNodeOptions, SetNodeOutcome};
use pk_tests::Rt;
use pk_tests::node::{address, connect, global_address_data, shutdown, start, start_with};
use pk_tests::wait::soon;

pk_tests::cases!(
    slow_listener_receives_the_number_of_lost_events,
    every_listener_receives_every_event
);

async fn slow_listener_receives_the_number_of_lost_events<R: Rt>(runtime: R) {
    const KEPT: u64 = 4;
    const HAPPENED: u64 = 50;
    let a = start_with(&runtime, 1, |config| config.driver.event_limit = KEPT as usize).await;
    let b = start(&runtime, 2).await;
    let mut slow = a.events();
    for bit in 0..HAPPENED as usize {
        // Each in its own bucket, where no node has to make room.
        let mut id = *a.own_id().as_bytes();
        id[bit / 8] ^= 0x80 >> (bit % 8);
        let set = a.set_node(
            NodeId::from_bytes(id),
            address(&b),
            global_address_data(),
            SetNodeOptions::default(),
        );
        assert_eq!(soon(&runtime, "set", set).await.unwrap(), SetNodeOutcome::Added);
    }
    let lost = soon(&runtime, "the loss", slow.next()).await;
    assert_eq!(lost, Some(EventOrLag::Lagged(HAPPENED - KEPT)));
    for _ in 0..KEPT {
        let kept = soon(&runtime, "what is kept", slow.next()).await;
        assert!(matches!(kept, Some(EventOrLag::Event(Event::NodeAdded { .. }))), "{kept:?}");
    }
    // The listener continues from there, and the node is not affected.
    connect(&runtime, &a, &b).await;
    let next = soon(&runtime, "the next", slow.next()).await;
    assert!(
        matches!(next, Some(EventOrLag::Event(Event::NodeAdded { node })) if node == b.own_id()),
        "{next:?}"
    );
    soon(&runtime, "ping", a.ping_node(b.own_id(), RequestOptions::default())).await.unwrap();
    shutdown(&runtime, &[&a, &b]).await;
}

async fn every_listener_receives_every_event<R: Rt>(runtime: R) {
    let (a, b) = (start(&runtime, 1).await, start(&runtime, 2).await);
    let (mut first, mut second) = (a.events(), a.events());
    connect(&runtime, &b, &a).await;
    b.disconnect(a.own_id()).await.unwrap();
    for events in [&mut first, &mut second] {
        let mut names = Vec::new();
        while names.len() < 3 {
            names.push(match soon(&runtime, "an event", events.next()).await.unwrap() {
                EventOrLag::Event(Event::NodeAdded { node }) if node == b.own_id() => "added",
                EventOrLag::Event(Event::ConnectionOpened { node, .. }) if node == b.own_id() => {
                    "opened"
                }
                EventOrLag::Event(Event::ConnectionClosed { node, .. }) if node == b.own_id() => {
                    "closed"
                }
                other => panic!("{other:?}"),
            });
        }
        assert_eq!(names, ["added", "opened", "closed"]);
    }
    shutdown(&runtime, &[&a, &b]).await;
}

//! The local network: nodes that know no other node find each other, on loopback and on ports that
//! only these tests use.

use std::time::{Duration, Instant};

use pk_driver::{MdnsInterfaces, NodeConfig};
use pk_proto::{FindEnd, FindNodeOptions, Scopes, Strategies};
use pk_tests::Rt;
use pk_tests::node::{address, key, shutdown, start, start_with};
use pk_tests::socket::private_port;
use pk_tests::wait::soon;

pk_tests::cases!(
    nodes_of_one_network_find_each_other_without_a_seed,
    renewed_node_is_found_by_its_new_id
);

/// Where nodes look: the standard groups, those of the reference, or both.
#[derive(Debug, Clone, Copy)]
enum Groups {
    Standard,
    Reference,
    Both,
}

fn local(groups: Groups) -> impl Fn(&mut NodeConfig) {
    let (port, standard_port) = (private_port(), private_port());
    move |config| {
        config.core.mdns = true;
        // A busy machine may be late.
        config.core.mdns_timeout = Duration::from_secs(8);
        config.driver.mdns.port = port;
        config.driver.mdns.standard_port = Some(standard_port);
        config.driver.mdns.interfaces = MdnsInterfaces::Loopback;
        match groups {
            Groups::Standard => config.driver.mdns.groups.clear(),
            Groups::Reference => config.driver.mdns.standard_port = None,
            Groups::Both => {}
        }
    }
}

async fn nodes_of_one_network_find_each_other_without_a_seed<R: Rt>(runtime: R) {
    for groups in [Groups::Standard, Groups::Reference, Groups::Both] {
        find_each_other(&runtime, groups).await;
    }
}

async fn find_each_other<R: Rt>(runtime: &R, groups: Groups) {
    let local = local(groups);
    let (a, b) = (start_with(runtime, 1, &local).await, start_with(runtime, 2, &local).await);
    let begun = Instant::now();
    let found =
        soon(runtime, "find", a.find_node(b.own_id(), FindNodeOptions::default())).await.unwrap();
    println!("{}: found on the local network in {:?} ({groups:?})", R::NAME, begun.elapsed());
    assert_eq!(found.ended, FindEnd::Connected, "{found:?}");
    let (at, data) = found.found.unwrap();
    assert_eq!((at, data.scopes), (address(&b), Scopes::LOCAL));
    let contact = a.contact(b.own_id()).await.unwrap().unwrap();
    assert!(contact.iter().all(|(_, data)| data.scopes == Scopes::LOCAL), "{contact:?}");

    let asked = soon(runtime, "query", b.query_mdns(a.own_id(), Some(Duration::from_secs(2))))
        .await
        .unwrap();
    assert_eq!(asked, [address(&a)]);
    let absent = b.query_mdns(key(99).node_id(), Some(Duration::from_millis(300)));
    assert_eq!(soon(runtime, "query", absent).await.unwrap(), []);

    // A search asks the local network for the requested time, and then ends.
    let timeout = Duration::from_millis(400);
    let find = FindNodeOptions { mdns_timeout: Some(timeout), ..FindNodeOptions::default() };
    let begun = Instant::now();
    let absent = soon(runtime, "find", b.find_node(key(99).node_id(), find)).await.unwrap();
    assert_eq!((absent.found, absent.ended), (None, FindEnd::Exhausted));
    assert!(begun.elapsed() >= timeout, "it was over after {:?}", begun.elapsed());

    // A search without the strategy does not use mDNS.
    let c = start_with(runtime, 3, &local).await;
    let strategies = Some(Strategies { mdns: false, ..Strategies::default() });
    let found =
        c.find_node(b.own_id(), FindNodeOptions { strategies, ..FindNodeOptions::default() });
    assert_eq!(soon(runtime, "find", found).await.unwrap().ended, FindEnd::Exhausted);
    // A node without mDNS sends and receives nothing.
    let d = start_with(runtime, 4, |config| {
        local(config);
        config.core.mdns = false;
    })
    .await;
    let absent = b.query_mdns(d.own_id(), Some(Duration::from_millis(700)));
    assert_eq!(soon(runtime, "query", absent).await.unwrap(), []);
    shutdown(runtime, &[&a, &b, &c, &d]).await;
    let plain = start(runtime, 5).await;
    assert_eq!(plain.driver_metrics().mdns_failures, 0);
    shutdown(runtime, &[&plain]).await;
}

async fn renewed_node_is_found_by_its_new_id<R: Rt>(runtime: R) {
    for groups in [Groups::Standard, Groups::Reference] {
        let local = local(groups);
        let (a, b) = (start_with(&runtime, 1, &local).await, start_with(&runtime, 2, &local).await);
        let renewed = soon(&runtime, "renewal", a.renew()).await.unwrap();
        let found = b.find_node(renewed.new, FindNodeOptions::default());
        let found = soon(&runtime, "find", found).await.unwrap();
        assert_eq!(found.ended, FindEnd::Connected, "{groups:?}: {found:?}");
        shutdown(&runtime, &[&a, &b]).await;
    }
}

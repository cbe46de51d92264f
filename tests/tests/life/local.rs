//! The local network: nodes that know no other node find each other, on loopback and on ports of
//! these tests' own.

use std::time::{Duration, Instant};

use pk_driver::{MdnsInterfaces, NodeConfig};
use pk_proto::{FindEnd, FindNodeOptions, Scopes, Strategies};
use pk_tests::Rt;
use pk_tests::node::{address, key, shutdown, start, start_with};
use pk_tests::socket::private_port;
use pk_tests::wait::soon;

pk_tests::cases!(
    nodes_of_one_network_find_each_other_without_a_seed,
    a_renewed_node_is_found_by_its_new_id
);

fn local(port: u16) -> impl Fn(&mut NodeConfig) {
    move |config| {
        config.core.mdns = true;
        // A busy machine may be late.
        config.core.mdns_timeout = Duration::from_secs(8);
        config.driver.mdns.port = port;
        config.driver.mdns.interfaces = MdnsInterfaces::Loopback;
    }
}

async fn nodes_of_one_network_find_each_other_without_a_seed<R: Rt>(runtime: R) {
    let local = local(private_port());
    let (a, b) = (start_with(&runtime, 1, &local).await, start_with(&runtime, 2, &local).await);
    let begun = Instant::now();
    let found =
        soon(&runtime, "find", a.find_node(b.own_id(), FindNodeOptions::default())).await.unwrap();
    println!("{}: found on the local network in {:?}", R::NAME, begun.elapsed());
    assert_eq!(found.ended, FindEnd::Connected, "{found:?}");
    let (at, data) = found.found.unwrap();
    assert_eq!((at, data.scopes), (address(&b), Scopes::LOCAL));
    let contact = a.contact(b.own_id()).await.unwrap().unwrap();
    assert!(contact.iter().all(|(_, data)| data.scopes == Scopes::LOCAL), "{contact:?}");

    let asked = soon(&runtime, "query", b.query_mdns(a.own_id(), Some(Duration::from_secs(2))))
        .await
        .unwrap();
    assert_eq!(asked, [address(&a)]);
    let absent = b.query_mdns(key(99).node_id(), Some(Duration::from_millis(300)));
    assert_eq!(soon(&runtime, "query", absent).await.unwrap(), []);

    // A search asks the local network for the requested time, and then ends.
    let timeout = Duration::from_millis(400);
    let find = FindNodeOptions { mdns_timeout: Some(timeout), ..FindNodeOptions::default() };
    let begun = Instant::now();
    let absent = soon(&runtime, "find", b.find_node(key(99).node_id(), find)).await.unwrap();
    assert_eq!((absent.found, absent.ended), (None, FindEnd::Exhausted));
    assert!(begun.elapsed() >= timeout, "it was over after {:?}", begun.elapsed());

    // Who is not asked to look there does not.
    let c = start_with(&runtime, 3, &local).await;
    let strategies = Some(Strategies { mdns: false, ..Strategies::default() });
    let found =
        c.find_node(b.own_id(), FindNodeOptions { strategies, ..FindNodeOptions::default() });
    assert_eq!(soon(&runtime, "find", found).await.unwrap().ended, FindEnd::Exhausted);
    // And who has not opted in says and hears nothing.
    let d = start_with(&runtime, 4, |config| {
        local(config);
        config.core.mdns = false;
    })
    .await;
    let absent = b.query_mdns(d.own_id(), Some(Duration::from_millis(700)));
    assert_eq!(soon(&runtime, "query", absent).await.unwrap(), []);
    shutdown(&runtime, &[&a, &b, &c, &d]).await;
    let plain = start(&runtime, 5).await;
    assert_eq!(plain.driver_metrics().mdns_failures, 0);
    shutdown(&runtime, &[&plain]).await;
}

async fn a_renewed_node_is_found_by_its_new_id<R: Rt>(runtime: R) {
    let local = local(private_port());
    let (a, b) = (start_with(&runtime, 1, &local).await, start_with(&runtime, 2, &local).await);
    let renewed = soon(&runtime, "renewal", a.renew()).await.unwrap();
    let found =
        soon(&runtime, "find", b.find_node(renewed.new, FindNodeOptions::default())).await.unwrap();
    assert_eq!(found.ended, FindEnd::Connected, "{found:?}");
    shutdown(&runtime, &[&a, &b]).await;
}

//! Host names: the driver resolves them, all their addresses race, and a failure names the host.

use std::time::Duration;

use pk_driver::NodeError;
use pk_proto::{DialFailure, Failure, Host, NodeAddress, SeedNode};
use pk_tests::Rt;
use pk_tests::names::Named;
use pk_tests::node::{address, key, options, shutdown, socket, start, start_with};
use pk_tests::socket::BlackHole;
use pk_tests::wait::{soon, until};

pk_tests::cases!(all_addresses_of_a_name_race, failure_names_the_host);

const PATIENCE: Duration = Duration::from_secs(1);

async fn all_addresses_of_a_name_race<R: Rt>(runtime: R) {
    let a = start(&runtime, 1).await;
    let holes: Vec<_> = (0..3).map(|_| BlackHole::open()).collect();
    let mut addrs: Vec<_> = holes.iter().map(BlackHole::socket).collect();
    addrs.push(socket(&a));
    let b = start_with(&Named::new(runtime.clone()).with("many.example", &addrs), 2, |_| {}).await;
    let named: NodeAddress = "many.example:1".parse().unwrap();
    // One after another they would take three seconds.
    let limits = options(2 * PATIENCE, PATIENCE);
    let connected =
        soon(&runtime, "connect", b.connect(a.own_id(), named.clone(), limits)).await.unwrap();
    assert_eq!(connected.address, address(&a), "where it really is");
    until(&runtime, "the losers are cancelled", async || {
        b.driver_metrics().transport.dials_pending == 0
    })
    .await;
    b.disconnect(a.own_id()).await.unwrap();
    let seed = SeedNode { node: a.own_id(), address: named };
    let joined = soon(&runtime, "join", b.sync_node_graph(vec![seed], true, limits)).await.unwrap();
    assert_eq!(joined.seeds, [a.own_id()]);
    shutdown(&runtime, &[&a]).await;
    soon(&runtime, "shutdown", b.shutdown()).await;
}

async fn failure_names_the_host<R: Rt>(runtime: R) {
    let hole = BlackHole::open();
    let names = Named::new(runtime.clone())
        .with("silent.example", &[hole.socket()])
        .with("empty.example", &[]);
    let b = start_with(&names, 2, |_| {}).await;
    let absent = key(9).node_id();
    for (name, resolves) in
        [("silent.example", true), ("empty.example", false), ("unknown.example", false)]
    {
        let at: NodeAddress = format!("{name}:1314").parse().unwrap();
        let failed =
            soon(&runtime, name, b.connect(absent, at.clone(), options(2 * PATIENCE, PATIENCE)))
                .await;
        let error = failed.unwrap_err();
        println!("{}: {error}", R::NAME);
        assert!(error.to_string().contains(name), "{error}");
        let NodeError::Failure(Failure::Dial(failures)) = error else { panic!("{error:?}") };
        let of_the_name = failures
            .iter()
            .find(|(at, _)| matches!(&at.host, Host::Name(of) if of.as_str() == name));
        match resolves {
            true => {
                assert_eq!(
                    of_the_name.map(|(_, why)| why),
                    Some(&DialFailure::LeadsTo(vec![hole.socket()]))
                );
                assert!(
                    failures.contains(&(hole.address(), DialFailure::TimedOut)),
                    "{failures:?}"
                );
            }
            false => {
                assert!(
                    of_the_name.is_some_and(|(_, why)| matches!(why, DialFailure::Resolve(_))),
                    "{failures:?}"
                );
            }
        }
    }
    // A name without an address is an answer.
    until(&runtime, "the count", async || b.driver_metrics().resolutions_failed == 1).await;
    soon(&runtime, "shutdown", b.shutdown()).await;
}

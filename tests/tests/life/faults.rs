//! One fault at each operation of the store, of every kind: the node says so and goes on, and the next start is whole.

use std::time::Duration;

use pk_driver::{Fault, Faults, FaultyStore, KeyStore, Node, NodeConfig, NodeError};
use pk_proto::{Failure, NodeId, Options};
use pk_tests::Rt;
use pk_tests::node::{connect, shutdown, start};
use pk_tests::wait::soon;

use crate::kit::{Kept, present_key};

pk_tests::cases!(a_fault_at_any_operation_leaves_the_node_whole);

/// A life: what was acknowledged.
#[derive(Debug, Default)]
struct Acknowledged {
    flushed: bool,
    renewed: Option<NodeId>,
    flushed_again: bool,
}

async fn live<R: Rt>(runtime: &R, node: &Node<R>, friend: &Node<R>) -> Acknowledged {
    let mut acknowledged = Acknowledged::default();
    let id = node.own_id();
    connect(runtime, friend, node).await;
    let stores = |error: &NodeError| matches!(error, NodeError::Failure(Failure::Store(_)));
    match soon(runtime, "flush", node.flush()).await {
        Ok(()) => acknowledged.flushed = true,
        Err(error) => assert!(stores(&error), "{error}"),
    }
    match soon(runtime, "renewal", node.renew()).await {
        Ok(renewed) => acknowledged.renewed = Some(renewed.new),
        Err(error) => {
            assert!(stores(&error), "{error}");
            assert_eq!(node.own_id(), id);
        }
    }
    match soon(runtime, "flush", node.flush()).await {
        Ok(()) => acknowledged.flushed_again = true,
        Err(error) => assert!(stores(&error), "{error}"),
    }
    // Whatever the store does, the node runs.
    soon(runtime, "ping", friend.ping_node(id, Options::default())).await.unwrap();
    soon(runtime, "shutdown", node.shutdown()).await;
    acknowledged
}

async fn a_fault_at_any_operation_leaves_the_node_whole<R: Rt>(runtime: R) {
    let faults = [
        Fault::Fail,
        Fault::DoneButFails,
        Fault::Crash,
        Fault::Tear(0),
        Fault::Tear(1),
        Fault::Tear(2),
        Fault::Tear(3),
        Fault::Delay(Duration::from_millis(200)),
    ];
    let friend = start(&runtime, 2).await;
    let (mut lives, mut torn) = (0, 0);
    for fault in faults {
        for n in 1.. {
            let dir = tempfile::tempdir().unwrap();
            let (kept, plan) = (Kept::default(), Faults::new());
            let store = || FaultyStore::new(kept.clone(), plan.clone());
            let configure = |config: Result<NodeConfig, _>| -> Result<NodeConfig, pk_driver::StartError> {
                let mut config = config?;
                config.listen = pk_tests::socket::loopback();
                config.core.store_delay = Duration::from_millis(1);
                Ok(config)
            };
            let config = configure(NodeConfig::with_store(KeyStore::new(dir.path()), store())).unwrap();
            let node = soon(&runtime, "start", Node::start_on(runtime.clone(), config)).await.unwrap();
            let first = node.own_id();
            // Counted from here: a start that cannot read is refused elsewhere.
            plan.nth_from_now(n, fault);
            let acknowledged = live(&runtime, &node, &friend).await;
            lives += 1;
            torn += u32::from(plan.crashed());

            // The next start, from a store that works.
            let config = configure(NodeConfig::with_store(KeyStore::new(dir.path()), kept.clone()));
            let config = config.unwrap_or_else(|error| panic!("{fault:?} at {n}: {error}"));
            let node = soon(&runtime, "start", Node::start_on(runtime.clone(), config)).await;
            let node = node.unwrap_or_else(|error| panic!("{fault:?} at {n}: {error}"));
            let whole = format!("{fault:?} at {n}: {acknowledged:?}, starts as {}", node.own_id());
            match acknowledged.renewed {
                Some(renewed) => assert_eq!(node.own_id(), renewed, "{whole}"),
                None if acknowledged.flushed_again => assert_eq!(node.own_id(), first, "{whole}"),
                None => {}
            }
            assert_eq!(present_key(dir.path()), node.own_id(), "{whole}");
            if acknowledged.flushed || acknowledged.flushed_again {
                assert!(node.contact(friend.own_id()).await.unwrap().is_some(), "{whole}");
            }
            shutdown(&runtime, &[&node]).await;
            // So many operations such a life does not have.
            if plan.is_pending() {
                break;
            }
        }
    }
    println!("{}: {lives} lives, {torn} of them to a crash of the store", R::NAME);
    shutdown(&runtime, &[&friend]).await;
}

//! One fault of every kind at each operation of the store, over two runs of a node: the node
//! reports it and continues, and the next start finds a consistent store.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use pk_driver::{
    Access, Fault, Faults, FaultyStore, KeyStore, Node, NodeConfig, NodeError, StartError, Store,
};
use pk_proto::{Failure, NodeId, RequestOptions};
use pk_tests::Rt;
use pk_tests::node::{connect, start};
use pk_tests::wait::soon;
use smol::future::FutureExt;

use crate::kit::{Kept, key_files, present_key};

pk_tests::cases!(
    node_survives_a_fault_at_any_write,
    node_survives_a_fault_at_any_read,
    loss_of_acknowledged_rows_is_detected,
);

/// What was acknowledged to the embedder.
#[derive(Debug, Default)]
struct Acknowledged {
    /// Id of the node at its first start.
    first: Option<NodeId>,
    /// The friend was flushed.
    flushed: bool,
    renewed: Option<NodeId>,
    /// Id of the node at its last flush after the renewal.
    flushed_as: Option<NodeId>,
    /// A start was refused.
    refused: bool,
}

/// Two runs in one directory.
struct Life<'a, R> {
    runtime: &'a R,
    dir: tempfile::TempDir,
    kept: Kept,
    friend: &'a Node<R>,
    acknowledged: Acknowledged,
}

impl<R: Rt> Life<'_, R> {
    async fn start(&self, store: impl Store) -> Result<Node<R>, NodeError> {
        let mut config = NodeConfig::with_store(KeyStore::new(self.dir.path()), store)?;
        config.listen = pk_tests::socket::loopback();
        config.core.store_delay = Duration::from_millis(1);
        config.driver.sync_delay = Duration::from_millis(1);
        // These shutdowns do not have to be clean.
        config.driver.drain_timeout = Duration::ZERO;
        soon(self.runtime, "start", Node::start_on(self.runtime.clone(), config)).await
    }

    /// A start from a store with faults. It may be refused with an error of the store.
    async fn try_start(&mut self, faults: &Faults) -> Option<Node<R>> {
        match self.start(FaultyStore::new(self.kept.clone(), faults.clone())).await {
            Ok(node) => Some(node),
            Err(NodeError::Start(StartError::Store(_))) => {
                self.acknowledged.refused = true;
                None
            }
            Err(error) => panic!("{error}"),
        }
    }

    async fn flush(&self, node: &Node<R>) -> bool {
        match soon(self.runtime, "flush", node.flush()).await {
            Ok(()) => true,
            Err(error) => {
                assert!(matches!(error, NodeError::Failure(Failure::Store(_))), "{error}");
                false
            }
        }
    }

    async fn run(&mut self, faults: &Faults) {
        let Some(node) = self.try_start(faults).await else { return };
        let id = node.own_id();
        self.acknowledged.first = Some(id);
        connect(self.runtime, self.friend, &node).await;
        self.acknowledged.flushed = self.flush(&node).await;
        match soon(self.runtime, "renewal", node.renew()).await {
            Ok(renewed) => self.acknowledged.renewed = Some(renewed.new),
            Err(error) => {
                assert!(matches!(error, NodeError::Failure(Failure::Store(_))), "{error}");
                assert_eq!(node.own_id(), id);
            }
        }
        if self.flush(&node).await {
            self.acknowledged.flushed_as = Some(node.own_id());
        }
        // The node runs in spite of the faults.
        soon(self.runtime, "ping", self.friend.ping_node(id, RequestOptions::default()))
            .await
            .unwrap();
        soon(self.runtime, "shutdown", node.shutdown()).await;

        let Some(node) = self.try_start(faults).await else { return };
        if self.flush(&node).await {
            self.acknowledged.flushed_as = Some(node.own_id());
        }
        soon(self.runtime, "shutdown", node.shutdown()).await;
    }

    /// Checks the next start, from a store without faults.
    async fn check(self, what: &str) {
        let node =
            self.start(self.kept.clone()).await.unwrap_or_else(|error| panic!("{what}: {error}"));
        let Acknowledged { first, flushed, renewed, flushed_as, .. } = self.acknowledged;
        let whole = format!("{what}: {:?}, starts as {}", self.acknowledged, node.own_id());
        if let Some(id) = renewed.or(flushed_as) {
            assert_eq!(node.own_id(), id, "{whole}");
        }
        assert_eq!(present_key(self.dir.path()), node.own_id(), "{whole}");
        if flushed || flushed_as.is_some() {
            assert!(node.contact(self.friend.own_id()).await.unwrap().is_some(), "{whole}");
        }
        assert!(self.flush(&node).await, "{whole}");
        soon(self.runtime, "shutdown", node.shutdown()).await;
        // From here on the store has an owner: there is the present key with its certificates, and
        // the former one if it was renewed; no key is pending.
        drop(NodeConfig::with_store(KeyStore::new(self.dir.path()), self.kept).unwrap());
        let keys = if first.is_none_or(|first| first == node.own_id()) { 2 } else { 3 };
        assert_eq!(
            key_files(self.dir.path()).len(),
            keys,
            "{whole}: {:?}",
            key_files(self.dir.path())
        );
    }
}

/// Runs a node for each fault at each operation of a kind, until there are no more operations.
async fn run_with_each_fault<R: Rt>(runtime: &R, access: Access, faults: &[Fault]) {
    let friend = start(runtime, 2).await;
    let (mut lives, mut crashed, mut refused, mut operations) = (0, 0, 0, 0);
    for fault in faults {
        for n in 1.. {
            let plan = Faults::at(access, n, *fault);
            let (dir, kept) = (tempfile::tempdir().unwrap(), Kept::default());
            let mut life =
                Life { runtime, dir, kept, friend: &friend, acknowledged: Acknowledged::default() };
            life.run(&plan).await;
            if matches!(fault, Fault::Delay(_)) {
                let Acknowledged { flushed, renewed, flushed_as, refused, .. } = life.acknowledged;
                assert!(
                    flushed && renewed.is_some() && flushed_as == renewed && !refused,
                    "{:?}",
                    life.acknowledged
                );
            }
            lives += 1;
            crashed += u32::from(plan.crashed());
            refused += u32::from(life.acknowledged.refused);
            operations = operations.max(plan.count(access));
            life.check(&format!("{fault:?} at {access:?} {n}")).await;
            if plan.is_pending() {
                break;
            }
        }
    }
    println!(
        "{}: {lives} lives of up to {operations} operations, {crashed} to a crash, {refused} starts refused",
        R::NAME
    );
    soon(runtime, "shutdown", friend.shutdown()).await;
}

async fn node_survives_a_fault_at_any_write<R: Rt>(runtime: R) {
    let torn = (0..4).map(Fault::Tear);
    let others = [
        Fault::Fail,
        Fault::DoneButFails,
        Fault::Unsure,
        Fault::Crash,
        Fault::Delay(Duration::from_millis(50)),
    ];
    run_with_each_fault(&runtime, Access::Write, &torn.chain(others).collect::<Vec<_>>()).await;
}

async fn node_survives_a_fault_at_any_read<R: Rt>(runtime: R) {
    run_with_each_fault(
        &runtime,
        Access::Read,
        &[Fault::Fail, Fault::Crash, Fault::Delay(Duration::from_millis(5))],
    )
    .await;
}

/// If it were not detected, the other cases would show nothing.
async fn loss_of_acknowledged_rows_is_detected<R: Rt>(runtime: R) {
    let friend = start(&runtime, 2).await;
    let mut noticed = 0;
    for n in 1.. {
        let plan = Faults::at(Access::Write, n, Fault::Lose);
        let (dir, kept) = (tempfile::tempdir().unwrap(), Kept::default());
        let mut life = Life {
            runtime: &runtime,
            dir,
            kept,
            friend: &friend,
            acknowledged: Acknowledged::default(),
        };
        // Later operations may write the lost rows again.
        let lived = AssertUnwindSafe(async {
            life.run(&plan).await;
            life.check(&format!("loss of write {n}")).await;
        });
        noticed += u32::from(lived.catch_unwind().await.is_err());
        if plan.is_pending() {
            break;
        }
    }
    println!("{}: {noticed} losses were noticed", R::NAME);
    assert!(noticed > 0);
    soon(&runtime, "shutdown", friend.shutdown()).await;
}

//! One fault at each operation of the store over the whole life of a node, of every kind: the node
//! reports it and continues, and the next start is whole.

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
    a_fault_at_any_write_leaves_the_node_whole,
    a_fault_at_any_read_leaves_the_node_whole,
    a_store_that_loses_what_it_acknowledged_is_noticed,
);

/// What was acknowledged in a life.
#[derive(Debug, Default)]
struct Acknowledged {
    /// Who the node was when it first ran.
    first: Option<NodeId>,
    /// The friend was flushed.
    flushed: bool,
    renewed: Option<NodeId>,
    /// Who the node was at its last flush, after the renewal.
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
        // So many shutdowns need not be clean ones.
        config.driver.drain_timeout = Duration::ZERO;
        soon(self.runtime, "start", Node::start_on(self.runtime.clone(), config)).await
    }

    /// A start from a store in which things go wrong. It may be refused, by a word about the store.
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

    async fn live(&mut self, faults: &Faults) {
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
        // Whatever the store does, the node runs.
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

    /// The next start, from a store that works.
    async fn judge(self, what: &str) {
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
        // From here on the store says who it belongs to, whatever it said before: there is the
        // present key with its certificates, and the one before it if it was renewed; none waits.
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

/// A life for each operation of a kind and each fault, until there are no more operations.
async fn lives<R: Rt>(runtime: &R, access: Access, faults: &[Fault]) {
    let friend = start(runtime, 2).await;
    let (mut lives, mut crashed, mut refused, mut operations) = (0, 0, 0, 0);
    for fault in faults {
        for n in 1.. {
            let plan = Faults::at(access, n, *fault);
            let (dir, kept) = (tempfile::tempdir().unwrap(), Kept::default());
            let mut life =
                Life { runtime, dir, kept, friend: &friend, acknowledged: Acknowledged::default() };
            life.live(&plan).await;
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
            life.judge(&format!("{fault:?} at {access:?} {n}")).await;
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

async fn a_fault_at_any_write_leaves_the_node_whole<R: Rt>(runtime: R) {
    let torn = (0..4).map(Fault::Tear);
    let others = [
        Fault::Fail,
        Fault::DoneButFails,
        Fault::Unsure,
        Fault::Crash,
        Fault::Delay(Duration::from_millis(50)),
    ];
    lives(&runtime, Access::Write, &torn.chain(others).collect::<Vec<_>>()).await;
}

async fn a_fault_at_any_read_leaves_the_node_whole<R: Rt>(runtime: R) {
    lives(
        &runtime,
        Access::Read,
        &[Fault::Fail, Fault::Crash, Fault::Delay(Duration::from_millis(5))],
    )
    .await;
}

/// Were it not, the other cases would show nothing.
async fn a_store_that_loses_what_it_acknowledged_is_noticed<R: Rt>(runtime: R) {
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
        // What is lost may be written again by what comes after it, or not.
        let lived = AssertUnwindSafe(async {
            life.live(&plan).await;
            life.judge(&format!("loss of write {n}")).await;
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

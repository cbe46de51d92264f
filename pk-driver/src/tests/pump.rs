//! The pump: turns, timers and shutdown.

use std::net::{SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use pk_host::MemoryStore;
use pk_proto::{Config, NodeManager, Request, RequestOptions};
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::{PATIENCE, TestRuntime, host};
use crate::config::DriverConfig;
use crate::error::NodeError;
use crate::pump::command::CertificateCheck;
use crate::pump::handle::Handle;
use crate::pump::spawn::{PumpConfig, spawn_pump};

/// A pump with a core that has no timer due soon.
async fn start(seed: u8, check: Option<CertificateCheck>) -> Handle {
    let mut core = Config::default();
    core.refresh_delay = Duration::ZERO;
    core.retry_delay = Duration::ZERO;
    let config = PumpConfig {
        host: host(seed),
        core,
        listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        driver: DriverConfig::default(),
        store: Box::new(MemoryStore::new()),
        record: None,
    };
    let (handle, ready) = spawn_pump(TestRuntime, config, |_| check).unwrap();
    ready.await.unwrap();
    handle
}

fn addr(handle: &Handle) -> SocketAddr {
    handle.status.read().addrs[0]
}

async fn connect(from: &Handle, to: &Handle) {
    let address = addr(to).into();
    let target = to.status.read().own_id;
    let options = RequestOptions::default();
    let (caller, answer) = oneshot::channel();
    let connect = from.call(move |registry, cx| {
        let request = Request::Connect { target, address, options };
        let id = cx.core(|core, now| core.request(request, now)).unwrap();
        registry.wait(cx, id, caller);
    });
    connect.await.unwrap();
    timeout(PATIENCE, answer).await.unwrap().unwrap().unwrap();
}

async fn shutdown(handle: &Handle) {
    handle.call(|_, cx| cx.core(NodeManager::stop)).await.unwrap();
    timeout(PATIENCE, handle.tasks.idle()).await.expect("all tasks end");
}

#[tokio::test]
async fn idle_pump_does_not_wake() {
    let (a, b) = (start(1, None).await, start(2, None).await);
    connect(&a, &b).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let before = a.status.read().metrics.turns;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(a.status.read().metrics.turns, before, "with a live connection and nothing to do");
}

#[tokio::test]
async fn timer_fires_once_and_not_before_its_time() {
    const WAITS: [u64; 4] = [50, 1, 0, 3_600_000];
    let checks = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&checks);
    let check = move || {
        let mut noted = noted.lock().unwrap();
        noted.push(Instant::now());
        Duration::from_millis(WAITS[(noted.len() - 1).min(3)])
    };
    let handle = start(1, Some(Box::new(check))).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let checks = checks.lock().unwrap().clone();
    assert_eq!(checks.len(), 4, "one at the start, and one after each wait but the last");
    for (pair, wait) in checks.windows(2).zip(WAITS) {
        let took = pair[1] - pair[0];
        assert!(took >= Duration::from_millis(wait), "{took:?} instead of {wait} ms");
    }
    let turns = handle.status.read().metrics.turns;
    assert!(turns <= 16, "{turns} turns for a start and 3 timers");
}

#[tokio::test]
async fn shutdown_closes_connections_and_leaves_no_task_and_no_port() {
    let (a, b) = (start(1, None).await, start(2, None).await);
    connect(&a, &b).await;
    let begun = Instant::now();
    shutdown(&a).await;
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(1), "{took:?}");
    let gone = async {
        while b.status.read().metrics.transport.connections > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, gone).await.expect("the peer is informed");
    UdpSocket::bind(addr(&a)).expect("the port is free");
    assert!(matches!(a.call(|_, _| ()).await, Err(NodeError::Closed)));
}

#[tokio::test]
async fn pump_without_handles_ends_by_itself() {
    let handle = start(1, None).await;
    let tasks = handle.tasks.clone();
    drop(handle);
    timeout(PATIENCE, tasks.idle()).await.expect("all tasks end");
}

#[tokio::test]
async fn silent_peer_does_not_delay_the_shutdown() {
    let (a, b) = (start(1, None).await, start(2, None).await);
    connect(&a, &b).await;
    b.call(|_, _| std::thread::sleep(Duration::from_millis(700))).await.unwrap();
    let begun = Instant::now();
    shutdown(&a).await;
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(1), "{took:?}");
}

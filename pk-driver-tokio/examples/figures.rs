//! Measures CPU and memory costs: `cargo run --release -p pk-driver-tokio --example figures`

#![allow(clippy::unwrap_used, reason = "figures of a program that has nothing to rescue")]

use std::time::{Duration, Instant};

use pk_driver_tokio::pk_proto::RequestOptions;
use pk_driver_tokio::{KeyPair, Node, NodeConfig};

async fn start(seed: u8) -> Node {
    let mut config = NodeConfig::ephemeral(KeyPair::from_seed(&[seed; 32])).unwrap();
    config.listen = "127.0.0.1:0".parse().unwrap();
    Node::start(config).await.unwrap()
}

/// Returns the user and system time of this process so far, in milliseconds.
fn cpu() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    (fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()) * 10
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let (a, b) = (start(1).await, start(2).await);
    let (id, address) = (b.own_id(), b.local_addrs()[0]);
    a.connect(id, address.into(), RequestOptions::default()).await.unwrap();

    tokio::time::sleep(Duration::from_millis(200)).await;
    let (before, used) = (a.driver_metrics(), cpu());
    tokio::time::sleep(Duration::from_secs(12)).await;
    let after = a.driver_metrics();
    println!(
        "idle, one live connection, 12 s: {} turns, {} ms CPU",
        after.turns - before.turns,
        cpu() - used
    );

    const PINGS: u32 = 20_000;
    let (before, used, begun) = (a.driver_metrics(), cpu(), Instant::now());
    for _ in 0..PINGS {
        a.ping_node(id, RequestOptions::default()).await.unwrap();
    }
    let (took, after) = (begun.elapsed(), a.driver_metrics());
    println!(
        "pings, sequential: {:?} each, {:.1} us CPU both sides, {:.2} turns, {:.2} served",
        took / PINGS,
        (cpu() - used) as f64 * 1000.0 / f64::from(PINGS),
        (after.turns - before.turns) as f64 / f64::from(PINGS),
        (after.served - before.served) as f64 / f64::from(PINGS),
    );

    let (before, used, begun) = (a.driver_metrics(), cpu(), Instant::now());
    let tasks: Vec<_> = (0..32)
        .map(|_| {
            let a = a.clone();
            tokio::spawn(async move {
                for _ in 0..PINGS / 32 {
                    a.ping_node(id, RequestOptions::default()).await.unwrap();
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let (took, after) = (begun.elapsed(), a.driver_metrics());
    println!(
        "pings, 32 concurrent: {:?} each, {:.1} us CPU both sides, {:.2} turns",
        took / PINGS,
        (cpu() - used) as f64 * 1000.0 / f64::from(PINGS),
        (after.turns - before.turns) as f64 / f64::from(PINGS),
    );

    const CONNECTIONS: u32 = 500;
    let (used, begun) = (cpu(), Instant::now());
    for _ in 0..CONNECTIONS {
        a.disconnect(id).await.unwrap();
        while !a.connections().await.unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
        a.connect(id, address.into(), RequestOptions::default()).await.unwrap();
    }
    println!(
        "connect: {:?} each, {:.0} us CPU both sides",
        begun.elapsed() / CONNECTIONS,
        (cpu() - used) as f64 * 1000.0 / f64::from(CONNECTIONS)
    );

    let mut acceptor = b.accept_streams("bulk/1").await.unwrap();
    let reader = tokio::spawn(async move {
        let mut stream = acceptor.accept().await.unwrap();
        let mut all = 0usize;
        while let Some(chunk) = stream.read_chunk(1 << 20).await.unwrap() {
            all += chunk.len();
        }
        all
    });
    let mut stream = a.open_stream(id, "bulk/1", RequestOptions::default()).await.unwrap();
    let (used, begun) = (cpu(), Instant::now());
    let chunk = vec![7; 64 * 1024];
    for _ in 0..1024 {
        stream.write_all(&chunk).await.unwrap();
    }
    stream.finish().unwrap();
    assert_eq!(reader.await.unwrap(), 64 << 20);
    println!(
        "bulk: {:.0} MiB/s, {} ms CPU for 64 MiB",
        64.0 / begun.elapsed().as_secs_f64(),
        cpu() - used
    );

    let begun = Instant::now();
    a.shutdown().await;
    println!("shutdown: {:?}", begun.elapsed());
    b.shutdown().await;
}

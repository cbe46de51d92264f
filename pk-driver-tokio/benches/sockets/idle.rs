//! Memory and CPU of idle connections. The measured side and its peers are processes of their own.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use pk_driver_tokio::pk_proto::RequestOptions;

use crate::process::{cpu, rss};
use crate::{node, quic};

/// Peers of one process.
const PEERS: usize = 250;
/// Time over which CPU is measured.
const REST: Duration = Duration::from_secs(12);

/// Figures of one row.
pub(crate) struct Idle {
    /// Memory per connection, in KiB.
    pub(crate) kib: f64,
    /// CPU of the measured side per minute, in milliseconds.
    pub(crate) cpu_per_minute: f64,
}

/// Measures `count` connections of a new process.
pub(crate) fn measure(kind: &str, count: usize) -> Idle {
    let mut child = program(&["peers", kind, "measure", &count.to_string()]);
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    child.wait().unwrap();
    let figures: Vec<f64> = line.split_whitespace().map(|it| it.parse().unwrap()).collect();
    Idle { kib: figures[0], cpu_per_minute: figures[1] }
}

fn program(arguments: &[&str]) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Runs the measured side, or its peers.
pub(crate) async fn peers(arguments: &[String]) {
    let [kind, role, count, rest @ ..] = arguments else { panic!("{arguments:?}") };
    let count = count.parse().unwrap();
    match (kind.as_str(), role.as_str()) {
        ("nodes", "measure") => {
            let node = node::start(1).await;
            let place = [node.local_addrs()[0].to_string(), node.own_id().to_string()];
            connected(kind, count, &place).await;
            node.shutdown().await;
        }
        ("quinn", "measure") => connected(kind, count, &[quic::serve().to_string()]).await,
        ("nodes", _) => {
            let (addr, id) = (rest[0].parse().unwrap(), rest[1].parse().unwrap());
            let from: u64 = role.parse().unwrap();
            let mut nodes = Vec::new();
            for seed in from..from + count as u64 {
                let node = node::start(seed).await;
                let addr: std::net::SocketAddr = addr;
                node.connect(id, addr.into(), RequestOptions::default()).await.unwrap();
                nodes.push(node);
            }
            ready();
        }
        _ => {
            let endpoint = quic::endpoint(2, None);
            let addr = rest[0].parse().unwrap();
            let mut connections = Vec::new();
            for _ in 0..count {
                connections.push(endpoint.connect(addr, "polykey").unwrap().await.unwrap());
            }
            ready();
        }
    }
}

/// Reports that all connections exist, and waits for the end.
fn ready() {
    println!("ready");
    let _ = std::io::stdin().read_line(&mut String::new());
    std::process::exit(0);
}

/// Has peers connect, and prints the figures.
async fn connected(kind: &str, count: usize, place: &[String]) {
    let before = rss();
    let (mut peers, mut from) = (Vec::new(), 10_000);
    let mut left = count;
    while left > 0 {
        let part = left.min(PEERS);
        let numbers = [from.to_string(), part.to_string()];
        let mut arguments = vec!["peers", kind, &numbers[0], &numbers[1]];
        arguments.extend(place.iter().map(String::as_str));
        let mut child = program(&arguments);
        let output = child.stdout.take().unwrap();
        // The runtime has another thread.
        let line = tokio::task::spawn_blocking(move || {
            let mut line = String::new();
            BufReader::new(output).read_line(&mut line).map(|_| line)
        });
        assert_eq!(line.await.unwrap().unwrap(), "ready\n");
        peers.push(child);
        left -= part;
        from += part as u64;
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (kib, used) = ((rss() - before) / count as f64, cpu());
    tokio::time::sleep(REST).await;
    let used = (cpu() - used).as_secs_f64() * 1000.0 * 60.0 / REST.as_secs_f64();
    println!("{kib} {used}");
    for mut peer in peers {
        drop(peer.stdin.as_mut().map(|stdin| stdin.write_all(b"\n")));
        let _ = peer.wait();
    }
}

//! What circuits cost a relay, and what a relayed connection carries over loopback. The relay is a
//! process of its own, and the nodes around it are another one.
//!
//! Sources listen on IPv4 only and targets on IPv6 only: both reach the relay, which listens on
//! both, and not each other.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use pk_driver_tokio::pk_proto::{ContactMode, NodeId, RelayPolicy, RequestOptions};
use pk_driver_tokio::{Node, NodeConfig};

use crate::node::{bulk, start_with};
use crate::process::{cpu, rss};
use crate::{MIB, median};

/// Nodes that request circuits, each to all targets.
const SOURCES: usize = 20;
const TARGETS: usize = 10;
/// Time over which the CPU of circuits without traffic is measured: one attempt of each connection
/// to become direct.
const REST: Duration = Duration::from_secs(20);
/// Bytes of one transfer.
const TRANSFER: usize = 64 * MIB;
const ROUNDS: usize = 3;

/// A relay, as another process.
struct Relay {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    port: u16,
    id: NodeId,
}

/// What a process has used.
struct Used {
    /// Microseconds.
    cpu: f64,
    kib: f64,
}

impl Relay {
    fn start() -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .arg("relay-process")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        let words: Vec<_> = line.split_whitespace().collect();
        let (port, id) = (words[0].parse().unwrap(), words[1].parse().unwrap());
        Self { input: child.stdin.take().unwrap(), child, output, port, id }
    }

    fn used(&mut self) -> Used {
        writeln!(self.input).unwrap();
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        let figures: Vec<f64> = line.split_whitespace().map(|it| it.parse().unwrap()).collect();
        Used { cpu: figures[0], kib: figures[1] }
    }

    fn end(mut self) {
        drop(self.input);
        self.child.wait().unwrap();
    }
}

/// Runs the relay, which prints what it has used for each line of input.
pub(crate) async fn process() {
    let node = start_with(1, |config| {
        without_limits(config);
        config.listen = "[::]:0".parse().unwrap();
    })
    .await;
    println!("{} {}", node.local_addrs()[0].port(), node.own_id());
    for _ in std::io::stdin().lines() {
        println!("{} {}", cpu().as_micros(), rss());
    }
    node.shutdown().await;
}

/// All nodes are in one network here.
fn without_limits(config: &mut NodeConfig) {
    config.core.network_share = 100;
    let relay = &mut config.core.relay;
    relay.policy = RelayPolicy::All;
    relay.circuits = 1024;
    relay.paths = 1024;
    relay.rate = 1 << 34;
    relay.rate_per_node = 1 << 34;
    relay.volume = 1 << 50;
    // Each circuit takes half of what is left; the tenth one carries 4 GiB.
    relay.volume_per_node = 1 << 42;
    relay.delay = Duration::from_millis(1);
}

/// Starts nodes that listen on this loopback address, connected with the relay.
async fn around(relay: &Relay, host: &str, seeds: std::ops::Range<u64>) -> Vec<Node> {
    let mut nodes = Vec::new();
    for seed in seeds {
        let node = start_with(seed, |config| {
            without_limits(config);
            config.listen = format!("{host}:0").parse().unwrap();
        })
        .await;
        let place = format!("{host}:{}", relay.port).parse().unwrap();
        node.connect(relay.id, place, RequestOptions::default()).await.unwrap();
        nodes.push(node);
    }
    nodes
}

/// Connects every source with every target. Returns the number of circuits.
async fn connect_all(relay: NodeId, sources: &[Node], targets: &[Node]) -> usize {
    let targets: Vec<_> = targets.iter().map(Node::own_id).collect();
    let tasks: Vec<_> = { sources.iter().cloned() }
        .map(|source| {
            let targets = targets.clone();
            tokio::spawn(async move {
                for target in &targets {
                    let options = RequestOptions::default();
                    let info = source.connect_through(*target, relay, options).await.unwrap();
                    assert_eq!(info.data.mode, ContactMode::Relay);
                }
                targets.len()
            })
        })
        .collect();
    let mut circuits = 0;
    for task in tasks {
        circuits += task.await.unwrap();
    }
    circuits
}

/// Returns what the relay uses while nothing is sent, per minute.
async fn rest(relay: &mut Relay) -> Used {
    tokio::time::sleep(Duration::from_secs(2)).await;
    let before = relay.used();
    tokio::time::sleep(REST).await;
    let after = relay.used();
    Used { cpu: (after.cpu - before.cpu) * 60.0 / REST.as_secs_f64(), kib: after.kib }
}

/// Figures of transfers, medians of all rounds.
struct Carried {
    mib_per_second: f64,
    /// CPU in microseconds per MiB, of the relay and of both ends.
    relay: f64,
    ends: f64,
}

/// Sends a transfer over each pair at once, in rounds.
async fn carry(relay: &mut Relay, pairs: &[(Node, Node)]) -> Carried {
    let (mut speeds, mut relays, mut ends) = (Vec::new(), Vec::new(), Vec::new());
    let mib = (TRANSFER * pairs.len() / MIB) as f64;
    // The first round warms up.
    for round in 0..=ROUNDS {
        let (begun, before, own) = (Instant::now(), relay.used(), cpu());
        let tasks: Vec<_> = { pairs.iter().cloned() }
            .map(|(from, to)| tokio::spawn(async move { bulk(&from, &to, TRANSFER).await }))
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        if round > 0 {
            speeds.push(mib / begun.elapsed().as_secs_f64());
            relays.push((relay.used().cpu - before.cpu) / mib);
            ends.push((cpu() - own).as_secs_f64() * 1e6 / mib);
        }
    }
    let [mib_per_second, relay, ends] = [speeds, relays, ends].map(|figures| median(figures).0);
    Carried { mib_per_second, relay, ends }
}

/// Measures, and prints two tables.
pub(crate) async fn measure() {
    let mut relay = Relay::start();
    let sources = around(&relay, "127.0.0.1", 10..10 + SOURCES as u64).await;
    let targets = around(&relay, "[::1]", 100..100 + TARGETS as u64).await;
    let without = rest(&mut relay).await;
    let circuits = connect_all(relay.id, &sources, &targets).await;
    let idle = rest(&mut relay).await;
    println!(
        "\n| circuits without traffic | relay: KiB each | relay: CPU ms a minute, each |\n|---|---|---|"
    );
    println!(
        "| {circuits} | {:.1} | {:.2} |",
        (idle.kib - without.kib) / circuits as f64,
        (idle.cpu - without.cpu) / 1000.0 / circuits as f64
    );
    println!(
        "\n| streams of 64 MiB over loopback | MiB/s | CPU of both ends, us per MiB | CPU of the relay, us per MiB |\n|---|---|---|---|"
    );
    // The two sources are connected directly.
    let (from, near, far) = (&sources[0], &sources[1], &targets[0]);
    let place = near.local_addrs()[0].into();
    from.connect(near.own_id(), place, RequestOptions::default()).await.unwrap();
    let pair = |to: &Node| (from.clone(), to.clone());
    let many: Vec<_> =
        { sources.iter().zip(&targets) }.map(|(from, to)| (from.clone(), to.clone())).collect();
    for (name, pairs) in [
        ("direct", vec![pair(near)]),
        ("relayed", vec![pair(far)]),
        ("relayed, ten circuits at once", many),
    ] {
        let Carried { mib_per_second, relay, ends } = carry(&mut relay, &pairs).await;
        println!("| {name} | {mib_per_second:.0} | {ends:.0} | {relay:.0} |");
    }
    for node in sources.into_iter().chain(targets) {
        node.shutdown().await;
    }
    relay.end();
}

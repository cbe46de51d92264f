//! A node in a process of its own, for the end-to-end tests, which kill it and measure its memory.
//!
//! `pk-test-node tokio|smol node [name=value]...` runs a node. Its settings are named in [`set`].
//! First line: `{"id":…,"addr":…}`. Then one line for each line of the standard input: `metrics`,
//! `reset` (the peak of memory), `join pk://…`, `connect pk://…`, `quit`. It ends with its standard
//! input.
//!
//! `pk-test-node tokio|smol leaks DIR` runs nodes, one of them in a directory, from start to stop
//! and prints what the process holds before and after.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test that cannot continue has failed"
)]

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, Write, stdin, stdout};
use std::path::Path;
use std::time::Duration;

use peak_alloc::PeakAlloc;
use pk_driver::{MdnsInterfaces, MemoryStore, Node, NodeConfig, Record, Store, StoreError};
use pk_proto::{RequestOptions, SeedNode, StoreOp, StoreRange, StoreRow, WriteFailure};
use pk_tests::case::Rt;
use pk_tests::node::{self, address, connect, join, options, seed, start_with};
use pk_tests::socket::{BlackHole, private_port};
use pk_tests::wait::{sleep, soon, spawn, until};
use pk_tests::watched::Watched;
use pk_tests::{Smol, Tokio};
use serde_json::{Value, json};

#[global_allocator]
static ALLOCATED: PeakAlloc = PeakAlloc;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["tokio", rest @ ..] => run::<Tokio>(rest),
        ["smol", rest @ ..] => run::<Smol>(rest),
        other => panic!("no such runtime: {other:?}"),
    }
}

fn run<R: Rt>(arguments: &[&str]) {
    match arguments {
        ["leaks", dir] => print_line(&R::block_on(leaks(R::default(), Path::new(dir)))),
        ["node", settings @ ..] => R::block_on(serve(R::default(), settings)),
        other => panic!("no such command: {other:?}"),
    }
}

fn print_line(value: &Value) {
    println!("{value}");
    stdout().flush().expect("stdout is open");
}

// -- a node

async fn serve<R: Rt>(runtime: R, settings: &[&str]) {
    let mut config = node::config(1);
    for setting in settings {
        let (name, value) =
            setting.split_once('=').unwrap_or_else(|| panic!("{setting:?} is not name=value"));
        set(
            &mut config,
            name,
            value.parse().unwrap_or_else(|_| panic!("{value:?} is not a number")),
        );
    }
    let node = Node::start_on(runtime.clone(), config).await.expect("the node starts");
    print_line(&json!({ "id": node.own_id().to_string(), "addr": address(&node).to_string() }));
    let (sender, lines) = smol::channel::unbounded();
    std::thread::spawn(move || {
        stdin().lock().lines().map_while(Result::ok).try_for_each(|line| sender.try_send(line))
    });
    while let Ok(line) = lines.recv().await {
        let answer = match line.split_once(' ').unwrap_or((&line, "")) {
            ("metrics", _) => metrics(&node).await,
            ("reset", _) => {
                ALLOCATED.reset_peak_usage();
                json!({})
            }
            ("join", seed) => match seed.parse::<SeedNode>() {
                Ok(seed) => {
                    match node.sync_node_graph(vec![seed], true, RequestOptions::default()).await {
                        Ok(_) => json!({}),
                        Err(error) => json!({ "error": error.to_string() }),
                    }
                }
                Err(error) => json!({ "error": error.to_string() }),
            },
            ("connect", seed) => match seed.parse::<SeedNode>() {
                Ok(SeedNode { node: id, address }) => {
                    match node.connect(id, address, RequestOptions::default()).await {
                        Ok(_) => json!({}),
                        Err(error) => json!({ "error": error.to_string() }),
                    }
                }
                Err(error) => json!({ "error": error.to_string() }),
            },
            ("echo", protocol) => {
                node::echo(&runtime, &node, protocol).await;
                json!({})
            }
            ("quit", _) => break,
            other => json!({ "error": format!("no such command: {other:?}") }),
        };
        print_line(&answer);
    }
    node.shutdown().await;
}

/// Durations are in milliseconds.
fn set(config: &mut NodeConfig, name: &str, value: u64) {
    let time = Duration::from_millis(value);
    let count = usize::try_from(value).expect("it is a count");
    let bytes = u32::try_from(value).unwrap_or(u32::MAX);
    match name {
        "key" => {
            let NodeConfig { key, identity, .. } =
                node::config(u8::try_from(value).expect("it is the byte of a seed"));
            (config.key, config.identity) = (key, identity);
        }
        "port" => config.listen.set_port(u16::try_from(value).expect("it is a port")),
        "hello_timeout" => config.core.hello_timeout = time,
        "call_timeout" => config.core.call_timeout = time,
        "connection_limit" => config.core.connection_limit = count,
        "idle_timeout" => config.driver.transport.idle_timeout = time,
        "keep_alive" => config.driver.transport.keep_alive = time,
        "handshake_timeout" => config.driver.transport.handshake_timeout = time,
        "handshake_limit" => config.driver.transport.handshake_limit = count,
        "handshake_network_limit" => config.driver.transport.handshake_network_limit = count,
        "stream_window" => config.driver.transport.stream_window = bytes,
        "receive_window" => config.driver.transport.receive_window = bytes,
        "send_window" => config.driver.transport.send_window = bytes,
        other => panic!("no such setting: {other}"),
    }
}

async fn metrics<R: Rt>(node: &Node<R>) -> Value {
    let core = node.metrics().await.expect("the node runs");
    let core: BTreeMap<_, _> = core.iter().collect();
    let driver = node.driver_metrics();
    let driver: BTreeMap<_, _> = driver.iter().collect();
    json!({
        "core": core,
        "driver": driver,
        "bytes": ALLOCATED.current_usage(),
        "peak": ALLOCATED.peak_usage(),
    })
}

// -- leaks

/// Runs every activity of a node, and prints the resources that remain.
async fn leaks<R: Rt>(plain: R, dir: &Path) -> Value {
    // The runtime's own descriptors and threads are made when they are first needed.
    sleep(&plain, Duration::from_millis(1)).await;
    spawn(&plain, async {}).join(&plain, "a task").await;
    drop(plain.quinn().wrap_udp_socket(
        std::net::UdpSocket::bind(pk_tests::socket::loopback()).expect("a free port"),
    ));
    // Threads get their names when they first run.
    until(&plain, "names", async || {
        threads().iter().filter(|name| *name == "pk-test-node").count() == 1
    })
    .await;
    let before = (descriptors(), threads());

    let runtime = Watched::new(plain.clone());
    let (port, standard_port) = (private_port(), private_port());
    let local = |config: &mut NodeConfig| {
        config.core.mdns = true;
        config.driver.mdns.port = port;
        config.driver.mdns.standard_port = Some(standard_port);
        config.driver.mdns.interfaces = MdnsInterfaces::Loopback;
    };
    let a = start_with(&runtime, 1, |config| config.store = Box::new(Blocking(MemoryStore::new())))
        .await;
    let b = start_with(&runtime, 2, local).await;
    let c = {
        let mut config = NodeConfig::open(dir).expect("a new directory");
        config.listen = pk_tests::socket::loopback();
        config.record = Some(Record::file(dir.join("record")));
        local(&mut config);
        soon(&runtime, "start", Node::start_on(runtime.clone(), config))
            .await
            .expect("the node starts")
    };
    // A node that watches the addresses of the machine.
    let d = start_with(&runtime, 4, |config| {
        config.listen = (std::net::Ipv4Addr::UNSPECIFIED, 0).into();
    })
    .await;
    join(&runtime, &b, seed(&a)).await;
    join(&runtime, &c, seed(&a)).await;
    connect(&runtime, &b, &c).await;
    let asked = soon(&runtime, "mDNS", b.query_mdns(c.own_id(), Some(Duration::from_secs(2))))
        .await
        .expect("it may ask");
    assert_eq!(asked, [address(&c)], "the local network is at work");
    soon(&runtime, "renewal", c.renew()).await.expect("it is renewed");
    soon(&runtime, "flush", c.flush()).await.expect("it is written");
    let mut acceptor = a.accept_streams("leak/1").await.expect("the protocol is free");
    let mut ours =
        soon(&runtime, "stream", b.open_stream(a.own_id(), "leak/1", RequestOptions::default()))
            .await
            .expect("open");
    let theirs = soon(&runtime, "accept", acceptor.accept()).await.expect("the node runs");
    ours.write_all(b"still in progress").await.expect("the stream is open");
    let lease =
        soon(&runtime, "lease", c.acquire_connection(a.own_id(), RequestOptions::default()))
            .await
            .expect("found");
    // A dial that is in progress to the end.
    let hole = BlackHole::open();
    let absent = node::key(9).node_id();
    let dialing = {
        let (b, address) = (b.clone(), hole.address());
        let options = options(Duration::from_secs(60), Duration::from_secs(60));
        spawn(&plain, async move { b.connect(absent, address, options).await.is_err() })
    };
    until(&runtime, "a dial in progress", async || b.driver_metrics().transport.dials_pending == 1)
        .await;
    let busy = (descriptors().len(), runtime.seen().tasks);

    soon(&runtime, "shutdown of a", a.shutdown()).await;
    soon(&runtime, "shutdown of b", b.shutdown()).await;
    soon(&runtime, "shutdown of c", c.shutdown()).await;
    soon(&runtime, "shutdown of d", d.shutdown()).await;
    assert!(dialing.join(&plain, "the end of a dial").await);
    // The last tasks are being dropped by the runtime's own threads.
    until(&runtime, "the end of all tasks", async || runtime.seen().tasks == 0).await;
    until(&plain, "the end of all tasks", async || R::live_tasks().unwrap_or_default() == 0).await;
    drop((lease, acceptor, hole));
    let seen = runtime.seen();
    // A thread ends after some time. One that does not is reported.
    let mut looks = 0;
    while looks < 1000 && threads() != before.1 {
        looks += 1;
        sleep(&runtime, Duration::from_millis(10)).await;
    }
    // Stream handles do not keep resources open.
    let held = (ours, theirs);
    let report = json!({
        "before": { "descriptors": before.0, "threads": before.1 },
        "busy": { "descriptors": busy.0, "tasks": busy.1 },
        "after": {
            "descriptors": descriptors(),
            "threads": threads(),
            "tasks": seen.tasks,
            "driver_tasks": a.driver_metrics().tasks + b.driver_metrics().tasks + c.driver_metrics().tasks,
            "runtime_tasks": R::live_tasks(),
            "timers": seen.timers,
            "sockets": seen.sockets,
            "saw_tokio": seen.saw_tokio,
        },
    });
    drop(held);
    report
}

/// The targets of the open file descriptors of this process, sorted, without the numbers of sockets
/// and pipes: equal lists have equally many of each kind.
fn descriptors() -> Vec<String> {
    let entries = fs::read_dir("/proc/self/fd").expect("this is Linux").flatten();
    let mut targets: Vec<_> = entries
        .filter_map(|entry| fs::read_link(entry.path()).ok())
        .map(|target| target.to_string_lossy().into_owned())
        // The listing itself.
        .filter(|target| !target.starts_with("/proc/"))
        .map(|target| target.split_once(":[").map_or(target.clone(), |(kind, _)| kind.to_owned()))
        .collect();
    targets.sort();
    targets
}

/// The names of the threads of this process, sorted.
fn threads() -> Vec<String> {
    let entries = fs::read_dir("/proc/self/task").expect("this is Linux").flatten();
    let mut names: Vec<_> = entries
        .filter_map(|entry| fs::read_to_string(entry.path().join("comm")).ok())
        .map(|name| name.trim().to_owned())
        .collect();
    names.sort();
    names
}

/// A store that has a thread of its own.
struct Blocking(MemoryStore);

impl Store for Blocking {
    fn apply(&mut self, ops: &[StoreOp], durable: bool) -> Result<(), WriteFailure> {
        self.0.apply(ops, durable)
    }

    fn range(
        &mut self,
        range: &StoreRange,
        max_bytes: u64,
    ) -> Result<(Vec<StoreRow>, bool), StoreError> {
        self.0.range(range, max_bytes)
    }
}

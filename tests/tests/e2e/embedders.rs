//! The examples that embed a node without an async runtime, beside a node on one: they find each
//! other and exchange 10 MB in each direction.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::thread;

use pk_driver::{Node, Stream};
use pk_proto::{FindEnd, FindNodeOptions, RequestOptions, SeedNode};
use pk_tests::Rt;
use pk_tests::node::{join, shutdown, start};
use pk_tests::wait::{SOON, soon, spawn, within};
use smol::channel;

pk_tests::cases!(
    two_blocking_nodes_and_an_async_one_exchange_ten_megabytes,
    blocking_node_an_event_loop_and_an_async_one_exchange_ten_megabytes,
);

const BLOCKING_NODE: &str = env!("CARGO_BIN_EXE_pk-test-blocking-node");
const EVENT_LOOP: &str = env!("CARGO_BIN_EXE_pk-test-event-loop");
const BYTES: usize = 10_000_000;
const COUNT: &str = "10000000";

/// An example in its own process. Dropping it kills it.
struct Example {
    process: Child,
    stdin: Option<ChildStdin>,
    lines: channel::Receiver<String>,
    /// The node, from its output.
    seed: SeedNode,
}

impl Example {
    /// Starts the node of a directory and waits until it is ready.
    async fn start<R: Rt>(runtime: &R, exe: &str, dir: &Path, arguments: &[&str]) -> Self {
        let mut process = Command::new(exe)
            .arg(dir)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdin = process.stdin.take();
        let stdout = process.stdout.take().unwrap();
        let (sender, lines) = channel::unbounded();
        thread::spawn(move || {
            BufReader::new(stdout)
                .lines()
                .map_while(Result::ok)
                .try_for_each(|line| sender.try_send(line))
        });
        let name = within(runtime, SOON, "the start of an example", lines.recv()).await.unwrap();
        let seed = name.parse().unwrap();
        Self { process, stdin, lines, seed }
    }

    /// Where it listens.
    fn listen(&self) -> String {
        self.seed.address.to_string()
    }

    async fn line<R: Rt>(&self, runtime: &R, what: &str) -> String {
        within(runtime, SOON * 2, what, self.lines.recv()).await.unwrap()
    }

    /// Closes its input, and fails if it does not exit with success.
    async fn stop<R: Rt>(mut self, runtime: &R) {
        self.stdin = None;
        let end = within(runtime, SOON, "the end of an example", self.lines.recv()).await;
        assert!(end.is_err(), "{end:?}");
        assert!(self.process.wait().unwrap().success());
    }
}

impl Drop for Example {
    fn drop(&mut self) {
        // Fails if it has ended.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Answers each stream with the number of its bytes, as the examples do.
async fn serve<R: Rt>(runtime: &R, node: &Node<R>) {
    let mut acceptor = node.accept_streams("count/1").await.unwrap();
    drop(spawn(runtime, async move {
        while let Some(mut stream) = acceptor.accept().await {
            let mut count = 0;
            while let Ok(Some(chunk)) = stream.read_chunk(64 * 1024).await {
                count += chunk.len();
            }
            stream.write_all(count.to_string().as_bytes()).await.unwrap();
            stream.finish_and_wait().await.unwrap();
        }
    }));
}

/// Finds a node by its id alone and sends it the bytes.
async fn send<R: Rt>(runtime: &R, node: &Node<R>, to: &SeedNode) {
    let found = soon(runtime, "find", node.find_node(to.node, FindNodeOptions::default())).await;
    assert_eq!(found.unwrap().ended, FindEnd::Connected);
    let open = node.open_stream(to.node, "count/1", RequestOptions::default());
    let mut stream: Stream = soon(runtime, "a stream", open).await.unwrap();
    let exchange = async {
        stream.write_all(&vec![7; BYTES]).await.unwrap();
        stream.finish().unwrap();
        stream.read_to_end(64).await.unwrap()
    };
    assert_eq!(within(runtime, SOON * 2, "the answer", exchange).await, COUNT.as_bytes());
}

async fn exchange<R: Rt>(runtime: R, second_exe: &str) {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let any = "127.0.0.1:0";
    let first = Example::start(&runtime, BLOCKING_NODE, dirs[0].path(), &[any]).await;
    // The second joins through the first and sends to it.
    let name = first.seed.to_string();
    let sends = [any, name.as_str(), COUNT];
    let second = Example::start(&runtime, second_exe, dirs[1].path(), &sends).await;
    assert_eq!(second.line(&runtime, "the answer").await, COUNT);
    let (listen, seed) = (second.listen(), second.seed.clone());
    second.stop(&runtime).await;
    let second = Example::start(&runtime, second_exe, dirs[1].path(), &[&listen]).await;
    assert_eq!(second.seed, seed, "it is the same node again");
    // The async node has a contact for the first, and finds the second through it.
    let node = start(&runtime, 1).await;
    join(&runtime, &node, first.seed.clone()).await;
    send(&runtime, &node, &first.seed).await;
    send(&runtime, &node, &second.seed).await;
    // Both send to the async node.
    serve(&runtime, &node).await;
    let own = SeedNode { node: node.own_id(), address: pk_tests::node::address(&node) }.to_string();
    for (example, exe, dir) in [(first, BLOCKING_NODE, &dirs[0]), (second, second_exe, &dirs[1])] {
        let listen = example.listen();
        let seed = example.seed.clone();
        example.stop(&runtime).await;
        let again = Example::start(&runtime, exe, dir.path(), &[&listen, &own, COUNT]).await;
        assert_eq!(again.seed, seed);
        assert_eq!(again.line(&runtime, "the answer").await, COUNT);
        again.stop(&runtime).await;
    }
    shutdown(&runtime, &[&node]).await;
}

async fn two_blocking_nodes_and_an_async_one_exchange_ten_megabytes<R: Rt>(runtime: R) {
    exchange(runtime, BLOCKING_NODE).await;
}

async fn blocking_node_an_event_loop_and_an_async_one_exchange_ten_megabytes<R: Rt>(runtime: R) {
    exchange(runtime, EVENT_LOOP).await;
}

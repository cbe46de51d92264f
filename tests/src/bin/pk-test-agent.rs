//! A node in a directory and in its own process, for the end-to-end tests, which kill it while it
//! writes.
//!
//! `pk-test-agent tokio|smol DIR` runs the node of a directory. First line: `{"id":…,"addr":…}`.
//! Then one line for each line of the standard input: `flush` (with the nodes that were in the
//! graph before it), `renew`, `quit`. It ends with its standard input.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test that cannot continue has failed"
)]

use std::io::{BufRead, Write, stdin, stdout};
use std::time::Duration;

use pk_driver::{Node, NodeConfig};
use pk_tests::case::Rt;
use pk_tests::node::address;
use pk_tests::socket::loopback;
use pk_tests::{Smol, Tokio};
use serde_json::{Value, json};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["tokio", dir] => Tokio::block_on(serve(Tokio, dir)),
        ["smol", dir] => Smol::block_on(serve(Smol, dir)),
        other => panic!("not a runtime and a directory: {other:?}"),
    }
}

async fn serve<R: Rt>(runtime: R, dir: &str) {
    let mut config = NodeConfig::open(dir).expect("the directory is whole");
    config.listen = loopback();
    // The node writes continuously, and makes its writes durable in between.
    config.core.store_delay = Duration::from_millis(2);
    config.driver.sync_delay = Duration::from_millis(5);
    let node = Node::start_on(runtime, config).await.expect("the node starts");
    print_line(&json!({ "id": node.own_id().to_string(), "addr": address(&node).to_string() }));
    let (sender, lines) = smol::channel::unbounded();
    std::thread::spawn(move || {
        stdin().lock().lines().map_while(Result::ok).try_for_each(|line| sender.try_send(line))
    });
    while let Ok(line) = lines.recv().await {
        print_line(&match line.as_str() {
            "flush" => flush(&node).await,
            "renew" => match node.renew().await {
                Ok(renewed) => json!({ "renewed": renewed.new.to_string() }),
                Err(error) => json!({ "error": error.to_string() }),
            },
            "quit" => break,
            other => json!({ "error": format!("no such command: {other:?}") }),
        });
    }
    node.shutdown().await;
}

async fn flush<R: Rt>(node: &Node<R>) -> Value {
    let nodes = node.closest_nodes(node.own_id(), usize::MAX).await.expect("the node runs");
    let nodes: Vec<String> = nodes.iter().map(|(node, _)| node.to_string()).collect();
    match node.flush().await {
        Ok(()) => json!({ "flushed": nodes }),
        Err(error) => json!({ "error": error.to_string() }),
    }
}

fn print_line(value: &Value) {
    println!("{value}");
    stdout().flush().expect("stdout is open");
}

//! Two nodes that use a protocol of the application. The first waits for the second. Start the
//! second with the address that the first prints.
//!
//! ```sh
//! cargo run --example hello -- /tmp/alice
//! cargo run --example hello -- /tmp/bob pk://ID@127.0.0.1:PORT
//! ```

use pk_driver_tokio::pk_proto::{RequestOptions, SeedNode};
use pk_driver_tokio::{Node, NodeConfig, Stream};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

#[tokio::main]
async fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let dir = args.next().ok_or("usage: hello DIR [pk://ID@HOST:PORT]")?;
    // The directory contains the key, the certificates and the node graph. If it is empty, a new
    // node is created in it.
    let node = Node::start(NodeConfig::open(dir)?).await?;
    match args.next() {
        None => serve(&node).await?,
        Some(peer) => ask(&node, peer.parse()?).await?,
    }
    node.shutdown().await;
    Ok(())
}

/// The acceptor: answers streams until the node is shut down.
async fn serve(node: &Node) -> Result<()> {
    let mut streams = node.accept_streams("hello/1").await?;
    for addr in node.local_addrs() {
        println!("pk://{}@127.0.0.1:{}", node.own_id(), addr.port());
    }
    while let Some(stream) = streams.accept().await {
        let peer = stream.node(); // proven by its certificate
        if let Err(error) = answer(stream).await {
            eprintln!("{peer}: {error}");
        }
    }
    Ok(())
}

async fn answer(mut stream: Stream) -> Result<()> {
    let name = stream.read_to_end(1024).await?; // fails above 1024 bytes
    stream.write_all(b"hello, ").await?;
    stream.write_all(&name).await?;
    stream.finish_and_wait().await?; // waits until the peer has received everything
    Ok(())
}

/// The dialer: sends a name and prints the answer.
async fn ask(node: &Node, peer: SeedNode) -> Result<()> {
    let id = peer.node;
    // Joins the network. A node does this once.
    node.sync_node_graph(vec![peer], true, RequestOptions::default()).await?;
    // Searches for the node if there is no connection to it.
    let mut stream = node.open_stream(id, "hello/1", RequestOptions::default()).await?;
    stream.write_all(b"world").await?;
    stream.finish()?; // without this, dropping the stream aborts the data in flight
    let answer = stream.read_to_end(1024).await?;
    println!("{}", String::from_utf8_lossy(&answer));
    Ok(())
}

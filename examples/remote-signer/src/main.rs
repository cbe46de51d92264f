//! A node whose root key is in another process: see README.md.

mod protocol;
mod remote;
mod signer;

use std::net::SocketAddr;
use std::path::Path;

use pk_driver_tokio::pk_proto::NodeId;
use pk_driver_tokio::pk_proto::cert::Certificate;
use pk_driver_tokio::{KeyStore, Node, NodeConfig, RootKey};
use tokio::io::AsyncReadExt as _;

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args.as_slice() {
        ["sign", dir] => signer::serve(Path::new(dir)),
        ["run", dir, listen, command @ ..] if !command.is_empty() => {
            run(Path::new(dir), listen.parse()?, command)
        }
        _ => Err("usage: remote-signer sign KEYDIR | run DIR LISTEN COMMAND [ARG]...".into()),
    }
}

/// Runs a node until stdin ends.
#[tokio::main]
async fn run(dir: &Path, listen: SocketAddr, command: &[&str]) -> Result<(), Failure> {
    let command: Vec<String> = command.iter().map(ToString::to_string).collect();
    // A node that has certificates knows the id of its root key from them, so that it can start
    // without the signer.
    let root =
        match KeyStore::new(dir).load_identity()?.and_then(|known| known.chain.last().cloned()) {
            Some(certificate) => Certificate::parse(&certificate)?.node_id(),
            None => remote::ask_id(&command)?,
        };
    let signer = remote::RemoteSigner::new(root, command)?;
    let mut config = NodeConfig::open_with_signer(dir, RootKey::new(signer))?;
    config.listen = listen;
    let node = Node::start(config).await?;
    for addr in node.local_addrs() {
        println!("pk://{}@{addr}", node.own_id());
    }
    for id in chain(&node)? {
        println!("{id}");
    }
    tokio::io::stdin().read_to_end(&mut Vec::new()).await?;
    node.shutdown().await;
    Ok(())
}

/// Returns the ids of the certificate chain: first that of the hot key, last that of the root key.
fn chain(node: &Node) -> Result<Vec<NodeId>, Failure> {
    let id = |der| Ok(Certificate::parse(der)?.node_id());
    node.identity().chain.iter().map(|der| id(der)).collect()
}

//! The application protocol `echo/1`, which sends back all received bytes.

use futures_util::future::join;
use futures_util::io::{AsyncReadExt, AsyncWriteExt};
use futures_util::{StreamExt, stream};
use pk_driver::{Node, Runtime, Stream, StreamAcceptor, StreamError};

use crate::error::{CliError, Result};

/// Name of the protocol.
pub(crate) const PROTOCOL: &str = "echo/1";

/// Streams that are echoed concurrently; further ones wait.
const CONCURRENCY: usize = 64;
const CHUNK: usize = 16 * 1024;

/// Makes a node accept the protocol.
pub(crate) async fn accept<R: Runtime>(node: &Node<R>) -> Result<StreamAcceptor> {
    Ok(node.accept_streams(PROTOCOL).await?)
}

/// Echoes every stream, until the node has shut down.
pub(crate) async fn serve(acceptor: StreamAcceptor) {
    stream::unfold(acceptor, async |mut acceptor| {
        acceptor.accept().await.map(|stream| (stream, acceptor))
    })
    .for_each_concurrent(CONCURRENCY, async |stream| {
        let peer = stream.node();
        if let Err(error) = echo(stream).await {
            tracing::debug!(%peer, %error, "echo ended");
        }
    })
    .await;
}

async fn echo(mut stream: Stream) -> std::result::Result<(), StreamError> {
    while let Some(chunk) = stream.read_chunk(CHUNK).await? {
        stream.write_all(&chunk).await?;
    }
    stream.finish_and_wait().await
}

/// Sends bytes and reads the echo concurrently, so that neither side buffers more than its windows.
///
/// # Errors
///
/// The stream fails, or more bytes are received than were sent.
pub(crate) async fn call(stream: Stream, sent: &[u8]) -> Result<Vec<u8>> {
    let (read, mut write) = stream.split();
    let send = async {
        write.write_all(sent).await?;
        write.close().await
    };
    let mut received = Vec::with_capacity(sent.len());
    let mut limited = read.take(sent.len() as u64 + 1);
    let (sending, receiving) = join(send, limited.read_to_end(&mut received)).await;
    let failed = |error: std::io::Error| CliError::new("StreamError", error.to_string());
    sending.map_err(failed)?;
    receiving.map_err(failed)?;
    if received.len() > sent.len() {
        return Err(CliError::new("Echo", "the echo is longer than the data sent"));
    }
    Ok(received)
}

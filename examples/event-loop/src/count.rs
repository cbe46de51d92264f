//! The application: it answers each stream with the number of its bytes, or sends bytes to a peer
//! and prints the answer.

use std::collections::BTreeMap;

use pk_proto::{
    Event, FindNodeOptions, Instant, Reply, Request, RequestOptions, SeedNode, StreamId,
};
use pk_quic::{Node, Opened, Poll, Read, StreamError};

type Failure = Box<dyn std::error::Error>;

pub(crate) const PROTOCOL: &str = "count/1";
/// Maximum length of one read or write, in bytes.
const CHUNK: usize = 65_536;

#[derive(Default)]
pub(crate) struct Count {
    /// Peer to send to, and the number of bytes.
    peer: Option<(SeedNode, usize)>,
    /// Bytes received on each stream of a peer that has not ended.
    received: BTreeMap<StreamId, usize>,
    /// Bytes to send on each local stream.
    unsent: BTreeMap<StreamId, usize>,
}

impl Count {
    pub(crate) fn sends(peer: SeedNode, bytes: usize) -> Self {
        Self { peer: Some((peer, bytes)), ..Self::default() }
    }

    pub(crate) fn handle(
        &mut self,
        node: &mut Node,
        now: Instant,
        poll: Poll,
    ) -> Result<(), Failure> {
        match poll {
            Poll::Event(Event::Ready { addrs }) => {
                addrs.iter().for_each(|at| println!("pk://{}@{at}", node.manager().own_id()));
                if let Some((peer, _)) = &self.peer {
                    let (seeds, blocking) = (vec![peer.clone()], true);
                    let options = RequestOptions::default();
                    node.request(now, Request::SyncNodeGraph { seeds, blocking, options })?;
                }
            }
            Poll::Event(Event::Done { result, .. }) => self.continue_with(node, now, &result?)?,
            Poll::Opened(Opened { stream, .. }) if stream.is_ours() => {
                let bytes = self.peer.as_ref().map_or(0, |(_, bytes)| *bytes);
                self.unsent.insert(stream, bytes);
                self.write(node, now, stream)?;
            }
            Poll::Writable(stream) => self.write(node, now, stream)?,
            Poll::Opened(Opened { stream, .. }) => {
                self.received.insert(stream, 0);
                self.read(node, now, stream)?;
            }
            Poll::Readable(stream) => self.read(node, now, stream)?,
            _ => {}
        }
        Ok(())
    }

    /// Starts the request that follows the one with this reply: join, find, open a stream.
    fn continue_with(
        &mut self,
        node: &mut Node,
        now: Instant,
        reply: &Reply,
    ) -> Result<(), Failure> {
        let Some((peer, _)) = &self.peer else { return Ok(()) };
        let target = peer.node;
        let next = match reply {
            Reply::SyncNodeGraph(_) => {
                Request::FindNode { target, find: FindNodeOptions::default() }
            }
            Reply::FindNode(_) => Request::OpenStream {
                target,
                protocol: PROTOCOL.into(),
                options: RequestOptions::default(),
            },
            _ => return Ok(()),
        };
        node.request(now, next)?;
        Ok(())
    }

    fn write(&mut self, node: &mut Node, now: Instant, stream: StreamId) -> Result<(), Failure> {
        let Some(left) = self.unsent.get_mut(&stream) else { return Ok(()) };
        while *left > 0 {
            match node.write(now, stream, &vec![7; CHUNK.min(*left)])? {
                0 => return Ok(()),
                written => *left -= written,
            }
        }
        self.unsent.remove(&stream);
        node.finish(now, stream);
        Ok(())
    }

    fn read(&mut self, node: &mut Node, now: Instant, stream: StreamId) -> Result<(), Failure> {
        loop {
            match (node.read(now, stream, CHUNK), stream.is_ours()) {
                (Ok(Read::Blocked), _) => return Ok(()),
                (Ok(Read::Bytes(bytes)), true) => println!("{}", String::from_utf8_lossy(&bytes)),
                (Ok(Read::Bytes(bytes)), false) => {
                    *self.received.entry(stream).or_default() += bytes.len();
                }
                // A stream is forgotten when both directions have ended and everything was read.
                (Ok(Read::End) | Err(StreamError::Ended), true) => {
                    node.stop(now);
                    return Ok(());
                }
                (Ok(Read::End), false) => {
                    if let Some(count) = self.received.remove(&stream) {
                        // Fails if the peer no longer reads.
                        let _ = node.write(now, stream, count.to_string().as_bytes());
                        node.finish(now, stream);
                    }
                    return Ok(());
                }
                (Err(error), true) => return Err(error.into()),
                (Err(_), false) => {
                    self.received.remove(&stream);
                    return Ok(());
                }
            }
        }
    }
}

//! A complete node on std threads and sockets: see README.md.
use std::collections::BTreeMap;
use std::net::{SocketAddr, UdpSocket};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use pk_host::{Clock, Directory, RedbStore, Store as _};
use pk_proto::{Event, FindNodeOptions, Reply, Request, RequestOptions, SeedNode, StreamId};
use pk_quic::{Datagram, Effect, Node, NodeSetup, Opened, Poll, Read};

type Failure = Box<dyn std::error::Error>;
const PROTOCOL: &str = "count/1";

struct Program {
    node: Node,
    socket: UdpSocket,
    store: RedbStore,
    clock: Clock,
    peer: Option<(SeedNode, usize)>,
    /// Bytes to send on own streams, or received on those of peers.
    streams: BTreeMap<StreamId, usize>,
}

fn main() -> Result<(), Failure> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (peer, dir, listen) = match args.as_slice() {
        [dir, listen] => (None, dir, listen),
        [dir, listen, peer, bytes] => (Some((peer.parse()?, bytes.parse()?)), dir, listen),
        _ => return Err("usage: blocking-node DIR LISTEN [pk://ID@HOST:PORT N]".into()),
    };
    let Directory { state, store } = Directory::open(dir)?;
    let (socket, clock) = (UdpSocket::bind(listen)?, Clock::new());
    let (bound, now) = (socket.local_addr()?, clock.now());
    let mut setup = NodeSetup::new(state, bound, Instant::now(), now, clock.unix());
    setup.transport.mtu_discovery = false; // The system may fragment datagrams.
    let mut node = Node::new(setup)?;
    node.update(now, |node, now| node.accept_protocol(PROTOCOL.into(), now))?;
    let (wake, wakes) = sync_channel(1024);
    let (reader, stop) = (socket.try_clone()?, wake.clone());
    std::thread::spawn(move || {
        let mut buf = [0; 65_536];
        while let Ok((len, from)) = reader.recv_from(&mut buf) {
            drop(wake.send(Some((from, buf.iter().take(len).copied().collect()))));
        }
    });
    std::thread::spawn(move || (std::io::stdin().lines().count(), stop.send(None)));
    Program { node, socket, store, clock, peer, streams: BTreeMap::new() }.run(&wakes)
}

impl Program {
    fn run(mut self, wakes: &Receiver<Option<(SocketAddr, Vec<u8>)>>) -> Result<(), Failure> {
        let mut buf = Vec::new();
        loop {
            let now = self.clock.now();
            while let Some(poll) = self.node.poll() {
                self.handle(poll)?;
            }
            while let Some(transmit) = self.node.poll_transmit(now, 1, &mut buf) {
                if let Err(error) = self.socket.send_to(&buf, transmit.to) {
                    self.node.unreachable(now, transmit.to, &error.to_string());
                }
            }
            if self.node.manager().is_stopped() {
                return Ok(self.store.sync()?);
            }
            let wait = self.node.poll_timeout().map_or(Duration::MAX, |at| at.since(now));
            match wakes.recv_timeout(wait.min(Duration::from_secs(1))) {
                Ok(Some((from, bytes))) => {
                    let datagram = Datagram { from, to: None, ecn: 0, bytes: &bytes };
                    self.node.handle_datagram(self.clock.now(), datagram);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Ok(None) | Err(RecvTimeoutError::Disconnected) => self.node.stop(now),
            }
            self.node.handle_timeout(self.clock.now());
            let drift = self.clock.drift(now);
            drift.into_iter().for_each(|unix| self.node.set_wall_clock(now, unix));
        }
    }

    fn handle(&mut self, poll: Poll) -> Result<(), Failure> {
        let (now, options) = (self.clock.now(), RequestOptions::default());
        match poll {
            Poll::Effect(effect) => {
                let answer = effect.run(&mut self.store).map_or_else(Effect::refuse, Some);
                answer.into_iter().for_each(|answer| self.node.answer(now, answer));
            }
            Poll::Event(Event::Ready { addrs }) => {
                addrs.iter().for_each(|at| println!("pk://{}@{at}", self.node.manager().own_id()));
                if let Some((peer, _)) = &self.peer {
                    let (seeds, blocking) = (vec![peer.clone()], true);
                    self.node.request(now, Request::SyncNodeGraph { seeds, blocking, options })?;
                }
            }
            Poll::Event(Event::Done { result, .. }) => {
                let Some((SeedNode { node: target, .. }, _)) = self.peer else { return Ok(()) };
                let (protocol, find) = (PROTOCOL.to_owned(), FindNodeOptions::default());
                self.node.request(
                    now,
                    match result? {
                        Reply::SyncNodeGraph(_) => Request::FindNode { target, find },
                        Reply::FindNode(_) => Request::OpenStream { target, protocol, options },
                        _ => return Ok(()),
                    },
                )?;
            }
            Poll::Opened(opened) if opened.stream.is_ours() => {
                self.streams.extend(self.peer.as_ref().map(|peer| (opened.stream, peer.1)));
                return self.write(opened.stream);
            }
            Poll::Opened(Opened { stream, .. }) | Poll::Readable(stream) => {
                return self.read(stream);
            }
            Poll::Writable(stream) => return self.write(stream),
            Poll::Event(_) | Poll::Delivered { .. } | Poll::Lost { .. } => {}
        }
        Ok(())
    }

    fn write(&mut self, stream: StreamId) -> Result<(), Failure> {
        let (now, left) = (self.clock.now(), self.streams.entry(stream).or_default());
        while *left > 0 {
            match self.node.write(now, stream, &vec![7; (*left).min(65_536)])? {
                0 => return Ok(()),
                written => *left -= written,
            }
        }
        self.node.finish(now, stream);
        Ok(())
    }

    fn read(&mut self, stream: StreamId) -> Result<(), Failure> {
        let (now, own) = (self.clock.now(), stream.is_ours());
        while let Ok(read) = self.node.read(now, stream, 65_536) {
            match (read, own) {
                (Read::Blocked, _) => break,
                (Read::Bytes(bytes), true) => println!("{}", String::from_utf8_lossy(&bytes)),
                (Read::End, true) => self.node.stop(now),
                (Read::Bytes(bytes), _) => *self.streams.entry(stream).or_default() += bytes.len(),
                (Read::End, _) => {
                    let count = self.streams.remove(&stream).unwrap_or(0);
                    drop(self.node.write(now, stream, count.to_string().as_bytes()));
                    self.node.finish(now, stream);
                    break;
                }
            }
        }
        Ok(())
    }
}

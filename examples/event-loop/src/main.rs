//! A complete node on an event loop: see README.md.

mod count;
mod workers;

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use mio::net::UdpSocket;
use mio::{Events, Interest, Poll, Token, Waker};
use pk_host::{Clock, Directory};
use pk_quic::{Datagram, Effect, Node, NodeSetup, Poll as NodePoll};

use crate::count::{Count, PROTOCOL};
use crate::workers::{Wake, Wakes, Workers};

type Failure = Box<dyn std::error::Error>;

const SOCKET: Token = Token(0);
const WAKER: Token = Token(1);
/// Datagrams that are received, and sent, before the other side has its turn.
const BATCH: usize = 64;

/// Everything that the loop owns.
struct EventLoop {
    poll: Poll,
    socket: UdpSocket,
    wakes: Receiver<Wake>,
    workers: Workers,
    clock: Clock,
    node: Node,
    app: Count,
    /// Whether the socket may have another datagram: mio reports changes, not states.
    readable: bool,
    /// A datagram that the socket did not accept yet, and its destination.
    unsent: Option<SocketAddr>,
    buf: Vec<u8>,
}

fn main() -> Result<(), Failure> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (app, dir, listen) = match args.as_slice() {
        [dir, listen] => (Count::default(), dir, listen),
        [dir, listen, peer, bytes] => (Count::sends(peer.parse()?, bytes.parse()?), dir, listen),
        _ => return Err("usage: event-loop DIR LISTEN [pk://ID@HOST:PORT N]".into()),
    };
    let Directory { state, store } = Directory::open(dir)?;
    let mut socket = UdpSocket::bind(listen.parse()?)?;
    let poll = Poll::new()?;
    poll.registry().register(&mut socket, SOCKET, Interest::READABLE | Interest::WRITABLE)?;
    let (sender, wakes) = channel();
    let waker = Wakes::new(sender, Arc::new(Waker::new(poll.registry(), WAKER)?));
    let workers = Workers::start(store, &waker)?;
    std::thread::spawn(move || {
        io::stdin().lines().count();
        waker.send(Wake::Stop);
    });

    let clock = Clock::new();
    let now = clock.now();
    let mut setup = NodeSetup::new(state, socket.local_addr()?, Instant::now(), now, clock.unix());
    setup.transport.mtu_discovery = false; // The system may fragment datagrams.
    let mut node = Node::new(setup)?;
    node.update(now, |node, now| node.accept_protocol(PROTOCOL.into(), now))?;
    let buf = Vec::new();
    let (readable, unsent) = (true, None);
    EventLoop { poll, socket, wakes, workers, clock, node, app, readable, unsent, buf }.run()
}

impl EventLoop {
    fn run(mut self) -> Result<(), Failure> {
        let mut events = Events::with_capacity(16);
        loop {
            while let Some(poll) = self.node.poll() {
                self.handle(poll)?;
            }
            let is_idle = self.send()?;
            if self.node.manager().is_stopped() && is_idle {
                return self.workers.end();
            }
            self.poll.poll(&mut events, Some(self.wait(is_idle))).or_else(interrupted)?;
            for event in events.iter().filter(|event| event.token() == SOCKET) {
                self.readable |= event.is_readable();
            }
            self.receive()?;
            while let Ok(wake) = self.wakes.try_recv() {
                match wake {
                    Wake::Completed(answer) => self.node.answer(self.clock.now(), answer),
                    Wake::Stop => self.node.stop(self.clock.now()),
                }
            }
            let now = self.clock.now();
            self.node.handle_timeout(now);
            if let Some(unix) = self.clock.drift(now) {
                self.node.set_wall_clock(now, unix);
            }
        }
    }

    /// Returns how long the loop may wait: not at all if there is work, else until the next
    /// timeout, and at most a second, so that changes of the wall clock are noticed.
    fn wait(&self, is_idle: bool) -> Duration {
        if self.readable || !is_idle && self.unsent.is_none() {
            return Duration::ZERO;
        }
        let timeout = self.node.poll_timeout().map(|at| at.since(self.clock.now()));
        timeout.unwrap_or(Duration::MAX).min(Duration::from_secs(1))
    }

    /// Passes an effect to the workers and everything else to the application.
    fn handle(&mut self, poll: NodePoll) -> Result<(), Failure> {
        let now = self.clock.now();
        let NodePoll::Effect(effect) = poll else {
            return self.app.handle(&mut self.node, now, poll);
        };
        if let Some(answer) = self.workers.execute(effect).and_then(Effect::refuse) {
            self.node.answer(now, answer);
        }
        Ok(())
    }

    /// Receives until the socket has no datagram, or the batch is full.
    fn receive(&mut self) -> Result<(), Failure> {
        let mut buf = [0; 65_536];
        for _ in 0..BATCH {
            if !self.readable {
                break;
            }
            match self.socket.recv_from(&mut buf) {
                Ok((len, from)) => {
                    let bytes = buf.get(..len).unwrap_or_default();
                    let datagram = Datagram { from, to: None, ecn: 0, bytes };
                    self.node.handle_datagram(self.clock.now(), datagram);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.readable = false,
                // An ICMP message about an earlier datagram, for example.
                Err(_) => {}
            }
        }
        Ok(())
    }

    /// Sends until there is nothing to send, the socket is full, or the batch is. Returns whether
    /// there is nothing to send.
    fn send(&mut self) -> Result<bool, Failure> {
        for _ in 0..BATCH {
            let now = self.clock.now();
            if self.unsent.is_none() {
                let transmit = self.node.poll_transmit(now, 1, &mut self.buf);
                self.unsent = transmit.map(|transmit| transmit.to);
            }
            let Some(to) = self.unsent else { return Ok(true) };
            match self.socket.send_to(&self.buf, to) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) => self.node.unreachable(now, to, &error.to_string()),
                Ok(_) => {}
            }
            self.unsent = None;
        }
        Ok(false)
    }
}

/// A signal that interrupts a wait is no error.
fn interrupted(error: io::Error) -> io::Result<()> {
    if error.kind() == ErrorKind::Interrupted { Ok(()) } else { Err(error) }
}

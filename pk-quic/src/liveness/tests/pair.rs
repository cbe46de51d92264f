//! Two endpoints of quinn-proto in virtual time. The local connection is checked like one of the
//! driver. The peer dies after a given number of datagrams and sends nothing from then on. What it
//! has sent before still arrives.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use bytes::BytesMut;
use quinn_proto::{
    Connection, ConnectionHandle, DatagramEvent, Dir, Endpoint, EndpointConfig, Event, StreamEvent,
    StreamId,
};

use super::*;
use pk_host::{KeyPair, create_identity, unix};

use crate::clock::WallClock;
use crate::config;
use crate::settings::TransportSettings;
use crate::tls::{SERVER_NAME, Tls};

type Clock = std::time::Instant;

const MS: Duration = Duration::from_millis(1);

/// One end of the connection.
struct End {
    endpoint: Endpoint,
    connection: Option<(ConnectionHandle, Connection)>,
    addr: SocketAddr,
    /// Received datagrams, with their time of arrival.
    inbound: VecDeque<(Clock, BytesMut)>,
    connected: bool,
    streams: Vec<StreamId>,
    answered: usize,
}

/// A connection with both of its ends.
struct Pair {
    base: Clock,
    now: Clock,
    latency: Duration,
    /// Number of datagrams until the peer dies.
    passes: usize,
    /// Length of the peer's answers; `None` if it only acknowledges.
    answer: Option<usize>,
    ours: End,
    theirs: End,
    died: Option<Clock>,
    /// Time of the peer's last datagram.
    peer_sent: Clock,
    /// Local datagrams that need an acknowledgement: time of sending, and of arrival if it arrived.
    needs: Vec<(Clock, Option<Clock>)>,
    /// State of the detection in the driver.
    liveness: Liveness,
    suspected: Option<Clock>,
    heard: usize,
}

fn tls(seed: u8) -> Tls {
    let key = KeyPair::from_seed(&[seed; 32]);
    let clock = WallClock::default();
    clock.set(unix());
    let dialects = TransportSettings::default().dialects;
    Tls::new(&create_identity(&key, unix()).unwrap(), &key, &dialects, Arc::new(clock))
}

impl End {
    fn new(seed: u8) -> Self {
        let settings = TransportSettings::default();
        let server = config::server(
            &settings,
            &config::transport(&settings),
            tls(seed).server().unwrap().0,
            config::token_key(&[seed; 32]),
        );
        let endpoints = Arc::new(EndpointConfig::default());
        Self {
            endpoint: Endpoint::new(endpoints, Some(Arc::new(server)), true, Some([seed; 32])),
            connection: None,
            addr: SocketAddr::from((Ipv4Addr::LOCALHOST, seed.into())),
            inbound: VecDeque::new(),
            connected: false,
            streams: Vec::new(),
            answered: 0,
        }
    }

    fn dial(&mut self, now: Clock, seed: u8, to: SocketAddr, peer: u8) {
        let expect = vec![KeyPair::from_seed(&[peer; 32]).node_id()];
        let transport = config::transport(&TransportSettings::default());
        let client = config::client(&transport, tls(seed).client(expect).unwrap().0);
        self.connection = Some(self.endpoint.connect(now, client, to, SERVER_NAME).unwrap());
    }

    fn connection(&mut self) -> &mut Connection {
        &mut self.connection.as_mut().unwrap().1
    }

    fn due(&mut self) -> Option<Clock> {
        let timer = self.connection.as_mut().and_then(|(_, connection)| connection.poll_timeout());
        timer.into_iter().chain(self.inbound.front().map(|(at, _)| *at)).min()
    }

    /// Processes the received datagrams and the due timers.
    fn receive(&mut self, now: Clock, from: SocketAddr) {
        let mut buf = Vec::new();
        while self.inbound.front().is_some_and(|(at, _)| *at <= now) {
            let (_, bytes) = self.inbound.pop_front().unwrap();
            match self.endpoint.handle(now, from, None, None, bytes, &mut buf) {
                Some(DatagramEvent::NewConnection(incoming)) => {
                    self.connection =
                        Some(self.endpoint.accept(incoming, now, &mut buf, None).unwrap());
                }
                Some(DatagramEvent::ConnectionEvent(_, event)) => {
                    self.connection().handle_event(event);
                }
                Some(DatagramEvent::Response(_)) | None => {}
            }
        }
        let Some((handle, connection)) = &mut self.connection else { return };
        if connection.poll_timeout().is_some_and(|at| at <= now) {
            connection.handle_timeout(now);
        }
        while let Some(event) = connection.poll_endpoint_events() {
            if let Some(event) = self.endpoint.handle_event(*handle, event) {
                connection.handle_event(event);
            }
        }
    }

    /// Reads the available data, and answers each stream of the other end that was read to its end.
    fn converse(&mut self, answer: Option<usize>) {
        let Some((_, connection)) = &mut self.connection else { return };
        while let Some(event) = connection.poll() {
            self.connected |= matches!(event, Event::Connected);
            if let Event::Stream(StreamEvent::Opened { dir }) = event {
                while let Some(stream) = connection.streams().accept(dir) {
                    self.streams.push(stream);
                }
            }
        }
        let mut open = Vec::new();
        for stream in std::mem::take(&mut self.streams) {
            let mut ended = false;
            if let Ok(mut chunks) = connection.recv_stream(stream).read(true) {
                loop {
                    match chunks.next(usize::MAX) {
                        Ok(Some(_)) => {}
                        Ok(None) => break ended = true,
                        Err(_) => break,
                    }
                }
                let _ = chunks.finalize();
            }
            if !ended {
                open.push(stream);
            } else if stream.initiator() == connection.side() {
                self.answered += 1;
            } else if let Some(len) = answer {
                connection.send_stream(stream).write(&vec![0; len]).unwrap();
                connection.send_stream(stream).finish().unwrap();
            }
        }
        self.streams.append(&mut open);
    }
}

impl Pair {
    fn new(latency: Duration, we_dial: bool, passes: usize, answer: Option<usize>) -> Self {
        let base = Clock::now();
        let (mut ours, mut theirs) = (End::new(1), End::new(2));
        if we_dial {
            ours.dial(base, 1, theirs.addr, 2);
        } else {
            theirs.dial(base, 2, ours.addr, 1);
        }
        Self {
            base,
            now: base,
            latency,
            passes,
            answer,
            ours,
            theirs,
            died: None,
            peer_sent: base,
            needs: Vec::new(),
            liveness: Liveness::default(),
            suspected: None,
            heard: 0,
        }
    }

    /// Returns the virtual time as an instant of the driver.
    fn at(&self) -> Instant {
        Instant::ORIGIN + self.now.duration_since(self.base)
    }

    fn patience(&mut self) -> Duration {
        (self.ours.connection().rtt() * ROUND_TRIPS + ACK_DELAY).max(WAIT)
    }

    /// Returns whether the next datagram arrives.
    fn pass(&mut self) -> bool {
        if self.passes == 0 {
            self.died.get_or_insert(self.now);
            return false;
        }
        self.passes -= 1;
        true
    }

    /// Lets both ends process everything that is due.
    fn turn(&mut self) {
        self.ours.receive(self.now, self.theirs.addr);
        self.ours.converse(None);
        if self.died.is_none() {
            self.theirs.receive(self.now, self.ours.addr);
            self.theirs.converse(self.answer);
        }
        self.send();
    }

    fn send(&mut self) {
        loop {
            let mut buf = Vec::new();
            let Some((_, connection)) = &mut self.ours.connection else { break };
            let before = acknowledged(&connection.stats().frame_tx);
            if connection.poll_transmit(self.now, 1, &mut buf).is_none() {
                break;
            }
            let needs = acknowledged(&connection.stats().frame_tx) > before;
            let arrival = self.pass().then(|| self.now + self.latency);
            if let Some(at) = arrival {
                self.theirs.inbound.push_back((at, BytesMut::from(&buf[..])));
            }
            if needs {
                self.needs.push((self.now, arrival));
            }
        }
        while self.died.is_none() {
            let mut buf = Vec::new();
            let Some((_, connection)) = &mut self.theirs.connection else { break };
            if connection.poll_transmit(self.now, 1, &mut buf).is_none() {
                break;
            }
            if self.pass() {
                self.ours.inbound.push_back((self.now + self.latency, BytesMut::from(&buf[..])));
                self.peer_sent = self.now;
            }
        }
    }

    /// Advances the virtual time to `until` and processes everything that is due meanwhile.
    fn run(&mut self, until: Clock) {
        loop {
            self.turn();
            if self.ours.connected {
                self.look_if_due();
            }
            let theirs = if self.died.is_none() { self.theirs.due() } else { None };
            let look = self.liveness.due.map(|at| self.base + at.since(Instant::ORIGIN));
            let next = self.ours.due().into_iter().chain(theirs).chain(look).min();
            match next {
                Some(next) if next <= until => {
                    self.now = next.max(self.now + Duration::from_nanos(1));
                }
                _ => return self.now = until,
            }
        }
    }

    fn look_if_due(&mut self) {
        let (now, patience) = (self.at(), self.patience());
        if self.liveness.due.is_none_or(|due| due > now) {
            return;
        }
        let waits = !self.ours.streams.is_empty();
        let traffic = traffic(&self.ours.connection().stats());
        match self.liveness.look(now, traffic, patience, waits) {
            Finding::Silent => self.suspected = Some(self.now),
            Finding::Heard => self.heard += 1,
            Finding::Quiet => return self.liveness.due = None,
            Finding::Active | Finding::Suspected => {}
            Finding::Late => panic!("a look is late in virtual time"),
        }
        self.liveness.due = Some(self.liveness.next(now, patience));
    }

    /// Sends a request on a new stream of the local end.
    fn ask(&mut self) {
        let (now, patience) = (self.at(), self.patience());
        let stats = traffic(&self.ours.connection().stats());
        self.liveness.note_before_send(now, stats);
        let connection = self.ours.connection();
        let Some(stream) = connection.streams().open(Dir::Bi) else { return };
        connection.send_stream(stream).write(&[0; 200]).unwrap();
        connection.send_stream(stream).finish().unwrap();
        self.ours.streams.push(stream);
        self.liveness.sent(now);
        let soon = now + patience / PAUSES[0];
        self.liveness.due = Some(self.liveness.due.map_or(soon, |due| due.min(soon)));
        self.send();
    }

    /// Returns the sending time of the first packet that the peer has not acknowledged.
    fn unacknowledged_since(&self) -> Option<Clock> {
        let lost = |arrival: Option<Clock>| arrival.is_none_or(|arrival| arrival > self.peer_sent);
        self.needs.iter().filter(|(_, arrival)| lost(*arrival)).map(|(sent, _)| *sent).min()
    }
}

/// Runs a connection whose peer dies after `passes` datagrams. The local end sends a request every
/// `pause`, or one at the start and one after the death. Returns whether the peer died while the
/// connection was established.
fn dies(
    latency: Duration,
    we_dial: bool,
    passes: usize,
    pause: Option<Duration>,
    answer: Option<usize>,
) -> bool {
    let what = format!(
        "one way {latency:?}, we dial: {we_dial}, dies at {passes}, asked every {pause:?}, {answer:?}"
    );
    let mut pair = Pair::new(latency, we_dial, passes, answer);
    while !pair.ours.connected && pair.died.is_none() {
        pair.run(pair.now + latency / 2);
    }
    if !pair.ours.connected {
        return false;
    }
    let begun = pair.now;
    pair.ask();
    // An idle connection is not checked until it is used.
    let mut used = pair.now;
    while pair.suspected.is_none()
        && pair.now < pair.died.unwrap_or(begun) + Duration::from_secs(60)
    {
        pair.run(pair.now + pause.unwrap_or(100 * MS));
        if (pause.is_some() && pair.died.is_none())
            || (pair.died.is_some() && pair.liveness.due.is_none())
        {
            if pair.liveness.due.is_none() {
                used = pair.now;
            }
            pair.ask();
        }
    }
    if pair.died.is_none() {
        return false;
    }
    let since = pair
        .unacknowledged_since()
        .unwrap_or_else(|| panic!("{what}: all is acknowledged"))
        .max(used);
    let patience = pair.patience();
    let suspected = pair.suspected.unwrap_or_else(|| panic!("{what}: not suspected"));
    let took = suspected.saturating_duration_since(since);
    assert!(
        took <= patience * 5 / 2,
        "{what}: suspected {took:?} after the first packet, patience {patience:?}"
    );
    assert!(
        took >= patience / 2,
        "{what}: suspected {took:?} after the first packet, patience {patience:?}"
    );
    true
}

/// Runs `dies` for each number of datagrams, dialer, answer length and interval.
fn sweep(latency: Duration) {
    let mut deaths = 0;
    for we_dial in [true, false] {
        for answer in [Some(20), Some(20_000), None] {
            for pause in [
                None,
                Some(latency + 3 * MS),
                Some(latency * 3 + 40 * MS),
                Some(Duration::from_secs(2)),
            ] {
                let died =
                    (1..40).filter(|passes| dies(latency, we_dial, *passes, pause, answer)).count();
                deaths += died;
                assert!(died >= 10, "{died} deaths, asked every {pause:?}");
            }
        }
    }
    println!("one way {latency:?}: {deaths} deaths");
}

#[test]
fn peer_on_the_same_machine_is_suspected_after_a_death_at_any_time() {
    sweep(MS / 20);
}

#[test]
fn peer_in_the_same_country_is_suspected_after_a_death_at_any_time() {
    sweep(15 * MS);
}

#[test]
fn peer_on_another_continent_is_suspected_after_a_death_at_any_time() {
    sweep(150 * MS);
}

#[test]
fn peer_behind_a_satellite_is_suspected_after_a_death_at_any_time() {
    sweep(400 * MS);
}

#[test]
fn live_peer_is_never_suspected() {
    for latency in [MS / 20, 15 * MS, 150 * MS, 400 * MS] {
        for we_dial in [true, false] {
            for pause in [20 * MS, 300 * MS, 1100 * MS, Duration::from_secs(7)] {
                let mut pair = Pair::new(latency, we_dial, usize::MAX, Some(5_000));
                while !pair.ours.connected {
                    pair.run(pair.now + 10 * MS);
                }
                for _ in 0..40 {
                    pair.ask();
                    pair.run(pair.now + pause);
                    assert_eq!(pair.suspected, None, "one way {latency:?}, asked every {pause:?}");
                }
                pair.run(pair.now + Duration::from_secs(60));
                assert_eq!((pair.suspected, pair.heard, pair.ours.answered), (None, 0, 40));
                assert_eq!(pair.liveness.due, None, "an idle connection is not looked at");
            }
        }
    }
}

//! A peer that is no node: it sends the first messages of `pk/1` over QUIC, and then the messages
//! that cost the victim most.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant as StdInstant};

use bytes::BytesMut;
use pk_host::{KeyPair, create_identity};
use pk_proto::native::{self, Hello, Message, V1};
use pk_proto::{Dialect, Instant};
use pk_quic::tls;
use pk_sim::{PROTOCOL, PacketWorld, Seen};
use quinn_proto::{
    Connection, ConnectionHandle, DatagramEvent, Dir, Endpoint, EndpointConfig, StreamId,
    TransportConfig, VarInt,
};
use rustls::pki_types::UnixTime;
use rustls::time_provider::TimeProvider;

const MS: Duration = Duration::from_millis(1);

/// The wall clock at the start of the attack.
#[derive(Debug)]
struct Clock(u64);

impl TimeProvider for Clock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_secs(self.0)))
    }
}

pub struct Hostile {
    endpoint: Endpoint,
    handle: ConnectionHandle,
    quic: Connection,
    addr: SocketAddr,
    victim: SocketAddr,
    origin: StdInstant,
}

impl Hostile {
    /// Connects to a host, and sends its Hello.
    pub fn connect(world: &mut PacketWorld, victim: usize) -> Self {
        let key = KeyPair::from_seed(&[0xbd; 32]);
        let identity = create_identity(&key, world.unix()).unwrap();
        let clock = Arc::new(Clock(world.unix().as_secs()));
        let tls = tls::Tls::new(&identity, &key, &[Dialect::Native], clock);
        let (tls, _) = tls.client(vec![world.id(victim)]).unwrap();
        let mut transport = TransportConfig::default();
        let window = VarInt::from_u32(64 * 1024 * 1024);
        // Every datagram has the length that the path carries, for any amount of data.
        transport
            .pad_to_mtu(true)
            .initial_mtu(1452)
            .min_mtu(1200)
            .send_window(64 * 1024 * 1024)
            .stream_receive_window(window)
            .receive_window(window)
            .keep_alive_interval(None);
        let origin = StdInstant::now();
        let mut config = EndpointConfig::default();
        config.rng_seed(Some([0xbd; 32]));
        let mut endpoint = Endpoint::new(Arc::new(config), None, true, None);
        let to = world.host(victim).addr();
        let client = pk_quic::config::client(&Arc::new(transport), tls);
        let (handle, quic) = endpoint.connect(origin, client, to, tls::SERVER_NAME).unwrap();
        let addr = ([45, 0, 0, 1], 1314).into();
        let mut hostile = Self { endpoint, handle, quic, addr, victim: to, origin };
        hostile.origin = origin - world.now().since(Instant::ORIGIN);
        for _ in 0..100 {
            hostile.exchange(world);
        }
        assert!(!hostile.quic.is_handshaking() && !hostile.quic.is_closed());
        let (version_min, version_max, features) = (1, 1, 0);
        let agent = "hostile".to_owned();
        hostile.open(&V1::Hello(Hello { version_min, version_max, features, agent })).unwrap();
        hostile
    }

    /// Opens a stream with a message. `None` if the victim allows no more.
    pub fn open(&mut self, message: &V1) -> Option<StreamId> {
        let stream = self.quic.streams().open(Dir::Bi)?;
        let bytes = native::encode(&Message::V1(message.clone())).unwrap();
        self.quic.send_stream(stream).write(&bytes).unwrap();
        Some(stream)
    }

    /// Opens an application stream.
    pub fn open_application(&mut self) -> Option<StreamId> {
        self.open(&V1::Open { protocol: PROTOCOL.to_owned() })
    }

    /// Opens a stream with the header of a message of this length.
    pub fn open_message(&mut self, length: u32) -> Option<StreamId> {
        let stream = self.quic.streams().open(Dir::Bi)?;
        self.quic.send_stream(stream).write(&length.to_be_bytes()).unwrap();
        Some(stream)
    }

    /// Sends this many bytes in datagrams of full length, of which each has `piece` bytes, as fast
    /// as the windows allow.
    pub fn send_all(
        &mut self,
        world: &mut PacketWorld,
        stream: StreamId,
        bytes: usize,
        piece: usize,
    ) {
        let zeros = vec![0; piece];
        let (mut sent, mut waits, mut patience) = (0, false, 200);
        while sent < bytes && patience > 0 {
            // One piece at a time, so that no two share a datagram.
            let len = piece.min(bytes - sent);
            let written = if waits { 0 } else { self.write(stream, &zeros[..len]) };
            sent += written;
            waits |= written > 0;
            let has_left = self.transmit(world) > 0;
            waits &= !has_left;
            if !has_left {
                waits &= self.exchange(world) == 0;
                patience -= 1;
            } else if written > 0 {
                patience = 200;
            }
        }
    }

    fn write(&mut self, stream: StreamId, bytes: &[u8]) -> usize {
        self.quic.send_stream(stream).write(bytes).unwrap_or(0)
    }

    /// Lets a millisecond pass. Returns the number of datagrams that were sent.
    pub fn exchange(&mut self, world: &mut PacketWorld) -> usize {
        world.observe();
        world.pass(MS);
        let now = self.now(world);
        for seen in world.observed().into_iter().filter(|seen| seen.to == self.addr) {
            let mut answer = Vec::new();
            let bytes = BytesMut::from(&seen.bytes[..]);
            let event = self.endpoint.handle(now, seen.from, None, None, bytes, &mut answer);
            if let Some(DatagramEvent::ConnectionEvent(_, event)) = event {
                self.quic.handle_event(event);
            }
        }
        self.transmit(world)
    }

    fn now(&self, world: &PacketWorld) -> StdInstant {
        self.origin + world.now().since(Instant::ORIGIN)
    }

    /// Sends what may be sent. Returns the number of datagrams.
    fn transmit(&mut self, world: &mut PacketWorld) -> usize {
        let now = self.now(world);
        if self.quic.poll_timeout().is_some_and(|at| at <= now) {
            self.quic.handle_timeout(now);
        }
        while self.quic.poll().is_some() {}
        while let Some(event) = self.quic.poll_endpoint_events() {
            if let Some(event) = self.endpoint.handle_event(self.handle, event) {
                self.quic.handle_event(event);
            }
        }
        let mut sent = 0;
        let mut bytes = Vec::new();
        while self.quic.poll_transmit(now, 1, &mut bytes).is_some() {
            let bytes = std::mem::take(&mut bytes);
            world.forge(Seen { from: self.addr, to: self.victim, ecn: 0, bytes }, MS);
            sent += 1;
        }
        sent
    }
}

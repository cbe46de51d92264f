//! Handshakes that do not become connections.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use pk_proto::{DialFailure, DisconnectReason, Input, Output};
use quinn::{AsyncUdpSocket, UdpPoller};

use super::{Rig, Setup};

/// A socket that receives nothing, like that of a peer with a forged address.
#[derive(Debug)]
struct Deaf(Arc<dyn AsyncUdpSocket>);

impl AsyncUdpSocket for Deaf {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Arc::clone(&self.0).create_io_poller()
    }

    fn try_send(&self, transmit: &quinn::udp::Transmit<'_>) -> io::Result<()> {
        self.0.try_send(transmit)
    }

    fn poll_recv(
        &self,
        _: &mut Context<'_>,
        _: &mut [io::IoSliceMut<'_>],
        _: &mut [quinn::udp::RecvMeta],
    ) -> Poll<io::Result<usize>> {
        Poll::Pending
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}

/// Starts handshakes and never continues them.
pub(super) struct Flood {
    endpoint: quinn::Endpoint,
    attempts: Vec<quinn::Connecting>,
}

impl fmt::Debug for Flood {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Flood")
    }
}

impl Flood {
    pub(super) fn new() -> Self {
        let runtime: Arc<dyn quinn::Runtime> = Arc::new(quinn::TokioRuntime);
        let socket =
            runtime.wrap_udp_socket(std::net::UdpSocket::bind("127.0.0.1:0").unwrap()).unwrap();
        let config = quinn::EndpointConfig::default();
        let endpoint = quinn::Endpoint::new_with_abstract_socket(
            config,
            None,
            Arc::new(Deaf(socket)),
            runtime,
        );
        Self { endpoint: endpoint.unwrap(), attempts: Vec::new() }
    }

    pub(super) fn begin(&mut self, addr: SocketAddr, count: usize) {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        tls.alpn_protocols = vec![b"pk/1".to_vec(), b"quic".to_vec()];
        let tls = Arc::new(quinn::crypto::rustls::QuicClientConfig::try_from(tls).unwrap());
        for _ in 0..count {
            let config = quinn::ClientConfig::new(Arc::clone(&tls) as _);
            self.attempts.push(self.endpoint.connect_with(config, addr, "polykey").unwrap());
        }
    }
}

#[tokio::test]
async fn a_flood_of_liars_is_bounded_and_the_honest_get_in() {
    let mut setup = Setup::new(1);
    setup.driver.handshake_limit = 16;
    setup.driver.handshake_network_limit = 8;
    setup.driver.handshake_timeout = Duration::from_secs(1);
    let mut acceptor = setup.start().await;
    let mut flood = Flood::new();
    flood.begin(acceptor.addr, 60);
    let metrics =
        acceptor.metrics(|metrics| metrics.handshakes + metrics.handshakes_retried >= 60).await;
    assert_eq!(
        (metrics.handshakes_pending, metrics.handshakes),
        (4, 4),
        "half of what one network gets: {metrics:?}"
    );

    // A peer that validates its address is accepted, after a Retry.
    let mut honest = Rig::start(2).await;
    honest.connect(&mut acceptor).await;
    let metrics = acceptor.metrics(|metrics| metrics.handshakes == 5).await;
    assert_eq!(metrics.handshakes_refused + metrics.handshakes_refused_network, 0);

    let metrics = acceptor.metrics(|metrics| metrics.handshakes_timed_out >= 4).await;
    println!("{metrics:?}");
    drop(flood);
}

#[tokio::test]
async fn a_dial_to_nobody_ends_at_its_deadline() {
    let mut dialer = Rig::start(1).await;
    // Bound, but never answers.
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let addr = silent.local_addr().unwrap();
    let expect = [dialer.id].into_iter().collect();
    let begun = Instant::now();
    let dial = dialer.handle.call(move |_, cx, core| {
        let deadline = cx.now + Duration::from_millis(300);
        core.output(Output::Dial { conn: pk_proto::ConnectionId(0), addr, expect, deadline });
    });
    dial.await.unwrap();
    assert_eq!(dialer.dial_failed().await, DialFailure::TimedOut);
    let took = begun.elapsed();
    assert!((Duration::from_millis(300)..Duration::from_secs(3)).contains(&took), "{took:?}");
    dialer.silence().await;
    dialer.metrics(|metrics| metrics.dials_pending == 0).await;
}

#[tokio::test]
async fn a_cancelled_dial_and_an_impossible_one_fail_once() {
    let mut dialer = Rig::start(1).await;
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let (own, addr) = (dialer.id, silent.local_addr().unwrap());
    let conn = dialer.dial(addr, &[own]).await;
    dialer.output(Output::CancelDial { conn }).await;
    assert_eq!(dialer.dial_failed().await, DialFailure::Cancelled);
    dialer.output(Output::CancelDial { conn }).await;
    dialer.dial("[::1]:9".parse().unwrap(), &[own]).await;
    assert!(
        matches!(dialer.dial_failed().await, DialFailure::Transport(_)),
        "IPv6 from an IPv4 socket"
    );
    dialer.dial("127.0.0.1:0".parse().unwrap(), &[own]).await;
    assert!(matches!(dialer.dial_failed().await, DialFailure::Transport(_)), "port 0");
    dialer.silence().await;
}

#[tokio::test]
async fn a_refused_handshake_is_told() {
    let mut setup = Setup::new(1);
    setup.driver.handshake_limit = 2;
    setup.driver.handshake_network_limit = 2;
    let acceptor = setup.start().await;
    let mut flood = Flood::new();
    flood.begin(acceptor.addr, 10);
    acceptor
        .metrics(|metrics| metrics.handshakes_pending == 1 && metrics.handshakes_retried >= 9)
        .await;
    // The only place for validated peers: occupied by a peer whose core never sends, it is pending
    // no longer than TLS takes.
    let mut honest = Rig::start(2).await;
    honest.dial(acceptor.addr, &[acceptor.id]).await;
    honest.connected().await;
    acceptor.metrics(|metrics| metrics.connections == 1 && metrics.handshakes_pending == 1).await;
}

#[tokio::test]
async fn a_close_carries_its_code_and_reason() {
    let (mut a, mut b) = (Rig::start(1).await, Rig::start(2).await);
    let (ours, theirs) = a.connect(&mut b).await;
    a.output(Output::CloseConnection { conn: ours, code: 17, reason: "full\u{7}".to_owned() })
        .await;
    assert_eq!(a.input().await, Input::Disconnected { conn: ours, why: DisconnectReason::Local });
    let why = DisconnectReason::Peer { code: 17, reason: "full".to_owned() };
    assert_eq!(b.input().await, Input::Disconnected { conn: theirs, why });
    a.output(Output::CloseConnection { conn: ours, code: 0, reason: String::new() }).await;
    a.silence().await;
}

#[tokio::test]
async fn punches_leave_from_the_port_that_peers_know() {
    let a = Rig::start(1).await;
    let target = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let bytes = bytes::Bytes::from_static(&[7; 32]);
    a.output(Output::Punch { addr: target.local_addr().unwrap(), bytes: bytes.clone() }).await;
    let mut buf = [0; 64];
    let (len, from) = target.recv_from(&mut buf).await.unwrap();
    assert_eq!((&buf[..len], from), (&bytes[..], a.addr));
    a.output(Output::Punch { addr: "[::1]:9".parse().unwrap(), bytes }).await;
    let metrics = a.metrics(|metrics| metrics.punches_dropped == 1).await;
    assert_eq!(metrics.punches, 1);
}

#[tokio::test]
async fn ipv4_is_ipv4_also_through_an_ipv6_socket() {
    if std::net::UdpSocket::bind("[::1]:0").is_err() {
        println!("this machine has no IPv6");
        return;
    }
    let everywhere = |seed| Setup { listen: "[::]:0".parse().unwrap(), ..Setup::new(seed) };
    let (mut a, mut b, mut c) =
        (everywhere(1).start().await, everywhere(2).start().await, Rig::start(3).await);
    let v4 = |rig: &Rig| SocketAddr::from(([127, 0, 0, 1], rig.addr.port()));
    a.dial(v4(&b), &[b.id]).await;
    let (ours, theirs) = tokio::join!(a.connected(), b.connected());
    assert_eq!((ours.remote, theirs.remote, theirs.local), (v4(&b), v4(&a), v4(&b)));
    c.dial(v4(&b), &[b.id]).await;
    let (ours, theirs) = tokio::join!(c.connected(), b.connected());
    assert_eq!((ours.remote, theirs.remote), (v4(&b), c.addr));
    let v6 = |rig: &Rig| SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, rig.addr.port()));
    a.dial(v6(&b), &[b.id]).await;
    let (ours, theirs) = tokio::join!(a.connected(), b.connected());
    assert_eq!((ours.remote, theirs.remote), (v6(&b), v6(&a)));

    let target = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let addr = target.local_addr().unwrap();
    a.output(Output::Punch { addr, bytes: bytes::Bytes::from_static(&[7; 32]) }).await;
    let (_, from) = target.recv_from(&mut [0; 64]).await.unwrap();
    assert_eq!(from, v4(&a));
}

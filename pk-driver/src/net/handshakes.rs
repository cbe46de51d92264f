//! Handshakes in both directions, until they succeed or fail.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use pk_host::{KeyPair, TransportSecret, unix};
use pk_proto::cert::CertificateFault;
use pk_proto::{
    Connected, ConnectionId, DialFailure, Dialect, Identity, Input, Instant, Network, NodeId, Side,
};
use pk_quic::admission::{Admission, AdmissionControl};
use pk_quic::config;
use pk_quic::reasons::dial_failure;
use pk_quic::tls::{SERVER_NAME, Tls, TlsVerdict};
use quinn::crypto::rustls::HandshakeData;
use quinn::{ConnectError, Connecting, ConnectionError, Incoming, VarInt};

use super::cids::{Cids, Watch};
use super::endpoint::{self, WallClock, canonical};
use super::punch::PunchSocket;
use crate::cx::{Cx, WakeSource};
use crate::error::StartError;
use crate::system::runtime::BoxFuture;
use crate::system::tasks::Tasks;

/// Connection attempts that are handled before other sources are served. Starting one takes a few
/// hundred microseconds.
const INCOMING_STEPS: usize = 8;

/// Label of the TLS exporter from which both ends derive the shared id of a connection.
const EXPORTER: &[u8] = b"EXPORTER-pk-conn";

/// Number of polls per round trip for the peer's confirmation of a handshake.
const LOOKS_PER_ROUND_TRIP: u32 = 4;
const SHORTEST_LOOK: Duration = Duration::from_millis(1);
const LONGEST_LOOK: Duration = Duration::from_millis(50);

/// Shortest interval of warnings about the validity of certificates.
const WARNING_INTERVAL: Duration = Duration::from_secs(10 * 60);

/// The handshakes of a node in both directions, with their endpoint.
pub(super) struct Handshakes {
    endpoint: quinn::Endpoint,
    cids: Cids,
    bound: SocketAddr,
    tls: Tls,
    /// Configuration of incoming connections except for TLS.
    server: quinn::ServerConfig,
    transport: Arc<quinn::TransportConfig>,

    accept: BoxFuture<Option<Incoming>>,
    accept_waker: Waker,
    admission: AdmissionControl,
    // Collections that peers can fill are trees: a hash table would keep its largest size.
    incoming: BTreeMap<u64, Handshake>,
    dials: BTreeMap<ConnectionId, Dial>,
    next_handshake: u64,
    next_connection: u64,
    /// Time of the last warning about the validity of a peer's certificate.
    warned_about_time: Option<Instant>,
}

/// A connection whose handshake succeeded, and which the core knows already.
pub(super) type Established = (ConnectionId, quinn::Connection);

/// An outgoing handshake.
struct Dial {
    stage: Stage,
    verdict: TlsVerdict,
    watch: Option<Watch>,
    waker: Waker,
    deadline: Instant,
}

/// State of a dial.
enum Stage {
    Handshake(Connecting),
    /// The local part of the handshake is complete. On dialect `quic` only HANDSHAKE_DONE shows
    /// that the peer has accepted the local node, and quinn has no event for it, so that it is
    /// polled.
    Confirmation {
        quinn: quinn::Connection,
        closed: BoxFuture<ConnectionError>,
        look: Instant,
    },
}

/// An incoming handshake.
struct Handshake {
    connecting: Connecting,
    verdict: TlsVerdict,
    watch: Option<Watch>,
    waker: Waker,
    deadline: Instant,
    network: Network,
}

impl Handshakes {
    /// Binds the endpoint and starts to accept. `streams` limits the open streams of a peer on a
    /// connection.
    pub(super) fn bind(
        cx: &mut Cx,
        listen: SocketAddr,
        identity: &Identity,
        key: &KeyPair,
        secret: &TransportSecret,
        streams: usize,
        tasks: &Tasks,
    ) -> Result<(Self, Arc<PunchSocket>), StartError> {
        let tls = Tls::new(identity, key, &cx.config.dialects, Arc::new(WallClock));
        let cids = Cids::default();
        let settings = endpoint::settings(&cx.config, streams);
        let transport = config::transport(&settings);
        // The endpoint requires a TLS configuration, but every handshake is accepted with its own.
        let (server_tls, _) = tls.server().map_err(StartError::Tls)?;
        let tokens = config::token_key(&secret.token_key());
        let server = config::server(&settings, &transport, server_tls, tokens);
        let (endpoint, socket, bound) =
            endpoint::bind(listen, server.clone(), &cids, secret, tasks)?;
        let handshakes = Self {
            accept: accept(&endpoint),
            endpoint,
            cids,
            bound: canonical(bound),
            tls,
            server,
            transport,
            accept_waker: cx.source(WakeSource::Endpoint),
            admission: AdmissionControl::new(
                cx.config.handshake_limit,
                cx.config.handshake_network_limit,
            ),
            incoming: BTreeMap::new(),
            dials: BTreeMap::new(),
            next_handshake: 0,
            next_connection: 1,
            warned_about_time: None,
        };
        Ok((handshakes, socket))
    }

    /// Returns the address that the endpoint listens on.
    pub(super) fn bound(&self) -> SocketAddr {
        self.bound
    }

    /// Presents another identity from now on.
    pub(super) fn replace_identity(&mut self, cx: &Cx, identity: &Identity, key: &KeyPair) {
        self.tls = Tls::new(identity, key, &cx.config.dialects, Arc::new(WallClock));
    }

    /// Closes the endpoint. Resolves when the peers have acknowledged it, as far as they answer.
    pub(super) fn close(&mut self) -> BoxFuture<()> {
        self.incoming.clear();
        self.dials.clear();
        self.endpoint.close(VarInt::from_u32(0), b"");
        let endpoint = self.endpoint.clone();
        Box::pin(async move { endpoint.wait_idle().await })
    }

    /// Updates the counters.
    pub(super) fn count(&self, cx: &mut Cx) {
        cx.metrics.handshakes_pending = self.incoming.len() as u64;
        cx.metrics.dials_pending = self.dials.len() as u64;
    }

    // -- outgoing

    /// Executes the effect `Dial`. `DialFailed` or `Connected` follows.
    pub(super) fn dial(
        &mut self,
        cx: &mut Cx,
        conn: ConnectionId,
        addr: SocketAddr,
        expect: BTreeSet<NodeId>,
        deadline: Instant,
    ) {
        let started = self.tls.client(expect.into_iter().collect()).and_then(|(tls, verdict)| {
            let config = config::client(&self.transport, tls);
            let (connecting, watch) =
                self.cids.watch(|| self.endpoint.connect_with(config, addr, SERVER_NAME));
            connecting.map(|connecting| (connecting, verdict, watch)).map_err(|error| match error {
                ConnectError::InvalidRemoteAddress(_) if addr.is_ipv6() => {
                    format!(
                        "this node listens on {} and therefore cannot dial IPv6 addresses",
                        self.bound
                    )
                }
                error => error.to_string(),
            })
        });
        match started {
            Ok((connecting, verdict, watch)) => {
                let waker = cx.source(WakeSource::Dial(conn));
                if let Some(watch) = &watch {
                    watch.wake(&waker);
                }
                cx.deadlines.set(deadline, WakeSource::Dial(conn));
                let stage = Stage::Handshake(connecting);
                self.dials.insert(conn, Dial { stage, verdict, watch, waker, deadline });
            }
            Err(error) => cx.input(Input::DialFailed { conn, why: DialFailure::Transport(error) }),
        }
    }

    /// Executes the effect `CancelDial`. Dropping the attempt informs the peer. A dial whose
    /// handshake may be complete for the peer continues until it is confirmed or fails, because the
    /// reference misses so early a close.
    pub(super) fn cancel_dial(&mut self, cx: &mut Cx, conn: ConnectionId) {
        let dial = self.dials.get(&conn);
        if dial.is_some_and(|dial| dial.watch.as_ref().is_none_or(Watch::withdraw)) {
            self.end_dial(cx, conn, DialFailure::Cancelled);
        }
    }

    /// Handles the deadline of a dial, or a poll for its confirmation.
    pub(super) fn dial_due(&mut self, cx: &mut Cx, conn: ConnectionId) -> Option<Established> {
        if self.dials.get(&conn).is_some_and(|dial| cx.now < dial.deadline) {
            return self.poll_dial(cx, conn);
        }
        self.end_dial(cx, conn, DialFailure::TimedOut);
        None
    }

    fn end_dial(&mut self, cx: &mut Cx, conn: ConnectionId, why: DialFailure) {
        if self.take_dial(cx, conn).is_some() {
            cx.input(Input::DialFailed { conn, why });
        }
    }

    fn take_dial(&mut self, cx: &mut Cx, conn: ConnectionId) -> Option<Dial> {
        let dial = self.dials.remove(&conn)?;
        cx.deadlines.cancel(dial.deadline, WakeSource::Dial(conn));
        if let Stage::Confirmation { look, .. } = dial.stage {
            cx.deadlines.cancel(look, WakeSource::Dial(conn));
        }
        Some(dial)
    }

    pub(super) fn poll_dial(&mut self, cx: &mut Cx, conn: ConnectionId) -> Option<Established> {
        let dial = self.dials.get_mut(&conn)?;
        if let Some(why) = dial.watch.as_ref().and_then(Watch::rejected) {
            self.end_dial(cx, conn, DialFailure::Transport(why));
            return None;
        }
        let Poll::Ready(result) = dial.poll(cx, conn) else { return None };
        let Dial { verdict, watch, .. } = self.take_dial(cx, conn)?;
        let result =
            result.map_err(|error| dial_failure(&error, verdict.get(), unix())).and_then(|quinn| {
                let connected =
                    self.connected(cx, conn, Side::Dialer, quinn, &verdict, watch.as_ref());
                connected.map_err(DialFailure::Transport)
            });
        match result {
            Ok(established) => Some(established),
            Err(why) => {
                cx.input(Input::DialFailed { conn, why });
                None
            }
        }
    }

    // -- incoming

    /// Handles connection attempts. Returns whether more can follow: not if the endpoint is closed
    /// or has failed.
    pub(super) fn poll_endpoint(&mut self, cx: &mut Cx) -> bool {
        for _ in 0..INCOMING_STEPS {
            let mut context = Context::from_waker(&self.accept_waker);
            match self.accept.as_mut().poll(&mut context) {
                Poll::Pending => return true,
                Poll::Ready(None) => {
                    // A finished future is not polled again.
                    self.accept = Box::pin(std::future::pending());
                    return false;
                }
                Poll::Ready(Some(incoming)) => {
                    self.accept = accept(&self.endpoint);
                    self.incoming(cx, incoming);
                }
            }
        }
        self.accept_waker.wake_by_ref();
        true
    }

    fn incoming(&mut self, cx: &mut Cx, incoming: Incoming) {
        let network = Network::of(incoming.remote_address().ip());
        match self.admission.admit(network, incoming.remote_address_validated(), cx.now) {
            Admission::Accept => {
                cx.metrics.handshakes += 1;
                if !self.accept_handshake(cx, incoming, network) {
                    cx.metrics.handshakes_failed += 1;
                    self.admission.failed(network, cx.now);
                }
            }
            Admission::Retry => {
                cx.metrics.handshakes_retried += 1;
                // Retry is always possible for an unvalidated peer; otherwise dropping the attempt
                // refuses it.
                let _ = incoming.retry();
            }
            Admission::RefuseTotal => {
                cx.metrics.handshakes_refused += 1;
                incoming.refuse();
            }
            Admission::RefuseNetwork => {
                cx.metrics.handshakes_refused_network += 1;
                incoming.refuse();
            }
        }
    }

    fn accept_handshake(&mut self, cx: &mut Cx, incoming: Incoming, network: Network) -> bool {
        let Ok((tls, verdict)) = self.tls.server() else { return false };
        let mut server = self.server.clone();
        server.crypto = tls;
        let (connecting, watch) = self.cids.watch(|| incoming.accept_with(Arc::new(server)));
        let Ok(connecting) = connecting else { return false };
        let id = self.next_handshake;
        self.next_handshake += 1;
        let deadline = cx.now + cx.config.handshake_timeout;
        cx.deadlines.set(deadline, WakeSource::Handshake(id));
        let waker = cx.source(WakeSource::Handshake(id));
        self.incoming
            .insert(id, Handshake { connecting, verdict, watch, waker, deadline, network });
        true
    }

    /// Handles the deadline of a handshake. Dropping it informs the peer.
    pub(super) fn timed_out(&mut self, cx: &mut Cx, id: u64) {
        if let Some(handshake) = self.incoming.remove(&id) {
            cx.metrics.handshakes_timed_out += 1;
            self.admission.failed(handshake.network, cx.now);
        }
    }

    pub(super) fn poll_handshake(&mut self, cx: &mut Cx, id: u64) -> Option<Established> {
        let handshake = self.incoming.get_mut(&id)?;
        let mut context = Context::from_waker(&handshake.waker);
        let Poll::Ready(result) = Pin::new(&mut handshake.connecting).poll(&mut context) else {
            return None;
        };
        let Handshake { verdict, watch, deadline, network, .. } = self.incoming.remove(&id)?;
        cx.deadlines.cancel(deadline, WakeSource::Handshake(id));
        let conn = ConnectionId(self.next_connection);
        let result = result.map_err(|error| error.to_string()).and_then(|quinn| {
            self.connected(cx, conn, Side::Acceptor, quinn, &verdict, watch.as_ref())
        });
        match result {
            Ok(established) => {
                self.next_connection += 2;
                self.admission.succeeded(network);
                Some(established)
            }
            Err(error) => {
                self.admission.failed(network, cx.now);
                cx.metrics.handshakes_failed += 1;
                tracing::debug!(error, "an incoming handshake failed");
                if let Some(Err(fault)) = verdict.get()
                    && fault.is_of_time()
                {
                    self.warn_about_time(cx, fault);
                }
                None
            }
        }
    }

    /// Logs that a peer was refused because of the validity of its certificate. If the local clock
    /// is wrong, all peers are refused, so that one warning is enough.
    fn warn_about_time(&mut self, cx: &Cx, fault: &CertificateFault) {
        if self.warned_about_time.is_none_or(|warned| cx.now.since(warned) >= WARNING_INTERVAL) {
            self.warned_about_time = Some(cx.now);
            tracing::warn!("a peer was refused: {fault}");
        }
    }

    // -- both directions

    /// Handles a successful handshake: reports the connection to the core. On an error the
    /// connection is dropped, which closes it.
    fn connected(
        &self,
        cx: &mut Cx,
        conn: ConnectionId,
        side: Side,
        quinn: quinn::Connection,
        verdict: &TlsVerdict,
        watch: Option<&Watch>,
    ) -> Result<Established, String> {
        let Some(Ok(verified)) = verdict.get() else {
            return Err("the handshake ended without verification of the peer".to_owned());
        };
        let dialect = dialect(&quinn).ok_or("no application protocol was negotiated")?;
        let shared_id = match dialect {
            Dialect::Native => {
                exported(&quinn).ok_or("the TLS exporter of the connection failed")?
            }
            Dialect::Polykey => watch
                .and_then(Watch::name)
                .ok_or("the connection ids of the handshake are unknown")?,
        };
        let local_ip = quinn.local_ip().unwrap_or_else(|| self.bound.ip());
        cx.input(Input::Connected(Connected {
            conn,
            side,
            dialect,
            leaf: verified.leaf,
            chain: verified.chain.clone(),
            matched_id: verified.matched_id,
            remote: canonical(quinn.remote_address()),
            local: canonical(SocketAddr::new(local_ip, self.bound.port())),
            shared_id,
        }));
        Ok((conn, quinn))
    }
}

impl Dial {
    /// Returns the connection when the peer has accepted the local node, as far as the handshake
    /// shows it.
    fn poll(
        &mut self,
        cx: &mut Cx,
        conn: ConnectionId,
    ) -> Poll<Result<quinn::Connection, ConnectionError>> {
        let mut context = Context::from_waker(&self.waker);
        if let Stage::Handshake(connecting) = &mut self.stage {
            let quinn = match Pin::new(connecting).poll(&mut context) {
                Poll::Ready(Ok(quinn)) => quinn,
                other => return other,
            };
            if dialect(&quinn) != Some(Dialect::Polykey) {
                // Its Hello shows that.
                return Poll::Ready(Ok(quinn));
            }
            let closed = closed(&quinn);
            self.stage = Stage::Confirmation { quinn, closed, look: cx.now };
        }
        let Stage::Confirmation { quinn, closed, look } = &mut self.stage else {
            return Poll::Pending;
        };
        if let Poll::Ready(error) = closed.as_mut().poll(&mut context) {
            return Poll::Ready(Err(error));
        }
        if quinn.stats().frame_rx.handshake_done > 0 {
            return Poll::Ready(Ok(quinn.clone()));
        }
        cx.deadlines.cancel(*look, WakeSource::Dial(conn));
        *look = cx.now + (quinn.rtt() / LOOKS_PER_ROUND_TRIP).clamp(SHORTEST_LOOK, LONGEST_LOOK);
        cx.deadlines.set(*look, WakeSource::Dial(conn));
        Poll::Pending
    }
}

/// Returns the negotiated dialect.
fn dialect(quinn: &quinn::Connection) -> Option<Dialect> {
    let data = quinn.handshake_data()?.downcast::<HandshakeData>().ok()?;
    Dialect::from_alpn(&data.protocol?)
}

/// Returns the shared id of a connection on `pk/1`.
fn exported(quinn: &quinn::Connection) -> Option<Bytes> {
    let mut name = [0; 32];
    quinn.export_keying_material(&mut name, EXPORTER, b"").ok()?;
    Some(Bytes::copy_from_slice(&name))
}

fn closed(quinn: &quinn::Connection) -> BoxFuture<ConnectionError> {
    let quinn = quinn.clone();
    Box::pin(async move { quinn.closed().await })
}

fn accept(endpoint: &quinn::Endpoint) -> BoxFuture<Option<Incoming>> {
    let endpoint = endpoint.clone();
    Box::pin(async move { endpoint.accept().await })
}

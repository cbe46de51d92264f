//! Handshakes in both directions, until they are connections or nothing.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use pk_proto::{Connected, ConnectionId, DialFailure, Dialect, Input, Instant, NodeId, Role};
use quinn::crypto::rustls::HandshakeData;
use quinn::{Connecting, ConnectionError, Incoming};

use super::admission::{Admission, Network};
use super::cids::Watch;
use super::connections::Connection;
use super::endpoint::{self, canonical};
use super::reasons::dial_failure;
use super::tls::{SERVER_NAME, Verdict};
use super::{Net, accept};
use crate::cx::{Cx, Key};
use crate::runtime::BoxFuture;

/// Connection attempts that are looked at before other sources get their turn.
/// Beginning one takes a few hundred microseconds.
const INCOMING_STEPS: usize = 8;

/// The label of the TLS exporter that names a connection equally on both ends.
const EXPORTER: &[u8] = b"EXPORTER-pk-conn";

/// Between two looks whether a peer has confirmed a handshake: a part of the round trip, within bounds.
const LOOKS_PER_ROUND_TRIP: u32 = 4;
const SHORTEST_LOOK: Duration = Duration::from_millis(1);
const LONGEST_LOOK: Duration = Duration::from_millis(50);

/// A handshake that we began.
pub(super) struct Dial {
    stage: Stage,
    verdict: Verdict,
    watch: Option<Watch>,
    waker: Waker,
    deadline: Instant,
}

/// How far a dial has come.
enum Stage {
    Handshake(Connecting),
    /// Our part of the handshake is done; on dialect `quic` nothing else will tell us that the peer has accepted us, and quinn
    /// does not tell when it has, so that we look again and again.
    Confirmation {
        quinn: quinn::Connection,
        closed: BoxFuture<ConnectionError>,
        look: Instant,
    },
}

/// A handshake that a peer began.
pub(super) struct Handshake {
    connecting: Connecting,
    verdict: Verdict,
    watch: Option<Watch>,
    waker: Waker,
    deadline: Instant,
    network: Network,
}

impl Net {
    // -- ours

    /// The effect `Dial`. `DialFailed` or `Connected` follows.
    pub(crate) fn dial(
        &mut self,
        cx: &mut Cx,
        conn: ConnectionId,
        addr: SocketAddr,
        expect: BTreeSet<NodeId>,
        deadline: Instant,
    ) {
        let started = self.tls.client(expect.into_iter().collect()).and_then(|(tls, verdict)| {
            let config = endpoint::client(&self.transport, tls);
            let (connecting, watch) = self.cids.watch(|| self.endpoint.connect_with(config, addr, SERVER_NAME));
            connecting.map(|connecting| (connecting, verdict, watch)).map_err(|error| error.to_string())
        });
        match started {
            Ok((connecting, verdict, watch)) => {
                let waker = cx.source(Key::Dial(conn));
                cx.deadlines.set(deadline, Key::Dial(conn));
                let stage = Stage::Handshake(connecting);
                self.dials.insert(conn, Dial { stage, verdict, watch, waker, deadline });
            }
            Err(error) => cx.input(Input::DialFailed { conn, why: DialFailure::Transport(error) }),
        }
    }

    /// The effect `CancelDial`. Dropping the attempt tells the peer. One whose handshake may be over for the peer goes on, to
    /// its confirmation or its failure: the reference loses the news of so early an end.
    pub(crate) fn cancel_dial(&mut self, cx: &mut Cx, conn: ConnectionId) {
        let dial = self.dials.get(&conn);
        if dial.is_some_and(|dial| dial.watch.as_ref().is_none_or(Watch::withdraw)) {
            self.end_dial(cx, conn, DialFailure::Cancelled);
        }
    }

    /// The deadline of a dial has passed, or it is time to look at it.
    pub(crate) fn dial_due(&mut self, cx: &mut Cx, conn: ConnectionId) {
        match self.dials.get(&conn) {
            Some(dial) if cx.now < dial.deadline => self.poll_dial(cx, conn),
            _ => self.end_dial(cx, conn, DialFailure::TimedOut),
        }
    }

    fn end_dial(&mut self, cx: &mut Cx, conn: ConnectionId, why: DialFailure) {
        if self.take_dial(cx, conn).is_some() {
            cx.input(Input::DialFailed { conn, why });
        }
    }

    fn take_dial(&mut self, cx: &mut Cx, conn: ConnectionId) -> Option<Dial> {
        let dial = self.dials.remove(&conn)?;
        cx.deadlines.cancel(dial.deadline, Key::Dial(conn));
        if let Stage::Confirmation { look, .. } = dial.stage {
            cx.deadlines.cancel(look, Key::Dial(conn));
        }
        Some(dial)
    }

    pub(crate) fn poll_dial(&mut self, cx: &mut Cx, conn: ConnectionId) {
        let Some(dial) = self.dials.get_mut(&conn) else { return };
        let Poll::Ready(result) = dial.poll(cx, conn) else { return };
        let Some(Dial { verdict, watch, .. }) = self.take_dial(cx, conn) else { return };
        let result = result.map_err(|error| dial_failure(error, &verdict)).and_then(|quinn| {
            let connected = self.connected(cx, conn, Role::Dialler, quinn, &verdict, watch.as_ref());
            connected.map_err(DialFailure::Transport)
        });
        if let Err(why) = result {
            cx.input(Input::DialFailed { conn, why });
        }
    }

    // -- theirs

    /// Looks at connection attempts. Says whether there can be any more: not if the endpoint is closed or broken.
    pub(crate) fn poll_endpoint(&mut self, cx: &mut Cx) -> bool {
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
                // An unvalidated peer may always be asked; were it not so, dropping the attempt refuses it.
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
        cx.deadlines.set(deadline, Key::Handshake(id));
        let waker = cx.source(Key::Handshake(id));
        self.handshakes.insert(id, Handshake { connecting, verdict, watch, waker, deadline, network });
        true
    }

    /// The deadline of a handshake has passed. Dropping it tells the peer.
    pub(crate) fn handshake_timed_out(&mut self, cx: &mut Cx, id: u64) {
        if let Some(handshake) = self.handshakes.remove(&id) {
            cx.metrics.handshakes_timed_out += 1;
            self.admission.failed(handshake.network, cx.now);
        }
    }

    pub(crate) fn poll_handshake(&mut self, cx: &mut Cx, id: u64) {
        let Some(handshake) = self.handshakes.get_mut(&id) else { return };
        let mut context = Context::from_waker(&handshake.waker);
        let Poll::Ready(result) = Pin::new(&mut handshake.connecting).poll(&mut context) else { return };
        let Some(Handshake { verdict, watch, deadline, network, .. }) = self.handshakes.remove(&id) else { return };
        cx.deadlines.cancel(deadline, Key::Handshake(id));
        let conn = ConnectionId(self.next_connection);
        let result = result
            .map_err(|error| error.to_string())
            .and_then(|quinn| self.connected(cx, conn, Role::Acceptor, quinn, &verdict, watch.as_ref()));
        match result {
            Ok(()) => {
                self.next_connection += 2;
                self.admission.succeeded(network);
            }
            Err(error) => {
                self.admission.failed(network, cx.now);
                cx.metrics.handshakes_failed += 1;
                tracing::debug!(error, "an incoming handshake failed");
            }
        }
    }

    // -- both

    /// A handshake succeeded: the connection is known to the core from here on. On an error it is dropped, which closes it.
    fn connected(
        &mut self,
        cx: &mut Cx,
        conn: ConnectionId,
        role: Role,
        quinn: quinn::Connection,
        verdict: &Verdict,
        watch: Option<&Watch>,
    ) -> Result<(), String> {
        let Some(Ok(verified)) = verdict.get() else {
            return Err("the handshake ended without a verdict about the peer".to_owned());
        };
        let dialect = dialect(&quinn).ok_or("no application protocol was negotiated")?;
        let shared_id = match dialect {
            Dialect::Native => exported(&quinn).ok_or("the connection has no exporter")?,
            Dialect::Polykey => watch.and_then(Watch::name).ok_or("the connection has no name")?,
        };
        let local_ip = quinn.local_ip().unwrap_or_else(|| self.bound.ip());
        cx.input(Input::Connected(Connected {
            conn,
            role,
            dialect,
            leaf: verified.leaf,
            chain: verified.chain.clone(),
            asked: verified.asked,
            remote: canonical(quinn.remote_address()),
            local: canonical(SocketAddr::new(local_ip, self.bound.port())),
            shared_id,
        }));
        self.connections.insert(conn, Connection::new(cx, conn, quinn));
        Ok(())
    }
}

impl Dial {
    /// The connection, when the peer has accepted us as far as the handshake shows.
    fn poll(&mut self, cx: &mut Cx, conn: ConnectionId) -> Poll<Result<quinn::Connection, ConnectionError>> {
        let mut context = Context::from_waker(&self.waker);
        if let Stage::Handshake(connecting) = &mut self.stage {
            let quinn = match Pin::new(connecting).poll(&mut context) {
                Poll::Ready(Ok(quinn)) => quinn,
                other => return other,
            };
            if dialect(&quinn) != Some(Dialect::Polykey) {
                // Its Hello tells.
                return Poll::Ready(Ok(quinn));
            }
            let closed = closed(&quinn);
            self.stage = Stage::Confirmation { quinn, closed, look: cx.now };
        }
        let Stage::Confirmation { quinn, closed, look } = &mut self.stage else { return Poll::Pending };
        if let Poll::Ready(error) = closed.as_mut().poll(&mut context) {
            return Poll::Ready(Err(error));
        }
        if quinn.stats().frame_rx.handshake_done > 0 {
            return Poll::Ready(Ok(quinn.clone()));
        }
        cx.deadlines.cancel(*look, Key::Dial(conn));
        *look = cx.now + (quinn.rtt() / LOOKS_PER_ROUND_TRIP).clamp(SHORTEST_LOOK, LONGEST_LOOK);
        cx.deadlines.set(*look, Key::Dial(conn));
        Poll::Pending
    }
}

/// The dialect that was negotiated.
fn dialect(quinn: &quinn::Connection) -> Option<Dialect> {
    let data = quinn.handshake_data()?.downcast::<HandshakeData>().ok()?;
    Dialect::from_alpn(&data.protocol?)
}

/// The name of a connection on `pk/1`.
fn exported(quinn: &quinn::Connection) -> Option<Bytes> {
    let mut name = [0; 32];
    quinn.export_keying_material(&mut name, EXPORTER, b"").ok()?;
    Some(Bytes::copy_from_slice(&name))
}

fn closed(quinn: &quinn::Connection) -> BoxFuture<ConnectionError> {
    let quinn = quinn.clone();
    Box::pin(async move { quinn.closed().await })
}

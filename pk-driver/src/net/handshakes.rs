//! Handshakes in both directions, until they are connections or nothing.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use pk_proto::{Connected, ConnectionId, DialFailure, Dialect, Input, Instant, NodeId, Role};
use quinn::crypto::rustls::HandshakeData;
use quinn::{Connecting, Incoming};

use super::admission::{Admission, Network};
use super::connections::Connection;
use super::endpoint::{self, canonical};
use super::reasons::dial_failure;
use super::tls::{SERVER_NAME, Verdict};
use super::{Net, accept};
use crate::cx::{Cx, Key};

/// Connection attempts that are looked at before other sources get their turn.
/// Beginning one takes a few hundred microseconds.
const INCOMING_STEPS: usize = 8;

/// The label of the TLS exporter that names a connection equally on both ends.
const EXPORTER: &[u8] = b"EXPORTER-pk-conn";

/// A handshake that we began.
pub(super) struct Dial {
    connecting: Connecting,
    verdict: Verdict,
    waker: Waker,
    deadline: Instant,
}

/// A handshake that a peer began.
pub(super) struct Handshake {
    connecting: Connecting,
    verdict: Verdict,
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
            let connecting = self.endpoint.connect_with(config, addr, SERVER_NAME);
            connecting.map(|connecting| (connecting, verdict)).map_err(|error| error.to_string())
        });
        match started {
            Ok((connecting, verdict)) => {
                let waker = cx.source(Key::Dial(conn));
                cx.deadlines.set(deadline, Key::Dial(conn));
                self.dials.insert(conn, Dial { connecting, verdict, waker, deadline });
            }
            Err(error) => cx.input(Input::DialFailed { conn, why: DialFailure::Transport(error) }),
        }
    }

    /// The effect `CancelDial`. Dropping the attempt tells the peer.
    pub(crate) fn cancel_dial(&mut self, cx: &mut Cx, conn: ConnectionId) {
        self.end_dial(cx, conn, DialFailure::Cancelled);
    }

    /// The deadline of a dial has passed.
    pub(crate) fn dial_timed_out(&mut self, cx: &mut Cx, conn: ConnectionId) {
        self.end_dial(cx, conn, DialFailure::TimedOut);
    }

    fn end_dial(&mut self, cx: &mut Cx, conn: ConnectionId, why: DialFailure) {
        if let Some(dial) = self.dials.remove(&conn) {
            cx.deadlines.cancel(dial.deadline, Key::Dial(conn));
            cx.input(Input::DialFailed { conn, why });
        }
    }

    pub(crate) fn poll_dial(&mut self, cx: &mut Cx, conn: ConnectionId) {
        let Some(dial) = self.dials.get_mut(&conn) else { return };
        let mut context = Context::from_waker(&dial.waker);
        let Poll::Ready(result) = Pin::new(&mut dial.connecting).poll(&mut context) else { return };
        let Some(Dial { verdict, deadline, .. }) = self.dials.remove(&conn) else { return };
        cx.deadlines.cancel(deadline, Key::Dial(conn));
        let result = result
            .map_err(|error| dial_failure(error, &verdict))
            .and_then(|quinn| self.connected(cx, conn, Role::Dialler, quinn, &verdict).map_err(DialFailure::Transport));
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
        let Ok(connecting) = incoming.accept_with(Arc::new(server)) else { return false };
        let id = self.next_handshake;
        self.next_handshake += 1;
        let deadline = cx.now + cx.config.handshake_timeout;
        cx.deadlines.set(deadline, Key::Handshake(id));
        let waker = cx.source(Key::Handshake(id));
        self.handshakes.insert(id, Handshake { connecting, verdict, waker, deadline, network });
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
        let Some(Handshake { verdict, deadline, network, .. }) = self.handshakes.remove(&id) else { return };
        cx.deadlines.cancel(deadline, Key::Handshake(id));
        let conn = ConnectionId(self.next_connection);
        let result = result
            .map_err(|error| error.to_string())
            .and_then(|quinn| self.connected(cx, conn, Role::Acceptor, quinn, &verdict));
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
    ) -> Result<(), String> {
        let Some(Ok(verified)) = verdict.get() else {
            return Err("the handshake ended without a verdict about the peer".to_owned());
        };
        let data = quinn.handshake_data().and_then(|data| data.downcast::<HandshakeData>().ok());
        let dialect = data.and_then(|data| Dialect::from_alpn(data.protocol.as_deref().unwrap_or_default()));
        let dialect = dialect.ok_or("no application protocol was negotiated")?;
        let mut shared_id = [0; 32];
        quinn
            .export_keying_material(&mut shared_id, EXPORTER, b"")
            .map_err(|_| "the connection has no exporter".to_owned())?;
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
            shared_id: Bytes::copy_from_slice(&shared_id),
        }));
        self.connections.insert(conn, Connection::new(cx, conn, quinn));
        Ok(())
    }
}

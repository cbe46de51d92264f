//! Applications for streams that a machine hands over.

use bytes::Bytes;
use pk_proto::{ConnectionId, NodeId, Opener, StreamId};

use crate::host::id::HostId;

/// Maximum number of unread or unsent bytes of an application.
const WINDOW: u64 = 64 * 1024;

/// Behavior of an application.
#[derive(Debug, Clone, Default)]
pub enum App {
    /// Reads everything, and ends its direction when the peer has ended.
    #[default]
    Sink,
    /// Sends back what it reads, as fast as the peer reads; for streams that its own node opened, a
    /// sink.
    Echo,
    /// Reads nothing.
    Stalled,
    /// Sends these bytes at once, with the end if `fin`; reads everything.
    Script {
        /// Bytes to send.
        send: Bytes,
        /// Whether to end the direction after them.
        fin: bool,
    },
}

/// A stream of an application, and its state.
#[derive(Debug, Clone)]
pub struct AppStream {
    /// Host of the application.
    pub host: HostId,
    /// Connection of the stream.
    pub conn: ConnectionId,
    /// Stream.
    pub stream: StreamId,
    /// Peer.
    pub node: NodeId,
    /// Protocol.
    pub protocol: String,
    /// Side that opened it.
    pub opener: Opener,
    /// Bytes read so far, including those that the machine had read.
    pub received: Vec<u8>,
    /// Number of bytes that the transport has accepted.
    pub sent: u64,
    /// Whether the peer's direction has ended.
    pub ended: bool,
    /// Code with which the peer reset its direction.
    pub reset: Option<u64>,
    /// Code with which the peer stopped reading.
    pub stopped: Option<u64>,
    /// Whether both directions have ended and the machine was informed.
    pub closed: bool,
    /// Whether the connection ended first.
    pub lost: bool,
    app: App,
}

/// Action of an application on its stream.
#[derive(Debug, Clone)]
pub enum AppAction {
    /// Send these bytes, with the end if `true`.
    Send(Bytes, bool),
    /// Read this many more bytes.
    Read(u64),
    /// Reset the own direction with this code.
    Reset(u64),
    /// Stop the peer's direction with this code.
    Stop(u64),
}

impl AppStream {
    pub(crate) fn new(
        app: App,
        host: HostId,
        conn: ConnectionId,
        stream: StreamId,
        node: NodeId,
        protocol: String,
        opener: Opener,
    ) -> Self {
        // Two echoes would never end.
        let app =
            if matches!((&app, opener), (App::Echo, Opener::Us(_))) { App::Sink } else { app };
        Self {
            host,
            conn,
            stream,
            node,
            protocol,
            opener,
            received: Vec::new(),
            sent: 0,
            ended: false,
            reset: None,
            stopped: None,
            closed: false,
            lost: false,
            app,
        }
    }

    /// The stream is the application's, with what the machine has read and not used.
    pub(crate) fn begin(&mut self, unread: Bytes) -> Vec<AppAction> {
        self.received.extend_from_slice(&unread);
        match &self.app {
            App::Sink => vec![AppAction::Read(WINDOW)],
            // Sent before more is read: reading may be answered at once.
            App::Echo => vec![AppAction::Send(unread, false), AppAction::Read(WINDOW)],
            App::Stalled => Vec::new(),
            App::Script { send, fin } => {
                vec![AppAction::Send(send.clone(), *fin), AppAction::Read(WINDOW)]
            }
        }
    }

    pub(crate) fn received(&mut self, bytes: &Bytes) -> Vec<AppAction> {
        self.received.extend_from_slice(bytes);
        let length = bytes.len() as u64;
        match &self.app {
            _ if bytes.is_empty() => Vec::new(),
            App::Sink | App::Script { .. } => vec![AppAction::Read(length)],
            App::Echo => vec![AppAction::Send(bytes.clone(), false)],
            App::Stalled => Vec::new(),
        }
    }

    /// The peer has ended its direction.
    pub(crate) fn ended(&mut self) -> Vec<AppAction> {
        self.ended = true;
        match &self.app {
            App::Sink | App::Echo => vec![AppAction::Send(Bytes::new(), true)],
            App::Stalled | App::Script { .. } => Vec::new(),
        }
    }

    pub(crate) fn sent(&mut self, bytes: u64) -> Vec<AppAction> {
        self.sent += bytes;
        match &self.app {
            App::Echo => vec![AppAction::Read(bytes)],
            App::Sink | App::Stalled | App::Script { .. } => Vec::new(),
        }
    }

    pub(crate) fn lose(&mut self) {
        self.lost = !self.closed;
    }
}

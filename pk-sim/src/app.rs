//! The applications behind streams that a machine hands over.

use bytes::Bytes;
use pk_proto::{ConnectionId, NodeId, Opener, StreamId};

use crate::HostId;

/// Bytes that an application has unread or unsent at a time.
const WINDOW: u64 = 64 * 1024;

/// What an application does with its streams.
#[derive(Debug, Clone, Default)]
pub enum App {
    /// Reads everything, and ends its direction when the peer has ended.
    #[default]
    Sink,
    /// Sends back what it reads, no faster than the peer takes it; on streams that its own node opened, a sink.
    Echo,
    /// Reads nothing.
    Stalled,
    /// Sends these bytes at once, and its end if `fin`; reads everything.
    Script {
        /// What it sends.
        send: Bytes,
        /// Whether its direction ends with that.
        fin: bool,
    },
}

/// A stream in the hands of an application, and what became of it.
#[derive(Debug, Clone)]
pub struct AppStream {
    /// Whose application.
    pub host: HostId,
    /// Over which connection.
    pub conn: ConnectionId,
    /// The stream.
    pub stream: StreamId,
    /// The peer.
    pub node: NodeId,
    /// The protocol.
    pub protocol: String,
    /// Who opened it.
    pub opener: Opener,
    /// What was read so far, what the machine had read first.
    pub received: Vec<u8>,
    /// Bytes that the transport has taken.
    pub sent: u64,
    /// The peer's direction has ended.
    pub ended: bool,
    /// The peer's direction was aborted with this code.
    pub reset: Option<u64>,
    /// The peer has asked to stop with this code.
    pub stopped: Option<u64>,
    /// Both directions are over; the machine was told.
    pub closed: bool,
    /// The connection ended under it.
    pub lost: bool,
    app: App,
}

/// What an application wants done with its stream.
#[derive(Debug, Clone)]
pub enum AppAction {
    /// Send these bytes, and the end if `true`.
    Send(Bytes, bool),
    /// Read so many bytes more.
    Read(u64),
    /// Abort the own direction with this code.
    Reset(u64),
    /// Ask the peer to abort its direction with this code.
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
        let app = if matches!((&app, opener), (App::Echo, Opener::Us(_))) { App::Sink } else { app };
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
            App::Script { send, fin } => vec![AppAction::Send(send.clone(), *fin), AppAction::Read(WINDOW)],
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

//! QUIC of the Polykey node layer as a state machine without IO, over quinn-proto.
//!
//! [`Transport`] is the machine below [`pk_proto::NodeManager`], in its vocabulary; [`Node`] is
//! both in one value. Neither reads a clock, opens a socket or starts a thread: an embedder of any
//! kind passes datagrams and the time.
#![warn(missing_docs)]

mod admission;
mod carrier;
mod cids;
mod circuits;
mod clock;
pub mod config;
mod connection;
mod cx;
mod effect;
mod event;
mod follow;
mod liveness;
mod metrics;
mod node;
mod queue;
mod reasons;
mod reserve;
mod resets;
mod settings;
mod simulation;
mod stream;
pub mod tls;
mod transport;
mod unvalidated;

pub use effect::{Effect, Response};
pub use event::{Opened, TransportEvent};
pub use metrics::TransportMetrics;
pub use node::{Node, NodeError, NodeSetup, Poll};
pub use pk_proto;
pub use reasons::StreamError;
pub use settings::{SettingsError, TransportSettings};
pub use simulation::{Crossing, TlsRandom};
pub use stream::{Read, RecvEnd, SendEnd};
pub use transport::{Datagram, Transmit, Transport, TransportError, TransportSetup};

//! The contract between a [`NodeManager`](crate::NodeManager), its driver and the embedder.
//!
//! The driver reports events as [`Input`]; the machine returns what to do as [`Output`], in one
//! ordered queue. All types are plain data with serde, so that a recording is the log of them.
//!
//! **Ids.** [`ConnectionId`](crate::ConnectionId) and [`StreamId`](crate::StreamId): the core
//! assigns even ones, the driver odd ones for incoming connections and streams. An
//! [`EffectId`](crate::EffectId) connects an effect with its one completion. No id is reused within
//! one machine. A completion for an unknown, cancelled or finished id is ignored and counted in
//! `Metrics::late_inputs`.
//!
//! **Connections.** [`Dial`](Output::Dial) ends with exactly one of [`Connected`](Input::Connected)
//! and [`DialFailed`](Input::DialFailed), also after [`CancelDial`](Output::CancelDial). A
//! connection ends with exactly one [`Disconnected`](Input::Disconnected), also after
//! [`CloseConnection`](Output::CloseConnection). The end of a connection ends its streams; there
//! are no inputs for them.
//!
//! **Silence.** Between `Connected` and `Disconnected` a driver reports
//! [`Suspected`](Input::Suspected) and [`Heard`](Input::Heard) alternately. It checks a connection
//! only while data of the core is unacknowledged. If a check is much later than planned, for
//! example after a suspend, the driver must check once more before it reports, because packets that
//! have arrived may not be processed yet. If all connections of a node are suspected, the core
//! dials the node as soon as a request needs it, retries there what may be retried, and closes a
//! suspected connection that stays silent beside a live one. A driver may omit these reports; dead
//! connections then end by their idle timeout.
//!
//! **Streams have credit in both directions.** The driver reads at most the bytes that
//! [`ReadCredit`](Output::ReadCredit) granted, so that an unread stream blocks its writer inside
//! QUIC. The core has at most `Config::send_window` bytes per stream that
//! [`StreamWritten`](Input::StreamWritten) has not confirmed, so that a slow reader never fills the
//! driver's memory. The end of the peer's direction needs no credit, nor does a reset, which drops
//! unread bytes. The sending direction ends with its FIN once all its bytes are confirmed, with
//! [`ResetStream`](Output::ResetStream) (also after an unconfirmed FIN), or with
//! [`StreamStopped`](Input::StreamStopped). A stream has ended for the driver when both directions
//! have ended.
//!
//! **A driver executes every output**, in order, without waiting for a peer.

pub(crate) mod census;
pub(crate) mod config;
pub(crate) mod error;
pub(crate) mod event;
pub(crate) mod info;
pub(crate) mod input;
pub(crate) mod metrics;
pub(crate) mod output;
pub(crate) mod recorded_call;
pub(crate) mod relay_config;
pub(crate) mod reply;
pub(crate) mod request;
pub(crate) mod search;
pub(crate) mod search_config;
pub(crate) mod snapshot;
pub(crate) mod transport;
pub(crate) mod upkeep_config;

pub use self::census::Census;
pub use self::config::{AddressPolicy, Config, ConfigError};
pub use self::error::{
    ConnectionErrorCode, ConnectionErrorReason, Failure, PeerFault, RequestError, SeedFailure,
    StartError, code,
};
pub use self::event::Event;
pub use self::info::{ConnectionInfo, ExchangeInfo, NodeBucketMeta};
pub use self::input::Input;
pub use self::metrics::Metrics;
pub use self::output::{CircuitLimits, Output};
pub use self::recorded_call::{RecordedCall, StartParams};
pub use self::relay_config::{RelayConfig, RelayPolicy};
pub use self::reply::{ChainData, ClaimsFound, Pong, Reply, Synced};
pub use self::request::{
    ClaimsQuery, FindNodeOptions, GestaltQuery, Request, RequestOptions, SetNodeOptions, Strategies,
};
pub use self::search::{ClosestOutcome, FindEnd, FindOutcome, FindStats, FindStep, FindStepEnd};
pub use self::search_config::SearchConfig;
pub use self::snapshot::{Snapshot, StoreMeta};
pub use self::transport::{Connected, DialFailure, DisconnectReason, Identity, Opener, Side};
pub use self::upkeep_config::UpkeepConfig;

//! The node layer of the Polykey network as a pure, deterministic state machine.
//!
//! A [`NodeManager`] is one node: its Kademlia graph, its searches, its connections and the calls
//! on them. It has no IO: no clock, sockets, threads, private keys, and no random numbers except
//! those from its seed. A driver passes events as [`Input`]s and executes the [`Output`]s; [`api`]
//! is the contract between the two.
//!
//! # The contract
//!
//! Four kinds of methods, as in other sans-IO crates:
//!
//! - **A. Requests** (`request`, `find_node`, …) are checked at once and return an id; exactly one
//!   [`Event::Done`] follows.
//! - **B. Inputs** (`handle_input`, `handle_timeout`) are infallible. A misbehaving peer is an
//!   event and a counter.
//! - **C. Outputs** (`poll_output`, then `poll_timeout`): after *every* call of A or B, drain the
//!   outputs until `None`, execute each in order, and only then read the timeout. If it is in the
//!   past, `handle_timeout` is due.
//! - **D. Getters** borrow from memory.
//!
//! `now` may stay equal between calls but never goes back; if it does, the machine keeps its own.
//! The same seed, snapshot and calls give the same outputs, byte for byte, on every machine.
//!
//! # The driving loop
//!
//! A minimal driver: without a network, so that every dial fails, and with a clock that jumps to
//! the next timeout. The search ends without a result, the node stops, and the loop ends by itself.
//!
//! ```
//! use pk_proto::*;
//! # use ed25519_dalek::{Signer, SigningKey};
//! # let key = SigningKey::from_bytes(&[7; 32]);
//! # let id = NodeId::from_bytes(key.verifying_key().to_bytes());
//! # let request = cert::CertificateRequest {
//! #     serial: cert::CertId::new(1_700_000_000_000, 0, 0), subject: id, issuer: id, not_before: 1_700_000_000,
//! #     not_after: 1_731_536_000, version: "1".into(), subject_extra: vec![], issuer_extra: vec![],
//! # };
//! # let sign = |bytes: &[u8]| key.sign(bytes).to_bytes();
//! # let identity = Identity { chain: vec![request.sign(sign, sign)?.into()] };
//! let mut now = Instant::ORIGIN;
//! let unix = UnixMillis(1_700_000_000_000);
//! let mut node = NodeManager::new(Config::default(), &identity, Snapshot::default(), [1; 32], now, unix)?;
//!
//! // Events that the machine has not received yet.
//! let mut inbox = vec![Input::Listening { addrs: vec!["127.0.0.1:1314".parse()?] }];
//! let mut searching = None;
//! loop {
//!     // 1. Inputs, a bounded number per turn.
//!     for input in inbox.split_off(0) {
//!         node.handle_input(input, now);
//!     }
//!     // 2. Timers.
//!     if node.poll_timeout().is_some_and(|at| at <= now) {
//!         node.handle_timeout(now);
//!     }
//!     // 3. All outputs, in order, without blocking.
//!     while let Some(output) = node.poll_output() {
//!         match output {
//!             Output::Dial { conn, .. } => {
//!                 let why = DialFailure::Transport("there is no network here".into());
//!                 inbox.push(Input::DialFailed { conn, why });
//!             }
//!             Output::Event(Event::Ready { .. }) => {
//!                 let friend = NodeId::from_bytes([9; 32]);
//!                 let seen = NodeContactAddressData {
//!                     mode: ContactMode::Direct, connected_time: unix, scopes: Scopes::GLOBAL,
//!                 };
//!                 node.set_node(friend, "127.0.0.1:1315".parse()?, seen, SetNodeOptions::default(), now)?;
//!                 searching = Some(node.find_node(friend, FindNodeOptions::default(), now)?);
//!             }
//!             Output::Event(Event::Done { id, result: Ok(Reply::FindNode(outcome)) }) => {
//!                 assert_eq!(Some(id), searching);
//!                 assert_eq!((outcome.found, outcome.ended), (None, FindEnd::Exhausted));
//!                 assert_eq!(outcome.stats.attempts, 1);
//!                 node.stop(now);
//!             }
//!             _ => {}
//!         }
//!     }
//!     // 4. Sleep until an input arrives or the timeout is due; set or clear the timer only here.
//!     if inbox.is_empty() {
//!         match node.poll_timeout() {
//!             Some(at) => now = now.max(at),
//!             None => break,
//!         }
//!     }
//! }
//! assert!(node.is_stopped());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Features
//!
//! `std` and `arbitrary` add trait implementations, `tracing` logs each change of a connection's
//! state with its reason. No feature changes behavior. Without them the crate needs `alloc` only.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(any(test, feature = "std", feature = "arbitrary"))]
extern crate std;

// From the lowest layer to the highest; ARCHITECTURE.md has the table of layers.
pub mod types;

pub mod store;

pub mod cert;
pub mod claims;
pub mod graph;
mod shares;

pub mod wire;

pub mod api;
#[cfg(feature = "arbitrary")]
mod fuzzing;

mod machine;

mod connect;
mod graph_writer;
mod lookup;
mod relay;
mod rpc;
mod signalling;
mod upkeep;

mod manager;

mod replay;

// The machine.
pub use machine::phase::Phase;
pub use manager::NodeManager;
pub use replay::{Replay, ReplayError, ReplayStep};

// Inputs and outputs.
#[doc(no_inline)]
pub use api::{CircuitLimits, Connected, Event, Identity, Input, Opener, Output, Side};

// Requests and their results.
#[doc(no_inline)]
pub use api::{
    ChainData, ClaimsFound, ClaimsQuery, ClosestOutcome, FindEnd, FindNodeOptions, FindOutcome,
    FindStats, FindStep, FindStepEnd, GestaltQuery, Pong, Reply, Request, RequestOptions,
    SetNodeOptions, Strategies, Synced,
};

// Settings, state and counters.
#[doc(no_inline)]
pub use api::{
    AddressPolicy, Census, Config, ConfigError, ConnectionInfo, ExchangeInfo, Metrics,
    NodeBucketMeta, RecordedCall, RelayConfig, RelayPolicy, SearchConfig, Snapshot, StartParams,
    StoreMeta, UpkeepConfig,
};

// Errors.
#[doc(no_inline)]
pub use api::{
    ConnectionErrorCode, ConnectionErrorReason, DialFailure, DisconnectReason, Failure, PeerFault,
    RequestError, SeedFailure, StartError, code,
};

// Values.
#[doc(no_inline)]
pub use types::{
    ApprovalId, BucketIndex, ConnectionId, ContactMode, Distance, EffectId, Host, Hostname,
    Instant, LeaseId, Network, NetworkId, NetworkIdError, NodeAddress, NodeAddressScope,
    NodeContact, NodeContactAddressData, NodeId, NodeIdEncoded, ParseAddressError,
    ParseNodeIdError, ParseSeedNodeError, Refusal, RequestId, Scopes, SeedNode, Signature,
    SignatureFault, StreamId, UnixMillis, is_relayed_address, verify,
};

// The store.
#[doc(no_inline)]
pub use store::{
    NodeGraphSpace, SnapshotError, StoreOp, StoreRange, StoreRow, Table, WriteFailure,
};

// The graph.
#[doc(no_inline)]
pub use graph::{
    Direction, DiversityLimits, NodeGraph, NodeOrder, SetNodeOutcome, SetNodeRejection,
    is_global_unicast,
};

// Messages between nodes.
#[doc(no_inline)]
pub use wire::{
    ActiveConnection, ActiveNode, ClaimsPage, ClosestNodes, ClosestNodesQuery, Dialect,
    FrameDecoder, FrameFault, MAX_FRAME, PunchRequest, RpcRequest, RpcResponse, SignalRequest,
    SignalTerms, encode_frame, is_protocol_name, native, polykey, signal,
};

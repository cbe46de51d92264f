//! The node layer of the Polykey network as a pure, deterministic state machine.
//!
//! A [`NodeManager`] is one node: its Kademlia graph, its searches, its connections and the calls on them. It does no IO:
//! it has no clock, no sockets, no threads, no private keys and no randomness but its seed. A driver feeds it what the
//! world did ([`Input`]) and carries out what it says ([`Output`]); [`io`] is the whole vocabulary between the two.
//!
//! # The contract
//!
//! Four kinds of methods, as in the sans-IO crates that you may know:
//!
//! - **A. Requests** (`request`, `find_node`, …) are checked at once and return an id; exactly one [`Event::Done`] follows.
//! - **B. The world** (`handle_input`, `handle_timeout`) is infallible. A bad peer is an event and a counter.
//! - **C. What to do** (`poll_output`, then `poll_timeout`): after *every* call of A or B, drain the outputs until `None`,
//!   carry out each one in order, and only then look at the timeout. It may lie in the past: then `handle_timeout` is due.
//! - **D. Getters** borrow what is in memory.
//!
//! `now` may stand still between calls but never goes back; if it does, the machine keeps its own.
//! Same seed, snapshot and calls give the same outputs, byte for byte, on every machine.
//!
//! # The driving loop
//!
//! A whole driver in miniature: no network, so every dial fails, and a clock that jumps to the next timeout. The search
//! ends with nobody found, the node stops, and the loop ends by itself.
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
//! // What the world has done and the machine has not heard yet.
//! let mut inbox = vec![Input::Listening { addrs: vec!["127.0.0.1:1314".parse()?] }];
//! let mut searching = None;
//! loop {
//!     // 1. Inputs, a bounded number a turn; after each one, everything the machine wants.
//!     for input in inbox.split_off(0) {
//!         node.handle_input(input, now);
//!     }
//!     // 2. Time.
//!     if node.poll_timeout().is_some_and(|at| at <= now) {
//!         node.handle_timeout(now);
//!     }
//!     // 3. Outputs, all of them, in order, waiting for nobody.
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
//!                 node.set_node(friend, "127.0.0.1:1315".parse()?, seen, SetNode::default(), now)?;
//!                 searching = Some(node.find_node(friend, FindNode::default(), now)?);
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
//!     // 4. Sleep until an input comes or the timeout is due; re-arm the timer or clear it, here and nowhere else.
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
//! `std` and `arbitrary` add trait implementations; no feature changes behaviour. Without them the crate needs `alloc` only.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(any(test, feature = "std", feature = "arbitrary"))]
extern crate std;

mod address;
pub mod cert;
pub mod claims;
mod config;
mod connect;
mod cx;
mod error;
mod graph;
mod id;
pub mod io;
mod lookup;
mod manager;
mod metrics;
mod names;
mod request;
mod rpc;
mod seed_node;
pub mod signal;
mod signature;
mod store;
mod time;
mod timers;
mod trace;

pub use address::*;
pub use config::*;
pub use error::*;
pub use graph::*;
pub use id::*;
pub use io::*;
pub use manager::*;
pub use metrics::*;
pub use names::*;
pub use request::*;
pub use rpc::*;
pub use seed_node::*;
pub use signature::*;
pub use store::{Snapshot, SnapshotError, StoreMeta};
pub use time::*;
pub use trace::*;

//! How an embedder fuzzes its own driver of [`pk_proto`].
//!
//! With the feature `arbitrary`, all data types of the contract implement [`Arbitrary`]: [`Input`],
//! [`Request`], [`RecordedCall`], [`RequestOptions`](pk_proto::RequestOptions),
//! [`Connected`](pk_proto::Connected), and [`Config`] with settings that are always valid. A script
//! for a driver is a type with a derive ([`Script`]), and a fuzz target is one line:
//!
//! ```text
//! libfuzzer_sys::fuzz_target!(|script: fuzz_embedder::Script| { fuzz_embedder::run(script); });
//! ```
//!
//! `fuzz/fuzz_targets/embedder.rs` of this repository contains that line; `cargo fuzz run -O -s
//! none embedder` runs it. To fuzz your own driver, replace [`Driver`].
//!
//! Notes:
//!
//! - Arbitrary ids ([`ConnectionId`] and so on) are small, so that an arbitrary input often refers
//!   to something that exists. Arbitrary node ids are mostly the 16 placeholders of
//!   [`NodeId::numbered`].
//! - A machine tolerates any input, including one that breaks the contract of [`pk_proto::api`]. A
//!   *driver* must keep the contract: [`run`] asserts what can be seen of it in the outputs.
//! - [`NodeManager::census`] shows what a driver has not completed.
//! - [`NodeManager::start_recorded`] and [`Replay`](pk_proto::Replay) show whether a run is
//!   deterministic.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use arbitrary::Arbitrary;
use bytes::Bytes;
use ed25519_dalek::{Signer, SigningKey};
use pk_proto::cert::{CertId, CertificateRequest};
use pk_proto::{
    Config, ConnectionId, DialFailure, DisconnectReason, Event, Identity, Input, Instant, NodeId,
    NodeManager, Output, RecordedCall, Request, RequestId, Signature, Snapshot, StoreOp, Table,
    UnixMillis,
};

/// Wall clock at the start of every run: 1 January 2026.
const UNIX: UnixMillis = UnixMillis(1_767_225_600_000);
/// Maximum number of calls of `handle_timeout` in one step.
const TIMEOUTS: usize = 1000;

/// Input of the fuzz target.
#[derive(Debug, Clone, Arbitrary)]
pub struct Script {
    /// Settings of the node.
    pub config: Config,
    /// Steps, in order.
    pub steps: Vec<Step>,
}

/// One step of a script.
#[derive(Debug, Clone, Arbitrary)]
pub enum Step {
    /// The application starts a request.
    Request(Request),
    /// The application calls another method of the machine, or the network does something
    /// unexpected.
    Call(RecordedCall),
    /// A dial in progress fails.
    DialFails(DialFailure),
    /// This many milliseconds pass.
    Wait(u16),
}

/// The driver under test: no network, and a store in memory. Replace it by your own.
#[derive(Debug)]
pub struct Driver {
    node: NodeManager,
    key: SigningKey,
    now: Instant,
    dials: BTreeSet<ConnectionId>,
    connections: BTreeSet<ConnectionId>,
    rows: BTreeMap<(Table, Bytes), Bytes>,
    inbox: Vec<Input>,
    open: BTreeSet<RequestId>,
    stopped: bool,
}

impl Driver {
    /// Starts a node. Returns `None` if it does not start.
    pub fn new(config: Config) -> Option<Self> {
        let key = SigningKey::from_bytes(&[7; 32]);
        let (now, identity) = (Instant::ORIGIN, identity(&key)?);
        let node =
            NodeManager::new(config, &identity, Snapshot::default(), [1; 32], now, UNIX).ok()?;
        let mut driver = Self {
            node,
            key,
            now,
            dials: BTreeSet::new(),
            connections: BTreeSet::new(),
            rows: BTreeMap::new(),
            inbox: Vec::new(),
            open: BTreeSet::new(),
            stopped: false,
        };
        driver.call(RecordedCall::Input(Input::Listening {
            addrs: vec![([127, 0, 0, 1], 1314).into()],
        }));
        Some(driver)
    }

    /// Calls the machine, executes its outputs, and delivers the completions.
    pub fn call(&mut self, call: RecordedCall) {
        match call {
            RecordedCall::Request(request) => {
                if let Ok(id) = self.node.request(request, self.now) {
                    assert!(self.open.insert(id), "request id {id} was given twice");
                }
            }
            call => self.node.call(call, self.now),
        }
        self.drain();
        while let Some(input) = self.inbox.pop() {
            self.node.handle_input(input, self.now);
            self.drain();
        }
    }

    /// Lets time pass, and fires the timers that become due.
    pub fn wait(&mut self, time: Duration) {
        let end = self.now + time;
        for _ in 0..TIMEOUTS {
            let Some(due) = self.node.poll_timeout().filter(|due| *due <= end) else { break };
            self.now = self.now.max(due);
            self.call(RecordedCall::Timeout);
        }
        self.now = self.now.max(end);
    }

    fn drain(&mut self) {
        while let Some(output) = self.node.poll_output() {
            assert!(!self.stopped, "after Stopped: {output:?}");
            self.perform(output);
        }
    }

    fn perform(&mut self, output: Output) {
        match output {
            Output::Dial { conn, .. } => {
                assert!(self.dials.insert(conn), "dial {conn} was started twice");
            }
            Output::CancelDial { conn } => self.fail_dial(conn, DialFailure::Cancelled),
            Output::CloseConnection { conn, .. } => {
                self.connections.remove(&conn);
                self.inbox.push(Input::Disconnected { conn, why: DisconnectReason::Local });
            }
            Output::Sign { id, bytes, .. } => {
                self.inbox.push(Input::Signed {
                    id,
                    result: Ok(Signature(self.key.sign(&bytes).to_bytes())),
                });
            }
            Output::Persist { id, ops, .. } => {
                ops.into_iter().for_each(|op| self.write(op));
                self.inbox.push(Input::Persisted { id, result: Ok(()) });
            }
            Output::Load { id, range, .. } => {
                let rows = self.rows.iter().filter(|((table, key), _)| {
                    *table == range.table
                        && *key >= range.from
                        && range.to.as_ref().is_none_or(|to| key < to)
                });
                let mut rows: Vec<_> =
                    rows.map(|((_, key), value)| (key.clone(), value.clone())).collect();
                if range.descending {
                    rows.reverse();
                }
                self.inbox.push(Input::Loaded { id, result: Ok((rows, false)) });
            }
            Output::Resolve { id, .. } => {
                self.inbox.push(Input::Resolved { id, result: Ok(Vec::new()) });
            }
            Output::Browse { id, .. } => {
                self.inbox.push(Input::Discovered { id, addrs: Vec::new(), done: true });
            }
            Output::ReplaceIdentity { id, .. } => {
                self.inbox
                    .push(Input::IdentityReplaced { id, result: Err("there is one key".into()) });
            }
            Output::Event(Event::Done { id, .. }) => {
                assert!(self.open.remove(&id), "request {id} ended, but is not open");
            }
            Output::Event(Event::Stopped) => {
                assert!(self.open.is_empty(), "stopped, but not ended: {:?}", self.open);
                self.stopped = true;
            }
            // This driver has no streams, sends no datagrams, and ignores events.
            _ => {}
        }
    }

    fn write(&mut self, op: StoreOp) {
        match op {
            StoreOp::Put { table, key, value } => drop(self.rows.insert((table, key), value)),
            StoreOp::Delete { table, key } => drop(self.rows.remove(&(table, key))),
            StoreOp::Clear { table } => self.rows.retain(|(of, _), _| *of != table),
        }
    }

    fn fail_dial(&mut self, conn: ConnectionId, why: DialFailure) {
        if self.dials.remove(&conn) {
            self.inbox.push(Input::DialFailed { conn, why });
        }
    }
}

/// Runs a script on a driver, then stops it. Panics if the driver or the machine breaks the
/// contract. Returns whether the node started.
pub fn run(script: Script) -> bool {
    let Some(mut driver) = Driver::new(script.config) else { return false };
    for step in script.steps {
        match step {
            Step::Request(request) => driver.call(RecordedCall::Request(request)),
            Step::Call(call) => driver.call(call),
            Step::DialFails(why) => {
                if let Some(conn) = driver.dials.first().copied() {
                    driver.fail_dial(conn, why);
                    driver.call(RecordedCall::Timeout);
                }
            }
            Step::Wait(millis) => driver.wait(Duration::from_millis(millis.into())),
        }
    }
    driver.call(RecordedCall::Stop);
    // The maximum of `Config::stop_timeout`.
    driver.wait(Duration::from_secs(60));
    assert!(driver.stopped, "the node does not stop");
    assert_eq!(driver.node.poll_timeout(), None);
    true
}

fn identity(key: &SigningKey) -> Option<Identity> {
    let id = NodeId::from_bytes(key.verifying_key().to_bytes());
    let request = CertificateRequest {
        serial: CertId::new(UNIX.0, 0, 0),
        subject: id,
        issuer: id,
        not_before: UNIX.as_secs() - 86_400,
        not_after: UNIX.as_secs() + 10 * 31_536_000,
        version: "1".into(),
        subject_extra: Vec::new(),
        issuer_extra: Vec::new(),
    };
    let sign = |bytes: &[u8]| key.sign(bytes).to_bytes();
    Some(Identity { chain: vec![request.sign(sign, sign).ok()?.into()] })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failing test panics")]
mod tests {
    use super::*;
    use arbitrary::Unstructured;

    /// The corpus of the fuzzer passes.
    #[test]
    fn corpus_passes() {
        let corpus =
            std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/embedder");
        let mut runs = 0;
        for file in std::fs::read_dir(corpus).unwrap() {
            let bytes = std::fs::read(file.unwrap().path()).unwrap();
            runs +=
                usize::from(Script::arbitrary_take_rest(Unstructured::new(&bytes)).is_ok_and(run));
        }
        assert!(runs > 0);
    }

    /// A fuzz target without a fuzzer, for `cargo test`.
    #[test]
    fn drivers_survive_random_scripts() {
        let mut runs = 0;
        for seed in 0..300u64 {
            let mut noise = [0; 2048];
            blake3::Hasher::new().update(&seed.to_be_bytes()).finalize_xof().fill(&mut noise);
            let script = Script::arbitrary(&mut Unstructured::new(&noise));
            runs += usize::from(script.is_ok_and(run));
        }
        assert!(runs > 200, "{runs}");
    }
}

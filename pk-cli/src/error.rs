//! Errors for people: what failed, and what to do about it.

use std::fmt;
use std::io;

use pk_driver::{DirLockError, KeyStoreError, NodeError, StartError, StoreOpenError, StreamError};
use pk_proto::{DialFailure, Failure, NodeAddress, RequestError, SnapshotError};
use serde_json::{Map, Value, json};

/// Why a command failed. clap reports invalid usage.
#[derive(Debug)]
pub(crate) struct CliError {
    /// Kind of the error, for programs.
    name: &'static str,
    /// What failed.
    message: String,
    /// What to do.
    tip: Option<String>,
    /// Causes: one failure per address or seed node.
    causes: Vec<(&'static str, String)>,
    /// Additional fields, for programs.
    details: Map<String, Value>,
    exit_code: u8,
}

/// What to do about a store that cannot be read.
const NO_STORE: &str = "restore store.redb from a backup. Without a backup: if the node has never claimed another \
    node, move the file away; only the stored contacts are lost. If it has, its chain is lost; \
    create a new node with `pk keygen --dir NEW`, because a new chain under the same key \
    contradicts the one that other nodes have seen";
/// What to do about a store of a later version.
const NEWER: &str = "use the version of pk that wrote it, or a later one";
/// What to do if keys and store belong to different nodes.
pub(crate) const FOREIGN_KEYS: &str = "restore the directory `keys` of that node. Without a backup of it the identity is lost: move \
    store.redb away, and create a new node with `pk keygen`";

pub(crate) type Result<T> = std::result::Result<T, CliError>;

impl CliError {
    pub(crate) fn new(name: &'static str, message: impl Into<String>) -> Self {
        Self {
            name,
            message: message.into(),
            tip: None,
            causes: Vec::new(),
            details: Map::new(),
            exit_code: 1,
        }
    }

    /// The command was interrupted.
    pub(crate) fn interrupted(signal: &str, exit_code: u8) -> Self {
        Self { exit_code, ..Self::new("Interrupted", format!("interrupted by {signal}")) }
    }

    /// What the command was given is invalid.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self { exit_code: 2, ..Self::new("Usage", message) }
    }

    /// Returns the exit code for this error.
    pub(crate) fn exit_code(&self) -> u8 {
        self.exit_code
    }

    pub(crate) fn tip(mut self, tip: impl Into<String>) -> Self {
        self.tip = Some(tip.into());
        self
    }

    /// Adds a field for programs.
    pub(crate) fn detail(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.details.insert(name.to_owned(), value.into());
        self
    }

    /// Adds the failed dials as causes, by address.
    pub(crate) fn dials(mut self, dials: &[(NodeAddress, DialFailure)]) -> Self {
        self.causes = dials.iter().map(dial).collect();
        self
    }

    /// Returns the error in the form of the reference's test peer: `name`, `message`, and its
    /// causes as `errors`.
    pub(crate) fn json(&self) -> Value {
        let mut error = json!({ "name": self.name, "message": self.message });
        if !self.causes.is_empty() {
            let causes = self
                .causes
                .iter()
                .map(|(name, message)| json!({ "name": name, "message": message }));
            error["errors"] = causes.collect();
        }
        for (name, value) in &self.details {
            error[name] = value.clone();
        }
        error
    }
}

impl fmt::Display for CliError {
    /// Prints the message, and the tip on a separate line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match &self.tip {
            Some(tip) => write!(f, "\n  tip: {tip}"),
            None => Ok(()),
        }
    }
}

impl From<NodeError> for CliError {
    fn from(error: NodeError) -> Self {
        match error {
            NodeError::Start(error) => error.into(),
            NodeError::Failure(error) => error.into(),
            NodeError::Request(error) => {
                let name = match error {
                    RequestError::OwnNode => "OwnNode",
                    RequestError::Stopping => "Stopped",
                    RequestError::NoSeeds => "NoSeeds",
                    _ => "RequestError",
                };
                Self::new(name, error.to_string())
            }
            NodeError::Closed => Self::new("Stopped", error.to_string()),
            other => Self::new("NodeError", other.to_string()),
        }
    }
}

impl From<StartError> for CliError {
    fn from(error: StartError) -> Self {
        let message = format!("the node cannot start: {error}");
        match error {
            StartError::Open(StoreOpenError::InUse { path }) => {
                let dir = path.parent().unwrap_or(&path).display();
                Self::new(
                    "InUse",
                    format!("another process is using {dir}; only one node can run in a directory at a time"),
                )
                .tip(
                    "stop the other process first; if it is a `pk run --stdio`, use its \
                        commands instead, such as findNode, ping, claim, allow and renew",
                )
            }
            StartError::Record { .. } => {
                Self::new("Record", message).tip("choose a file that does not exist")
            }
            StartError::MdnsInterface { .. } => {
                Self::new("MdnsInterface", message).tip("choose one of these with --mdns-interface")
            }
            StartError::Bind { .. } => Self::new("Bind", message)
                .tip("choose another address with --listen IP:PORT; port 0 selects a free port"),
            StartError::Open(error) => {
                let tip = match error {
                    StoreOpenError::Damaged { .. } => Some(NO_STORE),
                    StoreOpenError::Foreign { .. } => Some(
                        "another program wrote the file: move it away, or choose another --dir",
                    ),
                    StoreOpenError::Newer { .. } => Some(NEWER),
                    _ => None,
                };
                Self { tip: tip.map(str::to_owned), ..Self::new("StoreError", message) }
            }
            StartError::Snapshot(error) => {
                let newer = matches!(error, SnapshotError::Newer { .. });
                Self::new("StoreError", message).tip(if newer { NEWER } else { NO_STORE })
            }
            StartError::Keys(KeyStoreError::Missing { .. })
            | StartError::Core(pk_proto::StartError::ForeignStore { .. }) => {
                Self::new("ForeignStore", message).tip(FOREIGN_KEYS)
            }
            StartError::Keys(error) => error.into(),
            _ => Self::new("StartError", message),
        }
    }
}

impl From<Failure> for CliError {
    fn from(error: Failure) -> Self {
        let (name, causes) = match &error {
            Failure::Cancelled => ("Cancelled", Vec::new()),
            Failure::Stopped => ("Stopped", Vec::new()),
            Failure::DeadlineExceeded => ("DeadlineExceeded", Vec::new()),
            Failure::NotFound(dials) => ("NotFound", dials.iter().map(dial).collect()),
            Failure::Dial(dials) => ("Dial", dials.iter().map(dial).collect()),
            Failure::NoSeedReached(seeds) => (
                "NoSeedReached",
                seeds.iter().map(|(seed, why)| ("SeedFailure", format!("{seed}: {why}"))).collect(),
            ),
            Failure::ConnectionLost(_) => ("ConnectionLost", Vec::new()),
            Failure::Unsupported => ("Unsupported", Vec::new()),
            Failure::Aborted(_) => ("Aborted", Vec::new()),
            Failure::Peer(_) => ("PeerFault", Vec::new()),
            Failure::Refused(_) => ("Refused", Vec::new()),
            Failure::Remote { .. } => ("Remote", Vec::new()),
            Failure::Store(_) => ("Store", Vec::new()),
            Failure::ClaimUnconfirmed(_) => ("ClaimInDoubt", Vec::new()),
            Failure::OutcomeUnknown(_) => ("OutcomeUnknown", Vec::new()),
            Failure::HeadUnknown(_) => ("HeadUnknown", Vec::new()),
            Failure::StoreClosed(_) => ("StoreClosed", Vec::new()),
            _ => ("Failure", Vec::new()),
        };
        Self { causes, ..Self::new(name, error.to_string()) }
    }
}

impl From<StreamError> for CliError {
    fn from(error: StreamError) -> Self {
        Self::new("StreamError", error.to_string())
    }
}

impl From<DirLockError> for CliError {
    fn from(error: DirLockError) -> Self {
        StartError::Open(error.into()).into()
    }
}

impl From<KeyStoreError> for CliError {
    fn from(error: KeyStoreError) -> Self {
        Self::new("KeyStoreError", error.to_string())
    }
}

impl From<io::Error> for CliError {
    fn from(error: io::Error) -> Self {
        Self::new("Io", error.to_string())
    }
}

fn dial((address, why): &(NodeAddress, DialFailure)) -> (&'static str, String) {
    (dial_name(why), format!("{address}: {why}"))
}

fn dial_name(why: &DialFailure) -> &'static str {
    match why {
        DialFailure::TimedOut => "TimedOut",
        DialFailure::Cancelled => "Cancelled",
        DialFailure::Rejected { .. } => "Rejected",
        DialFailure::Certificate(_) => "Certificate",
        DialFailure::TimedOutAfterSignal => "TimedOutAfterSignal",
        DialFailure::Relay(_) => "Relay",
        DialFailure::Signal(_) => "Signal",
        DialFailure::Resolve(_) => "Resolve",
        DialFailure::Transport(_) => "Transport",
        DialFailure::LeadsTo(_) => "LeadsTo",
        DialFailure::OtherNetwork(_) => "OtherNetwork",
        _ => "DialFailure",
    }
}

//! Errors for people: what is wrong, and what to do about it.

use std::fmt;
use std::io;

use pk_driver::{KeyStoreError, NodeError, StartError, StoreOpenError, StreamError};
use pk_proto::{DialFailure, Failure, NodeAddress, RequestError};
use serde_json::{Map, Value, json};

/// Why a command failed. The program ends with exit code 1; bad usage is clap's, with 2.
#[derive(Debug)]
pub(crate) struct CliError {
    /// What kind, for programs.
    name: &'static str,
    /// What is wrong.
    message: String,
    /// What to do.
    tip: Option<String>,
    /// What it was made of: one failure per address or seed.
    causes: Vec<(&'static str, String)>,
    /// What more there is to say about it, for programs.
    details: Map<String, Value>,
}

pub(crate) type Result<T> = std::result::Result<T, CliError>;

impl CliError {
    pub(crate) fn new(name: &'static str, message: impl Into<String>) -> Self {
        Self { name, message: message.into(), tip: None, causes: Vec::new(), details: Map::new() }
    }

    pub(crate) fn tip(mut self, tip: impl Into<String>) -> Self {
        self.tip = Some(tip.into());
        self
    }

    /// Says more about it, to programs.
    pub(crate) fn detail(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.details.insert(name.to_owned(), value.into());
        self
    }

    /// What it was made of, by address.
    pub(crate) fn dials(mut self, dials: &[(NodeAddress, DialFailure)]) -> Self {
        self.causes = dials.iter().map(dial).collect();
        self
    }

    /// The shape that the reference's test peer gives to errors: `name`, `message`, and the `errors` it was made of.
    pub(crate) fn json(&self) -> Value {
        let mut error = json!({ "name": self.name, "message": self.message });
        if !self.causes.is_empty() {
            let causes = self.causes.iter().map(|(name, message)| json!({ "name": name, "message": message }));
            error["errors"] = causes.collect();
        }
        for (name, value) in &self.details {
            error[name] = value.clone();
        }
        error
    }
}

impl fmt::Display for CliError {
    /// The message, with the tip on a line of its own.
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
                Self::new("InUse", format!("a node is running in {dir}, and a folder is for one at a time"))
                    .tip("stop that one first; if it is a `pk run --stdio`, it takes commands such as findNode, ping, claim, allow and renew")
            }
            StartError::Record { .. } => Self::new("Record", message).tip("a recording is always a new file"),
            StartError::Bind { .. } => Self::new("Bind", message)
                .tip("choose another address with --listen IP:PORT; port 0 takes any free one"),
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
            Failure::NoSeedReached(seeds) => {
                ("NoSeedReached", seeds.iter().map(|(seed, why)| ("SeedFailure", format!("{seed}: {why}"))).collect())
            }
            Failure::ConnectionLost(_) => ("ConnectionLost", Vec::new()),
            Failure::Unsupported => ("Unsupported", Vec::new()),
            Failure::Aborted(_) => ("Aborted", Vec::new()),
            Failure::Peer(_) => ("PeerFault", Vec::new()),
            Failure::Refused(_) => ("Refused", Vec::new()),
            Failure::Remote { .. } => ("Remote", Vec::new()),
            Failure::Store(_) => ("Store", Vec::new()),
            Failure::ClaimInDoubt(_) => ("ClaimInDoubt", Vec::new()),
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
        DialFailure::Signal(_) => "Signal",
        DialFailure::Resolve(_) => "Resolve",
        DialFailure::Transport(_) => "Transport",
        DialFailure::LeadsTo(_) => "LeadsTo",
        _ => "DialFailure",
    }
}

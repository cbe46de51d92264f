//! A node in a separate process.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use pk_proto::{NodeAddress, NodeId, SeedNode};
use serde_json::{Map, Value, json};
use tokio::sync::oneshot;

use crate::install::{PROGRAM_NAME, Polykey};
use crate::processes::{Registered, spawn};

/// Lines of the node's log that are kept for an error.
const LOG_LINES: usize = 30;

/// Makes the directories of this process's nodes distinct.
static NODES: AtomicU64 = AtomicU64::new(0);

/// Settings of a node.
#[derive(Debug, Clone)]
pub struct Settings {
    /// IP address to listen on. Default 127.0.0.1.
    pub host: IpAddr,
    /// UDP port to listen on. Default 0, a free port.
    pub port: u16,
    /// Seed of its key. Default: a new one.
    pub seed: Option<[u8; 32]>,
    /// Whether every connected node may claim it. Default `false`.
    pub allow_all: bool,
    /// Steps by which it answers the authentication of a connection, as Polykey after 1.15 does
    /// (docs/WIRE.md section 14): `"read"` waits for a message of the caller, an object is sent.
    /// Default: none; it does not know the method.
    pub authentication: Option<Value>,
    /// Options of its NodeConnectionManager, by name, for example `connectionKeepAliveTimeoutTime`.
    pub connections: Value,
    /// Options of its NodeManager, by name.
    pub manager: Value,
    /// Directory in which it has the directory of its state. Default: one in that of Polykey.
    pub states: Option<PathBuf>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            host: IpAddr::V4(Ipv4Addr::LOCALHOST),
            port: 0,
            seed: None,
            allow_all: false,
            authentication: None,
            connections: json!({}),
            manager: json!({}),
            states: None,
        }
    }
}

/// Why a command of a node failed.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum PeerError {
    /// The process could not be started.
    #[error("the Polykey node did not start: {0}")]
    Start(String),
    /// The process has ended. Contains the end of its log.
    #[error("the Polykey node has ended: {0}")]
    Ended(String),
    /// It printed something that is not an answer.
    #[error("invalid answer of the Polykey node: {0}")]
    Answer(String),
    /// The command threw an exception.
    #[error("the Polykey node threw {0}")]
    Threw(#[from] RemoteError),
}

/// An exception of the node.
#[derive(Debug, Clone, Default)]
pub struct RemoteError {
    /// Name of its class.
    pub name: String,
    /// Message.
    pub message: String,
    /// Data.
    pub data: Value,
    /// Its cause, or all errors of an AggregateError.
    pub causes: Vec<Self>,
}

impl RemoteError {
    fn of(value: &Value) -> Self {
        let text = |name| value.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        let cause = value.get("cause").into_iter();
        let errors = value.get("errors").and_then(Value::as_array).into_iter().flatten();
        Self {
            name: text("name"),
            message: text("message"),
            data: value.get("data").cloned().unwrap_or_default(),
            causes: cause.chain(errors).map(Self::of).collect(),
        }
    }

    /// Returns this exception or the first of its causes that has a class.
    pub fn find(&self, name: &str) -> Option<&Self> {
        if self.name == name {
            Some(self)
        } else {
            self.causes.iter().find_map(|cause| cause.find(name))
        }
    }
}

impl fmt::Display for RemoteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.name, self.message)?;
        self.causes.iter().try_for_each(|cause| write!(f, " <- {cause}"))
    }
}

impl std::error::Error for RemoteError {}

/// A node of Polykey. It ends when this is dropped.
#[derive(Debug)]
pub struct Peer {
    process: Process,
    stdin: Mutex<ChildStdin>,
    next: AtomicU64,
    node_id: NodeId,
    addr: SocketAddr,
}

/// A process, and the directory of its state. Both end with this.
#[derive(Debug)]
struct Process {
    child: Child,
    /// Until it was waited for.
    registered: Option<Registered>,
    dir: PathBuf,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    waiting: BTreeMap<u64, oneshot::Sender<Result<Value, PeerError>>>,
    /// Receives the first event.
    ready: Option<oneshot::Sender<Result<Value, PeerError>>>,
    faults: Vec<String>,
    log: VecDeque<String>,
    ended: bool,
}

impl Polykey {
    /// Starts a node. Takes about two seconds.
    ///
    /// # Errors
    ///
    /// [`PeerError`]; nothing is left running.
    pub async fn start(&self, settings: Settings) -> Result<Peer, PeerError> {
        let n = NODES.fetch_add(1, Ordering::Relaxed);
        let Settings { host, port, seed, allow_all, authentication, connections, manager, states } =
            settings;
        let states = states.unwrap_or_else(|| self.dir.join("state"));
        let dir = states.join(format!("{}-{n}", std::process::id()));
        let seed =
            seed.map(|seed| seed.iter().map(|byte| format!("{byte:02x}")).collect::<String>());
        let settings = json!({
            "dir": dir, "host": host, "port": port, "seed": seed, "allowAll": allow_all,
            "authentication": authentication, "connections": connections, "manager": manager,
        });
        let start = |error: io::Error| PeerError::Start(error.to_string());
        let mut node = Command::new("node");
        node.arg(self.dir.join(PROGRAM_NAME)).arg(settings.to_string());
        node.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let (mut child, registered) = spawn(&mut node, Some(dir.clone())).map_err(start)?;
        let pipes = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let (caller, ready) = oneshot::channel();
        let shared =
            Arc::new(Shared(Mutex::new(State { ready: Some(caller), ..State::default() })));
        let process =
            Process { child, registered: Some(registered), dir, shared: Arc::clone(&shared) };
        let (Some(stdin), Some(stdout), Some(stderr)) = pipes else {
            return Err(PeerError::Start("no pipes".to_owned()));
        };
        let logged = Arc::clone(&shared);
        let log = thread::Builder::new().name("polykey-log".to_owned()).spawn(move || {
            BufReader::new(stderr).lines().map_while(Result::ok).for_each(|line| logged.log(line));
        });
        let log = log.map_err(start)?;
        let hear = move || {
            BufReader::new(stdout)
                .lines()
                .map_while(Result::ok)
                .for_each(|line| shared.handle_line(&line));
            // The end of one is the end of the other.
            let _ = log.join();
            shared.end();
        };
        thread::Builder::new().name("polykey".to_owned()).spawn(hear).map_err(start)?;
        let ready = ready.await.unwrap_or_else(|_| Err(PeerError::Ended(String::new())))?;
        let text = |name| ready.get(name).and_then(Value::as_str).unwrap_or_default();
        let port =
            ready.get("port").and_then(Value::as_u64).and_then(|port| u16::try_from(port).ok());
        let (Ok(node_id), Some(port)) = (text("nodeId").parse(), port) else {
            return Err(PeerError::Answer(ready.to_string()));
        };
        let stdin = Mutex::new(stdin);
        Ok(Peer {
            process,
            stdin,
            next: AtomicU64::new(0),
            node_id,
            addr: SocketAddr::new(host, port),
        })
    }
}

impl Peer {
    /// Returns its id at the start.
    pub fn node_id(&self) -> NodeId {
        self.node_id
    }

    /// Returns the address that it listens on.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Returns the address under which it is reached on this machine.
    pub fn reached(&self) -> SocketAddr {
        let ip = if self.addr.ip().is_unspecified() {
            IpAddr::V4(Ipv4Addr::LOCALHOST)
        } else {
            self.addr.ip()
        };
        SocketAddr::new(ip, self.addr.port())
    }

    /// Returns the node as a seed node for others on this machine.
    pub fn seed(&self) -> SeedNode {
        SeedNode { node: self.node_id, address: NodeAddress::from_socket(self.reached()) }
    }

    /// Sends a command of `node/polykey.js` to the node, and waits for its result. Several commands
    /// run concurrently.
    ///
    /// # Errors
    ///
    /// [`PeerError::Threw`], or the node has ended.
    pub async fn ask(&self, what: &str, with: Value) -> Result<Value, PeerError> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (caller, answer) = oneshot::channel();
        {
            let mut state = self.process.shared.state();
            if state.ended {
                return Err(state.ended_error());
            }
            state.waiting.insert(id, caller);
        }
        let mut line = match with {
            Value::Object(line) => line,
            _ => Map::new(),
        };
        line.insert("id".to_owned(), id.into());
        line.insert("do".to_owned(), what.into());
        // If it fails, the end of the process is reported.
        let _ = writeln!(lock(&self.stdin), "{}", Value::Object(line));
        answer.await.unwrap_or_else(|_| Err(self.process.shared.state().ended_error()))
    }

    /// Returns exceptions that were not caught in the node.
    pub fn faults(&self) -> Vec<String> {
        self.process.shared.state().faults.clone()
    }

    /// Kills the process.
    pub fn kill(&mut self) {
        self.process.kill();
    }
}

impl Process {
    fn kill(&mut self) {
        let Some(registered) = self.registered.take() else { return };
        registered.end();
        // Fails if it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.dir);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if thread::panicking() {
            let state = self.shared.state();
            eprintln!("last log lines of a Polykey node:\n{}", state.tail());
            state.faults.iter().for_each(|fault| eprintln!("uncaught: {fault}"));
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.0)
    }

    fn log(&self, line: String) {
        let log = &mut self.state().log;
        if log.len() == LOG_LINES {
            log.pop_front();
        }
        log.push_back(line);
    }

    fn handle_line(&self, line: &str) {
        let Ok(line) = serde_json::from_str::<Value>(line) else {
            return self.log(line.to_owned());
        };
        let error = || line.get("error").map(|error| PeerError::Threw(RemoteError::of(error)));
        let answer =
            || error().map_or_else(|| Ok(line.get("ok").cloned().unwrap_or_default()), Err);
        let mut state = self.state();
        let caller = match (
            line.get("id").and_then(Value::as_u64),
            line.get("event").and_then(Value::as_str),
        ) {
            (Some(id), _) => state.waiting.remove(&id).map(|caller| (caller, answer())),
            (None, Some("ready")) => state.ready.take().map(|caller| (caller, Ok(line))),
            (None, Some("failed")) => state.ready.take().map(|caller| (caller, answer())),
            (None, Some("fault")) => {
                state.faults.push(line.to_string());
                None
            }
            _ => None,
        };
        if let Some((caller, answer)) = caller {
            // Fails if the caller is gone.
            let _ = caller.send(answer);
        }
    }

    fn end(&self) {
        let mut state = self.state();
        state.ended = true;
        let ended_error = state.ended_error();
        let waiting = std::mem::take(&mut state.waiting).into_values().chain(state.ready.take());
        for caller in waiting {
            let _ = caller.send(Err(ended_error.clone()));
        }
    }
}

impl State {
    fn tail(&self) -> String {
        self.log.iter().map(String::as_str).collect::<Vec<_>>().join("\n")
    }

    fn ended_error(&self) -> PeerError {
        PeerError::Ended(self.tail())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // The state under these locks is consistent after every step.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

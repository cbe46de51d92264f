//! The command line of `pk`, and all checks that need no node.

use std::io::{Write, stdout};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use data_encoding::HEXLOWER_PERMISSIVE;
use pk_proto::claims::ClaimPolicy;
use pk_proto::{NodeId, SeedNode};
use tracing_subscriber::filter::Targets;

use crate::node_args::{MdnsArgs, NetworkArgs, PortMappingArgs, RelayArgs};
use crate::output;
use crate::sim_args::SimArgs;

/// A Polykey node on the command line.
#[derive(Debug, Parser)]
#[command(name = "pk", version, propagate_version = true, max_term_width = 110, after_help = EXIT_CODES)]
pub(crate) struct Cli {
    /// Log level for stderr: off, error, warn, info, debug or trace; or TARGET=LEVEL,…, for example
    /// `warn,pk_driver=debug`.
    #[arg(long, global = true, value_name = "LEVEL", env = "PK_LOG", default_value = "warn", value_parser = log_filter)]
    pub(crate) log: Targets,

    #[command(subcommand)]
    pub(crate) command: Command,
}

const EXIT_CODES: &str = "\
    Exit codes: 0 success, also if a signal ends `pk run`; 1 failure, or the output cannot be \
    written; 2 invalid usage; 141 the reader of the output has closed it; 128 + N interrupted by \
    signal N (129 SIGHUP, 130 SIGINT, 143 SIGTERM). A second signal ends the program at once.";

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Create the key and the first certificate of a new node.
    Keygen(KeysArgs),
    /// Print the id of the node in DIR.
    Id(KeysArgs),
    /// Run a node until SIGINT, SIGTERM or SIGHUP.
    ///
    /// After a signal the exit code is 0, or 1 if output could not be written. A blocked output
    /// does not delay the exit.
    Run(RunArgs),
    /// Search for a node by its id, connect to it and print its address.
    Find(TargetArgs),
    /// Search for a node and measure its response time.
    Ping(TargetArgs),
    /// Search for the nodes closest to an id and print their addresses, the nearest first.
    ///
    /// At the time limit prints those found so far. The id need not be that of a node.
    Closest(ClosestArgs),
    /// Cross-sign a claim with a node. The chains of both nodes then contain a claim that links
    /// them.
    ///
    /// The other node must allow it first: with `pk allow`, or `pk run --allow`, in its own
    /// directory.
    Claim(TargetArgs),
    /// Verify and print a claim chain: that of the node in DIR, or that of another node.
    ///
    /// If verification fails, prints the verified prefix and the fault, and exits with 1.
    Chain(ChainArgs),
    /// Add nodes to the claim allow-list of the node in DIR (--remove removes them). Without ID,
    /// list the allowed nodes.
    ///
    /// Fails if a node is running in DIR.
    Allow(AllowArgs),
    /// Join the network and print the buckets of the node graph.
    Buckets(OneShotArgs),
    /// Print the certificates of the node in DIR, back to its first key, and whether they are valid
    /// now.
    ///
    /// A certificate that is not valid, because it has expired or the clock was set, is reissued by
    /// the next command that starts the node, and at once by a running node. The node ids do not
    /// change.
    Cert(KeysArgs),
    /// Replace the key of the node in DIR, and so its id. The node stays reachable under its former
    /// ids.
    ///
    /// Fails if a node is running in DIR. The old keys stay in DIR/keys.
    Renew(RenewArgs),
    /// Replay a recording of `pk run --record` and check that the node produces identical outputs.
    Replay(ReplayArgs),
    /// Run a network of nodes in one process over QUIC on loopback: start, join, find, ping,
    /// stream, cross-sign claims, verify chains, refuse forged ones, connect through a relay, find
    /// by mDNS, restart, renew a key, shut down.
    ///
    /// Exits with 0 only if every step succeeded.
    Demo(DemoArgs),
    /// Run a network of thousands of nodes in virtual time, from a scenario in TOML, and check its
    /// figures.
    ///
    /// The last line of the output is a JSON object with all figures. Exits with 1 if a figure does
    /// not hold, and with 2 if the scenario is invalid.
    Sim(SimArgs),
}

impl Cli {
    /// Parses the command line.
    ///
    /// # Errors
    ///
    /// Exit code, after the help or a usage error was printed.
    pub(crate) fn read() -> Result<Self, u8> {
        let checked = Self::try_parse().and_then(|cli| match &cli.command {
            Command::Run(run) => match run.check() {
                Ok(()) => Ok(cli),
                Err(message) => Err(Self::command().error(ErrorKind::ValueValidation, message)),
            },
            _ => Ok(cli),
        });
        checked.map_err(|usage| {
            let code = u8::try_from(usage.exit_code()).unwrap_or(2);
            match usage.print().and_then(|()| stdout().flush()) {
                Err(unwritable) if !usage.use_stderr() => output::failed(&unwritable, code),
                // The usage error cannot be printed anywhere else.
                _ => code,
            }
        })
    }
}

impl Command {
    /// Returns the runtime to use. It has no effect for commands without a node.
    pub(crate) fn runtime(&self) -> RuntimeName {
        match self {
            Self::Keygen(_) | Self::Id(_) | Self::Cert(_) | Self::Replay(_) | Self::Sim(_) => {
                RuntimeName::default()
            }
            Self::Renew(args) => args.runtime.runtime,
            Self::Run(args) => args.runtime.runtime,
            Self::Find(args) | Self::Ping(args) | Self::Claim(args) => args.common.runtime.runtime,
            Self::Closest(args) => args.common.runtime.runtime,
            Self::Chain(args) => args.common.runtime.runtime,
            Self::Allow(args) => args.runtime.runtime,
            Self::Buckets(args) => args.runtime.runtime,
            Self::Demo(args) => args.runtime.runtime,
        }
    }

    /// Returns whether a failure is also printed as JSON, in addition to the message on stderr. The
    /// demo and `--stdio` print their own.
    pub(crate) fn json(&self) -> bool {
        match self {
            Self::Keygen(args) | Self::Id(args) | Self::Cert(args) => args.json,
            Self::Renew(args) => args.keys.json,
            Self::Replay(args) => args.json,
            Self::Find(args) | Self::Ping(args) | Self::Claim(args) => args.common.json,
            Self::Closest(args) => args.common.json,
            Self::Chain(args) => args.common.json,
            Self::Allow(args) => args.keys.json,
            Self::Buckets(args) => args.json,
            Self::Run(_) | Self::Demo(_) | Self::Sim(_) => false,
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct KeysArgs {
    /// Directory of the node. Its key store is DIR/keys.
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: PathBuf,
    /// Print one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct RenewArgs {
    #[command(flatten)]
    pub(crate) keys: KeysArgs,
    #[command(flatten)]
    pub(crate) runtime: RuntimeArg,
}

#[derive(Debug, Args)]
pub(crate) struct AllowArgs {
    /// Nodes to add or remove.
    #[arg(value_name = "ID")]
    pub(crate) nodes: Vec<NodeId>,
    /// Remove the nodes from the list.
    #[arg(long, requires = "nodes")]
    pub(crate) remove: bool,
    #[command(flatten)]
    pub(crate) keys: KeysArgs,
    #[command(flatten)]
    pub(crate) runtime: RuntimeArg,
}

#[derive(Debug, Args)]
pub(crate) struct ReplayArgs {
    /// Recording to replay.
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// Also print every call into the node and its outputs.
    #[arg(long)]
    pub(crate) calls: bool,
    /// Print JSON: one object for the whole recording, after one per call with --calls.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct RuntimeArg {
    /// Async runtime.
    #[arg(long, value_enum, value_name = "RUNTIME", default_value_t)]
    pub(crate) runtime: RuntimeName,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum RuntimeName {
    /// tokio, with one thread per core.
    #[default]
    Tokio,
    /// smol, with SMOL_THREADS threads, or one.
    Smol,
}

impl RuntimeName {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Tokio => "tokio",
            Self::Smol => "smol",
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// Directory of the node, created by `pk keygen`.
    #[arg(long, value_name = "DIR", required_unless_present = "stdio")]
    pub(crate) dir: Option<PathBuf>,
    /// UDP address to listen on; port 0 selects a free port. (default: `[::]:1314`, which includes
    /// IPv4; with --stdio 127.0.0.1:0)
    #[arg(long, value_name = "ADDR", value_parser = listen_address, conflicts_with_all = ["host", "port"])]
    listen: Option<SocketAddr>,
    /// IP address to listen on; replaces that of --listen.
    #[arg(long, value_name = "IP", value_parser = ip_address)]
    host: Option<IpAddr>,
    /// UDP port to listen on; replaces that of --listen.
    #[arg(long, value_name = "PORT")]
    port: Option<u16>,
    /// Node to join the network through. Can be repeated. Not needed once the node in DIR has
    /// stored contacts.
    #[arg(long = "seed-node", value_name = "pk://ID@HOST:PORT")]
    pub(crate) seed_nodes: Vec<SeedNode>,
    /// Record all inputs of the node in a new file of up to 1 GiB, for `pk replay`.
    ///
    /// The recording shows which nodes this node communicates with. It contains no private keys.
    #[arg(long, value_name = "FILE")]
    pub(crate) record: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) mdns: MdnsArgs,
    #[command(flatten)]
    pub(crate) network: NetworkArgs,
    #[command(flatten)]
    pub(crate) relay: RelayArgs,
    #[command(flatten)]
    pub(crate) port_mapping: PortMappingArgs,
    /// Policy for claims that other nodes ask this node to sign.
    #[arg(long, value_enum, value_name = "POLICY", default_value_t)]
    claims: ClaimsArg,
    /// Sign all claims: --claims all.
    #[arg(long, conflicts_with_all = ["claims", "allow"])]
    allow_all: bool,
    /// Add a node to the claim allow-list, which is stored in DIR. Can be repeated.
    #[arg(long, value_name = "ID")]
    pub(crate) allow: Vec<NodeId>,
    /// Read commands from stdin and write JSON lines to stdout, until `quit` or the end of stdin.
    ///
    /// Commands: connect ID HOST PORT, disconnect ID, findNode ID, findClosest ID (NUMBER), ping
    /// ID, closest ID (VIA), active ID (VIA), graph, connections, metrics, setnode ID HOST PORT
    /// (global|local) (block) (force), unsetnode ID, signal ID RELAY, mdns ID, renew, cert, stream
    /// ID TEXT, allow ID, disallow ID, allowed, claim ID, answer NUMBER sign|refuse, chain ID,
    /// claimsGet ID, sigchain, gestalt (ID), sign ID, quit. A command with the prefix `#tag ` runs
    /// concurrently with others, and its answer contains the tag. Without --dir or --seed the node
    /// has a temporary key.
    #[arg(long)]
    pub(crate) stdio: bool,
    /// Private key as 64 hex digits, instead of --dir. For tests: other users of this machine can
    /// see it.
    #[arg(long, value_name = "HEX", value_parser = seed_bytes, conflicts_with = "dir", requires = "stdio")]
    pub(crate) seed: Option<KeySeed>,
    /// Time limit for connecting to a node, in milliseconds, 1 to 3600000. (default: 15000)
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u64).range(1..=3_600_000))]
    connect_timeout: Option<u64>,
    /// Close a connection after this time without a packet from the peer, in milliseconds, 1000
    /// to 600000. (default: 30000)
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u64).range(1000..=600_000))]
    keepalive_timeout: Option<u64>,
    /// Interval of keep-alive packets on an idle connection, in milliseconds, 500 to half of
    /// --keepalive-timeout. (default: 10000, but at most a third of --keepalive-timeout)
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u64).range(500..=300_000))]
    keepalive_interval: Option<u64>,
    #[command(flatten)]
    pub(crate) runtime: RuntimeArg,
}

impl RunArgs {
    /// Returns the address to listen on, from whichever options were given.
    pub(crate) fn listen(&self) -> SocketAddr {
        let default = match self.stdio {
            true => SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            false => SocketAddr::from((Ipv6Addr::UNSPECIFIED, DEFAULT_PORT)),
        };
        let listen = self.listen.unwrap_or(default);
        SocketAddr::new(self.host.unwrap_or(listen.ip()), self.port.unwrap_or(listen.port()))
    }

    /// Checks combinations of options that clap does not check.
    fn check(&self) -> Result<(), &'static str> {
        if self.keepalive_interval() > self.keepalive_timeout() / 2 {
            return Err("--keepalive-interval must be at most half of --keepalive-timeout");
        }
        match self.claims {
            ClaimsArg::Ask if !self.stdio => {
                Err("--claims ask needs --stdio, whose command `answer` decides")
            }
            ClaimsArg::Refuse if !self.allow.is_empty() => {
                Err("--allow has no effect with --claims refuse")
            }
            _ => Ok(()),
        }
    }

    /// Returns the claim policy.
    pub(crate) fn claim_policy(&self) -> ClaimPolicy {
        match self.claims {
            _ if self.allow_all => ClaimPolicy::All,
            ClaimsArg::Refuse => ClaimPolicy::Refuse,
            ClaimsArg::AllowList => ClaimPolicy::AllowList,
            ClaimsArg::Ask => ClaimPolicy::Ask,
            ClaimsArg::All => ClaimPolicy::All,
        }
    }

    pub(crate) fn connect_timeout(&self) -> Option<Duration> {
        self.connect_timeout.map(Duration::from_millis)
    }

    pub(crate) fn keepalive_timeout(&self) -> Duration {
        Duration::from_millis(self.keepalive_timeout.unwrap_or(KEEPALIVE_TIMEOUT))
    }

    pub(crate) fn keepalive_interval(&self) -> Duration {
        let least = Duration::from_millis(500);
        let default =
            Duration::from_millis(KEEPALIVE_INTERVAL).min(self.keepalive_timeout() / 3).max(least);
        self.keepalive_interval.map_or(default, Duration::from_millis)
    }
}

/// [`ClaimPolicy`] on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
enum ClaimsArg {
    /// Sign no claims.
    Refuse,
    /// Sign claims of the nodes on the allow-list: see `pk allow`.
    #[default]
    AllowList,
    /// Sign claims of the nodes on the allow-list. For any other claim, print the event claimAsked;
    /// the command `answer` decides.
    Ask,
    /// Sign all claims.
    All,
}

/// Defaults of the driver, in milliseconds.
const KEEPALIVE_TIMEOUT: u64 = 30_000;
const KEEPALIVE_INTERVAL: u64 = 10_000;

/// Default port of the reference (`agentServicePort`).
const DEFAULT_PORT: u16 = 1314;

/// Options of commands that start the node in DIR, do one thing and stop it.
#[derive(Debug, Args)]
pub(crate) struct OneShotArgs {
    /// Directory of the node, created by `pk keygen`.
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: PathBuf,
    /// Node to join the network through. Can be repeated. Not needed once the node in DIR has
    /// stored contacts.
    #[arg(long = "seed-node", value_name = "pk://ID@HOST:PORT")]
    pub(crate) seed_nodes: Vec<SeedNode>,
    #[command(flatten)]
    pub(crate) mdns: MdnsArgs,
    #[command(flatten)]
    pub(crate) network: NetworkArgs,
    /// Time limit of the command, in seconds, 1 to 86400.
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub(crate) timeout: u64,
    /// Print one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) runtime: RuntimeArg,
}

#[derive(Debug, Args)]
pub(crate) struct TargetArgs {
    /// Target node.
    #[arg(value_name = "ID")]
    pub(crate) target: NodeId,
    #[command(flatten)]
    pub(crate) common: OneShotArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ClosestArgs {
    /// Target of the distance.
    #[arg(value_name = "ID")]
    pub(crate) target: NodeId,
    /// Number of nodes, 1 to 20.
    #[arg(long, value_name = "NUMBER", default_value = "20", value_parser = closest_count)]
    pub(crate) count: usize,
    #[command(flatten)]
    pub(crate) common: OneShotArgs,
}

fn closest_count(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(count @ 1..=20) => Ok(count),
        _ => Err("the number of nodes must be 1 to 20".to_owned()),
    }
}

#[derive(Debug, Args)]
pub(crate) struct ChainArgs {
    /// Owner of the chain. (default: the node in DIR)
    #[arg(value_name = "ID")]
    pub(crate) target: Option<NodeId>,
    #[command(flatten)]
    pub(crate) common: OneShotArgs,
}

#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    /// Number of nodes, 2 to 256.
    #[arg(long, value_name = "N", default_value = "8", value_parser = clap::value_parser!(u16).range(2..=256))]
    pub(crate) nodes: u16,
    /// Also start a Polykey 1.15.1 node. Needs Node.js 20 or later and npm, which downloads the
    /// package once, about 120 MB, into `pk-interop` in the cache directory (XDG_CACHE_HOME).
    #[arg(long)]
    pub(crate) interop: bool,
    /// Print one JSON object per step, and one for the result.
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) runtime: RuntimeArg,
}

/// The 32 bytes of a private key. `Debug` does not print them.
#[derive(Clone, Copy)]
pub(crate) struct KeySeed(pub(crate) [u8; 32]);

impl std::fmt::Debug for KeySeed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("KeySeed(..)")
    }
}

fn seed_bytes(text: &str) -> Result<KeySeed, String> {
    let bytes =
        HEXLOWER_PERMISSIVE.decode(text.as_bytes()).ok().and_then(|bytes| bytes.try_into().ok());
    bytes.map(KeySeed).ok_or_else(|| "a private key has 64 hex digits".to_owned())
}

fn listen_address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        "the address to listen on has the form IP:PORT, such as 0.0.0.0:1314 or [::]:0".to_owned()
    })
}

fn ip_address(text: &str) -> Result<IpAddr, String> {
    text.parse().map_err(|_| "not an IP address; host names are not supported here".to_owned())
}

fn log_filter(text: &str) -> Result<Targets, String> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    let is_level = |text: &str| LEVELS.iter().any(|level| level.eq_ignore_ascii_case(text));
    // `Targets` accepts any word as a target; here that is a typing error.
    let ok = text.split(',').all(|part| is_level(part.rsplit('=').next().unwrap_or_default()));
    let error = || format!("the level must be one of {}, or TARGET=LEVEL,…", LEVELS.join(", "));
    if ok { text.parse().map_err(|_| error()) } else { Err(error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn host_and_port_are_the_halves_of_listen() {
        let listen = |args: &[&str]| match Cli::try_parse_from(["pk", "run"].iter().chain(args))
            .unwrap()
            .command
        {
            Command::Run(run) => run.listen().to_string(),
            _ => unreachable!("`pk run` is Run"),
        };
        assert_eq!(listen(&["--stdio"]), "127.0.0.1:0");
        assert_eq!(listen(&["--dir", "d"]), "[::]:1314");
        assert_eq!(listen(&["--stdio", "--port", "7"]), "127.0.0.1:7");
        assert_eq!(listen(&["--dir", "d", "--host", "::1"]), "[::1]:1314");
        assert_eq!(listen(&["--stdio", "--listen", "[::]:9"]), "[::]:9");
    }

    #[test]
    fn log_filter_is_a_level_or_targets_with_levels() {
        for good in ["warn", "INFO", "off", "warn,pk_driver=debug", "quinn=trace"] {
            assert!(log_filter(good).is_ok(), "{good}");
        }
        for bad in ["", "loud", "warn,", "pk_driver", "pk_driver=loud"] {
            assert!(log_filter(bad).is_err(), "{bad}");
        }
    }
}

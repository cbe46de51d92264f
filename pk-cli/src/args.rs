//! The command line: what `pk` takes, and every check that needs no node.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use data_encoding::HEXLOWER_PERMISSIVE;
use pk_driver::{MdnsInterfaces, NodeConfig};
use pk_proto::claims::ClaimPolicy;
use pk_proto::{NodeId, SeedNode};
use tracing_subscriber::filter::Targets;

/// A Polykey node on the command line.
#[derive(Debug, Parser)]
#[command(name = "pk", version, propagate_version = true, max_term_width = 110)]
pub(crate) struct Cli {
    /// What to log to stderr: off, error, warn, info, debug or trace, or TARGET=LEVEL,… such as `warn,pk_driver=debug`.
    #[arg(long, global = true, value_name = "LEVEL", env = "PK_LOG", default_value = "warn", value_parser = log_filter)]
    pub(crate) log: Targets,

    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make the key and the first certificate of a new node.
    Keygen(KeysArgs),
    /// Print the id of the node in DIR.
    Id(KeysArgs),
    /// Run a node until SIGINT or SIGTERM.
    Run(RunArgs),
    /// Find a node by its id, connect to it and say where it is.
    Find(TargetArgs),
    /// Find a node and measure how long it takes to answer.
    Ping(TargetArgs),
    /// Cross-sign a claim with a node: both then have one in their chain that says they belong together.
    ///
    /// The other node has to allow it: `pk allow`, or --allow of `pk run`, where it lives.
    Claim(TargetArgs),
    /// Show the chain of claims of a node, every one of them verified: of the node in DIR, or of one in the network.
    ///
    /// Exits with 1 if the chain does not hold, and says where and why.
    Chain(ChainArgs),
    /// Let nodes claim the node in DIR from now on, or with --remove no more; without an ID, show who may.
    ///
    /// No node may be running in DIR.
    Allow(AllowArgs),
    /// Join the network and show the buckets of the node graph.
    Buckets(OneShotArgs),
    /// Show the certificates of the node in DIR, back to its first key.
    Cert(KeysArgs),
    /// Give the node in DIR a new key, and so a new id. It stays reachable under its old ones.
    ///
    /// No node may be running in DIR. The old keys stay in DIR/keys.
    Renew(RenewArgs),
    /// Replay what `pk run --record` wrote, and see that the node does the same again.
    Replay(ReplayArgs),
    /// Run a whole network in one process over QUIC on loopback: start, join, find, ping, stream, claim each other, verify
    /// chains, refuse forged ones, connect through a relay, find by mDNS, restart, renew a key, shutdown.
    ///
    /// Exits with 0 only if every step held.
    Demo(DemoArgs),
}

impl Cli {
    /// Reads the command line. Bad usage ends the program with exit code 2 and says what is wrong.
    pub(crate) fn read() -> Self {
        let cli = Self::parse();
        if let Command::Run(run) = &cli.command
            && let Err(message) = run.check()
        {
            Self::command().error(ErrorKind::ValueValidation, message).exit();
        }
        cli
    }
}

impl Command {
    /// What to run on. Commands without a node need nothing; then it does not matter.
    pub(crate) fn runtime(&self) -> RuntimeName {
        match self {
            Self::Keygen(_) | Self::Id(_) | Self::Cert(_) | Self::Replay(_) => RuntimeName::default(),
            Self::Renew(args) => args.runtime.runtime,
            Self::Run(args) => args.runtime.runtime,
            Self::Find(args) | Self::Ping(args) | Self::Claim(args) => args.common.runtime.runtime,
            Self::Chain(args) => args.common.runtime.runtime,
            Self::Allow(args) => args.runtime.runtime,
            Self::Buckets(args) => args.runtime.runtime,
            Self::Demo(args) => args.runtime.runtime,
        }
    }

    /// Whether a failure is to be told in JSON too, besides the message on stderr. The demo and `--stdio` tell their own.
    pub(crate) fn json(&self) -> bool {
        match self {
            Self::Keygen(args) | Self::Id(args) | Self::Cert(args) => args.json,
            Self::Renew(args) => args.keys.json,
            Self::Replay(args) => args.json,
            Self::Find(args) | Self::Ping(args) | Self::Claim(args) => args.common.json,
            Self::Chain(args) => args.common.json,
            Self::Allow(args) => args.keys.json,
            Self::Buckets(args) => args.json,
            Self::Run(_) | Self::Demo(_) => false,
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct KeysArgs {
    /// The folder of the node; its key store is DIR/keys.
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
    /// The nodes.
    #[arg(value_name = "ID")]
    pub(crate) nodes: Vec<NodeId>,
    /// Take them off the list.
    #[arg(long, requires = "nodes")]
    pub(crate) remove: bool,
    #[command(flatten)]
    pub(crate) keys: KeysArgs,
    #[command(flatten)]
    pub(crate) runtime: RuntimeArg,
}

#[derive(Debug, Args)]
pub(crate) struct ReplayArgs {
    /// The recording.
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// Also show every call into the node, and what came of it.
    #[arg(long)]
    pub(crate) calls: bool,
    /// Print JSON: one object for the whole, after one for each call if they are shown.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct RuntimeArg {
    /// The async runtime to run on.
    #[arg(long, value_enum, value_name = "RUNTIME", default_value_t)]
    pub(crate) runtime: RuntimeName,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum RuntimeName {
    /// tokio, with a thread per core.
    #[default]
    Tokio,
    /// smol, with as many threads as SMOL_THREADS says, or one.
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
    /// The folder of the node, made by `pk keygen`.
    #[arg(long, value_name = "DIR", required_unless_present = "stdio")]
    pub(crate) dir: Option<PathBuf>,
    /// The UDP address to listen on; port 0 takes any free one. (default: `[::]:1314`, which takes IPv4 too; with --stdio
    /// 127.0.0.1:0)
    #[arg(long, value_name = "ADDR", value_parser = listen_address, conflicts_with_all = ["host", "port"])]
    listen: Option<SocketAddr>,
    /// The IP address to listen on: the first half of --listen.
    #[arg(long, value_name = "IP", value_parser = ip_address)]
    host: Option<IpAddr>,
    /// The UDP port to listen on: the second half of --listen.
    #[arg(long, value_name = "PORT")]
    port: Option<u16>,
    /// A node to join the network through. May be given several times. Not needed once the node in DIR knows others.
    #[arg(long = "seed-node", value_name = "pk://ID@HOST:PORT")]
    pub(crate) seed_nodes: Vec<SeedNode>,
    /// Write down everything that the node is told, in a new file of up to 1 GiB, for `pk replay`.
    ///
    /// It tells whom the node talks to. It has no keys.
    #[arg(long, value_name = "FILE")]
    pub(crate) record: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) mdns: MdnsArgs,
    /// Whom this node signs claims for.
    #[arg(long, value_enum, value_name = "WHOM", default_value_t)]
    claims: ClaimsArg,
    /// Sign claims for everybody: --claims all.
    #[arg(long, conflicts_with_all = ["claims", "allow"])]
    allow_all: bool,
    /// Put a node on the list of those that claims are signed for; it is kept in DIR. May be given several times.
    #[arg(long, value_name = "ID")]
    pub(crate) allow: Vec<NodeId>,
    /// Take commands from stdin and answer in JSON lines on stdout, until `quit` or the end of stdin.
    ///
    /// The commands: connect ID HOST PORT, disconnect ID, findNode ID, ping ID, closest ID (VIA), active ID (VIA), graph,
    /// connections, setnode ID HOST PORT (global|local) (block) (force), unsetnode ID, signal ID RELAY, mdns ID, renew, cert,
    /// stream ID TEXT, allow ID, disallow ID, allowed, claim ID, answer NUMBER sign|refuse, chain ID, claimsGet ID, sigchain,
    /// gestalt (ID), sign ID, quit. One that begins with `#tag ` runs beside the others and its answer has the tag. Without --dir or --seed the node has a new key that is not kept.
    #[arg(long)]
    pub(crate) stdio: bool,
    /// The private key, as 64 hex digits, in place of --dir. It is visible to other users of this machine: for tests.
    #[arg(long, value_name = "HEX", value_parser = seed_bytes, conflicts_with = "dir", requires = "stdio")]
    pub(crate) seed: Option<KeySeed>,
    /// How long connecting to a node may take, in milliseconds: up to 3600000. (default: 15000)
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u64).range(1..=3_600_000))]
    connect_timeout: Option<u64>,
    /// A silent connection ends after this many milliseconds: 1000 to 600000. (default: 30000)
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u64).range(1000..=600_000))]
    keepalive_timeout: Option<u64>,
    /// A quiet connection sends a packet every so many milliseconds: from 500 to half of --keepalive-timeout. (default:
    /// 10000, but at most a third of --keepalive-timeout)
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u64).range(500..=300_000))]
    keepalive_interval: Option<u64>,
    #[command(flatten)]
    pub(crate) runtime: RuntimeArg,
}

impl RunArgs {
    /// Where to listen, whichever way it was said.
    pub(crate) fn listen(&self) -> SocketAddr {
        let default = match self.stdio {
            true => SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            false => SocketAddr::from((Ipv6Addr::UNSPECIFIED, DEFAULT_PORT)),
        };
        let listen = self.listen.unwrap_or(default);
        SocketAddr::new(self.host.unwrap_or(listen.ip()), self.port.unwrap_or(listen.port()))
    }

    /// What the options forbid each other, beyond what clap checks.
    fn check(&self) -> Result<(), &'static str> {
        if self.keepalive_interval() > self.keepalive_timeout() / 2 {
            return Err("--keepalive-interval must be at most half of --keepalive-timeout");
        }
        match self.claims {
            ClaimsArg::Ask if !self.stdio => Err("--claims ask needs --stdio: the command `answer` gives the answers"),
            ClaimsArg::Refuse if !self.allow.is_empty() => Err("--allow does nothing with --claims refuse"),
            _ => Ok(()),
        }
    }

    /// Whom to sign claims for.
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
        let default = Duration::from_millis(KEEPALIVE_INTERVAL).min(self.keepalive_timeout() / 3).max(least);
        self.keepalive_interval.map_or(default, Duration::from_millis)
    }
}

/// [`ClaimPolicy`], as it is said on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
enum ClaimsArg {
    /// Nobody.
    Refuse,
    /// Those on the list: see `pk allow`.
    #[default]
    AllowList,
    /// Those on the list; for any other the event claimAsked is told, and the command `answer` decides.
    Ask,
    /// Everybody.
    All,
}

/// The defaults of the driver, in milliseconds.
const KEEPALIVE_TIMEOUT: u64 = 30_000;
const KEEPALIVE_INTERVAL: u64 = 10_000;

/// Polykey's own (`agentServicePort` of the reference).
const DEFAULT_PORT: u16 = 1314;

/// What every one-shot on a node in DIR takes.
#[derive(Debug, Args)]
pub(crate) struct OneShotArgs {
    /// The folder of the node, made by `pk keygen`.
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: PathBuf,
    /// A node to join the network through. May be given several times. Not needed once the node in DIR knows others.
    #[arg(long = "seed-node", value_name = "pk://ID@HOST:PORT")]
    pub(crate) seed_nodes: Vec<SeedNode>,
    #[command(flatten)]
    pub(crate) mdns: MdnsArgs,
    /// Give up after so many seconds.
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub(crate) timeout: u64,
    /// Print one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) runtime: RuntimeArg,
}

/// The local network.
#[derive(Debug, Args)]
pub(crate) struct MdnsArgs {
    /// Tell the local network of this node, and ask it for others (mDNS).
    #[arg(long)]
    mdns: bool,
    /// The UDP port of mDNS; only nodes with the same one find each other. (default: 5353, the standard)
    #[arg(long, value_name = "PORT", requires = "mdns", value_parser = clap::value_parser!(u16).range(1..))]
    mdns_port: Option<u16>,
    /// A network interface to use for mDNS, such as eth0. May be given several times. (default: all but loopback)
    #[arg(long, value_name = "NAME", requires = "mdns")]
    mdns_interface: Vec<String>,
    /// Refused: see `mdns_groups`.
    #[arg(long, hide = true, value_parser = mdns_groups)]
    mdns_groups: Vec<String>,
}

impl MdnsArgs {
    /// Writes it into the settings of a node.
    pub(crate) fn apply(&self, config: &mut NodeConfig) {
        config.core.mdns = self.mdns;
        if let Some(port) = self.mdns_port {
            config.driver.mdns.port = port;
        }
        if !self.mdns_interface.is_empty() {
            config.driver.mdns.interfaces = MdnsInterfaces::Named(self.mdns_interface.clone());
        }
    }

    /// Whether it is to be used.
    pub(crate) fn is_on(&self) -> bool {
        self.mdns
    }
}

/// No groups can be chosen. Whoever tries is told why.
fn mdns_groups(_: &str) -> Result<String, String> {
    Err("the groups cannot be chosen: mDNS is by the library mdns-sd, which serves the standard ones only, 224.0.0.251 and \
         ff02::fb; choose another port with --mdns-port"
        .to_owned())
}

#[derive(Debug, Args)]
pub(crate) struct TargetArgs {
    /// The node.
    #[arg(value_name = "ID")]
    pub(crate) target: NodeId,
    #[command(flatten)]
    pub(crate) common: OneShotArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ChainArgs {
    /// Whose. (default: that of the node in DIR)
    #[arg(value_name = "ID")]
    pub(crate) target: Option<NodeId>,
    #[command(flatten)]
    pub(crate) common: OneShotArgs,
}

#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    /// How many nodes, 2 to 256.
    #[arg(long, value_name = "N", default_value = "8", value_parser = clap::value_parser!(u16).range(2..=256))]
    pub(crate) nodes: u16,
    /// Have a real node of Polykey 1.15.1 join too. Needs Node.js 20 or later and npm, which fetches the package once, about
    /// 120 MB, into `pk-interop` in the cache folder (XDG_CACHE_HOME).
    #[arg(long)]
    pub(crate) interop: bool,
    /// Print one JSON object per step, and a last one for the whole.
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) runtime: RuntimeArg,
}

/// The 32 bytes of a private key. Not printed.
#[derive(Clone, Copy)]
pub(crate) struct KeySeed(pub(crate) [u8; 32]);

impl std::fmt::Debug for KeySeed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("KeySeed(..)")
    }
}

fn seed_bytes(text: &str) -> Result<KeySeed, String> {
    let bytes = HEXLOWER_PERMISSIVE.decode(text.as_bytes()).ok().and_then(|bytes| bytes.try_into().ok());
    bytes.map(KeySeed).ok_or_else(|| "a private key is 64 hex digits".to_owned())
}

fn listen_address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| "an address to listen on is IP:PORT, such as 0.0.0.0:1314 or [::]:0".to_owned())
}

fn ip_address(text: &str) -> Result<IpAddr, String> {
    text.parse().map_err(|_| "not an IP address; this is where to listen, not a name".to_owned())
}

fn log_filter(text: &str) -> Result<Targets, String> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    let is_level = |text: &str| LEVELS.iter().any(|level| level.eq_ignore_ascii_case(text));
    // `Targets` takes any word for a target; here that is a typing error.
    let ok = text.split(',').all(|part| is_level(part.rsplit('=').next().unwrap_or_default()));
    let error = || format!("a level is one of {}, or TARGET=LEVEL,…", LEVELS.join(", "));
    if ok { text.parse().map_err(|_| error()) } else { Err(error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn host_and_port_are_the_halves_of_listen() {
        let listen = |args: &[&str]| match Cli::try_parse_from(["pk", "run"].iter().chain(args)).unwrap().command {
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
    fn a_log_filter_is_a_level_or_targets_with_levels() {
        for good in ["warn", "INFO", "off", "warn,pk_driver=debug", "quinn=trace"] {
            assert!(log_filter(good).is_ok(), "{good}");
        }
        for bad in ["", "loud", "warn,", "pk_driver", "pk_driver=loud"] {
            assert!(log_filter(bad).is_err(), "{bad}");
        }
    }
}

//! An internet of network namespaces: hosts, a NAT in front of some, and a bridge between them all.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

/// The NAT or firewall in front of a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Nat {
    /// No NAT: the host has a public address.
    None,
    /// Preserves the source port if possible, for every destination. Admits only answers (RFC 4787:
    /// endpoint-independent mapping by port preservation, address- and port-dependent filtering).
    PortPreserving,
    /// Another random port for every destination.
    Symmetric,
}

/// The namespaces of one test; taken down when dropped.
#[derive(Debug)]
pub(crate) struct Internet {
    prefix: String,
    /// The first three numbers of the public addresses.
    public: &'static str,
    hosts: Vec<(String, Nat)>,
    /// Hosts that share the NAT of another one.
    behind: Vec<String>,
}

impl Internet {
    /// Builds an internet with these hosts and a public one named `relay`. Returns `None`, with a
    /// message, if that is not possible.
    pub(crate) fn new(name: &str, hosts: &[(&str, Nat)]) -> Option<Self> {
        Self::with_addresses(name, "10.77.0", hosts)
    }

    /// Like [`new`](Self::new), with other public addresses: these three numbers and one more.
    pub(crate) fn with_addresses(
        name: &str,
        public: &'static str,
        hosts: &[(&str, Nat)],
    ) -> Option<Self> {
        if missing_here(name) {
            return None;
        }
        let mut hosts: Vec<_> =
            hosts.iter().map(|(host, nat)| ((*host).to_owned(), *nat)).collect();
        hosts.push(("relay".to_owned(), Nat::None));
        remove_orphans();
        let prefix = prefix(name);
        let internet = Self { prefix, public, hosts, behind: Vec::new() };
        internet.build();
        Some(internet)
    }

    /// The namespace of a host.
    pub(crate) fn namespace(&self, host: &str) -> String {
        format!("{}{host}", self.prefix)
    }

    /// The address of a host as the internet sees it.
    pub(crate) fn address(&self, host: &str) -> String {
        let at = self.hosts.iter().position(|(known, _)| known == host).unwrap();
        format!("{}.{}", self.public, at + 1)
    }

    /// The namespace of the NAT in front of a host.
    pub(crate) fn router(&self, host: &str) -> String {
        format!("{}n{host}", self.prefix)
    }

    /// Lets the NAT of a host pass on what arrives at a UDP port.
    pub(crate) fn forward(&self, host: &str, port: u16) {
        let at = self.hosts.iter().position(|(known, _)| known == host).unwrap();
        let to = format!("10.10{at}.0.2:{port}");
        let router = self.router(host);
        for rule in [
            "add chain ip nat pre { type nat hook prerouting priority -100; }".to_owned(),
            format!("add rule ip nat pre iifname wan udp dport {port} dnat to {to}"),
            format!("insert rule ip filter out iifname wan udp dport {port} accept"),
        ] {
            run(&["ip", "netns", "exec", &router, "nft", &rule]);
        }
    }

    /// Drops UDP between two public hosts, in both directions.
    pub(crate) fn block(&self, a: &str, b: &str) {
        for (host, other) in [(a, b), (b, a)] {
            let other = self.address(other);
            let rules = format!(
                "table ip block {{\n\
                 chain in {{\n  type filter hook input priority 0;\n  ip saddr {other} udp dport 1-65535 drop\n }}\n}}\n"
            );
            nft(&self.namespace(host), &rules);
        }
    }

    /// Ends what [`block`](Self::block) has blocked.
    pub(crate) fn unblock(&self, a: &str, b: &str) {
        for host in [a, b] {
            nft(&self.namespace(host), "delete table ip block\n");
        }
    }

    /// Adds a host behind the NAT of `other`, in the same local network.
    pub(crate) fn add_behind(&mut self, host: &str, other: &str) {
        let at = self.hosts.iter().position(|(known, _)| known == other).unwrap();
        let (router, inside) = (format!("{}n{other}", self.prefix), self.namespace(host));
        let net = format!("10.10{at}.0");
        run(&["ip", "-n", &router, "link", "add", "home", "type", "bridge", "mcast_snooping", "0"]);
        run(&["ip", "-n", &router, "addr", "flush", "dev", "lan"]);
        run(&["ip", "-n", &router, "link", "set", "lan", "master", "home"]);
        address(&router, "home", &format!("{net}.1/24"));
        run(&["ip", "netns", "add", &inside]);
        self.behind.push(host.to_owned());
        run(&["ip", "-n", &inside, "link", "set", "lo", "up"]);
        let port = format!("lan{}", self.behind.len());
        link((&inside, "eth0"), (&router, &port));
        run(&["ip", "-n", &router, "link", "set", &port, "master", "home", "up"]);
        address(&inside, "eth0", &format!("{net}.{}/24", 2 + self.behind.len()));
        run(&["ip", "-n", &inside, "route", "add", "default", "via", &format!("{net}.1")]);
    }

    fn build(&self) {
        let switch = format!("{}sw", self.prefix);
        run(&["ip", "netns", "add", &switch]);
        run(&["ip", "-n", &switch, "link", "add", "br0", "type", "bridge"]);
        run(&["ip", "-n", &switch, "link", "set", "br0", "up"]);
        for (at, (host, nat)) in self.hosts.iter().enumerate() {
            let inside = self.namespace(host);
            run(&["ip", "netns", "add", &inside]);
            run(&["ip", "-n", &inside, "link", "set", "lo", "up"]);
            let outside = match nat {
                Nat::None => inside.clone(),
                _ => format!("{}n{host}", self.prefix),
            };
            let public = format!("{}.{}/24", self.public, at + 1);
            if *nat != Nat::None {
                let net = format!("10.10{at}.0");
                run(&["ip", "netns", "add", &outside]);
                run(&["ip", "-n", &outside, "link", "set", "lo", "up"]);
                link((&inside, "eth0"), (&outside, "lan"));
                address(&inside, "eth0", &format!("{net}.2/24"));
                address(&outside, "lan", &format!("{net}.1/24"));
                run(&["ip", "-n", &inside, "route", "add", "default", "via", &format!("{net}.1")]);
                run(&["ip", "netns", "exec", &outside, "sysctl", "-qw", "net.ipv4.ip_forward=1"]);
            }
            let port = format!("p{at}");
            link((&outside, "wan"), (&switch, &port));
            address(&outside, "wan", &public);
            run(&["ip", "-n", &switch, "link", "set", &port, "master", "br0"]);
            run(&["ip", "-n", &switch, "link", "set", &port, "up"]);
            self.rules(host, *nat);
        }
    }

    /// Masquerades outgoing packets; drops unsolicited incoming ones.
    fn rules(&self, host: &str, nat: Nat) {
        let masquerade = match nat {
            Nat::None => return,
            Nat::PortPreserving => "masquerade",
            Nat::Symmetric => "masquerade fully-random",
        };
        let rules = format!(
            "table ip nat {{\n chain post {{\n  type nat hook postrouting priority 100;\n  oifname wan {masquerade}\n }}\n}}\n\
             table ip filter {{\n\
             chain out {{\n  type filter hook forward priority 0;\n  iifname wan ct state new drop\n }}\n\
             chain own {{\n  type filter hook input priority 0;\n  iifname wan ct state new drop\n }}\n}}\n"
        );
        nft(&format!("{}n{host}", self.prefix), &rules);
    }
}

/// Applies rules of nftables in a namespace.
fn nft(namespace: &str, rules: &str) {
    let mut nft = Command::new("ip")
        .args(["netns", "exec", namespace, "nft", "-f", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    nft.stdin.take().unwrap().write_all(rules.as_bytes()).unwrap();
    assert!(nft.wait().unwrap().success(), "nft refuses:\n{rules}");
}

impl Drop for Internet {
    fn drop(&mut self) {
        let hosts = self.hosts.iter().flat_map(|(host, _)| [host.clone(), format!("n{host}")]);
        for namespace in hosts.chain(self.behind.iter().cloned()).chain(["sw".to_owned()]) {
            let name = format!("{}{namespace}", self.prefix);
            // Public hosts have no routers.
            drop(Command::new("ip").args(["netns", "del", &name]).stderr(Stdio::null()).status());
        }
    }
}

/// Prefix of the names of all namespaces of this test; the process id follows.
const MARK: &str = "pknat";

/// Returns the prefix of the namespaces of a network. It is unique, also among networks of the same
/// name.
pub(crate) fn prefix(name: &str) -> String {
    static NETWORKS: AtomicUsize = AtomicUsize::new(0);
    format!("{MARK}{}-{name}{}-", std::process::id(), NETWORKS.fetch_add(1, Ordering::Relaxed))
}

/// Removes the namespaces of killed tests.
pub(crate) fn remove_orphans() {
    let names = Command::new("ip").args(["netns", "list"]).output().unwrap().stdout;
    for name in
        String::from_utf8_lossy(&names).lines().filter_map(|line| line.split_whitespace().next())
    {
        let pid = name.strip_prefix(MARK).and_then(|rest| rest.split('-').next());
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            // Fails if another test has removed it.
            drop(Command::new("ip").args(["netns", "del", name]).stderr(Stdio::null()).status());
        }
    }
}

/// Whether something is missing that the tests in namespaces need. It is printed, and in CI the
/// test fails.
pub(crate) fn missing_here(name: &str) -> bool {
    let Some(missing) = missing() else { return false };
    assert!(
        std::env::var_os("CI").is_none_or(|ci| ci != "true"),
        "CI has to run the tests in namespaces: {missing}"
    );
    // Not by `eprintln!`, whose output the test harness shows only if a test fails.
    drop(writeln!(
        std::io::stderr(),
        "\n*** NOT RUN: the test in network namespaces ({name}): {missing} ***\n"
    ));
    true
}

/// The missing requirement, if any.
fn missing() -> Option<&'static str> {
    let works = |program: &str, args: &[&str]| {
        Command::new(program)
            .args(args)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|s| s.success())
    };
    if !works("ip", &["netns", "list"]) {
        return Some("`ip` (iproute2) is not here");
    }
    if !works("nft", &["--version"]) {
        return Some("`nft` (nftables) is not here");
    }
    let probe = format!("{MARK}{}-probe-{:?}", std::process::id(), std::thread::current().id());
    if !works("ip", &["netns", "add", &probe]) {
        return Some("network namespaces need root");
    }
    let nft = works("ip", &["netns", "exec", &probe, "nft", "add", "table", "ip", "nat"]);
    drop(Command::new("ip").args(["netns", "del", &probe]).status());
    (!nft).then_some("`nft` does not work in a namespace")
}

fn link((a, a_name): (&str, &str), (b, b_name): (&str, &str)) {
    run(&[
        "ip", "link", "add", a_name, "netns", a, "type", "veth", "peer", "name", b_name, "netns", b,
    ]);
}

fn address(namespace: &str, device: &str, address: &str) {
    run(&["ip", "-n", namespace, "addr", "add", address, "dev", device]);
    run(&["ip", "-n", namespace, "link", "set", device, "up"]);
}

pub(crate) fn run(args: &[&str]) {
    let output = Command::new(args[0]).args(&args[1..]).output().unwrap();
    assert!(
        output.status.success(),
        "`{}`: {}",
        args.join(" "),
        String::from_utf8_lossy(&output.stderr)
    );
}

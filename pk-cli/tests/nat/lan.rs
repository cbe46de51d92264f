//! A local network of network namespaces: hosts at one switch.

use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::internet::{missing_here, prefix, remove_orphans, run};

/// The namespaces of one test; removed when dropped.
#[derive(Debug)]
pub(crate) struct Lan {
    prefix: String,
    hosts: Vec<String>,
}

impl Lan {
    /// Builds a network of these hosts. Each has an `eth0` that is up, with a link-local IPv6
    /// address and no other. Returns `None`, with a message, if that is not possible.
    pub(crate) fn new(name: &str, hosts: &[&str]) -> Option<Self> {
        if missing_here(name) {
            return None;
        }
        remove_orphans();
        let prefix = prefix(name);
        let lan = Self { prefix, hosts: hosts.iter().map(|host| (*host).to_owned()).collect() };
        let switch = lan.namespace("sw");
        run(&["ip", "netns", "add", &switch]);
        run(&["ip", "-n", &switch, "link", "add", "br0", "type", "bridge", "mcast_snooping", "0"]);
        run(&["ip", "-n", &switch, "link", "set", "br0", "up"]);
        for (at, host) in hosts.iter().enumerate() {
            let namespace = lan.namespace(host);
            run(&["ip", "netns", "add", &namespace]);
            lan.ip(host, "link set lo up");
            // Addresses can be used at once.
            lan.exec(host, &["sysctl", "-qw", "net.ipv6.conf.default.accept_dad=0"]);
            let port = format!("p{at}");
            let peer = ["type", "veth", "peer", "name", &port, "netns", &switch];
            run(&[&["ip", "link", "add", "eth0", "netns", &namespace][..], &peer].concat());
            run(&["ip", "-n", &switch, "link", "set", &port, "master", "br0", "up"]);
            lan.ip(host, "link set eth0 up");
        }
        Some(lan)
    }

    /// The namespace of a host.
    pub(crate) fn namespace(&self, host: &str) -> String {
        format!("{}{host}", self.prefix)
    }

    /// Runs `ip` with these arguments on a host.
    pub(crate) fn ip(&self, host: &str, words: &str) {
        let namespace = self.namespace(host);
        run(&["ip", "-n", &namespace]
            .into_iter()
            .chain(words.split_whitespace())
            .collect::<Vec<_>>());
    }

    /// Runs a program on a host.
    pub(crate) fn exec(&self, host: &str, args: &[&str]) {
        run(&[&["ip", "netns", "exec", &self.namespace(host)], args].concat());
    }

    /// Gives a host bridges as containers have them, each with an address and a port that is up.
    pub(crate) fn bridges(&self, host: &str, count: usize) {
        for n in 0..count {
            self.ip(host, &format!("link add br-{n} type bridge"));
            self.ip(host, &format!("addr add 172.{}.{}.1/24 dev br-{n}", 17 + n / 200, n % 200));
            self.ip(host, &format!("link add d{n} type veth peer name e{n}"));
            self.ip(host, &format!("link set d{n} master br-{n} up"));
            self.ip(host, &format!("link set e{n} up"));
            self.ip(host, &format!("link set br-{n} up"));
        }
        for n in 0..count {
            self.wait_until_up(host, &format!("br-{n}"));
        }
    }

    /// Waits until the system counts an interface as operational, which it does up to a second
    /// after `up`.
    fn wait_until_up(&self, host: &str, device: &str) {
        let (namespace, until) = (self.namespace(host), Instant::now() + Duration::from_secs(30));
        loop {
            let link = Command::new("ip")
                .args(["-n", &namespace, "link", "show", device])
                .output()
                .unwrap();
            if String::from_utf8_lossy(&link.stdout).contains("state UP") {
                return;
            }
            assert!(Instant::now() < until, "{device} of {host} does not come up");
            sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Lan {
    fn drop(&mut self) {
        for host in self.hosts.iter().map(String::as_str).chain(["sw"]) {
            // Fails if the network was not built to its end.
            drop(
                Command::new("ip")
                    .args(["netns", "del", &self.namespace(host)])
                    .stderr(Stdio::null())
                    .status(),
            );
        }
    }
}

//! Names with many addresses of which only some can be reached. Needs `dnsmasq`.

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::lan_kit::Lan;
use crate::process::Agent;

const NAME: &str = "seed.example";

/// A network with a seed node on host `a`, a host `b`, and a name server on host `d` that knows one
/// name.
struct Net {
    lan: Lan,
    seed: Agent,
    dns: Child,
    etc: PathBuf,
    _hosts: tempfile::TempDir,
}

impl Net {
    /// Returns `None`, with a message, if it cannot be built.
    fn new(test: &str, addresses: &[String]) -> Option<Self> {
        if Command::new("dnsmasq").arg("--version").stdout(Stdio::null()).status().is_err() {
            assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "CI has to have dnsmasq");
            drop(writeln!(
                std::io::stderr(),
                "\n*** NOT RUN: names with many addresses ({test}): no dnsmasq ***\n"
            ));
            return None;
        }
        let lan = Lan::new(test, &["a", "b", "d"])?;
        for (n, host) in [(1, "a"), (2, "b"), (3, "d")] {
            lan.ip(host, &format!("addr add 10.9.0.{n}/24 dev eth0"));
            lan.ip(host, &format!("addr add fd09::{n}/64 dev eth0 nodad"));
            // Packets to these addresses are lost, as behind a firewall: no host has this
            // link-layer address.
            for (family, net) in
                [("-4", "10.66.0.0/16 via 10.9.0.77"), ("-6", "fd09:dead::/64 via fd09::77")]
            {
                let gateway = net.rsplit(' ').next().unwrap();
                lan.ip(
                    host,
                    &format!("neigh add {gateway} lladdr 02:00:00:00:00:77 dev eth0 nud permanent"),
                );
                lan.ip(host, &format!("{family} route add {net} dev eth0"));
            }
        }
        let hosts = tempfile::tempdir().unwrap();
        let file = hosts.path().join("hosts");
        fs::write(
            &file,
            addresses.iter().map(|address| format!("{address} {NAME}\n")).collect::<String>(),
        )
        .unwrap();
        let options = [
            "-k",
            "-h",
            "-R",
            "--listen-address=10.9.0.3",
            "--bind-interfaces",
            "-u",
            "root",
            "--local=/example/",
        ];
        let files = [
            format!("--addn-hosts={}", file.display()),
            format!("--pid-file={}/pid", hosts.path().display()),
        ];
        let dns = Command::new("ip")
            .args(["netns", "exec", &lan.namespace("d"), "dnsmasq"])
            .args(options)
            .args(files)
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let etc = PathBuf::from("/etc/netns").join(lan.namespace("b"));
        fs::create_dir_all(&etc).unwrap();
        fs::write(etc.join("resolv.conf"), "nameserver 10.9.0.3\n").unwrap();
        fs::write(etc.join("nsswitch.conf"), "hosts: files dns\n").unwrap();
        let seed = Agent::start_in(&lan.namespace("a"), &["--listen", "[::]:4433"]);
        Some(Self { lan, seed, dns, etc, _hosts: hosts })
    }

    /// Starts a node that joins through the name.
    fn join(&self) -> Agent {
        let seed = format!("pk://{}@{NAME}:4433", self.seed.id);
        Agent::start_in(&self.lan.namespace("b"), &["--listen", "[::]:4433", "--seed-node", &seed])
    }

    /// Joins through the name, before a dial that got no answer has ended.
    fn joins(&self) {
        let begun = Instant::now();
        let mut node = self.join();
        let event = node.wait_for("the end of joining", |value| {
            value["event"] == "joined" || value["event"] == "joinFailed"
        });
        assert_eq!(event["event"], "joined", "{event}");
        assert!(begun.elapsed() < Duration::from_secs(12), "{:?}", begun.elapsed());
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        // Fails if it has ended.
        drop(self.dns.kill());
        drop(self.dns.wait());
        drop(fs::remove_dir_all(&self.etc));
    }
}

fn dead_v6(count: usize) -> impl Iterator<Item = String> {
    (1..=count).map(|n| format!("fd09:dead::{n:x}"))
}

fn dead_v4(count: usize) -> impl Iterator<Item = String> {
    (1..=count).map(|n| format!("10.66.0.{n}"))
}

#[test]
fn reachable_a_record_is_used_behind_ten_dead_aaaa_records() {
    let addresses: Vec<_> = dead_v6(10).chain(["10.9.0.1".to_owned()]).collect();
    let Some(net) = Net::new("aaaa", &addresses) else { return };
    net.joins();
}

#[test]
fn reachable_aaaa_record_is_used_behind_ten_dead_a_records() {
    let addresses: Vec<_> = dead_v4(10).chain(["fd09::1".to_owned()]).collect();
    let Some(net) = Net::new("a", &addresses) else { return };
    net.joins();
}

#[test]
fn reachable_a_record_is_used_behind_forty_dead_aaaa_records_with_duplicates() {
    let addresses: Vec<_> = dead_v6(40).chain(dead_v6(5)).chain(["10.9.0.1".to_owned()]).collect();
    let Some(net) = Net::new("forty", &addresses) else { return };
    net.joins();
}

#[test]
fn failure_names_a_host_whose_addresses_are_unusable() {
    let addresses = ["0.0.0.0", "224.0.0.9", "::"].map(str::to_owned);
    let Some(net) = Net::new("useless", &addresses) else { return };
    let begun = Instant::now();
    let mut node = net.join();
    let event = node.event("joinFailed").to_string();
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    assert!(event.contains(NAME) && event.contains("no host can have this address"), "{event}");
}

//! Machines on a virtual LAN in virtual time.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use pk_mdns::{Destination, Event, Link, LinkId, Mdns, Settings, Transmit};
use pk_proto::Instant;

const SERVICE: &str = "_polykey._udp.local";
const PORT: u16 = 64_023;
const LINK: LinkId = LinkId(1);
const LATENCY: Duration = Duration::from_millis(1);

/// A LAN. Every host hears every multicast, its own included, as over a looped-back socket.
struct Lan {
    now: Instant,
    hosts: Vec<Mdns>,
    /// Datagrams in transit: sender, receiver, bytes.
    flying: BTreeMap<(Instant, usize), (SocketAddr, usize, Vec<u8>)>,
    count: usize,
    /// Datagrams that each host has sent to the group.
    sent: Vec<Vec<(Instant, Vec<u8>)>>,
    /// Those to one host.
    unicast: Vec<(SocketAddr, Vec<u8>)>,
    cut: bool,
}

fn ip(host: usize) -> IpAddr {
    Ipv4Addr::new(10, 0, 0, u8::try_from(host).unwrap() + 1).into()
}

fn at(host: usize) -> SocketAddr {
    SocketAddr::new(ip(host), PORT)
}

impl Lan {
    fn new(hosts: usize) -> Self {
        let now = Instant::from_micros(1_000_000);
        let hosts: Vec<_> = (0..hosts)
            .map(|host| {
                let mut mdns = Mdns::new(Settings::new(SERVICE, PORT, [host as u8; 32]));
                mdns.set_links(now, vec![Link { id: LINK, addrs: vec![ip(host)] }]);
                mdns
            })
            .collect();
        let sent = vec![Vec::new(); hosts.len()];
        let flying = BTreeMap::new();
        Self { now, hosts, flying, count: 0, sent, unicast: Vec::new(), cut: false }
    }

    fn fly(&mut self, from: SocketAddr, to: usize, bytes: Vec<u8>) {
        self.count += 1;
        self.flying.insert((self.now + LATENCY, self.count), (from, to, bytes));
    }

    fn collect(&mut self) {
        for host in 0..self.hosts.len() {
            while let Some(Transmit { to, bytes, link }) = self.hosts[host].poll_transmit() {
                assert_eq!(link, LINK);
                match to {
                    Destination::Group => {
                        self.sent[host].push((self.now, bytes.clone()));
                        for other in 0..self.hosts.len() {
                            if !self.cut {
                                self.fly(at(host), other, bytes.clone());
                            }
                        }
                    }
                    Destination::Host(to) => {
                        let known = (0..self.hosts.len()).find(|host| at(*host) == to);
                        if let Some(receiver) = known {
                            self.fly(at(host), receiver, bytes.clone());
                        }
                        self.unicast.push((to, bytes));
                    }
                }
            }
        }
    }

    /// Runs until `end`. Returns the events of all hosts.
    fn run(&mut self, duration: Duration) -> Vec<(usize, Event)> {
        let end = self.now + duration;
        let mut events = Vec::new();
        let mut steps = 0;
        loop {
            steps += 1;
            assert!(steps < 200_000, "no progress of time at {:?}", self.now);
            self.collect();
            for (host, mdns) in self.hosts.iter_mut().enumerate() {
                events.extend(std::iter::from_fn(|| mdns.poll_event()).map(|event| (host, event)));
            }
            let timeout = self.hosts.iter().filter_map(Mdns::poll_timeout).min();
            let datagram = self.flying.keys().next().map(|(at, _)| *at);
            let Some(next) = [timeout, datagram].into_iter().flatten().min() else { break };
            if next > end {
                break;
            }
            self.now = self.now.max(next);
            while let Some(entry) = self.flying.first_entry()
                && entry.key().0 <= self.now
            {
                let (from, to, bytes) = entry.remove();
                self.hosts[to].handle_datagram(self.now, LINK, from, &bytes);
            }
            for mdns in &mut self.hosts {
                mdns.handle_timeout(self.now);
            }
        }
        self.now = end;
        events
    }

    fn found(&mut self, duration: Duration) -> BTreeSet<(usize, String, u16, Vec<IpAddr>)> {
        let events = self.run(duration);
        let found = events.into_iter().filter_map(|(host, event)| match event {
            Event::Found { instance, port, addrs, .. } => Some((host, instance, port, addrs)),
            _ => None,
        });
        found.collect()
    }
}

/// A question as another implementation writes it.
fn query(name: &str, kind: u16, class: u16) -> Vec<u8> {
    let mut bytes = vec![0, 9, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        bytes.push(u8::try_from(label.len()).unwrap());
        bytes.extend(label.bytes());
    }
    bytes.push(0);
    bytes.extend(kind.to_be_bytes());
    bytes.extend(class.to_be_bytes());
    bytes
}

#[test]
fn instance_is_found_within_a_second_of_its_announcement_and_of_a_browse() {
    let mut lan = Lan::new(3);
    lan.hosts[0].browse(lan.now);
    assert!(lan.hosts[1].advertise(lan.now, "Abc", 1314));
    let expected = (0, "abc".to_owned(), 1314, vec![ip(1)]);
    assert_eq!(lan.found(Duration::from_secs(3)), [expected].into(), "announced");
    // One that begins to browse later.
    lan.hosts[2].browse(lan.now);
    let expected = (2, "abc".to_owned(), 1314, vec![ip(1)]);
    assert_eq!(lan.found(Duration::from_secs(1)), [expected].into(), "asked");
}

#[test]
fn withdrawn_instance_is_lost_a_second_after_its_goodbye() {
    let mut lan = Lan::new(2);
    lan.hosts[0].browse(lan.now);
    lan.hosts[1].advertise(lan.now, "a", 1);
    assert_eq!(lan.found(Duration::from_secs(5)).len(), 1);
    lan.hosts[1].withdraw(lan.now, "a");
    let lost = lan.run(Duration::from_millis(1500));
    assert_eq!(lost, [(0, Event::Lost { link: LINK, instance: "a".into() })]);
    // It can return.
    lan.hosts[1].advertise(lan.now, "a", 2);
    assert_eq!(lan.found(Duration::from_secs(3)).len(), 1);
}

#[test]
fn instance_that_is_cut_off_is_lost_after_its_lifetime_and_is_asked_for_before() {
    let mut lan = Lan::new(2);
    lan.hosts[0].browse(lan.now);
    lan.hosts[1].advertise(lan.now, "a", 1);
    assert_eq!(lan.found(Duration::from_secs(5)).len(), 1);
    // While it answers it stays.
    assert_eq!(lan.run(Duration::from_secs(7200)), []);
    lan.cut = true;
    let before = lan.sent[0].len();
    let lost = lan.run(Duration::from_secs(130));
    assert_eq!(lost, [(0, Event::Lost { link: LINK, instance: "a".into() })]);
    assert!(lan.sent[0].len() > before, "a query before the record ends");
}

#[test]
fn change_of_port_and_of_addresses_is_reported_and_is_no_conflict() {
    let mut lan = Lan::new(2);
    lan.hosts[0].browse(lan.now);
    lan.hosts[1].advertise(lan.now, "a", 1);
    lan.found(Duration::from_secs(5));
    lan.hosts[1].advertise(lan.now, "a", 2);
    assert_eq!(lan.found(Duration::from_secs(3)), [(0, "a".into(), 2, vec![ip(1)])].into());
    let addrs = vec![ip(7), ip(8)];
    lan.hosts[1].set_links(lan.now, vec![Link { id: LINK, addrs: addrs.clone() }]);
    let found = lan.found(Duration::from_secs(3));
    assert!(found.contains(&(0, "a".into(), 2, addrs)), "{found:?}");
    assert_eq!(lan.hosts[1].metrics().conflicts, 0);
}

#[test]
fn known_answers_are_not_repeated() {
    let mut lan = Lan::new(2);
    lan.hosts[0].browse(lan.now);
    lan.hosts[1].advertise(lan.now, "a", 1);
    lan.run(Duration::from_secs(40));
    // Three probes and two announcements; the queries of the browse knew the answer.
    assert_eq!(lan.sent[1].len(), 5);
    assert!(lan.sent[0].len() >= 4, "{}", lan.sent[0].len());
}

#[test]
fn response_is_multicast_at_most_once_a_second() {
    let mut lan = Lan::new(1);
    lan.hosts[0].advertise(lan.now, "a", 1);
    lan.run(Duration::from_secs(5));
    let before = lan.sent[0].len();
    for _ in 0..1000 {
        let bytes = query(SERVICE, 12, 1);
        lan.hosts[0].handle_datagram(lan.now, LINK, at(9), &bytes);
        lan.run(Duration::from_millis(10));
    }
    let sent = lan.sent[0].len() - before;
    assert!((5..=11).contains(&sent), "{sent} responses in 10 s");
}

#[test]
fn unicast_responses_are_few_and_only_for_who_asks_for_them() {
    let mut lan = Lan::new(1);
    lan.hosts[0].advertise(lan.now, "a", 1);
    lan.run(Duration::from_secs(5));
    let unicast = query(SERVICE, 12, 0x8001);
    for _ in 0..100 {
        lan.hosts[0].handle_datagram(lan.now, LINK, at(9), &unicast);
    }
    lan.collect();
    assert_eq!(lan.unicast.len(), 10);
    assert!(lan.unicast.iter().all(|(to, _)| *to == at(9)));
    lan.unicast.clear();
    lan.run(Duration::from_secs(2));
    // A resolver on another port: its id and question are repeated, for a short lifetime.
    let resolver: SocketAddr = "10.0.0.9:40000".parse().unwrap();
    let asked = query("a._polykey._udp.local", 33, 1);
    lan.hosts[0].handle_datagram(lan.now, LINK, resolver, &asked);
    lan.collect();
    let [(to, bytes)] = &lan.unicast[..] else { panic!("{:?}", lan.unicast) };
    assert_eq!((*to, &bytes[..2], &bytes[4..6]), (resolver, &[0, 9][..], &[0, 1][..]));
}

#[test]
fn second_machine_with_an_instance_is_silent_until_the_first_withdraws_it() {
    let mut lan = Lan::new(3);
    lan.hosts[2].browse(lan.now);
    lan.hosts[0].advertise(lan.now, "a", 1);
    assert_eq!(lan.found(Duration::from_secs(5)).len(), 1);
    lan.hosts[1].advertise(lan.now, "a", 2);
    let events = lan.run(Duration::from_secs(60));
    let conflict = Event::Conflict { link: LINK, instance: "a".into() };
    assert!(events.contains(&(1, conflict.clone())), "{events:?}");
    assert!(!events.contains(&(0, conflict)), "the first keeps its name: {events:?}");
    assert!(events.iter().all(|(host, _)| *host != 2), "the browser sees one port: {events:?}");
    lan.hosts[0].withdraw(lan.now, "a");
    let found = lan.found(Duration::from_secs(70));
    assert_eq!(found, [(2, "a".into(), 2, vec![ip(1)])].into());
}

#[test]
fn one_of_two_simultaneous_probes_wins() {
    let mut lan = Lan::new(3);
    lan.hosts[2].browse(lan.now);
    lan.hosts[0].advertise(lan.now, "a", 1);
    lan.hosts[1].advertise(lan.now, "a", 2);
    let found = lan.found(Duration::from_secs(30));
    assert_eq!(found.len(), 1, "{found:?}");
}

#[test]
fn hundred_instances_are_found_although_known_answers_need_many_messages() {
    let mut lan = Lan::new(9);
    for host in 0..8 {
        for instance in 0..13 {
            lan.hosts[host].advertise(lan.now, &format!("n{host}-{instance}"), 1);
        }
    }
    lan.run(Duration::from_secs(10));
    lan.hosts[8].browse(lan.now);
    assert_eq!(lan.found(Duration::from_secs(5)).len(), 104);
    let before: usize = lan.sent[..8].iter().map(Vec::len).sum();
    let asked = lan.sent[8].len();
    // For half of the lifetime of a host name.
    lan.run(Duration::from_secs(40));
    let truncated = lan.sent[8][asked..].iter().filter(|(_, bytes)| bytes[2] & 2 != 0).count();
    assert!(truncated > 0, "known answers continue");
    let after: usize = lan.sent[..8].iter().map(Vec::len).sum();
    assert_eq!(after, before, "all answers were known");
}

#[test]
fn hostile_responses_fill_bounded_tables_and_stop_nothing() {
    let mut lan = Lan::new(2);
    lan.hosts[0].browse(lan.now);
    for number in 0..3000_u32 {
        // A pointer to another instance each time.
        let mut bytes = query(SERVICE, 12, 1);
        bytes[2] = 0x84;
        bytes[5] = 0;
        bytes[7] = 1;
        let name = bytes.split_off(12);
        bytes.extend(&name[..name.len() - 4]);
        let label = format!("x{number}");
        let target: Vec<u8> = [&[u8::try_from(label.len()).unwrap()], label.as_bytes()].concat();
        let target = [&target[..], &name[..name.len() - 4]].concat();
        bytes.extend([0, 12, 0, 1, 0, 0, 0x11, 0x94]);
        bytes.extend(u16::try_from(target.len()).unwrap().to_be_bytes());
        bytes.extend(&target);
        lan.hosts[0].handle_datagram(lan.now, LINK, at(5), &bytes);
    }
    assert_eq!(lan.hosts[0].metrics().instances, 1024);
    assert_eq!(lan.hosts[0].metrics().malformed, 0);
    let before = lan.sent[0].len();
    lan.run(Duration::from_secs(60));
    let sent = lan.sent[0].len() - before;
    assert!(sent < 500, "{sent} datagrams in a minute");
}

#[test]
fn same_seed_sends_the_same_bytes_at_the_same_times() {
    let run = || {
        let mut lan = Lan::new(4);
        for host in 0..4 {
            lan.hosts[host].advertise(lan.now, &format!("n{host}"), 1);
            lan.hosts[host].browse(lan.now);
        }
        lan.run(Duration::from_secs(600));
        lan.sent
    };
    assert_eq!(run(), run());
}

//! Body of the fuzz target `mdns`: a machine of multicast DNS between a peer and a script, which
//! changes what both send, forges datagrams and moves links and time. Included by the target and by
//! `pk-mdns/tests/fuzz.rs`, which replays the corpus.
//!
//! After every step the machine must be quiet within few timeouts, its tables bounded and its
//! datagrams short. At the end the network is good again, and the machine is found.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a broken invariant is a panic")]
#![allow(clippy::indexing_slicing, reason = "indices are below the length")]

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use pk_mdns::{Destination, Event, Link, LinkId, Mdns, Settings};
use pk_proto::Instant;

const PORT: u16 = 64_023;
const LINK: LinkId = LinkId(1);
/// Timeouts that may be due at one moment: each advances a stage or asks 16 questions of at most
/// 1,024 instances, and each question is repeated.
const TIMEOUTS: usize = 1_000;

struct World {
    now: Instant,
    machines: [Mdns; 2],
    sent: Vec<Vec<u8>>,
    found: Vec<String>,
}

fn ip(n: usize) -> IpAddr {
    IpAddr::from([10, 0, 0, n as u8 + 1])
}

impl World {
    fn new() -> Self {
        let now = Instant::from_micros(1_000_000);
        let machines = [0, 1].map(|n: u8| {
            let mut mdns = Mdns::new(Settings::new("_polykey._udp.local.", PORT, [n; 32]));
            mdns.set_links(now, vec![Link { id: LINK, addrs: vec![ip(n.into())] }]);
            mdns
        });
        Self { now, machines, sent: Vec::new(), found: Vec::new() }
    }

    /// Takes what a machine has to say. Returns its datagrams.
    fn drain(&mut self, n: usize) -> Vec<Vec<u8>> {
        let machine = &mut self.machines[n];
        let mut datagrams = Vec::new();
        while let Some(transmit) = machine.poll_transmit() {
            assert!(transmit.bytes.len() <= 1440, "{} bytes", transmit.bytes.len());
            if transmit.to == Destination::Group {
                datagrams.push(transmit.bytes);
            }
        }
        while let Some(event) = machine.poll_event() {
            if let (1, Event::Found { instance, addrs, .. }) = (n, event) {
                assert!((1..=16).contains(&addrs.len()));
                self.found.push(instance);
            }
        }
        assert!(machine.metrics().instances <= 1024 * 2);
        self.sent.extend(datagrams.iter().cloned());
        self.sent.truncate(64);
        datagrams
    }

    /// Delivers what both send, unless the network is `cut`.
    fn exchange(&mut self, cut: bool) {
        for n in 0..2 {
            for bytes in self.drain(n) {
                if !cut {
                    let from = SocketAddr::new(ip(n), PORT);
                    self.machines[1 - n].handle_datagram(self.now, LINK, from, &bytes);
                }
            }
        }
    }

    fn pass(&mut self, duration: Duration, cut: bool) {
        let end = self.now + duration;
        loop {
            self.exchange(cut);
            let next = self.machines.iter().filter_map(Mdns::poll_timeout).min();
            let Some(next) = next.filter(|at| *at <= end) else { break };
            self.now = self.now.max(next);
            for machine in &mut self.machines {
                let mut count = 0;
                while machine.poll_timeout().is_some_and(|at| at <= self.now) {
                    machine.handle_timeout(self.now);
                    count += 1;
                    assert!(count < TIMEOUTS, "a machine is busy at {:?}", self.now);
                }
            }
        }
        self.now = end;
    }
}

/// Runs a script: three bytes a step. Returns whether the peer has found an instance.
pub(crate) fn mdns(data: &[u8]) -> bool {
    let mut world = World::new();
    let mut steps = data.chunks_exact(3);
    let rest = steps.clone().take(400).count() * 3;
    let tail = data.get(rest.min(data.len())..).unwrap_or_default();
    for step in steps.by_ref().take(400) {
        let [op, a, b] = [step[0], step[1], step[2]];
        let (n, now) = (usize::from(a & 1), world.now);
        let from = SocketAddr::new(ip(usize::from(b % 3)), if b & 64 == 0 { PORT } else { 9 });
        match op % 9 {
            0 => drop(world.machines[n].advertise(now, &format!("n{}", b % 20), b.into())),
            1 => world.machines[n].withdraw(now, &format!("n{}", b % 20)),
            2 => world.machines[n].browse(now),
            3 => world.machines[n].stop_browsing(),
            4 => world.pass(Duration::from_millis(u64::from(b) * 40), a & 2 != 0),
            5 => world.pass(Duration::from_secs(u64::from(b) * 20), a & 2 != 0),
            6 => {
                let addrs = (0..b % 20).map(|host| ip(host.into())).collect();
                let links = vec![Link { id: LINK, addrs }];
                world.machines[n].set_links(now, if b == 255 { Vec::new() } else { links });
            }
            7 => {
                // A datagram of either side, changed and repeated.
                let Some(mut bytes) = world.sent.get(usize::from(a) % 64).cloned() else {
                    continue;
                };
                if let Some(byte) = bytes.get_mut(usize::from(b)) {
                    *byte ^= 1 << (a % 8);
                }
                world.machines[n].handle_datagram(now, LINK, from, &bytes);
            }
            _ => world.machines[n].handle_datagram(now, LINK, from, tail),
        }
        world.exchange(false);
    }
    // The network is good: what is advertised is found.
    let links = |n| vec![Link { id: LINK, addrs: vec![ip(n)] }];
    for n in 0..2 {
        world.machines[n].set_links(world.now, links(n));
        world.machines[n].withdraw_all(world.now);
    }
    world.pass(Duration::from_secs(2), false);
    world.machines[1].stop_browsing();
    let found = !std::mem::take(&mut world.found).is_empty();
    world.machines[1].browse(world.now);
    assert!(world.machines[0].advertise(world.now, "final", 1314));
    world.pass(Duration::from_secs(200), false);
    assert!(world.found.iter().any(|instance| instance == "final"), "not found");
    found
}

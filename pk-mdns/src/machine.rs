//! The machine: links, advertised instances, the browse, time and counters.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};

use pk_proto::Instant;

use crate::browser::{Browser, Finding};
use crate::link::{Link, LinkId};
use crate::message::{MAX_SENT, Message};
use crate::responder::{Context, Names, Responder};
use crate::timing::Delays;

/// Maximum number of links.
const LINKS: usize = 64;
/// Maximum number of advertised instances.
const ADVERTISED: usize = 16;
/// Maximum number of addresses of a link.
const ADDRESSES: usize = 16;
/// Maximum number of datagrams and events that wait for the caller.
const WAITING: usize = 4096;

/// What a machine needs.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Settings {
    /// Full name of the service, such as `_polykey._udp.local`.
    pub service: String,
    /// UDP port of the group. Queries from another port are answered as those of resolvers that are
    /// no multicast ones.
    pub port: u16,
    /// Seed of the random delays.
    pub seed: [u8; 32],
}

impl Settings {
    /// Creates settings. A dot at the end of `service` makes no difference.
    pub fn new(service: &str, port: u16, seed: [u8; 32]) -> Self {
        let service = service.trim_end_matches('.').to_ascii_lowercase();
        Self { service, port, seed }
    }
}

/// A datagram to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transmit {
    /// Link.
    pub link: LinkId,
    /// Destination.
    pub to: Destination,
    /// Payload, at most 1,440 bytes.
    pub bytes: Vec<u8>,
}

/// Destination of a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Destination {
    /// The group of the link.
    Group,
    /// One host.
    Host(SocketAddr),
}

/// What has happened.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// An instance is reachable at these addresses, which replace those of earlier events of the
    /// same link.
    Found {
        /// Link.
        link: LinkId,
        /// Instance, in lower case.
        instance: String,
        /// UDP port.
        port: u16,
        /// Addresses, at most 16.
        addrs: Vec<IpAddr>,
    },
    /// An instance has sent a goodbye, or nothing within its lifetime.
    Lost {
        /// Link.
        link: LinkId,
        /// Instance, in lower case.
        instance: String,
    },
    /// Another machine advertises the same instance with another port. The local one is silent on
    /// this link and is tried again after 1 s to 60 s.
    Conflict {
        /// Link.
        link: LinkId,
        /// Instance.
        instance: String,
    },
}

/// Counters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Metrics {
    /// Received datagrams that are messages.
    pub received: u64,
    /// Received datagrams that are not messages.
    pub malformed: u64,
    /// Received datagrams on unknown links.
    pub unknown_link: u64,
    /// Datagrams to send.
    pub sent: u64,
    /// Datagrams and events that were dropped because the caller does not take them.
    pub dropped: u64,
    /// Conflicts.
    pub conflicts: u64,
    /// Present number of instances that others advertise, over all links.
    pub instances: u64,
}

/// Multicast DNS for one service.
#[derive(Debug)]
pub struct Mdns {
    names: Names,
    port: u16,
    delays: Delays,
    now: Instant,
    links: BTreeMap<LinkId, OnLink>,
    advertised: BTreeMap<String, u16>,
    browses: bool,
    transmits: VecDeque<Transmit>,
    events: VecDeque<Event>,
    metrics: Metrics,
}

#[derive(Debug, Default)]
struct OnLink {
    addrs: Vec<IpAddr>,
    responder: Responder,
    browser: Browser,
}

impl Mdns {
    /// Creates a machine without links.
    pub fn new(settings: Settings) -> Self {
        Self {
            names: Names { service: settings.service },
            port: settings.port,
            delays: Delays::new(settings.seed),
            now: Instant::ORIGIN,
            links: BTreeMap::new(),
            advertised: BTreeMap::new(),
            browses: false,
            transmits: VecDeque::new(),
            events: VecDeque::new(),
            metrics: Metrics::default(),
        }
    }

    // -- what the caller wants

    /// Replaces the links; at most 64 are used. On new ones everything is announced and asked for;
    /// on those whose addresses have changed it is announced again.
    pub fn set_links(&mut self, now: Instant, links: Vec<Link>) {
        self.advance(now);
        let mut former = std::mem::take(&mut self.links);
        for link in links.into_iter().take(LINKS) {
            let addrs: BTreeSet<IpAddr> = link.addrs.into_iter().take(ADDRESSES).collect();
            let addrs: Vec<IpAddr> = addrs.into_iter().collect();
            let mut on = former.remove(&link.id).unwrap_or_default();
            if on.addrs != addrs {
                on.addrs = addrs;
                on.responder.announce(self.now);
            }
            for (instance, port) in &self.advertised {
                on.responder.add(self.now, instance, *port, &mut self.delays);
            }
            if self.browses {
                on.browser.start(self.now, &mut self.delays);
            }
            self.links.insert(link.id, on);
        }
    }

    /// Advertises an instance: one label of at most 63 bytes. Returns `false`, and does nothing,
    /// if it is no label or 16 other instances are advertised.
    pub fn advertise(&mut self, now: Instant, instance: &str, port: u16) -> bool {
        self.advance(now);
        let instance = instance.to_ascii_lowercase();
        let is_label = (1..=63).contains(&instance.len())
            && instance.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        let has_room =
            self.advertised.len() < ADVERTISED || self.advertised.contains_key(&instance);
        if !is_label || !has_room {
            return false;
        }
        for on in self.links.values_mut() {
            on.responder.add(self.now, &instance, port, &mut self.delays);
        }
        self.advertised.insert(instance, port);
        true
    }

    /// Stops advertising an instance, with a goodbye on each link.
    pub fn withdraw(&mut self, now: Instant, instance: &str) {
        self.advance(now);
        let instance = instance.to_ascii_lowercase();
        if self.advertised.remove(&instance).is_none() {
            return;
        }
        let mut goodbyes = Vec::new();
        for (id, on) in &mut self.links {
            let goodbye = on.responder.remove(&instance, &self.names, &on.addrs);
            goodbyes.extend(goodbye.map(|message| (*id, message)));
        }
        for (id, message) in goodbyes {
            self.send(id, Destination::Group, &message);
        }
    }

    /// Stops advertising all instances, with a goodbye for each.
    pub fn withdraw_all(&mut self, now: Instant) {
        for instance in self.advertised.keys().cloned().collect::<Vec<_>>() {
            self.withdraw(now, &instance);
        }
    }

    /// Starts to browse. Events follow for every instance.
    pub fn browse(&mut self, now: Instant) {
        self.advance(now);
        self.browses = true;
        for on in self.links.values_mut() {
            on.browser.start(self.now, &mut self.delays);
        }
    }

    /// Stops to browse, and forgets the instances of others.
    pub fn stop_browsing(&mut self) {
        self.browses = false;
        self.links.values_mut().for_each(|on| on.browser.stop());
    }

    // -- the network and the time

    /// Handles a datagram that was received on a link. The caller drops those whose source is not
    /// on the link (RFC 6762 section 11).
    pub fn handle_datagram(&mut self, now: Instant, link: LinkId, from: SocketAddr, bytes: &[u8]) {
        self.advance(now);
        let Some(on) = self.links.get_mut(&link) else {
            self.metrics.unknown_link += 1;
            return;
        };
        let Some(message) = Message::decode(bytes) else {
            self.metrics.malformed += 1;
            return;
        };
        self.metrics.received += 1;
        if !message.is_response {
            let (port, delays) = (self.port, &mut self.delays);
            let mut context = Context { names: &self.names, addrs: &on.addrs, port, delays };
            for reply in on.responder.query(self.now, from, &message, &mut context) {
                let to = reply.to.map_or(Destination::Group, Destination::Host);
                self.send(link, to, &reply.message);
            }
            return;
        }
        // Responses come from the port of the group (RFC 6762 section 6).
        if from.port() != self.port {
            self.metrics.malformed += 1;
            return;
        }
        let conflicts = on.responder.response(self.now, &message, &self.names);
        on.browser.response(self.now, &message, &self.names);
        for instance in conflicts {
            self.metrics.conflicts += 1;
            self.event(Event::Conflict { link, instance });
        }
        self.report(link);
    }

    /// Returns the time of the next timeout.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let due = |on: &OnLink| [on.responder.due(), on.browser.due()].into_iter().flatten().min();
        self.links.values().filter_map(due).min()
    }

    /// Handles what is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.advance(now);
        let ids: Vec<LinkId> = self.links.keys().copied().collect();
        for id in ids {
            let Some(on) = self.links.get_mut(&id) else { continue };
            let mut messages = Vec::new();
            if on.responder.due().is_some_and(|at| at <= self.now) {
                messages =
                    on.responder.handle_timeout(self.now, &self.names, &on.addrs, &mut self.delays);
            }
            if on.browser.due().is_some_and(|at| at <= self.now) {
                messages.extend(on.browser.handle_timeout(self.now, &self.names));
            }
            for message in messages {
                self.send(id, Destination::Group, &message);
            }
            self.report(id);
        }
    }

    /// Returns the next datagram to send.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.transmits.pop_front()
    }

    /// Returns the next event.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Returns the counters.
    pub fn metrics(&self) -> Metrics {
        let instances = self.links.values().map(|on| on.browser.len() as u64).sum();
        Metrics { instances, ..self.metrics }
    }

    // -- internal

    fn advance(&mut self, now: Instant) {
        self.now = self.now.max(now);
    }

    fn report(&mut self, link: LinkId) {
        let Some(on) = self.links.get_mut(&link) else { return };
        for finding in on.browser.findings() {
            self.event(match finding {
                Finding::Found { instance, port, addrs } => {
                    Event::Found { link, instance, port, addrs }
                }
                Finding::Lost { instance } => Event::Lost { link, instance },
            });
        }
    }

    fn event(&mut self, event: Event) {
        if self.events.len() < WAITING {
            self.events.push_back(event);
        } else {
            self.metrics.dropped += 1;
        }
    }

    fn send(&mut self, link: LinkId, to: Destination, message: &Message) {
        let bytes = message.encode().filter(|bytes| bytes.len() <= MAX_SENT);
        match bytes.filter(|_| self.transmits.len() < WAITING) {
            Some(bytes) => {
                self.metrics.sent += 1;
                self.transmits.push_back(Transmit { link, to, bytes });
            }
            None => self.metrics.dropped += 1,
        }
    }
}

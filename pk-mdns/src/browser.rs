//! What others say about their instances on one link, while the node browses.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use pk_proto::Instant;

use crate::message::{Data, Kind, Message, Question, Record};
use crate::responder::Names;
use crate::timing::{Delays, MAX_QUERY_GAP, MAX_TTL, OTHER_TTL, SECOND};

/// Maximum number of instances, and of host names.
const INSTANCES: usize = 1024;
/// Maximum number of addresses of a host.
const ADDRESSES: usize = 16;
/// Known answers in one message, and in one query.
const KNOWN: usize = 18;
const MAX_KNOWN: usize = 10 * KNOWN;
/// Questions for missing records in one message, and how often each is asked.
const DETAILS: usize = 16;
const ASKS: u8 = 3;

/// The browse of one link.
#[derive(Debug, Default)]
pub(crate) struct Browser {
    query: Option<Query>,
    instances: BTreeMap<String, Instance>,
    hosts: BTreeMap<String, BTreeMap<IpAddr, Lifetime>>,
    /// Instances whose addresses may have changed.
    changed: BTreeSet<String>,
    /// Reported instances that have ended.
    lost: Vec<String>,
}

#[derive(Debug, Clone, Copy)]
struct Query {
    next: Instant,
    gap: Duration,
    last: Option<Instant>,
}

#[derive(Debug)]
struct Instance {
    pointer: Lifetime,
    server: Option<Server>,
    /// Time and number of the next question for missing records.
    ask: Option<(Instant, u8)>,
    reported: Option<(u16, BTreeSet<IpAddr>)>,
}

#[derive(Debug)]
struct Server {
    port: u16,
    host: String,
    lifetime: Lifetime,
}

/// Lifetime of a record.
#[derive(Debug, Clone, Copy)]
struct Lifetime {
    received: Instant,
    ttl: u32,
    until: Instant,
    /// Queries that were sent because it ends.
    refreshes: u8,
}

impl Lifetime {
    fn new(now: Instant, ttl: u32) -> Self {
        let ttl = ttl.min(MAX_TTL);
        // A goodbye takes a second, in which another sender can contradict it (RFC 6762 section
        // 10.1).
        let until = now + SECOND * ttl.max(1);
        Self { received: now, ttl, until, refreshes: 0 }
    }

    /// Returns when to ask whether the record is still valid (RFC 6762 section 5.2).
    fn refresh(&self) -> Option<Instant> {
        let percent = match self.refreshes {
            0 => 80,
            1 => 90,
            2 => 95,
            _ => return None,
        };
        let part = Duration::from_millis(u64::from(self.ttl) * 10 * percent);
        (self.ttl > 1).then(|| self.received + part)
    }

    /// Returns the remaining lifetime in seconds.
    fn remaining(&self, now: Instant) -> u32 {
        u32::try_from(self.until.since(now).as_secs()).unwrap_or(u32::MAX)
    }
}

/// What has become known.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Finding {
    Found { instance: String, port: u16, addrs: Vec<IpAddr> },
    Lost { instance: String },
}

impl Browser {
    /// Starts to browse.
    pub(crate) fn start(&mut self, now: Instant, delays: &mut Delays) {
        let next = now + delays.shared();
        self.query.get_or_insert(Query { next, gap: SECOND, last: None });
    }

    /// Stops, and forgets everything.
    pub(crate) fn stop(&mut self) {
        *self = Self::default();
    }

    /// Returns the number of instances.
    pub(crate) fn len(&self) -> usize {
        self.instances.len()
    }

    pub(crate) fn due(&self) -> Option<Instant> {
        let query = self.query?;
        let lifetimes = || {
            let of_instances = self.instances.values().flat_map(|it| {
                [Some(&it.pointer), it.server.as_ref().map(|server| &server.lifetime)]
            });
            of_instances.flatten().chain(self.hosts.values().flat_map(BTreeMap::values))
        };
        let refresh = lifetimes().filter_map(Lifetime::refresh).min();
        let refresh = refresh.map(|at| at.max(query.last.map_or(at, |last| last + SECOND)));
        let ends = lifetimes().map(|lifetime| lifetime.until).min();
        let asks = self.instances.values().filter_map(|it| Some(it.ask?.0)).min();
        [Some(query.next), refresh, ends, asks].into_iter().flatten().min()
    }

    /// Handles what is due. Returns queries.
    pub(crate) fn handle_timeout(&mut self, now: Instant, names: &Names) -> Vec<Message> {
        self.expire(now);
        let Some(mut query) = self.query else { return Vec::new() };
        let may_refresh = query.last.is_none_or(|last| now.since(last) >= SECOND);
        let refreshes = may_refresh && self.take_refreshes(now);
        let mut messages = Vec::new();
        if query.next <= now || refreshes {
            if query.next <= now {
                query.next = now + query.gap;
                query.gap = (query.gap * 2).min(MAX_QUERY_GAP);
            }
            query.last = Some(now);
            self.query = Some(query);
            messages = self.queries(now, names);
        }
        messages.extend(self.details(now, names));
        messages
    }

    /// Handles a response. Nothing is stored unless the node browses.
    pub(crate) fn response(&mut self, now: Instant, message: &Message, names: &Names) {
        if self.query.is_none() {
            return;
        }
        for record in message.records() {
            match &record.data {
                Data::Ptr(full) if record.name == names.service => {
                    if let Some(instance) = names.instance(full) {
                        self.pointer(now, instance, record.ttl);
                    }
                }
                Data::Srv { port, target } => {
                    if let Some(instance) = names.instance(&record.name) {
                        self.server(now, instance, *port, target, record);
                    }
                }
                _ => {}
            }
        }
        // Addresses of known hosts only, which the same message may have named.
        let mut flushed: BTreeSet<&str> = BTreeSet::new();
        for record in message.records() {
            let Data::Addr(ip) = record.data else { continue };
            if !self.hosts.contains_key(&record.name) {
                continue;
            }
            if record.flush && flushed.insert(&record.name) {
                self.flush(now, &record.name);
            }
            if let Some(addrs) = self.hosts.get_mut(&record.name)
                && (addrs.len() < ADDRESSES || addrs.contains_key(&ip))
            {
                addrs.insert(ip, Lifetime::new(now, record.ttl));
                self.touch_host(&record.name);
            }
        }
    }

    /// Returns what has changed since the last call.
    pub(crate) fn findings(&mut self) -> Vec<Finding> {
        let lost = std::mem::take(&mut self.lost).into_iter();
        let mut findings: Vec<_> = lost.map(|instance| Finding::Lost { instance }).collect();
        for instance in std::mem::take(&mut self.changed) {
            let Some(it) = self.instances.get_mut(&instance) else { continue };
            let Some(server) = &it.server else { continue };
            // Goodbyes are still in the table for a second.
            let addrs = self.hosts.get(&server.host).into_iter().flatten();
            let addrs: BTreeSet<IpAddr> =
                addrs.filter(|(_, lifetime)| lifetime.ttl > 0).map(|(ip, _)| *ip).collect();
            let report = Some((server.port, addrs.clone()));
            if addrs.is_empty() {
                if it.reported.take().is_some() {
                    findings.push(Finding::Lost { instance });
                }
            } else if it.reported != report {
                it.reported = report;
                let (port, addrs) = (server.port, addrs.into_iter().collect());
                findings.push(Finding::Found { instance, port, addrs });
            }
        }
        findings
    }

    fn pointer(&mut self, now: Instant, instance: &str, ttl: u32) {
        let pointer = Lifetime::new(now, ttl);
        let has_room = self.instances.len() < INSTANCES;
        match self.instances.get_mut(instance) {
            Some(it) => it.pointer = pointer,
            None if ttl > 0 && has_room => {
                // The records usually follow, in this message or at once.
                let ask = Some((now + SECOND / 10, 0));
                let it = Instance { pointer, server: None, ask, reported: None };
                self.instances.insert(instance.to_owned(), it);
            }
            None => {}
        }
    }

    fn server(&mut self, now: Instant, instance: &str, port: u16, host: &str, record: &Record) {
        let Some(it) = self.instances.get_mut(instance) else { return };
        let moved = it.server.as_ref().is_none_or(|server| server.host != host);
        if record.ttl == 0 {
            if let Some(server) = it.server.as_mut().filter(|_| !moved) {
                server.lifetime = Lifetime::new(now, 0);
            }
            return;
        }
        let lifetime = Lifetime::new(now, record.ttl);
        it.server = Some(Server { port, host: host.to_owned(), lifetime });
        self.changed.insert(instance.to_owned());
        if moved {
            if self.hosts.len() >= INSTANCES {
                self.drop_unused_hosts();
            }
            if self.hosts.len() < INSTANCES {
                self.hosts.entry(host.to_owned()).or_default();
            }
        }
    }

    /// A record replaces all of its host that are older than a second (RFC 6762 section 10.2).
    fn flush(&mut self, now: Instant, host: &str) {
        for lifetime in self.hosts.get_mut(host).into_iter().flat_map(BTreeMap::values_mut) {
            if now.since(lifetime.received) > SECOND {
                *lifetime = Lifetime::new(now, 0);
            }
        }
    }

    fn touch_host(&mut self, host: &str) {
        let of_host = self
            .instances
            .iter()
            .filter(|(_, it)| it.server.as_ref().is_some_and(|server| server.host == host));
        self.changed.extend(of_host.map(|(instance, _)| instance.clone()));
    }

    fn drop_unused_hosts(&mut self) {
        let used: BTreeSet<&str> = self
            .instances
            .values()
            .filter_map(|it| Some(it.server.as_ref()?.host.as_str()))
            .collect();
        self.hosts.retain(|host, _| used.contains(host.as_str()));
    }

    fn expire(&mut self, now: Instant) {
        let before = self.instances.len();
        let lost = &mut self.lost;
        self.instances.retain(|instance, it| {
            let lives = it.pointer.until > now;
            if it.server.as_ref().is_some_and(|server| server.lifetime.until <= now) {
                it.server = None;
                it.ask = Some((now, 0));
            }
            if (!lives || it.server.is_none()) && it.reported.take().is_some() {
                lost.push(instance.clone());
            }
            lives
        });
        let mut hosts = Vec::new();
        for (host, addrs) in &mut self.hosts {
            let count = addrs.len();
            addrs.retain(|_, lifetime| lifetime.until > now);
            if addrs.len() < count {
                hosts.push(host.clone());
            }
        }
        for host in hosts {
            self.touch_host(&host);
        }
        if self.instances.len() < before {
            self.drop_unused_hosts();
        }
    }

    /// Returns whether a record ends soon, and counts the query for it.
    fn take_refreshes(&mut self, now: Instant) -> bool {
        let mut due = false;
        let mut note = |lifetime: &mut Lifetime| {
            while lifetime.refresh().is_some_and(|at| at <= now) {
                lifetime.refreshes += 1;
                due = true;
            }
        };
        for it in self.instances.values_mut() {
            note(&mut it.pointer);
            if let Some(server) = &mut it.server {
                note(&mut server.lifetime);
            }
        }
        self.hosts.values_mut().flat_map(BTreeMap::values_mut).for_each(note);
        due
    }

    /// The query of the service, with known answers (RFC 6762 section 7.1).
    fn queries(&self, now: Instant, names: &Names) -> Vec<Message> {
        let known: Vec<Record> = self
            .instances
            .iter()
            .filter(|(_, it)| {
                let lifetimes = [Some(it.pointer), it.server.as_ref().map(|it| it.lifetime)];
                // Until its host and port are known, and while no record ends soon.
                it.server.is_some()
                    && lifetimes.iter().flatten().all(|it| it.remaining(now) > it.ttl / 2)
            })
            .take(MAX_KNOWN)
            .map(|(instance, it)| Record {
                name: names.service.clone(),
                ttl: it.pointer.remaining(now).min(OTHER_TTL),
                flush: false,
                data: Data::Ptr(names.full(instance)),
            })
            .collect();
        let question = Question { name: names.service.clone(), kind: Kind::Ptr, unicast: false };
        let mut messages = vec![Message { questions: vec![question], ..Message::default() }];
        for (at, records) in known.chunks(KNOWN).enumerate() {
            if at > 0 {
                messages.push(Message::default());
            }
            if let Some(message) = messages.last_mut() {
                message.answers = records.to_vec();
            }
        }
        let last = messages.len() - 1;
        messages.iter_mut().take(last).for_each(|message| message.is_truncated = true);
        messages
    }

    /// Questions for records that are missing.
    fn details(&mut self, now: Instant, names: &Names) -> Option<Message> {
        let mut questions = Vec::new();
        for (instance, it) in &mut self.instances {
            let Some((at, asks)) = it.ask else { continue };
            let addrs = it.server.as_ref().and_then(|server| self.hosts.get(&server.host));
            let is_complete = addrs.is_some_and(|addrs| !addrs.is_empty());
            if is_complete || asks >= ASKS {
                it.ask = None;
                continue;
            }
            if at > now || questions.len() >= DETAILS {
                continue;
            }
            it.ask = Some((now + SECOND * 2_u32.pow(asks.into()), asks + 1));
            let ask = |name: String, kind| Question { name, kind, unicast: false };
            match &it.server {
                None => questions.push(ask(names.full(instance), Kind::Any)),
                Some(server) => {
                    questions.push(ask(server.host.clone(), Kind::A));
                    questions.push(ask(server.host.clone(), Kind::Aaaa));
                }
            }
        }
        (!questions.is_empty()).then(|| Message { questions, ..Message::default() })
    }
}

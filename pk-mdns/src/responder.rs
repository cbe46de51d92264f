//! What a node says about its own instances on one link.
//!
//! An instance is probed for, announced, and then answered for. Its name cannot be changed, because
//! it is the id of a node: while another machine claims the same name with another port, the
//! instance is silent on that link and is probed again later. Addresses make no conflict, since a
//! machine hears its own messages on all of its links.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use pk_proto::Instant;

use crate::message::{Data, Kind, Message, Question, Record};
use crate::timing::{
    ANNOUNCEMENTS, Delays, FORMER, HOST_TTL, LEGACY_TTL, MAX_CONFLICT_DELAY, OTHER_TTL, PROBE_GAP,
    PROBES, SECOND,
};

/// Unicast responses in one second.
const UNICASTS: u32 = 10;

/// The names of a service and its instances.
#[derive(Debug)]
pub(crate) struct Names {
    pub(crate) service: String,
}

impl Names {
    /// Returns the full name of an instance.
    pub(crate) fn full(&self, instance: &str) -> String {
        format!("{instance}.{}", self.service)
    }

    /// Returns the host name of an instance.
    pub(crate) fn host(instance: &str) -> String {
        format!("{instance}.local")
    }

    /// Returns the instance with this full name.
    pub(crate) fn instance<'a>(&self, full: &'a str) -> Option<&'a str> {
        let instance = full.strip_suffix(&self.service)?.strip_suffix('.')?;
        (!instance.is_empty()).then_some(instance)
    }
}

/// What to send, to the group or to one host.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Reply {
    pub(crate) to: Option<SocketAddr>,
    pub(crate) message: Message,
}

/// The own instances on one link.
#[derive(Debug, Default)]
pub(crate) struct Responder {
    instances: BTreeMap<String, Advertised>,
    /// Second and number of the latest unicast responses.
    unicasts: (u64, u32),
}

#[derive(Debug)]
struct Advertised {
    port: u16,
    /// The port before, and until when it is no conflict.
    former: Option<(u16, Instant)>,
    stage: Stage,
    conflicts: u32,
    sent: Option<Instant>,
    pending: Option<Pending>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Probing {
        sent: u8,
        next: Instant,
    },
    Announcing {
        sent: u8,
        next: Instant,
    },
    Established,
    /// Another machine has the name.
    Conflict {
        until: Instant,
    },
}

/// A response that is to be sent.
#[derive(Debug, Clone, Copy)]
struct Pending {
    at: Instant,
    /// Who asked, if its known answers may continue.
    from: Option<SocketAddr>,
    /// Whether the instance itself was asked for, and not only its records.
    lists: bool,
}

impl Advertised {
    /// Returns whether it answers queries.
    fn answers(&self) -> bool {
        matches!(self.stage, Stage::Announcing { .. } | Stage::Established)
    }

    /// Returns whether others may know it.
    fn is_known(&self) -> bool {
        matches!(self.stage, Stage::Announcing { sent: 1.., .. } | Stage::Established)
    }

    fn due(&self) -> Option<Instant> {
        let stage = match self.stage {
            Stage::Probing { next, .. } | Stage::Announcing { next, .. } => Some(next),
            Stage::Conflict { until } => Some(until),
            Stage::Established => None,
        };
        let pending = self.pending.map(|pending| pending.at);
        [stage, pending].into_iter().flatten().min()
    }

    fn yields(&mut self, now: Instant) {
        let delay = SECOND * 2_u32.saturating_pow(self.conflicts.min(6));
        self.conflicts = self.conflicts.saturating_add(1);
        self.pending = None;
        self.stage = Stage::Conflict { until: now + delay.min(MAX_CONFLICT_DELAY) };
    }
}

impl Responder {
    /// Advertises an instance, or changes its port.
    pub(crate) fn add(&mut self, now: Instant, instance: &str, port: u16, delays: &mut Delays) {
        if let Some(known) = self.instances.get_mut(instance) {
            if known.port != port {
                known.former = Some((known.port, now + FORMER));
                known.port = port;
                if known.answers() {
                    known.stage = Stage::Announcing { sent: 0, next: now };
                }
            }
            return;
        }
        let advertised = Advertised {
            port,
            former: None,
            stage: Stage::Probing { sent: 0, next: now + delays.probe() },
            conflicts: 0,
            sent: None,
            pending: None,
        };
        self.instances.insert(instance.to_owned(), advertised);
    }

    /// Stops advertising. Returns the goodbye, if others may know the instance.
    pub(crate) fn remove(
        &mut self,
        instance: &str,
        names: &Names,
        addrs: &[IpAddr],
    ) -> Option<Message> {
        let removed = self.instances.remove(instance)?;
        let mut goodbye = response(names, instance, removed.port, addrs, true);
        goodbye.answers.iter_mut().for_each(|record| record.ttl = 0);
        removed.is_known().then_some(goodbye)
    }

    /// Announces everything again, because the addresses have changed.
    pub(crate) fn announce(&mut self, now: Instant) {
        for advertised in self.instances.values_mut().filter(|it| it.answers()) {
            advertised.stage = Stage::Announcing { sent: 0, next: now };
        }
    }

    pub(crate) fn due(&self) -> Option<Instant> {
        self.instances.values().filter_map(Advertised::due).min()
    }

    /// Returns what is due.
    pub(crate) fn handle_timeout(
        &mut self,
        now: Instant,
        names: &Names,
        addrs: &[IpAddr],
        delays: &mut Delays,
    ) -> Vec<Message> {
        let mut messages = Vec::new();
        for (instance, it) in &mut self.instances {
            match it.stage {
                Stage::Probing { sent, next } if next <= now && sent < PROBES => {
                    it.stage = Stage::Probing { sent: sent + 1, next: now + PROBE_GAP };
                    messages.push(probe(names, instance, it.port));
                }
                Stage::Conflict { until } if until <= now => {
                    it.stage = Stage::Probing { sent: 0, next: now + delays.probe() };
                }
                Stage::Probing { next, .. } | Stage::Announcing { next, .. } if next <= now => {
                    let sent = match it.stage {
                        Stage::Announcing { sent, .. } => sent + 1,
                        _ => 1,
                    };
                    it.stage = match sent < ANNOUNCEMENTS {
                        true => Stage::Announcing { sent, next: now + SECOND },
                        false => Stage::Established,
                    };
                    it.sent = Some(now);
                    it.pending = None;
                    it.conflicts = 0;
                    messages.push(response(names, instance, it.port, addrs, true));
                }
                _ => {}
            }
            if let Some(pending) = it.pending.filter(|pending| pending.at <= now) {
                it.pending = None;
                it.sent = Some(now);
                messages.push(response(names, instance, it.port, addrs, pending.lists));
            }
        }
        messages
    }

    /// Handles a query. Returns responses that are sent at once.
    pub(crate) fn query(
        &mut self,
        now: Instant,
        from: SocketAddr,
        query: &Message,
        context: &mut Context<'_>,
    ) -> Vec<Reply> {
        let mut replies = Vec::new();
        let is_legacy = from.port() != context.port;
        let mut unicasts = self.unicasts;
        if unicasts.0 != now.as_micros() / 1_000_000 {
            unicasts = (now.as_micros() / 1_000_000, 0);
        }
        for (instance, it) in &mut self.instances {
            let full = context.names.full(instance);
            if let Stage::Probing { .. } = it.stage {
                if loses(query, &full, instance, it.port) {
                    // Simultaneous probes (RFC 6762 section 8.2).
                    it.stage = Stage::Probing { sent: 0, next: now + SECOND };
                }
                continue;
            }
            let knows = query.answers.iter().any(|known| {
                known.name == context.names.service
                    && known.ttl >= OTHER_TTL / 2
                    && known.data == Data::Ptr(full.clone())
            });
            if let Some(pending) = it.pending
                && pending.from == Some(from)
                && pending.lists
                && knows
            {
                it.pending = None;
            }
            if !it.answers() {
                continue;
            }
            let (mut lists, mut resolves, mut unicast) = (false, false, is_legacy);
            for question in &query.questions {
                let is_asked = if question.name == context.names.service {
                    let asks = question.kind.wants(&Data::Ptr(String::new())) && !knows;
                    lists |= asks;
                    asks
                } else {
                    let asks = asks_for_records(question, &full, instance, context.addrs);
                    resolves |= asks;
                    asks
                };
                unicast |= is_asked && question.unicast;
            }
            if !lists && !resolves {
                continue;
            }
            let is_probe = query.proposed.iter().any(|record| record.name == full);
            if unicast && unicasts.1 < UNICASTS {
                unicasts.1 += 1;
                let mut message = response(context.names, instance, it.port, context.addrs, lists);
                if is_legacy {
                    legacy(&mut message, query);
                }
                replies.push(Reply { to: Some(from), message });
            }
            // Others do not see a unicast response: they are sent one from time to time.
            let fresh = SECOND * (HOST_TTL / 4);
            if is_legacy || unicast && it.sent.is_some_and(|sent| now.since(sent) < fresh) {
                continue;
            }
            let delay = match (query.is_truncated, lists) {
                (true, true) => context.delays.truncated(),
                (false, true) => context.delays.shared(),
                (_, false) => std::time::Duration::ZERO,
            };
            let gap = if is_probe { PROBE_GAP } else { SECOND };
            let earliest = it.sent.map_or(now, |sent| sent + gap);
            let at = (now + delay).max(earliest);
            let from = query.is_truncated.then_some(from);
            it.pending = Some(match it.pending {
                Some(before) => Pending {
                    at: before.at.min(at),
                    from: before.from.filter(|before| Some(*before) == from),
                    lists: before.lists | lists,
                },
                None => Pending { at, from, lists },
            });
        }
        self.unicasts = unicasts;
        replies
    }

    /// Looks for conflicts in a response. Returns the instances that are silent from now on.
    pub(crate) fn response(
        &mut self,
        now: Instant,
        message: &Message,
        names: &Names,
    ) -> Vec<String> {
        let mut silent = Vec::new();
        for record in message.records().filter(|record| record.ttl > 0) {
            let Some(instance) = names.instance(&record.name) else { continue };
            let Some(it) = self.instances.get_mut(instance) else { continue };
            let Data::Srv { port, target } = &record.data else { continue };
            let was = it.former.filter(|(_, until)| *until > now).map(|(port, _)| port);
            let is_ours =
                *target == Names::host(instance) && (*port == it.port || Some(*port) == was);
            if !is_ours && !matches!(it.stage, Stage::Conflict { .. }) {
                it.yields(now);
                silent.push(instance.to_owned());
            }
        }
        silent
    }
}

/// What a responder needs for a query.
pub(crate) struct Context<'a> {
    pub(crate) names: &'a Names,
    pub(crate) addrs: &'a [IpAddr],
    pub(crate) port: u16,
    pub(crate) delays: &'a mut Delays,
}

/// Returns whether a question asks for a record of an instance that exists.
fn asks_for_records(question: &Question, full: &str, instance: &str, addrs: &[IpAddr]) -> bool {
    if question.name == full {
        let srv = Data::Srv { port: 0, target: String::new() };
        return question.kind.wants(&srv) || question.kind.wants(&Data::Txt);
    }
    question.name == Names::host(instance)
        && addrs.iter().any(|addr| question.kind.wants(&Data::Addr(*addr)))
}

/// Returns whether a probe of another machine takes precedence over one of ours (RFC 6762 section
/// 8.2). The greater record wins; equal ones are the same machine or make no difference.
fn loses(query: &Message, full: &str, instance: &str, port: u16) -> bool {
    let host = Names::host(instance);
    let ours = (port, host.as_str());
    query.proposed.iter().filter(|record| record.name == *full).any(|record| {
        matches!(&record.data, Data::Srv { port, target } if (*port, target.as_str()) > ours)
    })
}

/// A probe (RFC 6762 section 8.1).
fn probe(names: &Names, instance: &str, port: u16) -> Message {
    let full = names.full(instance);
    let srv = Data::Srv { port, target: Names::host(instance) };
    let proposed = Record { name: full.clone(), ttl: HOST_TTL, flush: false, data: srv };
    Message {
        // A unicast response could reach another program of this machine at the same port.
        questions: vec![Question { name: full, kind: Kind::Any, unicast: false }],
        proposed: vec![proposed],
        ..Message::default()
    }
}

/// The records of an instance, with the one that lists it if it `lists`.
fn response(names: &Names, instance: &str, port: u16, addrs: &[IpAddr], lists: bool) -> Message {
    let (full, host) = (names.full(instance), Names::host(instance));
    let record = |name: &str, ttl, flush, data| Record { name: name.to_owned(), ttl, flush, data };
    let pointer = record(&names.service, OTHER_TTL, false, Data::Ptr(full.clone()));
    let mut records = vec![
        record(&full, HOST_TTL, true, Data::Srv { port, target: host.clone() }),
        record(&full, OTHER_TTL, true, Data::Txt),
    ];
    records.extend(addrs.iter().map(|ip| record(&host, HOST_TTL, true, Data::Addr(*ip))));
    // Known implementations read all sections alike, and all read the answers.
    if lists {
        records.insert(0, pointer);
    }
    Message { is_response: true, answers: records, ..Message::default() }
}

/// Turns a response into one for a resolver that is no multicast one (RFC 6762 section 6.7).
fn legacy(message: &mut Message, query: &Message) {
    message.id = query.id;
    message.questions = query.questions.clone();
    for record in &mut message.answers {
        record.ttl = record.ttl.min(LEGACY_TTL);
        record.flush = false;
    }
}

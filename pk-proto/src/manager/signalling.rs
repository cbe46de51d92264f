//! The three roles of signalling: source, relay, target (DESIGN section 5, WIRE.md section 8).

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use core::net::SocketAddr;
use core::time::Duration;

use bytes::Bytes;

use super::NodeManager;
use super::open::{Audience, DialThen, Open, Stage};
use crate::address::NodeAddress;
use crate::connect::{Goal, Learnt, RaceId};
use crate::cx::Dice;
use crate::error::Failure;
use crate::graph::NodeContact;
use crate::id::{ConnectionId, EffectId, NodeId, StreamId};
use crate::io::{Connected, DialFailure, Dialect, Output, Signature};
use crate::rpc::{Answer, Answered, PunchRequest, Question, Refusal, SignalRequest, SignalTerms};
use crate::signal::{Punches, SignalGuard, VALIDITY, address_text, relay_bytes, request_bytes};
use crate::signature::verify;
use crate::time::UnixMillis;
use crate::timers::Timer;

/// Signatures of signals that may be waited for.
const SIGNING_LIMIT: usize = 256;
/// The first dial after a signal is held back by half of the time that signalling took, at most this long.
const MAX_HOLD: Duration = Duration::from_millis(200);

/// What goes on in signalling.
#[derive(Debug, Default)]
pub(super) struct Signalling {
    /// As a relay: who may ask us.
    relayed: SignalGuard,
    /// As a target: who may have us punch.
    targeted: SignalGuard,
    punches: Punches,
    signing: BTreeMap<EffectId, Signing>,
    /// As a source: questions to relays, for which race, and where the relay is.
    asked: BTreeMap<StreamId, Asked>,
}

/// A question to a relay.
#[derive(Debug)]
struct Asked {
    race: RaceId,
    relay: NodeId,
    /// Where the relay is.
    relay_at: NodeAddress,
    target: NodeId,
    terms: SignalTerms,
}

/// What a signature is for.
#[derive(Debug)]
enum Signing {
    /// As a source: the question to the relay.
    Request { race: RaceId, relay: NodeId, target: NodeId, terms: SignalTerms },
    /// As a relay: the question to the target.
    Forward { target: ConnectionId, source: NodeId, address: NodeAddress, request: SignalRequest },
}

impl NodeManager {
    // -- source

    /// A race wants a relay to signal.
    pub(super) fn signal(&mut self, race: RaceId, target: NodeId, relay: NodeId) {
        let plain = self.connections.primary(&relay).and_then(|conn| self.connections.dialect(conn));
        let terms = match plain {
            Some(Dialect::Polykey) => SignalTerms::Plain,
            Some(Dialect::Native) | None => SignalTerms::Once {
                expires: UnixMillis(self.cx.unix().0.saturating_add(millis(VALIDITY))),
                nonce: self.cx.random_bytes(Dice::Signals),
            },
        };
        self.signal_on(race, target, relay, terms);
    }

    fn signal_on(&mut self, race: RaceId, target: NodeId, relay: NodeId, terms: SignalTerms) {
        if self.signalling.signing.len() >= SIGNING_LIMIT {
            return self.not_signalled(race, relay, "too many signals are under way");
        }
        let own = self.cx.own();
        let id = self.cx.ids.effect();
        let bytes = Bytes::from(request_bytes(&own, &target, &terms));
        self.signalling.signing.insert(id, Signing::Request { race, relay, target, terms });
        self.cx.output(Output::Sign { id, key: own, bytes });
    }

    fn ask_relay(&mut self, race: RaceId, relay: NodeId, request: SignalRequest) {
        if !self.connections.is_racing(race) {
            return;
        }
        let Some((conn, (address, _))) =
            self.connections.primary(&relay).and_then(|conn| Some((conn, self.connections.address(conn)?)))
        else {
            return self.not_signalled(race, relay, "the connection to it was lost");
        };
        let id = self.cx.ids.request();
        let deadline = self.cx.now + self.cx.config.call_timeout;
        let SignalRequest { target, terms, .. } = request;
        match self.rpc.call(&mut self.cx, conn, id, Question::Signal(request), deadline) {
            Some(stream) => {
                self.cx.metrics.signals_sent += 1;
                self.signalling.asked.insert(stream, Asked { race, relay, relay_at: address, target, terms });
            }
            None => self.not_signalled(race, relay, "the connection to it was lost"),
        }
    }

    /// A relay has answered, or not. Returns whether the call was one of signalling.
    pub(super) fn signal_answered(&mut self, stream: StreamId, result: &Result<Answered, Failure>) -> bool {
        let Some(asked) = self.signalling.asked.remove(&stream) else { return false };
        let Asked { race, relay: node, relay_at: relay, target, terms } = asked;
        // The target knows no terms. So there are none, and it bounds how often it punches.
        if let Ok(Answered { answer: Answer::Refused(Refusal::Terms), .. }) = result
            && terms != SignalTerms::Plain
        {
            self.signal_on(race, target, node, SignalTerms::Plain);
            return true;
        }
        let no = |why: &dyn core::fmt::Display| Err((relay.clone(), DialFailure::Signal(alloc::format!("{why}"))));
        let mut hold = Duration::ZERO;
        let result = match result {
            Ok(Answered { answer: Answer::Signalled { address }, rtt }) => {
                hold = (*rtt / 2).min(MAX_HOLD);
                match self.cx.believes(address, Some(&relay)) {
                    true => Ok(address.clone()),
                    false => no(&Refusal::Address),
                }
            }
            Ok(Answered { answer: Answer::Refused(refusal), .. }) => no(refusal),
            Ok(_) => no(&"it answered something else"),
            Err(failure) => no(failure),
        };
        self.connections.signalled(&mut self.cx, race, result, hold);
        true
    }

    fn not_signalled(&mut self, race: RaceId, relay: NodeId, why: &str) {
        let address = self.graph.get(&relay).and_then(|contact| contact.iter().next());
        let address = address.map_or_else(
            || NodeAddress { host: crate::address::Host::Ip(core::net::Ipv4Addr::UNSPECIFIED.into()), port: 0 },
            |(address, _)| address.clone(),
        );
        let failure = (address, DialFailure::Signal(why.into()));
        self.connections.signalled(&mut self.cx, race, Err(failure), Duration::ZERO);
    }

    // -- all

    /// A signature is there. Returns whether it was one of signalling.
    pub(super) fn signal_signed(&mut self, id: EffectId, result: Result<Signature, alloc::string::String>) -> bool {
        let Some(signing) = self.signalling.signing.remove(&id) else { return false };
        match (signing, result) {
            (Signing::Request { race, relay, target, terms }, Ok(signature)) => {
                self.ask_relay(race, relay, SignalRequest { target, terms, signature });
            }
            (Signing::Request { race, relay, .. }, Err(why)) => self.not_signalled(race, relay, &why),
            (Signing::Forward { target, source, address, request }, Ok(relay_signature)) => {
                let address_text = address_text(&request.terms, &address);
                let punch = PunchRequest { source, address, address_text, request, relay_signature };
                let question = Question::Punch(Box::new(punch));
                let id = self.cx.ids.request();
                let deadline = self.cx.now + self.cx.config.call_timeout;
                // What the target says is not our business.
                self.rpc.call(&mut self.cx, target, id, question, deadline);
            }
            (Signing::Forward { .. }, Err(_)) => {}
        }
        true
    }

    // -- relay

    /// A peer asks us to signal.
    pub(super) fn relay(&mut self, conn: ConnectionId, request: &SignalRequest) -> Answer {
        match self.try_relay(conn, request) {
            Ok(address) => {
                self.cx.metrics.signals_relayed += 1;
                Answer::Signalled { address }
            }
            Err(refusal) => {
                self.cx.metrics.signals_refused += 1;
                Answer::Refused(refusal)
            }
        }
    }

    fn try_relay(&mut self, conn: ConnectionId, request: &SignalRequest) -> Result<NodeAddress, Refusal> {
        let source = self.connections.node(conn).ok_or(Refusal::NotConnected)?;
        let (seen_at, seen) = self.connections.address(conn).ok_or(Refusal::NotConnected)?;
        // Addresses of the local network are told to nobody.
        if !seen.scopes.global {
            return Err(Refusal::Address);
        }
        let targets = self.connections.with(&request.target).filter_map(|target| {
            let (address, data) = self.connections.address(target)?;
            data.scopes.global.then_some((target, address))
        });
        let (target, address) = { targets }.next().ok_or(Refusal::NotConnected)?;
        if self.connections.dialect(target) == Some(Dialect::Polykey) && request.terms != SignalTerms::Plain {
            return Err(Refusal::Terms);
        }
        let unix = self.cx.unix();
        // Cheap limits before dear signatures; a nonce is spent only by a request that is genuine.
        self.signalling.relayed.allow_source(self.cx.now, &source)?;
        self.signalling.relayed.allow_target(self.cx.now, &request.target)?;
        let bytes = request_bytes(&source, &request.target, &request.terms);
        verify(&source, &bytes, &request.signature.0).map_err(|_| Refusal::Signature)?;
        self.signalling.relayed.fresh(unix, &source, request)?;
        if self.signalling.signing.len() >= SIGNING_LIMIT {
            return Err(Refusal::Busy);
        }
        let bytes = Bytes::from(relay_bytes(&source, &address_text(&request.terms, &seen_at), request));
        let id = self.cx.ids.effect();
        let forward = Signing::Forward { target, source, address: seen_at, request: request.clone() };
        self.signalling.signing.insert(id, forward);
        let key = self.cx.own();
        self.cx.output(Output::Sign { id, key, bytes });
        Ok(address)
    }

    // -- target

    /// A relay has us punch.
    pub(super) fn punch(&mut self, conn: ConnectionId, punch: &PunchRequest) -> Answer {
        match self.try_punch(conn, punch) {
            Ok(()) => Answer::Punching,
            Err(refusal) => {
                self.cx.metrics.punches_refused += 1;
                Answer::Refused(refusal)
            }
        }
    }

    fn try_punch(&mut self, conn: ConnectionId, punch: &PunchRequest) -> Result<(), Refusal> {
        let relay = self.connections.node(conn).ok_or(Refusal::NotConnected)?;
        let (relay_at, _) = self.connections.address(conn).ok_or(Refusal::NotConnected)?;
        let PunchRequest { source, address, address_text, request, relay_signature } = punch;
        if !self.cx.is_own(&request.target) || self.cx.is_own(source) {
            return Err(Refusal::NotTarget);
        }
        let addr = address.socket().filter(|_| self.cx.believes(address, Some(&relay_at)));
        let addr = addr.ok_or(Refusal::Address)?;
        let unix = self.cx.unix();
        self.signalling.targeted.allow_source(self.cx.now, &relay)?;
        let bytes = relay_bytes(source, address_text, request);
        verify(&relay, &bytes, &relay_signature.0).map_err(|_| Refusal::RelaySignature)?;
        let bytes = request_bytes(source, &request.target, &request.terms);
        verify(source, &bytes, &request.signature.0).map_err(|_| Refusal::Signature)?;
        // Only what a source has said itself counts against it.
        self.signalling.targeted.allow_target(self.cx.now, source)?;
        self.signalling.targeted.fresh(unix, source, request)?;
        if self.connections.primary(source).is_some() {
            return Ok(());
        }
        if self.signalling.punches.begin(addr, *source)? {
            self.cx.metrics.punches += 1;
            self.punch_next(addr);
            self.dial_back(*source, address.clone());
        }
        Ok(())
    }

    /// Sends a datagram, and sets the timer for the next one.
    pub(super) fn punch_next(&mut self, addr: SocketAddr) {
        let mut bytes: [u8; 32] = self.cx.random_bytes(Dice::Signals);
        // Nothing that a demultiplexer takes for QUIC (RFC 9443).
        if let Some(first) = bytes.first_mut() {
            *first &= 0x3f;
        }
        self.cx.output(Output::Punch { addr, bytes: Bytes::copy_from_slice(&bytes) });
        if let Some(wait) = self.signalling.punches.sent(&addr) {
            self.cx.timers.set(Timer::Punch(addr), self.cx.now + wait);
        }
    }

    /// The target dials as well: where the source's NAT gives every peer another port, only its own packets get through,
    /// and where the target's does, only the source's.
    fn dial_back(&mut self, source: NodeId, address: NodeAddress) {
        let id = self.cx.ids.request();
        let timeout = self.cx.config.connect_timeout;
        let stage = Stage::Dial { then: DialThen::Connect };
        self.begin(id, Open { audience: Audience::Nobody, deadline: self.cx.now + timeout, stage });
        let goal = Goal::at(source, [address], Learnt::SIGNALLED, timeout);
        self.connections.dial_only(&mut self.cx, id, goal);
    }

    /// How the peer of an incoming connection has come here: signalled, if we punch for it; from the local network, if we
    /// know its address from there and from nowhere else.
    pub(super) fn incoming(&self, connected: &Connected) -> Learnt {
        if self.signalling.punches.is_for(&connected.chain) {
            return Learnt::SIGNALLED;
        }
        let remote = NodeAddress::from_socket(connected.remote);
        let known = self.graph.get(&connected.leaf).into_iter().flat_map(NodeContact::iter);
        let known = known.filter(|(address, _)| *address == remote).map(|(_, data)| Learnt::known(data)).next();
        known.unwrap_or(Learnt::DIRECT)
    }

    /// A connection with a node was accepted: there is no need to punch for it any more.
    pub(super) fn punched(&mut self, ids: &[NodeId]) {
        for addr in self.signalling.punches.end(ids) {
            self.cx.timers.cancel(Timer::Punch(addr));
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

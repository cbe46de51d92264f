//! The three roles of signalling: source, relay, target (docs/DESIGN.md, Signalling; docs/WIRE.md
//! section 8).

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use core::net::SocketAddr;
use core::time::Duration;

use bytes::Bytes;

use super::node::NodeManager;
use super::state::signalling::{Forward, RelayCall};
use super::state::stage::{OnDialed, OpenRequest, Recipient, RequestStage};
use crate::api::error::Failure;
use crate::api::output::Output;
use crate::api::transport::{Connected, DialFailure};
use crate::machine::cx::RngStream;
use crate::machine::dial::{AddressOrigin, DialTarget};
use crate::machine::effects::{EffectOwner, SignOwner, SignalPurpose};
use crate::machine::timer::Timer;
use crate::rpc::event::CompletedCall;
use crate::shares::Limits;
use crate::signalling::freshness::{CLOCK_MEMORY, CLOCK_TOLERANCE, VALIDITY};
use crate::types::address::{Host, NodeAddress};
use crate::types::contact::NodeContact;
use crate::types::id::{ConnectionId, NodeId, StreamId};
use crate::types::refusal::Refusal;
use crate::types::signature::{Signature, verify};
use crate::types::time::{UnixMillis, WallClock, millis};
use crate::wire::dialect::Dialect;
use crate::wire::message::{PunchRequest, RpcRequest, RpcResponse, SignalRequest, SignalTerms};
use crate::wire::signal::{address_text, relay_bytes, request_bytes};

/// Maximum number of local signal requests that wait for a signature.
const SIGNING_LIMIT: usize = 256;
/// Maximum number of signals of peers in progress, from the local signature to the target's
/// response. Each peer and each network has its share.
const RELAYING_LIMIT: usize = 1024;
/// Maximum delay of the first dial after a signal. The delay is half of the time that signalling
/// took.
const MAX_HOLD: Duration = Duration::from_millis(200);

impl NodeManager {
    // -- source

    /// Starts to request a signal from a relay.
    pub(super) fn signal(&mut self, purpose: SignalPurpose, target: NodeId, relay: NodeId) {
        let plain =
            self.connections.primary(&relay).and_then(|conn| self.connections.dialect(conn));
        let terms = match plain {
            Some(Dialect::Polykey) => SignalTerms::Plain,
            Some(Dialect::Native) | None => self.terms_once(),
        };
        self.signal_on(purpose, target, relay, terms);
    }

    /// Returns new terms with an expiry and a nonce.
    fn terms_once(&mut self) -> SignalTerms {
        let unix = self.signal_clock();
        self.signalling.clock = Some((WallClock::new(self.cx.now, unix), self.cx.now));
        let expires = UnixMillis(unix.0.saturating_add(millis(VALIDITY)));
        SignalTerms::Once { expires, nonce: self.cx.random_bytes(RngStream::Signals) }
    }

    /// Returns the wall clock for the expiry of requests. It is the clock of the latest requests,
    /// because peers know this node by it, even if the wall clock was set since. The current wall
    /// clock replaces it when peers no longer store it or would not accept it.
    fn signal_clock(&self) -> UnixMillis {
        let unix = self.cx.unix();
        let latest =
            self.signalling.clock.filter(|(_, used)| self.cx.now.since(*used) < CLOCK_MEMORY * 2);
        let latest = latest.map(|(clock, _)| clock.read(self.cx.now));
        latest.filter(|latest| latest.0.abs_diff(unix.0) <= millis(CLOCK_TOLERANCE)).unwrap_or(unix)
    }

    /// Discards the clock of the latest requests, which a peer has refused. Returns whether the
    /// wall clock differs, so that a new request may be accepted.
    fn follow_wall_clock(&mut self) -> bool {
        let differs = self.signal_clock().0.abs_diff(self.cx.unix().0) > millis(VALIDITY) / 2;
        self.signalling.clock = None;
        differs
    }

    /// Starts to sign a signal request, unless too many are being signed.
    fn signal_on(
        &mut self,
        purpose: SignalPurpose,
        target: NodeId,
        relay: NodeId,
        terms: SignalTerms,
    ) {
        let is_signal = |owner: &EffectOwner| {
            matches!(owner, EffectOwner::Sign(SignOwner::SignalRequest { .. }))
        };
        if self.cx.effects.owners().filter(is_signal).count() >= SIGNING_LIMIT {
            return self.not_signalled(
                purpose,
                relay,
                "too many signal requests are waiting for a signature",
            );
        }
        let own = self.cx.own();
        let bytes = Bytes::from(request_bytes(&own, &target, &terms));
        let owner = SignOwner::SignalRequest { purpose, relay, target, terms };
        let id = self.cx.effects.begin(EffectOwner::Sign(owner));
        self.cx.output(Output::Sign { id, key: own, bytes });
    }

    /// Sends a signed request to the relay, if it still has a purpose.
    fn ask_relay(&mut self, purpose: SignalPurpose, relay: NodeId, request: SignalRequest) {
        let is_needed = match purpose {
            SignalPurpose::Dial(race) => self.connections.is_racing(race),
            SignalPurpose::Upgrade(conn) => self.connections.is_relayed(conn),
        };
        if !is_needed {
            return;
        }
        let Some((conn, (address, _))) = self
            .connections
            .primary(&relay)
            .and_then(|conn| Some((conn, self.connections.address(conn)?)))
        else {
            return self.not_signalled(purpose, relay, "the connection to the relay was lost");
        };
        let id = self.cx.ids.request();
        let deadline = self.cx.now + self.cx.config.call_timeout;
        let SignalRequest { target, terms, .. } = request;
        match self.rpc.call(&mut self.cx, conn, id, RpcRequest::Signal(request), deadline) {
            Some(stream) => {
                self.cx.metrics.signals_sent += 1;
                self.signalling
                    .relay_calls
                    .insert(stream, RelayCall { purpose, relay, relay_at: address, target, terms });
            }
            None => self.not_signalled(purpose, relay, "the connection to the relay was lost"),
        }
    }

    /// Handles the end of a signalling call to a relay or a target.
    pub(super) fn signal_answered(
        &mut self,
        stream: StreamId,
        result: &Result<CompletedCall, Failure>,
    ) {
        if let Some(from) = self.signalling.forwarded.remove(&stream) {
            // The relay does not use the target's response.
            self.signalling.relaying.give_back(&from);
            return;
        }
        let Some(asked) = self.signalling.relay_calls.remove(&stream) else { return };
        let RelayCall { purpose, relay: node, relay_at: relay, target, terms } = asked;
        // The target uses the reference protocol, which has no terms. The request is repeated
        // without terms; the target limits its rate of punches instead.
        if let Ok(CompletedCall { answer: RpcResponse::Refused(Refusal::Terms), .. }) = result
            && terms != SignalTerms::Plain
        {
            self.signal_on(purpose, target, node, SignalTerms::Plain);
            return;
        }
        let expired = matches!(
            result,
            Ok(CompletedCall { answer: RpcResponse::Refused(Refusal::Expired), .. })
        );
        if expired && terms != SignalTerms::Plain && self.follow_wall_clock() {
            let terms = self.terms_once();
            self.signal_on(purpose, target, node, terms);
            return;
        }
        let unix = self.cx.unix();
        let no = |why: &dyn core::fmt::Display| {
            Err((relay.clone(), DialFailure::Signal(alloc::format!("{why}"))))
        };
        let mut hold = Duration::ZERO;
        let result = match result {
            Ok(CompletedCall { answer: RpcResponse::Signalled { address }, rtt }) => {
                hold = (*rtt / 2).min(MAX_HOLD);
                match self.cx.accepts_address(address, Some(&relay)) {
                    true => Ok(address.clone()),
                    false => no(&Refusal::Address),
                }
            }
            Ok(CompletedCall { answer: RpcResponse::Refused(Refusal::Expired), .. }) => {
                no(&format_args!(
                    "{}; the local clock reads {unix}; this clock or the relay's may be wrong",
                    Refusal::Expired
                ))
            }
            Ok(CompletedCall { answer: RpcResponse::Refused(refusal), .. }) => no(refusal),
            Ok(_) => no(&"the relay sent an unexpected response"),
            Err(failure) => no(failure),
        };
        match (purpose, result) {
            (SignalPurpose::Dial(race), result) => {
                self.connections.signalled(&mut self.cx, race, result, hold);
            }
            (SignalPurpose::Upgrade(conn), Ok(address)) => {
                self.upgrade_signalled(conn, &address, hold);
            }
            (SignalPurpose::Upgrade(_), Err(_)) => {}
        }
    }

    /// Reports to a race that its signal request could not be sent.
    fn not_signalled(&mut self, purpose: SignalPurpose, relay: NodeId, why: &str) {
        let SignalPurpose::Dial(race) = purpose else { return };
        let address = self.nodes.graph.get(&relay).and_then(|contact| contact.iter().next());
        let address = address.map_or_else(
            || NodeAddress {
                host: crate::types::address::Host::Ip(core::net::Ipv4Addr::UNSPECIFIED.into()),
                port: 0,
            },
            |(address, _)| address.clone(),
        );
        let failure = (address, DialFailure::Signal(why.into()));
        self.connections.signalled(&mut self.cx, race, Err(failure), Duration::ZERO);
    }

    /// Passes the result of a signature to its owner.
    pub(super) fn signed(&mut self, owner: SignOwner, result: Result<Signature, String>) {
        match owner {
            SignOwner::Claim(signer) => self.claim_signed(signer, result),
            SignOwner::SignalRequest { purpose, relay, target, terms } => match result {
                Ok(signature) => {
                    self.ask_relay(purpose, relay, SignalRequest { target, terms, signature });
                }
                Err(why) => self.not_signalled(purpose, relay, &why),
            },
            SignOwner::SignalForward(stream) => self.forward_signed(stream, result.ok()),
        }
    }

    // -- relay

    /// Sends a signed signal to the target. If signing has failed, the signal ends.
    fn forward_signed(&mut self, stream: StreamId, signature: Option<Signature>) {
        let Some(forward) = self.signalling.signing.remove(&stream) else { return };
        let Forward { target, source, address, request, from } = forward;
        let Some(relay_signature) = signature else {
            return self.signalling.relaying.give_back(&from);
        };
        let address_text = address_text(&request.terms, &address);
        let punch = PunchRequest { source, address, address_text, request, relay_signature };
        let question = RpcRequest::Punch(Box::new(punch));
        let id = self.cx.ids.request();
        let deadline = self.cx.now + self.cx.config.call_timeout;
        match self.rpc.call(&mut self.cx, target, id, question, deadline) {
            Some(stream) => drop(self.signalling.forwarded.insert(stream, from)),
            None => self.signalling.relaying.give_back(&from),
        }
    }

    /// Responds to a signal request of a peer, as the relay.
    pub(super) fn relay(
        &mut self,
        conn: ConnectionId,
        stream: StreamId,
        request: &SignalRequest,
    ) -> RpcResponse {
        match self.try_relay(conn, stream, request) {
            Ok(address) => {
                self.cx.metrics.signals_relayed += 1;
                RpcResponse::Signalled { address }
            }
            Err(refusal) => {
                self.cx.metrics.signals_refused += 1;
                RpcResponse::Refused(refusal)
            }
        }
    }

    /// Checks a signal request and starts to sign the signal to the target. Returns the target's
    /// address.
    fn try_relay(
        &mut self,
        conn: ConnectionId,
        stream: StreamId,
        request: &SignalRequest,
    ) -> Result<NodeAddress, Refusal> {
        let source = self.connections.node(conn).ok_or(Refusal::NotConnected)?;
        let from = self.connections.source(conn).ok_or(Refusal::NotConnected)?;
        let (seen_at, seen) = self.connections.address(conn).ok_or(Refusal::NotConnected)?;
        // Addresses of the local network are not sent to any node.
        if !seen.scopes.global || seen_at.is_zoned() {
            return Err(Refusal::Address);
        }
        let targets = self.connections.connections_with(&request.target).filter_map(|target| {
            let (address, data) = self.connections.address(target)?;
            (data.scopes.global && !address.is_zoned()).then_some((target, address))
        });
        let (target, address) = { targets }.next().ok_or(Refusal::NotConnected)?;
        if self.connections.dialect(target) == Some(Dialect::Polykey)
            && request.terms != SignalTerms::Plain
        {
            return Err(Refusal::Terms);
        }
        // Rates of the target are counted by one id, whichever of its ids the request names.
        let about = self.connections.source(target).map_or(request.target, |target| target.node);
        let (unix, share) = (self.cx.unix(), self.cx.config.network_share);
        // Rate limits precede signature verification because they are cheaper. Only a request with
        // a valid signature uses up its nonce.
        self.signalling.relayed.allow_source(self.cx.now, &from, share)?;
        self.signalling.relayed.allow_target(self.cx.now, &about, &from, share)?;
        let bytes = request_bytes(&source, &request.target, &request.terms);
        verify(&source, &bytes, &request.signature.0).map_err(|_| Refusal::Signature)?;
        self.signalling.relayed.fresh(
            self.cx.now,
            unix,
            (&source, Some(conn)),
            request,
            &from,
            share,
        )?;
        self.signalling.relaying.take(&from, &Limits::new(RELAYING_LIMIT, share))?;
        let bytes =
            Bytes::from(relay_bytes(&source, &address_text(&request.terms, &seen_at), request));
        let forward = Forward { target, source, address: seen_at, request: request.clone(), from };
        self.signalling.signing.insert(stream, forward);
        let id = self.cx.effects.begin(EffectOwner::Sign(SignOwner::SignalForward(stream)));
        let key = self.cx.own();
        self.cx.output(Output::Sign { id, key, bytes });
        Ok(address)
    }

    // -- target

    /// Responds to a relay that requests a punch, as the target.
    pub(super) fn punch(&mut self, conn: ConnectionId, punch: &PunchRequest) -> RpcResponse {
        match self.try_punch(conn, punch) {
            Ok(()) => RpcResponse::Punching,
            Err(refusal) => {
                self.cx.metrics.punches_refused += 1;
                RpcResponse::Refused(refusal)
            }
        }
    }

    /// Checks a punch request. Starts to punch and to dial back if the source is not connected.
    fn try_punch(&mut self, conn: ConnectionId, punch: &PunchRequest) -> Result<(), Refusal> {
        let relay = self.connections.node(conn).ok_or(Refusal::NotConnected)?;
        let (relay_at, _) = self.connections.address(conn).ok_or(Refusal::NotConnected)?;
        let PunchRequest { source, address, address_text, request, relay_signature } = punch;
        if !self.cx.is_own(&request.target) || self.cx.is_own(source) {
            return Err(Refusal::NotTarget);
        }
        let addr = address.socket().filter(|_| self.cx.accepts_address(address, Some(&relay_at)));
        let addr = addr.ok_or(Refusal::Address)?;
        let from = self.connections.source(conn).ok_or(Refusal::NotConnected)?;
        let (unix, share) = (self.cx.unix(), self.cx.config.network_share);
        self.signalling.targeted.allow_source(self.cx.now, &from, share)?;
        let bytes = relay_bytes(source, address_text, request);
        verify(&relay, &bytes, &relay_signature.0).map_err(|_| Refusal::RelaySignature)?;
        let bytes = request_bytes(source, &request.target, &request.terms);
        verify(source, &bytes, &request.signature.0).map_err(|_| Refusal::Signature)?;
        // Only requests with a valid signature of the source count for its rate.
        self.signalling.targeted.allow_target(self.cx.now, source, &from, share)?;
        self.signalling.targeted.fresh(self.cx.now, unix, (source, None), request, &from, share)?;
        if self.connections.direct(source).is_some() {
            return Ok(());
        }
        if self.signalling.punches.begin(addr, *source, &from, share)? {
            self.cx.metrics.punches += 1;
            self.punch_next(addr);
            // If this node is behind a symmetric NAT, which assigns another port per peer, the dial
            // of the source fails and only this one can succeed.
            self.dial_quietly(*source, alloc::vec![address.clone()], AddressOrigin::SIGNALLED);
        }
        Ok(())
    }

    /// Dials a node without a request, independently of other dials to it.
    pub(super) fn dial_quietly(
        &mut self,
        node: NodeId,
        addresses: Vec<NodeAddress>,
        origin: AddressOrigin,
    ) {
        let id = self.cx.ids.request();
        let timeout = self.cx.config.connect_timeout;
        let stage = RequestStage::Dial(OnDialed::Connect);
        self.begin(
            id,
            OpenRequest { recipient: Recipient::None, deadline: self.cx.now + timeout, stage },
        );
        let dial_target = DialTarget::at(node, addresses, origin, timeout);
        self.connections.dial_only(&mut self.cx, id, dial_target);
    }

    /// Sends one datagram of a punch, and sets the timer of the next one.
    pub(super) fn punch_next(&mut self, addr: SocketAddr) {
        let mut bytes: [u8; 32] = self.cx.random_bytes(RngStream::Signals);
        // The first byte must not be one that a demultiplexer takes for QUIC (RFC 9443).
        if let Some(first) = bytes.first_mut() {
            *first &= 0x3f;
        }
        self.cx.output(Output::Punch { addr, bytes: Bytes::copy_from_slice(&bytes) });
        if let Some(wait) = self.signalling.punches.sent(&addr) {
            self.cx.timers.set(Timer::Punch(addr), self.cx.now + wait);
        }
    }

    /// Returns the origin of the peer of an incoming connection. It is signalled if a punch for the
    /// peer is in progress. It is local if its address is valid on one link only, or is known only
    /// from the local network.
    pub(super) fn incoming(&self, connected: &Connected) -> AddressOrigin {
        let primary = self.connections.primary(&connected.leaf);
        if let Some(relayed) = primary.filter(|conn| self.connections.is_relayed(*conn)) {
            // The node dials because the relayed connection is to become direct.
            return self.direct_origin(relayed, connected.remote);
        }
        if self.signalling.punches.is_for(&connected.chain) {
            return AddressOrigin::SIGNALLED;
        }
        let remote = NodeAddress::from_socket(connected.remote);
        if matches!(remote.host, Host::Zoned(..)) {
            // A zoned address is valid on one link only.
            return AddressOrigin::LOCAL;
        }
        let known = self.nodes.graph.get(&connected.leaf).into_iter().flat_map(NodeContact::iter);
        let known = known
            .filter(|(address, _)| *address == remote)
            .map(|(_, data)| AddressOrigin::known(data))
            .next();
        known.unwrap_or(AddressOrigin::DIRECT)
    }

    /// Ends the punches for a node that has connected.
    pub(super) fn punched(&mut self, ids: &[NodeId]) {
        for addr in self.signalling.punches.end(ids) {
            self.cx.timers.cancel(Timer::Punch(addr));
        }
    }
}

//! From a dial to a connection at both ends, or to a failure.
//!
//! As in TLS 1.3, the dialer completes after one round trip, the acceptor half a round trip later;
//! on dialect `quic` the dialer waits for HANDSHAKE_DONE, another half.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use bytes::Bytes;
use pk_proto::cert::Verified;
use pk_proto::{
    Connected, ConnectionId, DialFailure, Dialect, DisconnectReason, Input, Instant, NodeId,
    is_relayed_address,
};

use super::Transport;
use super::connection::{Connection, End, EndState};
use crate::host::id::HostId;
use crate::host::identity::{judge_client, judge_server};
use crate::network::Network;
use crate::wire::packet::{ACCEPTOR, DIALER, EndIndex, Handshake, Packet};
use crate::wire::{Happening, Wire};

impl Transport {
    /// `Dial`.
    pub(crate) fn dial(
        &mut self,
        wire: &mut Wire,
        host: HostId,
        conn: ConnectionId,
        addr: SocketAddr,
        expect: BTreeSet<NodeId>,
        deadline: Instant,
    ) {
        self.counters.dials += 1;
        if let Some(traffic) = wire.traffic.get_mut(host) {
            traffic.dials += 1;
        }
        if let Some(dials) = self.watched.get_mut(&addr) {
            *dials += 1;
        }
        let serial = self.serial;
        self.serial += 1;
        let here = &wire.hosts[host];
        if wire.network.is_unreachable(addr.ip()) || addr.port() == 0 {
            let why = DialFailure::Transport("network unreachable".to_owned());
            wire.deliver(host, Input::DialFailed { conn, why });
            return;
        }
        if is_relayed_address(&addr) {
            return self.dial_path(wire, host, (conn, addr), expect, deadline, serial);
        }
        let translated = wire.network.passes_nat(host, addr);
        let source = Network::source(&here.addrs, addr).filter(|_| translated);
        let route = wire.network.route(&here.addrs, addr).filter(|_| !translated);
        let local = route.map(|route| route.source).or(source).unwrap_or(addr);
        let mut dialer = End::new(host, here.life, EndState::Handshaking, local, addr);
        dialer.number = Some(conn);
        dialer.identity = here.identity.clone();
        // If no host has the address, a dial waits for its deadline, and the missing end is never
        // used.
        let peer = route.map_or(host, |route| route.to);
        let acceptor = End::new(peer, wire.hosts[peer].life, EndState::Absent, addr, local);
        let mut connection = Connection::new(serial, [dialer, acceptor], expect, wire.now);
        connection.translated = translated;
        let initial = Packet::Handshake(Box::new(Handshake::Initial));
        if route.is_some() || source.is_some() {
            connection.send(wire, DIALER, initial);
        } else {
            wire.sends(host, &initial, false);
        }
        wire.schedule(deadline, Happening::DialDeadline { serial });
        self.connections.insert(serial, Box::new(connection));
        self.of_host.extend([(host, serial), (peer, serial)]);
        self.by_number.insert((host, conn), (serial, DIALER));
    }

    /// Dials the node at the other end of a relayed path.
    fn dial_path(
        &mut self,
        wire: &mut Wire,
        host: HostId,
        (conn, addr): (ConnectionId, SocketAddr),
        expect: BTreeSet<NodeId>,
        deadline: Instant,
        serial: u64,
    ) {
        let Some((peer, seen, way)) = self.way(host, addr) else {
            let why = DialFailure::Transport("the relay has ended the circuit".to_owned());
            wire.deliver(host, Input::DialFailed { conn, why });
            return;
        };
        let here = &wire.hosts[host];
        let mut dialer = End::new(host, here.life, EndState::Handshaking, addr, addr);
        dialer.number = Some(conn);
        dialer.identity = here.identity.clone();
        let acceptor = End::new(peer, wire.hosts[peer].life, EndState::Absent, seen, seen);
        let mut connection = Connection::new(serial, [dialer, acceptor], expect, wire.now);
        connection.relayed = Some(way);
        connection.bound = true;
        connection.send(wire, DIALER, Packet::Handshake(Box::new(Handshake::Initial)));
        wire.schedule(deadline, Happening::DialDeadline { serial });
        self.connections.insert(serial, Box::new(connection));
        self.of_host.extend([(host, serial), (peer, serial), (way.by, serial)]);
        self.relayed.insert(serial);
        self.by_number.insert((host, conn), (serial, DIALER));
    }

    /// `CancelDial`. A `Connected` that is in flight follows nevertheless.
    pub(crate) fn cancel_dial(&mut self, wire: &mut Wire, host: HostId, conn: ConnectionId) {
        match self.by_number.get(&(host, conn)) {
            Some(&(serial, DIALER)) => self.dial_failed(wire, serial, DialFailure::Cancelled),
            _ => self.counters.late_outputs += 1,
        }
    }

    /// The deadline of a dial.
    pub(crate) fn dial_deadline(&mut self, wire: &mut Wire, serial: u64) {
        self.dial_failed(wire, serial, DialFailure::TimedOut);
    }

    /// Ends a dial that is not a connection yet.
    pub(super) fn dial_failed(&mut self, wire: &mut Wire, serial: u64, why: DialFailure) {
        let Some(connection) = self.connections.get(&serial) else { return };
        let end = &connection.ends[DIALER];
        if let (EndState::Handshaking | EndState::AwaitingDone, Some(conn)) =
            (end.state, end.number)
        {
            wire.deliver(end.host, Input::DialFailed { conn, why });
            self.end(
                wire,
                serial,
                DIALER,
                Some(DisconnectReason::Peer { code: 0, reason: String::new() }),
            );
        }
    }

    /// A step of a handshake arrives.
    pub(super) fn handshake(&mut self, wire: &mut Wire, serial: u64, step: Handshake) {
        let Some(connection) = self.connections.get_mut(&serial) else { return };
        let states = [connection.ends[DIALER].state, connection.ends[ACCEPTOR].state];
        match (step, states) {
            (Handshake::Initial, [_, EndState::Absent]) => {
                let answer = connection.accept(wire);
                connection.send(wire, ACCEPTOR, Packet::Handshake(Box::new(answer)));
            }
            (Handshake::Refused { why }, [EndState::Handshaking, _]) => {
                self.dial_failed(wire, serial, why);
            }
            (Handshake::Accepted { identity, dialect }, [EndState::Handshaking, _]) => {
                let unix = wire.hosts[connection.ends[DIALER].host].unix(wire.now);
                let proven = match judge_server(&identity, &connection.expect, unix) {
                    Ok(proven) => proven,
                    Err(why) => {
                        return self.dial_failed(
                            wire,
                            serial,
                            DialFailure::Certificate(why.to_string()),
                        );
                    }
                };
                connection.dialect = dialect;
                connection.shared_id = shared_id(wire, dialect);
                connection.finished = true;
                let identity = connection.ends[DIALER].identity.clone();
                connection.send(
                    wire,
                    DIALER,
                    Packet::Handshake(Box::new(Handshake::Finished { identity })),
                );
                match dialect {
                    Dialect::Native => self.open(wire, serial, DIALER, proven),
                    Dialect::Polykey => {
                        connection.ends[DIALER].state = EndState::AwaitingDone;
                        connection.proven = Some(proven);
                    }
                }
            }
            (Handshake::Finished { identity }, [_, EndState::Handshaking]) => {
                let unix = wire.hosts[connection.ends[ACCEPTOR].host].unix(wire.now);
                match judge_client(&identity, unix) {
                    Ok(proven) => {
                        connection.send(
                            wire,
                            ACCEPTOR,
                            Packet::Handshake(Box::new(Handshake::Done)),
                        );
                        self.counters.handshakes += 1;
                        self.open(wire, serial, ACCEPTOR, proven);
                    }
                    Err(why) => {
                        let why = DisconnectReason::Transport(format!("certificate: {why}"));
                        self.end(wire, serial, ACCEPTOR, Some(why));
                    }
                }
            }
            (Handshake::Done, [EndState::AwaitingDone, _]) => {
                if let Some(proven) = connection.proven.take() {
                    self.open(wire, serial, DIALER, proven);
                }
            }
            _ => {}
        }
    }

    /// One end's handshake has succeeded.
    fn open(&mut self, wire: &mut Wire, serial: u64, side: EndIndex, proven: Verified) {
        let Some(connection) = self.connections.get_mut(&serial) else { return };
        let end = &mut connection.ends[side];
        let conn = match end.number {
            Some(conn) => conn,
            None => {
                let conn = wire.hosts[end.host].mint_connection();
                self.by_number.insert((end.host, conn), (serial, side));
                end.number = Some(conn);
                conn
            }
        };
        end.state = EndState::Open;
        end.heard = wire.now;
        if let Some(traffic) = wire.traffic.get_mut(end.host) {
            traffic.handshakes += 1;
        }
        let (host, local, remote, held) =
            (end.host, end.local, end.remote, std::mem::take(&mut end.held));
        let role = if side == DIALER { pk_proto::Side::Dialer } else { pk_proto::Side::Acceptor };
        let Verified { leaf, chain, matched_id, .. } = proven;
        let (dialect, shared_id) = (connection.dialect, connection.shared_id.clone());
        let connected = Connected {
            conn,
            side: role,
            dialect,
            leaf,
            chain,
            matched_id,
            remote,
            local,
            shared_id,
        };
        wire.deliver(host, Input::Connected(connected));
        if side == ACCEPTOR {
            // Only the handshake needed them.
            connection.expect.clear();
            connection.ends[DIALER].identity = pk_proto::Identity { chain: Vec::new() };
        }
        connection.listen(wire, side);
        if connection.translated {
            let keep_alive = wire.hosts[host].transport.keep_alive;
            wire.schedule(wire.now + keep_alive, Happening::Beat { serial, side });
        }
        for packet in held {
            self.take_in(wire, serial, side, packet);
        }
    }
}

impl Connection {
    /// What the acceptor's driver answers to a first packet.
    fn accept(&mut self, wire: &Wire) -> Handshake {
        let (dialer, acceptor) =
            (&wire.hosts[self.ends[DIALER].host], &wire.hosts[self.ends[ACCEPTOR].host]);
        let end = &mut self.ends[ACCEPTOR];
        end.life = acceptor.life;
        let refusal =
            acceptor.refuse.clone().map(|(code, reason)| DialFailure::Rejected { code, reason });
        let dialect = acceptor.dialects.iter().find(|dialect| dialer.dialects.contains(dialect));
        match (refusal, dialect) {
            (None, Some(&dialect)) => {
                end.state = EndState::Handshaking;
                Handshake::Accepted { identity: acceptor.identity.clone(), dialect }
            }
            (Some(why), _) => Handshake::Refused { why },
            (None, None) => {
                Handshake::Refused { why: DialFailure::Transport("no common protocol".to_owned()) }
            }
        }
    }
}

/// What a close before HANDSHAKE_DONE means to a dialer.
pub(super) fn refused(why: DisconnectReason) -> DialFailure {
    match why {
        DisconnectReason::Peer { code, reason } => DialFailure::Rejected { code, reason },
        DisconnectReason::Transport(why) => DialFailure::Transport(why),
        other => DialFailure::Transport(other.to_string()),
    }
}

/// Equal on both ends and unique: 32 bytes of an exporter, or two connection ids as text.
fn shared_id(wire: &mut Wire, dialect: Dialect) -> Bytes {
    match dialect {
        Dialect::Native => wire.rngs.transport.bytes::<32>().to_vec().into(),
        Dialect::Polykey => data_encoding::BASE64URL_NOPAD
            .encode(&wire.rngs.transport.bytes::<28>())
            .into_bytes()
            .into(),
    }
}

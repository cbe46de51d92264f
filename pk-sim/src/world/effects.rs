//! Execution of outputs.

use std::net::SocketAddr;

use pk_proto::{Input, NodeId, Output};

use crate::host::app::AppStream;
use crate::host::id::HostId;
use crate::host::store::Job;
use crate::network::Network;
use crate::transport::Transport;
use crate::transport::flow::StreamAction;
use crate::wire::{Happening, Wire};

/// Time that an mDNS query or announcement takes.
const LAN_DELAY: std::time::Duration = std::time::Duration::from_millis(2);

/// Executes an output of a host's machine; events are returned to the caller.
pub(crate) fn perform(wire: &mut Wire, transport: &mut Transport, host: HostId, output: Output) {
    match output {
        Output::Dial { conn, addr, expect, deadline } => {
            transport.dial(wire, host, conn, addr, expect, deadline);
        }
        Output::CancelDial { conn } => transport.cancel_dial(wire, host, conn),
        Output::CloseConnection { conn, code, reason } => {
            transport.close(wire, host, conn, code, reason);
        }
        Output::OpenStream { conn, stream } => transport.open_stream(wire, host, conn, stream),
        Output::SendStream { stream, bytes, fin } => {
            transport.act(wire, host, stream, StreamAction::Send(bytes, fin));
        }
        Output::ResetStream { stream, code } => {
            transport.act(wire, host, stream, StreamAction::Reset(code));
        }
        Output::StopStream { stream, code } => {
            transport.act(wire, host, stream, StreamAction::Stop(code));
        }
        Output::ReadCredit { stream, bytes } => {
            transport.act(wire, host, stream, StreamAction::Credit(bytes));
        }
        Output::DetachStream { conn, stream, node, protocol, opener, unread } => {
            let app = wire.hosts[host].apps.get(&protocol).cloned().unwrap_or_default();
            transport.detach(
                wire,
                AppStream::new(app, host, conn, stream, node, protocol, opener),
                unread,
            );
        }
        Output::AttachCircuit { stream, addr } => {
            transport.attach_circuit(wire, host, stream, addr);
        }
        Output::JoinCircuit { stream, other, limits: _ } => {
            transport.join_circuit(wire, host, stream, other);
        }
        Output::CloseCircuit { stream } => transport.close_circuit(wire, host, stream),
        Output::ProbePath { conn, addr } => transport.probe_path(wire, host, conn, addr),
        Output::Sign { id, key, bytes } => {
            let place = &mut wire.hosts[host];
            let result = place
                .keys
                .get(&key)
                .map(|key| key.sign(&bytes))
                .ok_or_else(|| format!("no key of {key}"));
            let answer = Input::Signed { id, result };
            match place.sign_delay {
                None => place.at_once.push_back(answer),
                Some(delay) => wire.deliver_after(host, delay, answer),
            }
        }
        Output::Persist { id, ops, durable } => {
            store(wire, host, Job::Persist { id, ops, durable });
        }
        Output::Load { id, range, max_bytes } => {
            store(wire, host, Job::Load { id, range, max_bytes });
        }
        Output::Resolve { id, name, port } => {
            let ips = wire.network.resolve(name.as_str());
            let result =
                ips.map(|ips| ips.into_iter().map(|ip| SocketAddr::new(ip, port)).collect());
            let delay = wire.hosts[host].resolve_delay;
            wire.deliver_after(host, delay, Input::Resolved { id, result });
        }
        Output::Browse { id, node, deadline } => {
            let life = wire.hosts[host].life;
            wire.hosts[host].browses.insert(id, node);
            for answerer in 0..wire.hosts.len() {
                answer_browses(wire, answerer, host, node);
            }
            wire.schedule(deadline, Happening::BrowseEnd { host, life, id });
        }
        Output::CancelBrowse { id } => end_browse(wire, host, id),
        Output::ReplaceIdentity { id, identity } => {
            let unix = wire.hosts[host].unix(wire.now);
            let leaf = crate::host::identity::judge_client(&identity, unix)
                .map(|proven| proven.leaf)
                .map_err(|why| why.to_string());
            let result = leaf.and_then(|leaf| {
                if !wire.hosts[host].keys.contains_key(&leaf) {
                    return Err(format!("no key of {leaf}"));
                }
                wire.hosts[host].identity = identity;
                Ok(())
            });
            wire.deliver(host, Input::IdentityReplaced { id, result });
        }
        Output::Punch { addr, bytes } => {
            let _ = bytes;
            transport.counters.punches_sent += 1;
            punch(wire, host, addr);
        }
        Output::Advertise { node, port } => {
            match port {
                Some(port) => wire.hosts[host].adverts.insert(node, port),
                None => wire.hosts[host].adverts.remove(&node),
            };
            for asker in 0..wire.hosts.len() {
                answer_browses(wire, host, asker, node);
            }
        }
        Output::Event(_) => {}
    }
}

/// Ends a browse.
pub(crate) fn end_browse(wire: &mut Wire, host: HostId, id: pk_proto::EffectId) {
    if wire.hosts[host].browses.remove(&id).is_some() {
        wire.deliver(host, Input::Discovered { id, addrs: Vec::new(), done: true });
    }
}

/// Completes a job of a store.
pub(crate) fn stored(wire: &mut Wire, host: HostId) {
    let Wire { rngs, hosts, .. } = wire;
    let Some((answer, more)) = hosts[host].store.work(&mut rngs.stores) else { return };
    wire.deliver(host, answer);
    if more {
        await_store(wire, host);
    }
}

fn store(wire: &mut Wire, host: HostId, job: Job) {
    if wire.hosts[host].store.push(job) {
        await_store(wire, host);
    }
}

fn await_store(wire: &mut Wire, host: HostId) {
    let (delay, life) = (wire.hosts[host].store.delay, wire.hosts[host].life);
    wire.schedule(wire.now + delay, Happening::Store { host, life });
}

fn punch(wire: &mut Wire, host: HostId, to: SocketAddr) {
    let Some(local) = Network::source(&wire.hosts[host].addrs, to) else { return };
    let Some(from) = wire.network.leave(wire.now, host, local, to) else { return };
    let link = wire.network.link(host, wire.network.owner(to).unwrap_or(host));
    for delay in link.datagram(&mut wire.rngs.links) {
        wire.schedule(wire.now + delay, Happening::Punched { by: host, from, to });
    }
}

/// Delivers a punch datagram. Returns whether a host received it.
pub(crate) fn punched(wire: &mut Wire, by: HostId, from: SocketAddr, to: SocketAddr) -> bool {
    let Some((host, _)) = wire.network.enter(wire.now, from, to) else { return false };
    let arrives = wire.passes(by, host);
    if arrives {
        *wire.hosts[host].punches.entry(from).or_default() += 1;
    }
    arrives
}

/// Delivers what a host advertises to the browses of another host on its local network.
fn answer_browses(wire: &mut Wire, answerer: HostId, asker: HostId, node: NodeId) {
    let (there, here) = (&wire.hosts[answerer], &wire.hosts[asker]);
    let same_lan = here.lan.is_some() && here.lan == there.lan && answerer != asker;
    let Some(port) = there.adverts.get(&node).copied() else { return };
    if !same_lan || !wire.passes(asker, answerer) || !wire.passes(answerer, asker) {
        return;
    }
    let addrs: Vec<_> = there.addrs.iter().map(|addr| SocketAddr::new(addr.ip(), port)).collect();
    let asked = here.browses.iter().filter(|(_, browsed)| **browsed == node);
    for id in asked.map(|(id, _)| *id).collect::<Vec<_>>() {
        wire.deliver_after(
            asker,
            LAN_DELAY,
            Input::Discovered { id, addrs: addrs.clone(), done: false },
        );
    }
}

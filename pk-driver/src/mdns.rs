//! The local network, through mdns-sd: telling it of this node, asking it for others.
//!
//! The service is `_polykey._udp`, an instance's name is the NodeId of its node. mdns-sd has a thread of its own and serves
//! the standard group `224.0.0.251` / `ff02::fb` only, which is why `MdnsConfig::groups` is refused; the port can be another.
//!
//! There is one browse of the service at a time, as long as the core asks for anybody: mdns-sd has room for one listener. A
//! listener that falls behind is dropped without a word, but for the end of its channel; then it is browsed again.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use mdns_sd::{IfKind, Receiver, ResolvedService, ServiceDaemon, ServiceEvent, ServiceInfo};
use pk_proto::{EffectId, Input, Instant, NodeId};

use crate::config::MdnsInterfaces;
use crate::cx::{Cx, Key};
use crate::runtime::BoxFuture;
use crate::tasks::Tasks;

const SERVICE: &str = "_polykey._udp.local.";
/// Addresses that are believed of one node.
const ADDRESSES: usize = 16;
/// Nodes that are remembered during a browse.
const NODES: usize = 1024;
/// Events that are served before other sources get their turn.
const EVENTS: usize = 64;
/// After the end of a listener, until it is browsed again.
const PAUSE: Duration = Duration::from_millis(100);
/// The thread of mdns-sd says goodbye to the network within this time, or is left to itself. As long as a shutdown has for
/// that: after what the core may take of its second.
const GOODBYE: Duration = Duration::from_millis(250);

/// The next event, and its channel back.
type Listening = BoxFuture<(Receiver<ServiceEvent>, Option<ServiceEvent>)>;

/// What this node has to do with the local network.
pub(crate) struct Mdns {
    /// Where the node listens; an unspecified address is every one.
    bound: IpAddr,
    daemon: Option<ServiceDaemon>,
    advertised: BTreeMap<NodeId, String>,
    browses: BTreeMap<EffectId, Browse>,
    listening: Option<(Listening, Waker)>,
    /// When to listen again.
    pause: Option<Instant>,
    /// Who was found during this browse.
    found: BTreeMap<NodeId, BTreeSet<SocketAddr>>,
}

struct Browse {
    node: NodeId,
    deadline: Instant,
    told: BTreeSet<SocketAddr>,
}

impl Mdns {
    pub(crate) fn new(bound: SocketAddr) -> Self {
        Self {
            bound: bound.ip(),
            daemon: None,
            advertised: BTreeMap::new(),
            browses: BTreeMap::new(),
            listening: None,
            pause: None,
            found: BTreeMap::new(),
        }
    }

    /// The effect `Advertise`.
    pub(crate) fn advertise(&mut self, cx: &mut Cx, node: NodeId, port: Option<u16>) {
        let done = match port {
            Some(port) => self.register(cx, node, port),
            None => self.unregister(node),
        };
        if let Err(error) = done {
            cx.metrics.mdns_failures += 1;
            tracing::warn!(%error, %node, "the local network is not told");
        }
    }

    fn register(&mut self, cx: &Cx, node: NodeId, port: u16) -> mdns_sd::Result<()> {
        let name = node.to_string();
        // An instance and a host name of at most 63 bytes: a NodeId has 53.
        let host = format!("{name}.local.");
        let ip = if self.bound.is_unspecified() { String::new() } else { self.bound.to_string() };
        let info = ServiceInfo::new(SERVICE, &name, &host, ip.as_str(), port, None)?;
        let info = if self.bound.is_unspecified() { info.enable_addr_auto() } else { info };
        let full = info.get_fullname().to_owned();
        self.daemon(cx)?.register(info)?;
        self.advertised.insert(node, full);
        Ok(())
    }

    fn unregister(&mut self, node: NodeId) -> mdns_sd::Result<()> {
        if let (Some(full), Some(daemon)) = (self.advertised.remove(&node), &self.daemon) {
            daemon.unregister(&full)?;
        }
        Ok(())
    }

    /// The effect `Browse`.
    pub(crate) fn browse(&mut self, cx: &mut Cx, id: EffectId, node: NodeId, deadline: Instant) {
        let mut told = BTreeSet::new();
        if let Some(addrs) = self.found.get(&node) {
            told.clone_from(addrs);
            cx.input(Input::Discovered { id, addrs: addrs.iter().copied().collect(), done: false });
        }
        cx.deadlines.set(deadline, Key::Browse(id));
        self.browses.insert(id, Browse { node, deadline, told });
        self.listen(cx);
    }

    /// The effect `CancelBrowse`, and the end of its time.
    pub(crate) fn end_browse(&mut self, cx: &mut Cx, id: EffectId) {
        let Some(browse) = self.browses.remove(&id) else { return };
        cx.deadlines.cancel(browse.deadline, Key::Browse(id));
        cx.input(Input::Discovered { id, addrs: Vec::new(), done: true });
        if self.browses.is_empty() {
            self.listening = None;
            self.found.clear();
            if let Some(daemon) = &self.daemon {
                // Fails if it is too busy: then it finds out by itself that nobody listens any more.
                let _ = daemon.stop_browse(SERVICE);
            }
        }
    }

    /// Begins to listen, if anybody wants to hear.
    fn listen(&mut self, cx: &mut Cx) {
        if self.listening.is_some() || self.browses.is_empty() || self.pause.is_some() {
            return;
        }
        match self.daemon(cx).and_then(|daemon| daemon.browse(SERVICE)) {
            Ok(receiver) => self.listening = Some((next(receiver), cx.source(Key::Mdns))),
            Err(error) => {
                cx.metrics.mdns_failures += 1;
                tracing::warn!(%error, "the local network is not asked");
                // A daemon whose thread has ended is of no more use.
                if matches!(error, mdns_sd::Error::DaemonShutdown) {
                    self.daemon = None;
                }
                self.rest(cx);
            }
        }
    }

    fn rest(&mut self, cx: &mut Cx) {
        let until = cx.now + PAUSE;
        self.pause = Some(until);
        cx.deadlines.set(until, Key::Mdns);
    }

    /// The pause is over.
    pub(crate) fn resume(&mut self, cx: &mut Cx) {
        self.pause = None;
        self.listen(cx);
    }

    /// Serves what the network says.
    pub(crate) fn poll(&mut self, cx: &mut Cx) {
        for _ in 0..EVENTS {
            let Some((listening, waker)) = &mut self.listening else { return };
            let Poll::Ready((receiver, event)) = listening.as_mut().poll(&mut Context::from_waker(waker)) else {
                return;
            };
            let Some(event) = event else {
                cx.metrics.mdns_restarts += 1;
                self.listening = None;
                return self.rest(cx);
            };
            *listening = next(receiver);
            match event {
                ServiceEvent::ServiceResolved(service) => self.resolved(cx, &service),
                ServiceEvent::ServiceRemoved(_, full) => {
                    if let Some(node) = node_of(&full) {
                        self.found.remove(&node);
                    }
                }
                _ => {}
            }
        }
        if let Some((_, waker)) = &self.listening {
            waker.wake_by_ref();
        }
    }

    fn resolved(&mut self, cx: &mut Cx, service: &ResolvedService) {
        let Some(node) = node_of(&service.fullname) else { return };
        if self.found.len() >= NODES && !self.found.contains_key(&node) {
            return;
        }
        let addrs = service.addresses.iter().map(mdns_sd::ScopedIp::to_ip_addr).filter(is_usable);
        let addrs: BTreeSet<_> = addrs.map(|ip| SocketAddr::new(ip, service.port)).take(ADDRESSES).collect();
        for (id, browse) in self.browses.iter_mut().filter(|(_, browse)| browse.node == node) {
            let room = ADDRESSES.saturating_sub(browse.told.len());
            let new: Vec<_> = addrs.difference(&browse.told).copied().take(room).collect();
            if !new.is_empty() {
                browse.told.extend(&new);
                cx.input(Input::Discovered { id: *id, addrs: new, done: false });
            }
        }
        self.found.insert(node, addrs);
    }

    fn daemon(&mut self, cx: &Cx) -> mdns_sd::Result<&ServiceDaemon> {
        if self.daemon.is_none() {
            let daemon = ServiceDaemon::new_with_port(cx.config.mdns.port)?;
            match &cx.config.mdns.interfaces {
                MdnsInterfaces::All => {}
                MdnsInterfaces::Loopback => {
                    daemon.disable_interface(IfKind::All)?;
                    daemon.enable_interface(vec![IfKind::LoopbackV4, IfKind::LoopbackV6])?;
                }
                MdnsInterfaces::Named(names) => {
                    daemon.disable_interface(IfKind::All)?;
                    daemon.enable_interface(names.iter().map(IfKind::from).collect::<Vec<_>>())?;
                }
            }
            self.daemon = Some(daemon);
        }
        self.daemon.as_ref().ok_or(mdns_sd::Error::DaemonShutdown)
    }

    /// Takes back what the network was told. A node has not shut down before.
    pub(crate) fn close(&mut self, tasks: &Tasks) {
        self.listening = None;
        let Some(daemon) = self.daemon.take() else { return };
        let hold = tasks.hold();
        let goodbye = move || {
            let begun = std::time::Instant::now();
            // It unregisters what is registered. Fails if it is too busy, which passes.
            while let Some(left) = GOODBYE.checked_sub(begun.elapsed()) {
                match daemon.shutdown() {
                    Ok(ended) => {
                        let _ = ended.recv_timeout(left);
                        break;
                    }
                    Err(mdns_sd::Error::Again) => std::thread::sleep(GOODBYE / 20),
                    Err(_) => break,
                }
            }
            drop(hold);
        };
        if let Err(error) = std::thread::Builder::new().name("pk-mdns-end".to_owned()).spawn(goodbye) {
            tracing::warn!(%error, "the local network is not told of the end");
        }
    }
}

impl Drop for Mdns {
    fn drop(&mut self) {
        // Where the runtime drops the pump in the midst of its work: the thread of mdns-sd ends only when it is told to.
        if let Some(daemon) = &self.daemon {
            let _ = daemon.shutdown();
        }
    }
}

fn next(receiver: Receiver<ServiceEvent>) -> Listening {
    Box::pin(async move {
        let event = receiver.recv_async().await.ok();
        (receiver, event)
    })
}

/// The node of an instance, by its full name.
fn node_of(full: &str) -> Option<NodeId> {
    full.strip_suffix(SERVICE)?.strip_suffix('.')?.parse().ok()
}

/// Whether an address can be dialled as it stands; a link-local one of IPv6 would need the name of an interface.
fn is_usable(ip: &IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => !ip.is_unspecified() && !ip.is_multicast() && !ip.is_broadcast(),
        IpAddr::V6(ip) => !ip.is_unspecified() && !ip.is_multicast() && !ip.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::KeyPair;

    #[test]
    fn an_instance_is_named_after_its_node() {
        let node = KeyPair::from_seed(&[1; 32]).node_id();
        let info =
            ServiceInfo::new(SERVICE, &node.to_string(), &format!("{node}.local."), "127.0.0.1", 1, None).unwrap();
        assert_eq!(node_of(info.get_fullname()), Some(node));
        for other in ["", SERVICE, "x._polykey._udp.local.", &format!("{node}._other._udp.local."), &node.to_string()] {
            assert_eq!(node_of(other), None, "{other}");
        }
    }

    #[test]
    fn only_what_can_be_dialled_is_believed() {
        let usable = |text: &str| is_usable(&text.parse().unwrap());
        assert!(["10.0.0.1", "127.0.0.1", "169.254.1.1", "::1", "2001:db8::1", "fd00::1"].into_iter().all(usable));
        assert!(!["0.0.0.0", "224.0.0.251", "255.255.255.255", "::", "fe80::1", "ff02::fb"].into_iter().any(usable));
    }
}

//! mDNS, with mdns-sd: advertises this node and browses for others.
//!
//! The service is `_polykey._udp`; the name of an instance is the NodeId of its node. mdns-sd runs
//! its own thread and supports only the standard groups `224.0.0.251` and `ff02::fb`, so that
//! `MdnsConfig::groups` is refused; the port can be changed. The interfaces are selected here
//! ([`Interfaces`]), because mdns-sd would join all interfaces until a join fails.
//!
//! There is one browse of the service at a time, while the core searches for any node: mdns-sd has
//! room for one listener. It drops a listener that falls behind and only ends its channel; then the
//! browse is started again.

mod interfaces;
mod link;
mod system;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use mdns_sd::{
    IfKind, Receiver, ResolvedService, ScopedIp, ServiceDaemon, ServiceEvent, ServiceInfo,
};
use pk_proto::{EffectId, Instant, NodeId};
use pk_quic::Response;

use self::interfaces::{Interfaces, is_link_local};
use crate::config::{MdnsConfig, MdnsInterfaces};
use crate::cx::{Cx, WakeSource};
use crate::error::StartError;
use crate::system::runtime::BoxFuture;
use crate::system::tasks::Tasks;

const SERVICE: &str = "_polykey._udp.local.";
/// Maximum number of addresses of one node.
const ADDRESSES: usize = 16;
/// Maximum number of nodes stored during a browse.
const NODES: usize = 1024;
/// Events handled before other sources are served.
const EVENTS: usize = 64;
/// Delay between the end of a listener and the next browse.
const PAUSE: Duration = Duration::from_millis(100);
/// Time limit for the thread of mdns-sd to send its goodbye packets: what remains of the second
/// that a shutdown takes, after the core's part.
const GOODBYE: Duration = Duration::from_millis(250);

/// The next event, and its channel.
type Listening = BoxFuture<(Receiver<ServiceEvent>, Option<ServiceEvent>)>;

/// Checks that the interfaces that the embedder named exist.
pub(crate) fn check(config: &MdnsConfig) -> Result<(), StartError> {
    let MdnsInterfaces::Named(wanted) = &config.interfaces else { return Ok(()) };
    let known = system::names();
    match wanted.iter().find(|name| !known.contains(*name)) {
        Some(name) => Err(StartError::MdnsInterface {
            name: name.clone(),
            known: known.into_iter().collect(),
        }),
        None => Ok(()),
    }
}

/// The mDNS state of this node.
pub(crate) struct Mdns {
    /// Address that the node listens on; an unspecified address means all.
    bound: IpAddr,
    daemon: Option<ServiceDaemon>,
    advertised: BTreeMap<NodeId, String>,
    browses: BTreeMap<EffectId, Browse>,
    listening: Option<(Listening, Waker)>,
    /// Time of the next browse.
    pause: Option<Instant>,
    /// Nodes found during this browse.
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

    /// Executes the effect `Advertise`.
    pub(crate) fn advertise(&mut self, cx: &mut Cx, node: NodeId, port: Option<u16>) {
        let done = match port {
            Some(port) => self.register(cx, node, port),
            None => self.unregister(node),
        };
        if let Err(error) = done {
            cx.metrics.mdns_failures += 1;
            tracing::warn!(%error, %node, "advertising on the local network failed");
        }
    }

    fn register(&mut self, cx: &Cx, node: NodeId, port: u16) -> mdns_sd::Result<()> {
        let name = node.to_string();
        // Instance and host names have at most 63 bytes; a NodeId has 53.
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

    /// Executes the effect `Browse`.
    pub(crate) fn browse(&mut self, cx: &mut Cx, id: EffectId, node: NodeId, deadline: Instant) {
        let mut told = BTreeSet::new();
        if let Some(addrs) = self.found.get(&node) {
            told.clone_from(addrs);
            cx.answer(Response::Discovered {
                id,
                addrs: addrs.iter().copied().collect(),
                done: false,
            });
        }
        cx.deadlines.set(deadline, WakeSource::Browse(id));
        self.browses.insert(id, Browse { node, deadline, told });
        self.listen(cx);
    }

    /// Executes the effect `CancelBrowse`, or handles the deadline of a browse.
    pub(crate) fn end_browse(&mut self, cx: &mut Cx, id: EffectId) {
        let Some(browse) = self.browses.remove(&id) else { return };
        cx.deadlines.cancel(browse.deadline, WakeSource::Browse(id));
        cx.answer(Response::Discovered { id, addrs: Vec::new(), done: true });
        if self.browses.is_empty() {
            self.listening = None;
            self.found.clear();
            if let Some(daemon) = &self.daemon {
                // Fails if the thread is busy: then it detects by itself that the listener is gone.
                let _ = daemon.stop_browse(SERVICE);
            }
        }
    }

    /// Starts to browse if there is a search.
    fn listen(&mut self, cx: &mut Cx) {
        if self.listening.is_some() || self.browses.is_empty() || self.pause.is_some() {
            return;
        }
        match self.daemon(cx).and_then(|daemon| daemon.browse(SERVICE)) {
            Ok(receiver) => self.listening = Some((next(receiver), cx.source(WakeSource::Mdns))),
            Err(error) => {
                cx.metrics.mdns_failures += 1;
                tracing::warn!(%error, "browsing the local network failed");
                // A daemon whose thread has ended is of no further use.
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
        cx.deadlines.set(until, WakeSource::Mdns);
    }

    /// Ends the delay before the next browse.
    pub(crate) fn resume(&mut self, cx: &mut Cx) {
        self.pause = None;
        self.listen(cx);
    }

    /// Handles the events of mdns-sd.
    pub(crate) fn poll(&mut self, cx: &mut Cx) {
        for _ in 0..EVENTS {
            let Some((listening, waker)) = &mut self.listening else { return };
            let Poll::Ready((receiver, event)) =
                listening.as_mut().poll(&mut Context::from_waker(waker))
            else {
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
        let addrs = sockets(&service.addresses, service.port, self.bound);
        for (id, browse) in self.browses.iter_mut().filter(|(_, browse)| browse.node == node) {
            let room = ADDRESSES.saturating_sub(browse.told.len());
            let new: Vec<_> = addrs.difference(&browse.told).copied().take(room).collect();
            if !new.is_empty() {
                browse.told.extend(&new);
                cx.answer(Response::Discovered { id: *id, addrs: new, done: false });
            }
        }
        self.found.insert(node, addrs);
    }

    fn daemon(&mut self, cx: &Cx) -> mdns_sd::Result<&ServiceDaemon> {
        if self.daemon.is_none() {
            let daemon = ServiceDaemon::new_with_port(cx.config.mdns.port)?;
            daemon.disable_interface(IfKind::All)?;
            daemon.enable_interface(
                Interfaces::new(cx.config.mdns.interfaces.clone(), self.bound).kind(),
            )?;
            self.daemon = Some(daemon);
        }
        self.daemon.as_ref().ok_or(mdns_sd::Error::DaemonShutdown)
    }

    /// Withdraws the advertisement. The shutdown of the node waits for it.
    pub(crate) fn close(&mut self, tasks: &Tasks) {
        self.listening = None;
        let Some(daemon) = self.daemon.take() else { return };
        let hold = tasks.hold();
        let goodbye = move || {
            let begun = std::time::Instant::now();
            // Shutting down unregisters all services. Fails temporarily if the thread is busy.
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
        if let Err(error) =
            std::thread::Builder::new().name("pk-mdns-end".to_owned()).spawn(goodbye)
        {
            tracing::warn!(%error, "withdrawing the advertisement on the local network failed");
        }
    }
}

impl Drop for Mdns {
    fn drop(&mut self) {
        // If the runtime drops the pump early: the thread of mdns-sd ends only by a shutdown.
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

/// Returns the node of an instance, by its full name.
fn node_of(full: &str) -> Option<NodeId> {
    full.strip_suffix(SERVICE)?.strip_suffix('.')?.parse().ok()
}

/// Returns the addresses that a node listening on `bound` can dial, at most `ADDRESSES`. Link-local
/// addresses come last; those of IPv6 have the scope of the interface on which they were received.
fn sockets<'a>(
    heard: impl IntoIterator<Item = &'a ScopedIp>,
    port: u16,
    bound: IpAddr,
) -> BTreeSet<SocketAddr> {
    let dialable = |scoped: &ScopedIp| {
        let ip = scoped.to_ip_addr();
        let scope = match scoped {
            ScopedIp::V6(ip) => ip.scope_id().index,
            _ => 0,
        };
        match ip {
            _ if bound.is_ipv4() && ip.is_ipv6() => None,
            _ if ip.is_unspecified() || ip.is_multicast() => None,
            IpAddr::V4(ip) if ip.is_broadcast() => None,
            IpAddr::V6(ip) if ip.is_unicast_link_local() => {
                (scope != 0).then(|| SocketAddr::V6(SocketAddrV6::new(ip, port, 0, scope)))
            }
            ip => Some(SocketAddr::new(ip, port)),
        }
    };
    let mut addrs: Vec<_> = heard.into_iter().filter_map(dialable).collect();
    addrs.sort_by_key(|addr| (is_link_local(&addr.ip()), *addr));
    addrs.into_iter().take(ADDRESSES).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use pk_host::KeyPair;

    #[test]
    fn an_instance_is_named_after_its_node() {
        let node = KeyPair::from_seed(&[1; 32]).node_id();
        let info = ServiceInfo::new(
            SERVICE,
            &node.to_string(),
            &format!("{node}.local."),
            "127.0.0.1",
            1,
            None,
        )
        .unwrap();
        assert_eq!(node_of(info.get_fullname()), Some(node));
        for other in [
            "",
            SERVICE,
            "x._polykey._udp.local.",
            &format!("{node}._other._udp.local."),
            &node.to_string(),
        ] {
            assert_eq!(node_of(other), None, "{other}");
        }
    }

    #[test]
    fn only_what_can_be_dialed_is_believed() {
        let usable = |text: &str, bound: &str| {
            let ip = ScopedIp::from(text.parse::<IpAddr>().unwrap());
            sockets([&ip], 1, bound.parse().unwrap()).len() == 1
        };
        for good in ["10.0.0.1", "127.0.0.1", "169.254.1.1", "::1", "2001:db8::1", "fd00::1"] {
            assert!(usable(good, "::"), "{good}");
            assert_eq!(usable(good, "0.0.0.0"), !good.contains(':'), "{good}");
        }
        for bad in ["0.0.0.0", "224.0.0.251", "255.255.255.255", "::", "fe80::1", "ff02::fb"] {
            assert!(!usable(bad, "::"), "{bad}");
        }
    }

    #[test]
    fn many_link_local_addresses_hide_no_other() {
        let heard: Vec<_> =
            (1..40).map(|n| format!("169.254.0.{n}")).chain(["192.168.0.1".to_owned()]).collect();
        let heard: Vec<_> =
            heard.iter().map(|ip| ScopedIp::from(ip.parse::<IpAddr>().unwrap())).collect();
        let addrs = sockets(&heard, 1, IpAddr::from([0; 16]));
        assert!(
            addrs.len() == ADDRESSES && addrs.contains(&"192.168.0.1:1".parse().unwrap()),
            "{addrs:?}"
        );
    }

    #[test]
    fn an_interface_that_does_not_exist_is_an_error() {
        let named = |name: &str| MdnsConfig {
            interfaces: MdnsInterfaces::Named(vec![name.into()]),
            ..MdnsConfig::default()
        };
        let error = check(&named("no-such-one")).unwrap_err().to_string();
        assert!(
            error.starts_with("no network interface `no-such-one` for mDNS; existing interfaces: "),
            "{error}"
        );
        let lo = system::interfaces().into_iter().find(|facts| facts.loopback).unwrap();
        assert!(check(&named(&lo.name)).is_ok());
    }
}

//! The groups of RFC 6762, `224.0.0.251` and `ff02::fb`, with mdns-sd.
//!
//! mdns-sd runs its own thread and supports only these groups; the port can be changed. There is
//! one browse of the service at a time, while the core searches for any node: mdns-sd has room for
//! one listener. It drops a listener that falls behind and only ends its channel; then the browse
//! is started again.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use mdns_sd::{
    IfKind, IfPredicate, Receiver, ResolvedService, ScopedIp, ServiceDaemon, ServiceEvent,
    ServiceInfo,
};
use pk_proto::{Instant, NodeId};

use super::interfaces::Interfaces;
use super::sighting::{SERVICE, Sighting, sockets};
use crate::cx::{Cx, WakeSource};
use crate::system::runtime::BoxFuture;
use crate::system::tasks::Tasks;

/// Events handled before other sources are served.
const EVENTS: usize = 64;
/// Delay between the end of a listener and the next browse.
const PAUSE: Duration = Duration::from_millis(100);
/// Time limit for the thread of mdns-sd to send its goodbye packets: what remains of the second
/// that a shutdown takes, after the core's part.
const GOODBYE: Duration = Duration::from_millis(250);

/// The next event, and its channel.
type Listening = BoxFuture<(Receiver<ServiceEvent>, Option<ServiceEvent>)>;

/// The state of the standard groups.
#[derive(Default)]
pub(super) struct Standard {
    daemon: Option<ServiceDaemon>,
    advertised: BTreeMap<NodeId, String>,
    listening: Option<(Listening, Waker)>,
    /// Time of the next browse.
    pause: Option<Instant>,
}

impl Standard {
    /// The node listens on another address from now on.
    pub(super) fn rebound(&mut self, cx: &mut Cx, bound: IpAddr) {
        let Some(daemon) = &self.daemon else { return };
        if let Err(error) = select(cx, daemon, bound) {
            cx.metrics.mdns_failures += 1;
            tracing::warn!(%error, "mDNS cannot change its interfaces");
        }
    }

    /// Advertises a node at a port, or withdraws it.
    pub(super) fn advertise(
        &mut self,
        cx: &mut Cx,
        bound: IpAddr,
        node: NodeId,
        port: Option<u16>,
    ) {
        if cx.config.mdns.standard_port.is_none() {
            return;
        }
        let done = match port {
            Some(port) => self.register(cx, bound, node, port),
            None => self.unregister(node),
        };
        if let Err(error) = done {
            cx.metrics.mdns_failures += 1;
            tracing::warn!(%error, %node, "advertising on the local network failed");
        }
    }

    fn register(&mut self, cx: &Cx, bound: IpAddr, node: NodeId, port: u16) -> mdns_sd::Result<()> {
        let name = node.to_string();
        // Instance and host names have at most 63 bytes; a NodeId has 53.
        let host = format!("{name}.local.");
        let ip = if bound.is_unspecified() { String::new() } else { bound.to_string() };
        let info = ServiceInfo::new(SERVICE, &name, &host, ip.as_str(), port, None)?;
        let info = if bound.is_unspecified() { info.enable_addr_auto() } else { info };
        let full = info.get_fullname().to_owned();
        self.daemon(cx, bound)?.register(info)?;
        self.advertised.insert(node, full);
        Ok(())
    }

    fn unregister(&mut self, node: NodeId) -> mdns_sd::Result<()> {
        if let (Some(full), Some(daemon)) = (self.advertised.remove(&node), &self.daemon) {
            daemon.unregister(&full)?;
        }
        Ok(())
    }

    /// Starts to browse, unless that is in progress.
    pub(super) fn browse(&mut self, cx: &mut Cx, bound: IpAddr) {
        let is_off = cx.config.mdns.standard_port.is_none();
        if is_off || self.listening.is_some() || self.pause.is_some() {
            return;
        }
        match self.daemon(cx, bound).and_then(|daemon| daemon.browse(SERVICE)) {
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

    /// Stops to browse.
    pub(super) fn stop_browsing(&mut self) {
        self.listening = None;
        if let Some(daemon) = &self.daemon {
            // Fails if the thread is busy: then it detects by itself that the listener is gone.
            let _ = daemon.stop_browse(SERVICE);
        }
    }

    fn rest(&mut self, cx: &mut Cx) {
        let until = cx.now + PAUSE;
        self.pause = Some(until);
        cx.deadlines.set(until, WakeSource::Mdns);
    }

    /// Ends the delay before the next browse.
    pub(super) fn resume(&mut self, cx: &mut Cx, bound: IpAddr, browses: bool) {
        self.pause = None;
        if browses {
            self.browse(cx, bound);
        }
    }

    /// Returns what mdns-sd has reported.
    pub(super) fn poll(&mut self, cx: &mut Cx, bound: IpAddr) -> Vec<Sighting> {
        let mut sightings = Vec::new();
        for _ in 0..EVENTS {
            let Some((listening, waker)) = &mut self.listening else { return sightings };
            let Poll::Ready((receiver, event)) =
                listening.as_mut().poll(&mut Context::from_waker(waker))
            else {
                return sightings;
            };
            let Some(event) = event else {
                cx.metrics.mdns_restarts += 1;
                self.listening = None;
                self.rest(cx);
                return sightings;
            };
            *listening = next(receiver);
            match event {
                ServiceEvent::ServiceResolved(service) => {
                    sightings.extend(resolved(&service, bound));
                }
                ServiceEvent::ServiceRemoved(_, full) => {
                    sightings.extend(node_of(&full).map(Sighting::Lost));
                }
                _ => {}
            }
        }
        if let Some((_, waker)) = &self.listening {
            waker.wake_by_ref();
        }
        sightings
    }

    fn daemon(&mut self, cx: &Cx, bound: IpAddr) -> mdns_sd::Result<&ServiceDaemon> {
        if self.daemon.is_none() {
            let port = cx.config.mdns.standard_port.unwrap_or_default();
            let daemon = ServiceDaemon::new_with_port(port)?;
            select(cx, &daemon, bound)?;
            self.daemon = Some(daemon);
        }
        self.daemon.as_ref().ok_or(mdns_sd::Error::DaemonShutdown)
    }

    /// Withdraws the advertisement. The shutdown of the node waits for it.
    pub(super) fn close(&mut self, tasks: &Tasks) {
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

impl Drop for Standard {
    fn drop(&mut self) {
        // If the runtime drops the pump early: the thread of mdns-sd ends only by a shutdown.
        if let Some(daemon) = &self.daemon {
            let _ = daemon.shutdown();
        }
    }
}

/// Selects the interfaces of the address that the node listens on.
fn select(cx: &Cx, daemon: &ServiceDaemon, bound: IpAddr) -> mdns_sd::Result<()> {
    // Later selections replace earlier ones.
    daemon.disable_interface(IfKind::All)?;
    let interfaces = Interfaces::new(cx.config.mdns.interfaces.clone(), bound);
    daemon.enable_interface(IfKind::Predicate(IfPredicate::new(move |intf| {
        intf.index.is_some_and(|index| interfaces.uses(index, intf.ip()))
    })))
}

fn next(receiver: Receiver<ServiceEvent>) -> Listening {
    Box::pin(async move {
        let event = receiver.recv_async().await.ok();
        (receiver, event)
    })
}

fn resolved(service: &ResolvedService, bound: IpAddr) -> Option<Sighting> {
    let node = node_of(&service.fullname)?;
    let heard = service.addresses.iter().map(|scoped| {
        let scope = match scoped {
            ScopedIp::V6(ip) => ip.scope_id().index,
            _ => 0,
        };
        (scoped.to_ip_addr(), scope)
    });
    Some(Sighting::Found(node, sockets(heard, service.port, bound)))
}

/// Returns the node of an instance, by its full name.
fn node_of(full: &str) -> Option<NodeId> {
    full.strip_suffix(SERVICE)?.strip_suffix('.')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use pk_host::KeyPair;

    #[test]
    fn instance_is_named_after_its_node() {
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
}

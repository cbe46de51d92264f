//! The addresses of this machine, and what a change of them means for the socket.
//!
//! The runtime's watch says only that something has changed; the addresses are then read from the
//! system, because on a point-to-point link the watch reports the address of the other end. A node
//! that listens on a loopback address is not affected by changes and has no watch.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use crate::cx::{Cx, WakeSource};
use crate::net::socket::{Bound, Socket};
use crate::system::runtime::{AddressChanges, Runtime};
use crate::system::tasks::Tasks;

/// Time from the first change to the look: one address is often replaced by another, and a route
/// follows.
const SETTLING: Duration = Duration::from_millis(200);

/// Time until a socket that could not be bound is tried again. The system does not report when it
/// has verified that a new IPv6 address is unique, before which no socket can be bound to it.
const RETRY: Duration = Duration::from_secs(5);

/// Changes that are taken before other sources are served.
const CHANGES: usize = 64;

/// Addresses of this machine, each with the name of its interface.
type Addresses = BTreeMap<IpAddr, String>;

/// The watch of a node.
pub(crate) struct Interfaces {
    /// `None` if the node needs no watch, or no longer has one.
    changes: Option<AddressChanges>,
    waker: Waker,
    /// The addresses at the last look.
    known: Addresses,
    /// The interface of the address that the socket is bound to.
    home: Option<String>,
    /// Whether a look is due.
    is_due: bool,
}

/// What a change of the addresses means for a node.
#[derive(Debug, PartialEq, Eq)]
enum Change {
    Nothing,
    /// Connections are to announce where the node is now.
    Inform,
    /// The address of the socket is gone, and this one of the same interface replaces it.
    Rebind(IpAddr),
}

impl Interfaces {
    /// Starts the watch of a node whose socket is bound to `bound`. Without permission the node
    /// works as one whose addresses never change.
    pub(crate) fn new(cx: &Cx, runtime: &impl Runtime, bound: SocketAddr) -> Self {
        let waker = cx.ready.waker(WakeSource::Interfaces);
        let mut interfaces =
            Self { changes: None, waker, known: Addresses::new(), home: None, is_due: false };
        if bound.ip().to_canonical().is_loopback() {
            return interfaces;
        }
        let watch = addresses().and_then(|known| Ok((known, runtime.address_changes()?)));
        match watch {
            Ok((known, changes)) => {
                interfaces.home = known.get(&bound.ip().to_canonical()).cloned();
                interfaces.known = known;
                interfaces.changes = Some(changes);
                interfaces.waker.wake_by_ref();
            }
            Err(error) => warn_unwatched(&error),
        }
        interfaces.tell(cx, bound.ip());
        interfaces
    }

    /// Takes reports of the watch.
    pub(crate) fn poll(&mut self, cx: &mut Cx) {
        for _ in 0..CHANGES {
            let Some(changes) = &mut self.changes else { return };
            match changes(&mut Context::from_waker(&self.waker)) {
                Poll::Pending => return,
                Poll::Ready(Ok(())) => self.look_after(cx, SETTLING),
                Poll::Ready(Err(error)) => {
                    self.changes = None;
                    warn_unwatched(&error);
                    return;
                }
            }
        }
        self.waker.wake_by_ref();
    }

    fn look_after(&mut self, cx: &mut Cx, wait: Duration) {
        if !self.is_due {
            self.is_due = true;
            cx.deadlines.set(cx.now + wait, WakeSource::Interfaces);
        }
    }

    /// Reads the addresses; informs the node, or binds another socket, if that is called for.
    /// Returns the new address of the socket. If it cannot be bound the former one remains.
    pub(crate) fn look(
        &mut self,
        cx: &mut Cx,
        socket: &mut Socket,
        tasks: &Tasks,
    ) -> Option<SocketAddr> {
        self.is_due = false;
        let now = match addresses() {
            Ok(now) => now,
            Err(error) => {
                tracing::warn!(%error, "the addresses of this machine cannot be read");
                return None;
            }
        };
        let bound = socket.addr();
        let change = change(&self.known, &now, bound.ip(), self.home.as_deref());
        self.known = now;
        match change {
            Change::Nothing => None,
            Change::Inform => {
                tracing::info!("the addresses of this machine have changed");
                self.inform(cx);
                None
            }
            Change::Rebind(ip) => match bind(bound, ip, tasks) {
                Ok(bound) => {
                    let addr = bound.addr();
                    tracing::info!(%addr, "the address of the socket is gone; another one is used");
                    socket.rebind(bound);
                    self.inform(cx);
                    cx.metrics.rebinds += 1;
                    let bound = cx.node.with(|node| {
                        node.rebound(cx.now, addr);
                        node.transport().bound()
                    });
                    self.tell(cx, bound.ip());
                    Some(bound)
                }
                Err(error) => {
                    tracing::warn!(%error, %ip, "the address of the socket is gone, and the one that replaces it cannot be used yet");
                    self.look_after(cx, RETRY);
                    None
                }
            },
        }
    }

    fn inform(&self, cx: &mut Cx) {
        cx.metrics.address_changes += 1;
        let own: Vec<_> = self.known.keys().copied().collect();
        let bound = cx.node.with(|node| {
            node.local_changed(cx.now, &own);
            node.transport().bound()
        });
        self.tell(cx, bound.ip());
    }

    /// Informs the core of the addresses at which its socket can be reached in local networks.
    fn tell(&self, cx: &Cx, bound: IpAddr) {
        let reached = |ip: &IpAddr| bound.is_unspecified() || *ip == bound;
        let ips = self.known.keys().copied().filter(|ip| !ip.is_loopback() && reached(ip));
        let ips: Vec<_> = ips.collect();
        if !ips.is_empty() {
            cx.node.with(|node| node.set_local_addresses(cx.now, ips));
        }
    }
}

fn warn_unwatched(error: &io::Error) {
    tracing::warn!(%error, "changes of the addresses of this machine will not be noticed");
}

/// Reads the addresses of this machine.
fn addresses() -> io::Result<Addresses> {
    Ok(if_addrs::get_if_addrs()?.into_iter().map(|one| (one.ip(), one.name)).collect())
}

/// Binds a socket that replaces the one at `before`, with the same port if it is free there.
fn bind(before: SocketAddr, ip: IpAddr, tasks: &Tasks) -> io::Result<Bound> {
    // A scope remains: it is that of the interface.
    let mut addr = before;
    addr.set_ip(ip);
    Bound::new(addr, tasks).or_else(|_| {
        addr.set_port(0);
        Bound::new(addr, tasks)
    })
}

/// Decides what follows from a change. `home` is the interface of the address `bound`.
fn change(before: &Addresses, after: &Addresses, bound: IpAddr, home: Option<&str>) -> Change {
    let bound = bound.to_canonical();
    if bound.is_unspecified() {
        return match relevant(before, bound) == relevant(after, bound) {
            true => Change::Nothing,
            false => Change::Inform,
        };
    }
    if after.contains_key(&bound) {
        return match before.contains_key(&bound) {
            true => Change::Nothing,
            // It has come back.
            false => Change::Inform,
        };
    }
    // Not on another interface, on which the embedder did not want to listen.
    let candidates = after
        .iter()
        .filter(|(ip, name)| Some(name.as_str()) == home && ip.is_ipv4() == bound.is_ipv4());
    match candidates.min_by_key(|(ip, _)| is_link_local(ip) != is_link_local(&bound)) {
        Some((ip, _)) => Change::Rebind(*ip),
        None => Change::Nothing,
    }
}

/// Returns the addresses that matter to a socket for every address. Those of IPv6 that are
/// link-local do not: every virtual interface has one, and containers come and go.
fn relevant(addresses: &Addresses, bound: IpAddr) -> BTreeSet<IpAddr> {
    let matters = |ip: &IpAddr| {
        !ip.is_loopback()
            && (bound.is_ipv6() || ip.is_ipv4())
            && (ip.is_ipv4() || !is_link_local(ip))
    };
    addresses.keys().copied().filter(matters).collect()
}

fn is_link_local(ip: &IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

impl fmt::Debug for Interfaces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Interfaces").field("known", &self.known).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    /// Addresses written as `interface/address`.
    fn machine(addresses: &[&str]) -> Addresses {
        let parts = addresses.iter().map(|one| one.split_once('/').unwrap());
        parts.map(|(name, addr)| (ip(addr), name.to_owned())).collect()
    }

    fn of(before: &[&str], after: &[&str], bound: &str, home: Option<&str>) -> Change {
        change(&machine(before), &machine(after), ip(bound), home)
    }

    #[test]
    fn socket_for_every_address_only_informs_of_addresses_that_matter_to_it() {
        let before = ["lo/127.0.0.1", "eth0/10.9.0.1", "eth0/fe80::1"];
        let cases: [(&[&str], &str, Change); 8] = [
            (&before, "::", Change::Nothing),
            (&["lo/127.0.0.1", "eth0/10.9.0.7", "eth0/fe80::1"], "::", Change::Inform),
            (&["lo/127.0.0.1", "eth0/10.9.0.7", "eth0/fe80::1"], "0.0.0.0", Change::Inform),
            (&["lo/127.0.0.1", "eth0/fe80::1"], "0.0.0.0", Change::Inform),
            (&["lo/127.0.0.1", "eth0/10.9.0.1", "eth0/fd09::1"], "::", Change::Inform),
            (&["lo/127.0.0.1", "eth0/10.9.0.1", "eth0/fd09::1"], "0.0.0.0", Change::Nothing),
            (&["lo/127.0.0.2", "lo/::1", "eth0/10.9.0.1"], "::", Change::Nothing),
            (&["eth0/10.9.0.1", "eth0/fe80::1", "veth7/fe80::7"], "::", Change::Nothing),
        ];
        for (after, bound, expected) in cases {
            assert_eq!(of(&before, after, bound, None), expected, "{after:?} on {bound}");
        }
    }

    #[test]
    fn socket_for_one_address_follows_it_on_its_interface_only() {
        let before = ["eth0/10.9.0.1", "wlan0/10.8.0.1"];
        let to = |addr| Change::Rebind(ip(addr));
        let cases: [(&[&str], Change); 5] = [
            (&["eth0/10.9.0.1"], Change::Nothing),
            (&["eth0/10.9.0.7", "wlan0/10.8.0.1"], to("10.9.0.7")),
            (&["eth0/10.9.0.7", "eth0/169.254.3.4"], to("10.9.0.7")),
            (&["eth0/fd09::1", "wlan0/10.8.0.1"], Change::Nothing),
            (&["wlan0/10.8.0.1"], Change::Nothing),
        ];
        for (after, expected) in cases {
            assert_eq!(of(&before, after, "10.9.0.1", Some("eth0")), expected, "{after:?}");
        }
        // After a time without any.
        let none = ["wlan0/10.8.0.1"];
        assert_eq!(of(&none, &["eth0/10.9.0.1"], "10.9.0.1", Some("eth0")), Change::Inform);
        assert_eq!(of(&none, &["eth0/10.9.0.7"], "10.9.0.1", Some("eth0")), to("10.9.0.7"));
        // An address of no interface, which some systems permit, is not followed.
        assert_eq!(of(&none, &["eth0/10.9.0.7"], "10.9.0.1", None), Change::Nothing);
    }

    #[test]
    fn ipv6_address_is_replaced_by_one_of_its_kind() {
        let after = ["eth0/fe80::9", "eth0/fd09::9", "eth0/10.9.0.1"];
        let of = |bound| of(&[], &after, bound, Some("eth0"));
        assert_eq!(of("fd09::1"), Change::Rebind(ip("fd09::9")));
        assert_eq!(of("fe80::1"), Change::Rebind(ip("fe80::9")));
    }
}

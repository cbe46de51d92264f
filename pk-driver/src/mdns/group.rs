//! Groups beside the standard ones, with pk-mdns: by default those of the reference.
//!
//! There is one socket per link. It joins the group on its interface only, so that the link of a
//! datagram is that of its socket.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV6, UdpSocket};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use pk_mdns::{Destination, Event, LinkId, Settings};
use pk_proto::{Instant, NodeId};
use quinn::AsyncUdpSocket;
use quinn::udp::{RecvMeta, Transmit};
use socket2::{Domain, InterfaceIndexOrAddress, Protocol, Socket, Type};

use super::interfaces::{Usable, usable, warn_unused};
use super::link::{Family, Link};
use super::sighting::{SERVICE, Sighting, sockets};
use crate::cx::{Cx, WakeSource};
use crate::system::tasks::Tasks;

/// Reads of one socket before other sources are served.
const READS: usize = 32;

/// Length of the receive buffer: the longest message, or several that the system has joined.
const BUFFER: usize = 64 * 1024;

/// The state of the groups of `MdnsConfig::groups`.
pub(super) struct Group {
    tasks: Tasks,
    /// `None` until it is needed.
    machine: Option<pk_mdns::Mdns>,
    links: BTreeMap<LinkId, OnLink>,
    /// Links that could not be used, so that each is logged once.
    refused: BTreeSet<LinkId>,
    /// Whether the links were looked at before.
    has_looked: bool,
    waker: Option<Waker>,
    deadline: Option<Instant>,
    buffer: Box<[u8]>,
}

/// The socket of a link.
struct OnLink {
    io: Arc<dyn AsyncUdpSocket>,
    usable: Usable,
    group: SocketAddr,
}

impl Group {
    pub(super) fn new(tasks: Tasks) -> Self {
        Self {
            tasks,
            machine: None,
            links: BTreeMap::new(),
            refused: BTreeSet::new(),
            has_looked: false,
            waker: None,
            deadline: None,
            buffer: Box::default(),
        }
    }

    pub(super) fn advertise(&mut self, cx: &mut Cx, bound: IpAddr, node: NodeId, port: u16) {
        let Some(machine) = self.machine(cx) else { return };
        machine.advertise(cx.now, &node.to_string(), port);
        self.look(cx, bound);
    }

    pub(super) fn withdraw(&mut self, cx: &mut Cx, node: NodeId) {
        if let Some(machine) = &mut self.machine {
            machine.withdraw(cx.now, &node.to_string());
            self.transmit(cx);
            self.arm(cx);
        }
    }

    pub(super) fn browse(&mut self, cx: &mut Cx, bound: IpAddr) {
        let Some(machine) = self.machine(cx) else { return };
        machine.browse(cx.now);
        self.look(cx, bound);
    }

    pub(super) fn stop_browsing(&mut self, cx: &mut Cx) {
        if let Some(machine) = &mut self.machine {
            machine.stop_browsing();
            self.arm(cx);
        }
    }

    /// Withdraws everything, and closes the sockets.
    pub(super) fn close(&mut self, cx: &mut Cx) {
        if let Some(machine) = &mut self.machine {
            machine.withdraw_all(cx.now);
        }
        self.transmit(cx);
        self.machine = None;
        self.links.clear();
        self.arm(cx);
    }

    /// Returns the machine, which starts when it is first needed; `None` if there is no group.
    fn machine(&mut self, cx: &Cx) -> Option<&mut pk_mdns::Mdns> {
        let config = &cx.config.mdns;
        if config.groups.is_empty() {
            return None;
        }
        if self.machine.is_none() {
            let mut seed = [0; 32];
            // The delays need not be unpredictable.
            if let Err(error) = getrandom::fill(&mut seed) {
                tracing::warn!(%error, "mDNS has no random delays");
            }
            let settings = Settings::new(SERVICE, config.port, seed);
            self.machine = Some(pk_mdns::Mdns::new(settings));
            self.waker = Some(cx.ready.waker(WakeSource::MdnsGroup));
            self.buffer = vec![0; BUFFER].into();
        }
        self.machine.as_mut()
    }

    /// Uses the links that the machine has now.
    pub(super) fn look(&mut self, cx: &mut Cx, bound: IpAddr) {
        if self.machine.is_none() {
            return;
        }
        // Otherwise the standard groups log it, which have the same interfaces.
        let warns = cx.config.mdns.standard_port.is_none() && !self.has_looked;
        self.has_looked = true;
        let mut former = std::mem::take(&mut self.links);
        let mut links = Vec::new();
        for usable in usable(&cx.config.mdns.interfaces, bound, warns) {
            let id = number(usable.link);
            let addrs = usable.addrs.iter().copied().collect();
            let kept = former.remove(&id).filter(|it| it.usable.prefixes == usable.prefixes);
            let on = match kept {
                Some(on) => Some(OnLink { usable, ..on }),
                None => self.open(cx, usable),
            };
            if let Some(on) = on {
                self.refused.remove(&id);
                self.links.insert(id, on);
                links.push(pk_mdns::Link { id, addrs });
            }
        }
        if warns && links.is_empty() {
            warn_unused();
        }
        if let Some(machine) = &mut self.machine {
            machine.set_links(cx.now, links);
        }
        // New sockets have no waker yet.
        if let Some(waker) = &self.waker {
            waker.wake_by_ref();
        }
        self.arm(cx);
    }

    /// Opens the socket of a link, if the configuration has a group of its family.
    fn open(&mut self, cx: &mut Cx, usable: Usable) -> Option<OnLink> {
        let config = &cx.config.mdns;
        let family = usable.link.family;
        let group = config.groups.iter().find(|group| Family::of(**group) == family)?;
        let group = match *group {
            IpAddr::V4(ip) => SocketAddr::from((ip, config.port)),
            IpAddr::V6(ip) => SocketAddrV6::new(ip, config.port, 0, usable.link.index).into(),
        };
        match bind(&usable, group).and_then(|socket| self.tasks.wrap_udp_socket(socket)) {
            Ok(io) => Some(OnLink { io, usable, group }),
            Err(error) => {
                cx.metrics.mdns_failures += 1;
                if self.refused.insert(number(usable.link)) {
                    tracing::warn!(%error, %group, interface = usable.link.index, "mDNS cannot use a group on a network interface");
                }
                None
            }
        }
    }

    /// Handles datagrams and what is due. Returns what was found and lost, with its link.
    pub(super) fn poll(&mut self, cx: &mut Cx, bound: IpAddr) -> Vec<(u32, Sighting)> {
        self.receive(cx);
        let mut sightings = Vec::new();
        if let Some(machine) = &mut self.machine {
            if machine.poll_timeout().is_some_and(|at| at <= cx.now) {
                machine.handle_timeout(cx.now);
            }
            while let Some(event) = machine.poll_event() {
                let index = |link| self.links.get(&link).map_or(0, |on| on.usable.link.index);
                sightings.extend(sighting(event, index, bound));
            }
        }
        self.transmit(cx);
        self.arm(cx);
        sightings
    }

    fn receive(&mut self, cx: &mut Cx) {
        let (Some(machine), Some(waker)) = (&mut self.machine, &self.waker) else { return };
        let mut context = Context::from_waker(waker);
        for (id, on) in &self.links {
            let mut reads = 0;
            loop {
                let mut metas = [RecvMeta::default()];
                let mut slices = [IoSliceMut::new(&mut self.buffer)];
                match on.io.poll_recv(&mut context, &mut slices, &mut metas) {
                    Poll::Pending => break,
                    Poll::Ready(Ok(_)) => {}
                    Poll::Ready(Err(error)) => {
                        tracing::debug!(%error, "a socket of mDNS has failed to receive");
                        break;
                    }
                }
                let [meta] = metas;
                let bytes = self.buffer.get(..meta.len).unwrap_or_default();
                for bytes in bytes.chunks(meta.stride.max(1)) {
                    if on.usable.contains(meta.addr.ip()) {
                        machine.handle_datagram(cx.now, *id, meta.addr, bytes);
                    }
                }
                reads += 1;
                if reads == READS {
                    waker.wake_by_ref();
                    break;
                }
            }
        }
    }

    fn transmit(&mut self, cx: &mut Cx) {
        let Some(machine) = &mut self.machine else { return };
        while let Some(transmit) = machine.poll_transmit() {
            let Some(on) = self.links.get(&transmit.link) else { continue };
            let destination = match transmit.to {
                Destination::Group => on.group,
                Destination::Host(addr) => addr,
            };
            let sent = on.io.try_send(&Transmit {
                destination,
                ecn: None,
                contents: &transmit.bytes,
                segment_size: None,
                src_ip: None,
            });
            // It is repeated, or the peer asks again.
            if let Err(error) = sent {
                cx.metrics.mdns_failures += 1;
                tracing::debug!(%error, %destination, "a datagram of mDNS was not sent");
            }
        }
    }

    /// Sets the deadline to the next timeout.
    fn arm(&mut self, cx: &mut Cx) {
        let next = self.machine.as_ref().and_then(pk_mdns::Mdns::poll_timeout);
        if next == self.deadline && next.is_none_or(|at| at > cx.now) {
            return;
        }
        if let Some(before) = self.deadline.take() {
            cx.deadlines.cancel(before, WakeSource::MdnsGroup);
        }
        if let Some(next) = next {
            cx.deadlines.set(next, WakeSource::MdnsGroup);
        }
        self.deadline = next;
    }
}

impl Usable {
    /// Returns whether an address is on the link (RFC 6762 section 11).
    fn contains(&self, ip: IpAddr) -> bool {
        let shares = |(own, length): &(IpAddr, u8)| match (own, ip) {
            (IpAddr::V4(own), IpAddr::V4(ip)) => {
                let differing = own.to_bits() ^ ip.to_bits();
                differing.leading_zeros() >= u32::from(*length)
            }
            (IpAddr::V6(own), IpAddr::V6(ip)) => {
                let differing = own.to_bits() ^ ip.to_bits();
                differing.leading_zeros() >= u32::from(*length)
            }
            _ => false,
        };
        matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local())
            || self.prefixes.iter().any(shares)
    }
}

fn number(link: Link) -> LinkId {
    LinkId(link.index.wrapping_mul(2) + u32::from(link.family == Family::V6))
}

fn sighting(event: Event, index: impl Fn(LinkId) -> u32, bound: IpAddr) -> Option<(u32, Sighting)> {
    match event {
        Event::Found { link, instance, port, addrs } => {
            let node = instance.parse().ok()?;
            let heard = addrs.into_iter().map(|ip| (ip, index(link)));
            Some((link.0, Sighting::Found(node, sockets(heard, port, bound))))
        }
        Event::Lost { link, instance } => Some((link.0, Sighting::Lost(instance.parse().ok()?))),
        Event::Conflict { instance, .. } => {
            tracing::warn!(
                node = instance,
                "another program on the local network advertises this node at another port"
            );
            None
        }
        _ => None,
    }
}

/// Binds a socket that receives the datagrams of `group` on one link, beside those of other
/// programs.
fn bind(usable: &Usable, group: SocketAddr) -> io::Result<UdpSocket> {
    let domain = Domain::for_address(group);
    let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_reuse_address(true)?;
    // On Linux this would divide unicast datagrams among the programs of one user.
    #[cfg(all(unix, not(any(target_os = "linux", target_os = "android"))))]
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    let index = usable.link.index;
    match group {
        SocketAddr::V4(group) => {
            #[cfg(any(target_os = "linux", target_os = "android"))]
            socket.set_multicast_all_v4(false)?;
            socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, group.port())).into())?;
            socket.join_multicast_v4_n(group.ip(), &InterfaceIndexOrAddress::Index(index))?;
            let own = usable.prefixes.iter().find_map(|(ip, _)| match ip {
                IpAddr::V4(ip) => Some(*ip),
                IpAddr::V6(_) => None,
            });
            socket.set_multicast_if_v4(&own.unwrap_or(Ipv4Addr::UNSPECIFIED))?;
            socket.set_multicast_loop_v4(true)?;
            socket.set_multicast_ttl_v4(255)?;
        }
        SocketAddr::V6(group) => {
            socket.set_only_v6(true)?;
            #[cfg(any(target_os = "linux", target_os = "android"))]
            socket.set_multicast_all_v6(false)?;
            let any = SocketAddrV6::new(std::net::Ipv6Addr::UNSPECIFIED, group.port(), 0, 0);
            socket.bind(&SocketAddr::from(any).into())?;
            socket.join_multicast_v6(group.ip(), index)?;
            socket.set_multicast_if_v6(index)?;
            socket.set_multicast_loop_v6(true)?;
            socket.set_multicast_hops_v6(255)?;
        }
    }
    Ok(socket.into())
}

impl fmt::Debug for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Group").field("machine", &self.machine).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sources_on_the_link_are_accepted() {
        let usable = Usable {
            link: Link { index: 3, family: Family::V4 },
            addrs: BTreeSet::new(),
            prefixes: vec![("10.1.2.3".parse().unwrap(), 24), ("fd00::1".parse().unwrap(), 64)],
        };
        for (ip, is_on_link) in [
            ("10.1.2.200", true),
            ("10.1.3.1", false),
            ("fd00::9", true),
            ("fd01::9", false),
            ("fe80::9", true),
        ] {
            assert_eq!(usable.contains(ip.parse().unwrap()), is_on_link, "{ip}");
        }
    }
}

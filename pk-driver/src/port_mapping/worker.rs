//! Executes the tasks of the machine. Blocks: each task runs on a thread of its own.

use std::io;
use std::net::{SocketAddr, SocketAddrV4, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use pk_portmap::{Exchange, Granted, HURRIED, NONCE, PATIENT, Request, Step};

use super::failure::PortMappingFailure;
use super::gateway::{self, Place};
use super::igd;
use super::lease::{Key, Lease, PortMappingProtocol};
use super::machine::{Outcome, Task};

/// Longest datagram of PCP (RFC 6887 section 7), and one byte more.
const DATAGRAM: usize = 1101;

/// What a task needs.
#[derive(Debug)]
pub(super) struct Work {
    pub(super) task: Task,
    /// Address of the node's socket.
    pub(super) bound: SocketAddr,
    /// Requested lifetime.
    pub(super) lifetime: Duration,
    /// Set if nothing waits for the task any longer: it sends nothing more.
    pub(super) cancelled: Arc<AtomicBool>,
}

impl Work {
    /// Executes the task.
    pub(super) fn run(self) -> Outcome {
        let outcome = match &self.task {
            Task::Ask(protocol) => {
                gateway::look(self.bound).and_then(|place| self.map(*protocol, place))
            }
            Task::Renew(lease) => match gateway::look(self.bound) {
                Ok(place) if place == lease.place => self.renew(lease),
                Ok(place) => {
                    // The gateway need not keep the mapping of a port that is no longer used.
                    if place.gateway == lease.place.gateway {
                        let _ = self.withdraw(lease);
                    }
                    return Outcome::Moved;
                }
                Err(why) => Err(why),
            },
            Task::Withdraw(lease) => {
                return self.withdraw(lease).map_or_else(Outcome::Failed, |()| Outcome::Withdrawn);
            }
        };
        outcome.map_or_else(Outcome::Failed, Outcome::Granted)
    }

    fn seconds(&self) -> u32 {
        u32::try_from(self.lifetime.as_secs()).unwrap_or(u32::MAX)
    }

    fn map(
        &self,
        protocol: PortMappingProtocol,
        place: Place,
    ) -> Result<Lease, PortMappingFailure> {
        match protocol {
            PortMappingProtocol::Pcp => {
                let mut nonce = [0; NONCE];
                getrandom::fill(&mut nonce)
                    .map_err(|error| PortMappingFailure::System(error.to_string()))?;
                self.pcp(place, nonce, None)
            }
            PortMappingProtocol::NatPmp => self.nat_pmp(place, place.local.port()),
            PortMappingProtocol::Igd => {
                let (device, external) = igd::map(&place, self.seconds())?;
                Ok(self.igd(device, place, external))
            }
        }
    }

    fn renew(&self, lease: &Lease) -> Result<Lease, PortMappingFailure> {
        match &lease.key {
            Key::Pcp(nonce) => self.pcp(lease.place, *nonce, Some(lease.external)),
            Key::NatPmp => self.nat_pmp(lease.place, lease.external.port()),
            Key::Igd(device) => {
                let port = lease.external.port();
                let external = igd::renew(device, &lease.place, port, self.seconds())?;
                Ok(self.igd(device.clone(), lease.place, external))
            }
        }
    }

    fn withdraw(&self, lease: &Lease) -> Result<(), PortMappingFailure> {
        let (client, port) = (lease.place.local, lease.external.port());
        let request = match &lease.key {
            Key::Pcp(nonce) => {
                Request::PcpMap { nonce: *nonce, client, suggested: None, seconds: 0 }
            }
            Key::NatPmp => Request::Map { internal: client.port(), suggested: 0, seconds: 0 },
            Key::Igd(device) => return igd::withdraw(device, port),
        };
        self.exchange(&lease.place, request, HURRIED).map(drop)
    }

    fn pcp(
        &self,
        place: Place,
        nonce: [u8; NONCE],
        suggested: Option<SocketAddrV4>,
    ) -> Result<Lease, PortMappingFailure> {
        let request =
            Request::PcpMap { nonce, client: place.local, suggested, seconds: self.seconds() };
        let granted = self.exchange(&place, request, PATIENT)?;
        lease(Key::Pcp(nonce), place, &granted, granted.ip)
    }

    fn nat_pmp(&self, place: Place, suggested: u16) -> Result<Lease, PortMappingFailure> {
        let ip = self.exchange(&place, Request::Address, PATIENT)?.ip;
        let request =
            Request::Map { internal: place.local.port(), suggested, seconds: self.seconds() };
        let granted = self.exchange(&place, request, PATIENT)?;
        lease(Key::NatPmp, place, &granted, ip)
    }

    fn igd(&self, device: igd::Device, place: Place, external: SocketAddrV4) -> Lease {
        Lease { key: Key::Igd(device), place, external, lifetime: self.lifetime, epoch: None }
    }

    /// Sends a request to the gateway and waits for its answer.
    fn exchange(
        &self,
        place: &Place,
        request: Request,
        waits: &'static [u64],
    ) -> Result<Granted, PortMappingFailure> {
        let server = place.server()?;
        // Connected: the system drops datagrams of others.
        let socket = UdpSocket::bind(SocketAddrV4::new(*place.local.ip(), 0)).map_err(failed)?;
        socket.connect(server).map_err(failed)?;
        let (datagram, begun) = (request.encode(), Instant::now());
        let mut exchange = Exchange::new(request, waits);
        let mut buffer = [0; DATAGRAM];
        loop {
            if self.cancelled.load(Ordering::Relaxed) {
                return Err(PortMappingFailure::Silent);
            }
            match exchange.poll(begun.elapsed()) {
                Step::Send => drop(socket.send(&datagram).map_err(failed)?),
                Step::Over(fault) => return Err(fault.into()),
                Step::Wait(time) => {
                    // A timeout of zero would be none.
                    let time = time.max(Duration::from_millis(1));
                    socket.set_read_timeout(Some(time)).map_err(failed)?;
                    match socket.recv(&mut buffer) {
                        Ok(length) => {
                            let bytes = buffer.get(..length).unwrap_or_default();
                            if let Some(result) = exchange.receive(bytes) {
                                return Ok(result?);
                            }
                        }
                        Err(error) if is_timeout(&error) => {}
                        Err(error) => return Err(failed(error)),
                    }
                }
            }
        }
    }
}

fn lease(
    key: Key,
    place: Place,
    granted: &Granted,
    ip: Option<std::net::Ipv4Addr>,
) -> Result<Lease, PortMappingFailure> {
    let ip = ip.ok_or(PortMappingFailure::Malformed("an answer without address"))?;
    Ok(Lease {
        key,
        place,
        external: SocketAddrV4::new(ip, granted.port),
        lifetime: granted.lifetime,
        epoch: Some(granted.epoch),
    })
}

fn is_timeout(error: &io::Error) -> bool {
    use io::ErrorKind::{Interrupted, TimedOut, WouldBlock};
    matches!(error.kind(), Interrupted | TimedOut | WouldBlock)
}

#[allow(clippy::needless_pass_by_value, reason = "for `map_err`")]
fn failed(error: io::Error) -> PortMappingFailure {
    match error.kind() {
        // The gateway has reported that its port is closed.
        io::ErrorKind::ConnectionRefused => PortMappingFailure::Closed,
        _ => PortMappingFailure::System(error.to_string()),
    }
}

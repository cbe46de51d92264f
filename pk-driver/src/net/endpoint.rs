//! The QUIC endpoint: one socket to listen and to dial from, with every limit of quinn set.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use pk_host::{TransportSecret, unix};
use pk_quic::{TransportSettings, config};
use quinn::{Endpoint, Runtime as _, ServerConfig};
use rustls::pki_types::UnixTime;
use rustls::time_provider::TimeProvider;
use socket2::{Domain, Protocol, Socket, Type};
use zeroize::Zeroizing;

use super::cids::Cids;
use super::punch::PunchSocket;
use super::resets::Resets;
use crate::config::DriverConfig;
use crate::error::StartError;
use crate::system::tasks::Tasks;

/// Binds the endpoint. Returns it, the socket for punching, and the bound address. `secret` lets it
/// recognize the connections of its earlier runs, to answer them with stateless resets.
pub(super) fn bind(
    listen: SocketAddr,
    server: ServerConfig,
    cids: &Cids,
    secret: &TransportSecret,
    tasks: &Tasks,
) -> Result<(Endpoint, Arc<PunchSocket>, SocketAddr), StartError> {
    let mut seed = Zeroizing::new([0; 32]);
    getrandom::fill(seed.as_mut())?;
    let bind = || {
        let socket = socket(listen)?;
        let direct = socket.try_clone()?;
        let resets = Arc::new(Resets::new(secret.reset_key()));
        let socket = tasks.wrap_udp_socket(socket)?;
        let socket = Arc::new(PunchSocket::new(socket, direct, cids.clone(), Arc::clone(&resets))?);
        let (cids, key) = (cids.clone(), secret.connection_id_key());
        let config = config::endpoint(resets, move || cids.generator(&key, &seed));
        let shared = Arc::clone(&socket) as _;
        let endpoint = Endpoint::new_with_abstract_socket(
            config,
            Some(server),
            shared,
            Arc::new(tasks.clone()),
        )?;
        let bound = endpoint.local_addr()?;
        Ok((endpoint, socket, bound))
    };
    bind().map_err(|source| StartError::Bind { addr: listen, source })
}

/// Binds a socket. One for every IPv6 address also receives IPv4 where the system supports that,
/// and is one for every IPv4 address where the system has no IPv6.
fn socket(listen: SocketAddr) -> io::Result<UdpSocket> {
    match bound(listen) {
        Err(error) if listen.ip() == Ipv6Addr::UNSPECIFIED && !conflict(&error) => {
            tracing::debug!(%error, "this system has no IPv6; listening on IPv4 only");
            // Report the first error.
            bound(SocketAddr::from((Ipv4Addr::UNSPECIFIED, listen.port()))).map_err(|_| error)
        }
        socket => socket,
    }
}

/// Returns whether another address with the same port would fail as well.
fn conflict(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::AddrInUse | io::ErrorKind::PermissionDenied)
}

fn bound(listen: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(listen), Type::DGRAM, Some(Protocol::UDP))?;
    if listen.is_ipv6()
        && let Err(error) = socket.set_only_v6(false)
    {
        tracing::debug!(%error, "this system has no sockets for both IPv6 and IPv4");
    }
    socket.set_nonblocking(true)?;
    socket.bind(&listen.into())?;
    Ok(socket.into())
}

/// Returns the settings of the transport. `streams` limits the open streams of a peer.
pub(super) fn settings(config: &DriverConfig, streams: usize) -> TransportSettings {
    let mut settings = TransportSettings::default();
    settings.handshake_limit = config.handshake_limit;
    settings.handshake_network_limit = config.handshake_network_limit;
    settings.handshake_timeout = config.handshake_timeout;
    settings.incoming_limit = config.incoming_limit;
    settings.dialects = config.dialects.clone();
    settings.idle_timeout = config.idle_timeout;
    settings.keep_alive = config.keep_alive;
    settings.suspect_delay = config.suspect_delay;
    settings.migration = false;
    settings.streams = streams;
    settings.stream_window = config.stream_window;
    settings.receive_window = config.receive_window;
    settings.send_window = config.send_window;
    settings
}

/// The wall clock for rustls, whose own implementation panics before 1970.
#[derive(Debug)]
pub(super) struct WallClock;

impl TimeProvider for WallClock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_secs(unix().as_secs())))
    }
}

/// Returns an address in the form of the core: IPv4 addresses are IPv4, also where an IPv6 socket
/// sees them.
pub(super) fn canonical(addr: SocketAddr) -> SocketAddr {
    match addr.ip().to_canonical() {
        IpAddr::V4(ip) => SocketAddr::from((ip, addr.port())),
        IpAddr::V6(_) => addr,
    }
}

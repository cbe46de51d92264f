//! The QUIC endpoint: one socket to listen and to dial from, with every bound of quinn set.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;

use quinn::crypto::rustls::QuicServerConfig;
use quinn::{
    Endpoint, EndpointConfig, IdleTimeout, NoneTokenStore, Runtime as _, ServerConfig, TransportConfig,
    ValidationTokenConfig, VarInt,
};
use socket2::{Domain, Protocol, Socket, Type};

use super::cids::Cids;
use super::punch::PunchSocket;
use crate::config::DriverConfig;
use crate::error::StartError;
use crate::tasks::Tasks;

/// QUIC version 1 and no other (WIRE.md section 2).
const QUIC_V1: u32 = 1;

/// Out-of-order bytes of a TLS handshake that are kept, per encryption level: quinn's default.
const CRYPTO_BUFFER: usize = 16 * 1024;

/// Bytes that are kept of one connection attempt between its first packet and our look at it, and of all of them.
const INCOMING_BUFFER: u64 = 16 * 1024;
const INCOMING_BUFFER_TOTAL: u64 = 1024 * 1024;

/// Binds the endpoint. Returns it, the socket for punching, and the address it is bound to.
pub(super) fn bind(
    listen: SocketAddr,
    server: ServerConfig,
    cids: &Cids,
    tasks: &Tasks,
) -> Result<(Endpoint, Arc<PunchSocket>, SocketAddr), StartError> {
    let bind = || {
        let socket = tasks.wrap_udp_socket(socket(listen)?)?;
        let socket = Arc::new(PunchSocket::new(socket, cids.clone())?);
        let cids = cids.clone();
        let mut config = EndpointConfig::default();
        config.supported_versions(vec![QUIC_V1]).cid_generator(move || cids.generator());
        let shared = Arc::clone(&socket) as _;
        let endpoint = Endpoint::new_with_abstract_socket(config, Some(server), shared, Arc::new(tasks.clone()))?;
        let bound = endpoint.local_addr()?;
        Ok((endpoint, socket, bound))
    };
    bind().map_err(|source| StartError::Bind { addr: listen, source })
}

/// A bound socket. One for every IPv6 address takes IPv4 too, where the system allows it, and is one for every IPv4 address
/// where the system has no IPv6.
fn socket(listen: SocketAddr) -> io::Result<UdpSocket> {
    match bound(listen) {
        Err(error) if listen.ip() == Ipv6Addr::UNSPECIFIED && !conflict(&error) => {
            tracing::debug!(%error, "this system has no IPv6; listening on IPv4 only");
            // The first error is the one to tell.
            bound(SocketAddr::from((Ipv4Addr::UNSPECIFIED, listen.port()))).map_err(|_| error)
        }
        socket => socket,
    }
}

/// Whether another address of the same port would fail as well.
fn conflict(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::AddrInUse | io::ErrorKind::PermissionDenied)
}

fn bound(listen: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(listen), Type::DGRAM, Some(Protocol::UDP))?;
    if listen.is_ipv6()
        && let Err(error) = socket.set_only_v6(false)
    {
        tracing::debug!(%error, "this system has no sockets for IPv6 and IPv4 at once");
    }
    socket.set_nonblocking(true)?;
    socket.bind(&listen.into())?;
    Ok(socket.into())
}

/// The QUIC parameters of every connection. `streams` is how many streams a peer may have open.
pub(super) fn transport(config: &DriverConfig, streams: usize) -> Arc<TransportConfig> {
    let mut transport = TransportConfig::default();
    let streams = u32::try_from(streams).unwrap_or(u32::MAX);
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(streams))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .stream_receive_window(VarInt::from_u32(config.stream_window))
        .receive_window(VarInt::from_u32(config.receive_window))
        .send_window(u64::from(config.send_window))
        .datagram_receive_buffer_size(None)
        .datagram_send_buffer_size(0)
        .crypto_buffer_size(CRYPTO_BUFFER)
        .keep_alive_interval(Some(config.keep_alive))
        // In range: the configuration is validated.
        .max_idle_timeout(IdleTimeout::try_from(config.idle_timeout).ok());
    Arc::new(transport)
}

/// Everything about incoming connections but TLS, which each handshake gets its own of.
pub(super) fn server(
    config: &DriverConfig,
    transport: &Arc<TransportConfig>,
    tls: Arc<QuicServerConfig>,
) -> ServerConfig {
    let mut tokens = ValidationTokenConfig::default();
    // Tokens for later connections would link them, and save nothing where handshakes are not resumed.
    tokens.sent(0);
    let mut server = ServerConfig::with_crypto(tls);
    server
        .transport_config(Arc::clone(transport))
        .validation_token_config(tokens)
        .migration(false)
        .max_incoming(config.incoming_limit)
        .incoming_buffer_size(INCOMING_BUFFER)
        .incoming_buffer_size_total(INCOMING_BUFFER_TOTAL);
    server
}

/// Everything about one dial.
pub(super) fn client(
    transport: &Arc<TransportConfig>,
    tls: Arc<quinn::crypto::rustls::QuicClientConfig>,
) -> quinn::ClientConfig {
    let mut client = quinn::ClientConfig::new(tls);
    client.transport_config(Arc::clone(transport)).token_store(Arc::new(NoneTokenStore)).version(QUIC_V1);
    client
}

/// An address as the core knows them: IPv4 is IPv4, also where an IPv6 socket sees it.
pub(super) fn canonical(addr: SocketAddr) -> SocketAddr {
    match addr.ip().to_canonical() {
        IpAddr::V4(ip) => SocketAddr::from((ip, addr.port())),
        IpAddr::V6(_) => addr,
    }
}

//! Configurations of quinn-proto, with every limit set.

use std::sync::Arc;
use std::time::Duration;

use quinn_proto::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn_proto::crypto::{HandshakeTokenKey, HmacKey};
use quinn_proto::{
    ClientConfig, ConnectionIdGenerator, EndpointConfig, IdleTimeout, MtuDiscoveryConfig,
    NoneTokenStore, ServerConfig, TransportConfig, ValidationTokenConfig, VarInt,
};

use crate::settings::TransportSettings;

/// QUIC version 1 only (docs/WIRE.md section 2).
const QUIC_V1: u32 = 1;

/// Out-of-order bytes of a TLS handshake that are buffered per encryption level: quinn's default.
const CRYPTO_BUFFER: usize = 16 * 1024;

/// Bytes that are buffered of one connection attempt until it is accepted or refused, and of all of
/// them.
const INCOMING_BUFFER: u64 = 16 * 1024;
const INCOMING_BUFFER_TOTAL: u64 = 1024 * 1024;

/// Returns the configuration of an endpoint. The caller limits stateless resets per network.
pub fn endpoint(
    resets: Arc<dyn HmacKey>,
    cids: impl Fn() -> Box<dyn ConnectionIdGenerator> + Send + Sync + 'static,
) -> EndpointConfig {
    let mut config = EndpointConfig::new(resets);
    config.supported_versions(vec![QUIC_V1]).cid_generator(cids).min_reset_interval(Duration::ZERO);
    // In range, as the default of quinn-proto is, which is the same.
    let _ = config.max_udp_payload_size(TransportSettings::MAX_DATAGRAM as u16);
    config
}

/// Returns the QUIC parameters of every connection.
pub fn transport(settings: &TransportSettings) -> Arc<TransportConfig> {
    let mut transport = TransportConfig::default();
    let streams = u32::try_from(settings.streams).unwrap_or(u32::MAX);
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(streams))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .stream_receive_window(VarInt::from_u32(settings.stream_window))
        .receive_window(VarInt::from_u32(settings.receive_window))
        .send_window(u64::from(settings.send_window))
        .datagram_receive_buffer_size(None)
        .datagram_send_buffer_size(0)
        .crypto_buffer_size(CRYPTO_BUFFER)
        .mtu_discovery_config(settings.mtu_discovery.then(MtuDiscoveryConfig::default))
        .enable_segmentation_offload(settings.segments > 1)
        .keep_alive_interval(Some(settings.keep_alive))
        // In range: the settings are validated.
        .max_idle_timeout(IdleTimeout::try_from(settings.idle_timeout).ok());
    Arc::new(transport)
}

/// Returns the configuration of incoming connections except for TLS, which differs per handshake.
pub fn server(
    settings: &TransportSettings,
    transport: &Arc<TransportConfig>,
    tls: Arc<QuicServerConfig>,
    tokens: Arc<dyn HandshakeTokenKey>,
) -> ServerConfig {
    let mut validation = ValidationTokenConfig::default();
    // Tokens for later connections would make them linkable, and save nothing because sessions are
    // not resumed.
    validation.sent(0);
    let mut server = ServerConfig::new(tls, tokens);
    server
        .transport_config(Arc::clone(transport))
        .validation_token_config(validation)
        .migration(settings.migration)
        .max_incoming(settings.incoming_limit)
        .incoming_buffer_size(INCOMING_BUFFER)
        .incoming_buffer_size_total(INCOMING_BUFFER_TOTAL);
    server
}

/// Returns the configuration of one dial.
pub fn client(transport: &Arc<TransportConfig>, tls: Arc<QuicClientConfig>) -> ClientConfig {
    let mut client = ClientConfig::new(tls);
    client
        .transport_config(Arc::clone(transport))
        .token_store(Arc::new(NoneTokenStore))
        .version(QUIC_V1);
    client
}

/// Returns the key of the tokens in Retry packets, derived from secret bytes.
pub fn token_key(secret: &[u8; 32]) -> Arc<dyn HandshakeTokenKey> {
    Arc::new(ring::hkdf::Salt::new(ring::hkdf::HKDF_SHA256, &[]).extract(secret))
}

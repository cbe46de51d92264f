//! Every limit and duration of the driver.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use pk_proto::Dialect;
use pk_proto::cert::DEFAULT_LIFETIME_SECONDS;

/// The settings of the driver. Start from [`DriverConfig::default`]; [`Node::start`](crate::Node::start) validates.
///
/// What one connection may cost in memory: `receive_window`, `send_window`, the core's `receive_window`, about 50 KiB of
/// QUIC's own, and 2 to 3 KiB for each open stream.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct DriverConfig {
    // -- incoming handshakes
    /// Incoming handshakes under way at a time; from half of it on, peers have to come back with a token first (Retry).
    /// Four that failed less than 3 s ago, which QUIC still keeps, count as one. 2 to 65,536; default 256.
    pub handshake_limit: usize,
    /// Of these, from one network: a /24 of IPv4 or a /48 of IPv6. 2 to `handshake_limit`; default 64.
    pub handshake_network_limit: usize,
    /// An incoming handshake that is not done by then is given up. 1 s to 5 min; default 15 s.
    pub handshake_timeout: Duration,
    /// First packets that wait to be looked at; more are dropped unseen. 1 to 65,536; default 256.
    pub incoming_limit: usize,

    // -- connections (QUIC transport parameters)
    /// What is spoken with peers, the preferred one first; where both ends speak both, the acceptor's preference decides. At
    /// least one, none twice; default `pk/1` and then `quic`, by which nodes of Polykey 1.x are reached.
    pub dialects: Vec<Dialect>,
    /// A silent connection ends after this. 1 s to 10 min; default 30 s, as in the reference.
    pub idle_timeout: Duration,
    /// A quiet connection sends a packet this often, so that it does not fall silent. 500 ms to half of
    /// `idle_timeout`;
    /// default 10 s, as in the reference.
    pub keep_alive: Duration,
    /// Bytes that a peer may send on one stream before they are read. 16 KiB to 64 KiB; default 64 KiB.
    pub stream_window: u32,
    /// Bytes that a peer may send on one connection before they are read. `stream_window` to 64 MiB; default 1 MiB.
    pub receive_window: u32,
    /// Bytes of ours on one connection that the peer has not acknowledged. 16 KiB to 64 MiB; default 512 KiB.
    pub send_window: u32,

    // -- the embedder
    /// Calls of the embedder that wait for their turn; callers beyond it wait before they count. 1 to 1,000,000; default
    /// 1024.
    pub command_limit: usize,
    /// Events that are kept for a reader who falls behind; then it is told how many it lost. 1 to 1,000,000; default 1024.
    pub event_limit: usize,
    /// Streams of one application protocol that wait to be accepted; further ones are refused. 1 to 65,536; default 64.
    pub accept_limit: usize,

    // -- the local network (only if `Config::mdns` is on)
    /// How the local network is told and asked.
    pub mdns: MdnsConfig,

    // -- the disk
    /// What was written and need not be durable is made so after this. 0 to 1 h; default 5 s.
    pub sync_delay: Duration,
    /// How long a certificate is valid that the node makes for itself; the next one is made at two thirds of it. 3 s to 10
    /// years; default 365 days.
    pub certificate_lifetime: Duration,

    // -- other
    /// A host name that is not resolved by then counts as unresolvable. 1 ms to 5 min; default 5 s.
    pub resolve_timeout: Duration,
    /// After everything has been closed, how long to see that peers know. 0 to 1 min; default 250 ms.
    pub drain_timeout: Duration,
}

/// How the local network is told of this node and asked for others. Of use in a program that was built with the feature
/// `mdns`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct MdnsConfig {
    /// The UDP port; only nodes with the same one find each other. 1 to 65,535; default 5353, the standard.
    pub port: u16,
    /// The multicast groups (specification: `mdnsOptions.groups`). Empty, the default, is the standard ones: `224.0.0.251`
    /// and `ff02::fb`. Others are refused, since the library that is used serves no others.
    pub groups: Vec<IpAddr>,
    /// Where.
    pub interfaces: MdnsInterfaces,
}

impl MdnsConfig {
    /// The groups of RFC 6762.
    const GROUPS: [IpAddr; 2] =
        [IpAddr::V4(Ipv4Addr::new(224, 0, 0, 251)), IpAddr::V6(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0xfb))];
}

impl Default for MdnsConfig {
    fn default() -> Self {
        Self { port: 5353, groups: Vec::new(), interfaces: MdnsInterfaces::All }
    }
}

/// On which network interfaces the local network is told and asked.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum MdnsInterfaces {
    /// All that there are, now and later.
    #[default]
    All,
    /// This machine only.
    Loopback,
    /// These.
    Named(Vec<String>),
}

impl Default for DriverConfig {
    fn default() -> Self {
        Self {
            handshake_limit: 256,
            handshake_network_limit: 64,
            handshake_timeout: Duration::from_secs(15),
            incoming_limit: 256,
            dialects: vec![Dialect::Native, Dialect::Polykey],
            idle_timeout: Duration::from_secs(30),
            keep_alive: Duration::from_secs(10),
            stream_window: 64 * 1024,
            receive_window: 1024 * 1024,
            send_window: 512 * 1024,
            command_limit: 1024,
            event_limit: 1024,
            accept_limit: 64,
            mdns: MdnsConfig::default(),
            sync_delay: Duration::from_secs(5),
            certificate_lifetime: Duration::from_secs(DEFAULT_LIFETIME_SECONDS),
            resolve_timeout: Duration::from_secs(5),
            drain_timeout: Duration::from_millis(250),
        }
    }
}

impl DriverConfig {
    /// Checks every value against its range.
    ///
    /// # Errors
    ///
    /// The first that is outside, by name.
    pub fn validate(&self) -> Result<(), DriverConfigError> {
        const MS: Duration = Duration::from_millis(1);
        const SECOND: Duration = Duration::from_secs(1);
        const MINUTE: Duration = Duration::from_secs(60);
        const MIB: u32 = 1024 * 1024;

        let count = |name, value: usize, min: usize, max: usize| match (min..=max).contains(&value) {
            true => Ok(()),
            false => Err(DriverConfigError::Count { name, value, min, max }),
        };
        let bytes = |name, value: u32, min: u32, max: u32| {
            let wide = |value| usize::try_from(value).unwrap_or(usize::MAX);
            count(name, wide(value), wide(min), wide(max))
        };
        let time = |name, value: Duration, min: Duration, max: Duration| match (min..=max).contains(&value) {
            true => Ok(()),
            false => Err(DriverConfigError::Time { name, value, min, max }),
        };

        count("handshake_limit", self.handshake_limit, 2, 65_536)?;
        count("handshake_network_limit", self.handshake_network_limit, 2, self.handshake_limit)?;
        time("handshake_timeout", self.handshake_timeout, SECOND, 5 * MINUTE)?;
        count("incoming_limit", self.incoming_limit, 1, 65_536)?;
        if self.dialects.is_empty()
            || (1..).zip(&self.dialects).any(|(n, one)| self.dialects.iter().skip(n).any(|other| other == one))
        {
            return Err(DriverConfigError::Dialects(self.dialects.clone()));
        }
        time("idle_timeout", self.idle_timeout, SECOND, 10 * MINUTE)?;
        time("keep_alive", self.keep_alive, SECOND / 2, self.idle_timeout / 2)?;
        bytes("stream_window", self.stream_window, 16 * 1024, 64 * 1024)?;
        bytes("receive_window", self.receive_window, self.stream_window, 64 * MIB)?;
        bytes("send_window", self.send_window, 16 * 1024, 64 * MIB)?;
        count("command_limit", self.command_limit, 1, 1_000_000)?;
        count("event_limit", self.event_limit, 1, 1_000_000)?;
        count("accept_limit", self.accept_limit, 1, 65_536)?;
        count("mdns.port", usize::from(self.mdns.port), 1, 65_535)?;
        if let Some(group) = self.mdns.groups.iter().find(|group| !MdnsConfig::GROUPS.contains(group)) {
            return Err(DriverConfigError::MdnsGroup(*group));
        }
        time("sync_delay", self.sync_delay, Duration::ZERO, 60 * MINUTE)?;
        time("certificate_lifetime", self.certificate_lifetime, 3 * SECOND, 10 * 366 * 24 * 60 * MINUTE)?;
        time("resolve_timeout", self.resolve_timeout, MS, 5 * MINUTE)?;
        time("drain_timeout", self.drain_timeout, Duration::ZERO, MINUTE)
    }
}

/// A setting outside its range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DriverConfigError {
    /// A count or a number of bytes.
    #[error("{name} is {value}; it must be {min} to {max}")]
    Count {
        /// The field of [`DriverConfig`].
        name: &'static str,
        /// What it was set to.
        value: usize,
        /// Its least value.
        min: usize,
        /// Its greatest value.
        max: usize,
    },
    /// Not at least one dialect, each once.
    #[error("dialects is {0:?}; it must be one or more, none twice")]
    Dialects(Vec<Dialect>),
    /// A multicast group of [`MdnsConfig::groups`] that is not a standard one.
    #[error(
        "mdns.groups has {0}; the library that is used serves only 224.0.0.251 and ff02::fb (the port can be another)"
    )]
    MdnsGroup(IpAddr),
    /// A duration.
    #[error("{name} is {value:?}; it must be {min:?} to {max:?}")]
    Time {
        /// The field of [`DriverConfig`].
        name: &'static str,
        /// What it was set to.
        value: Duration,
        /// Its least value.
        min: Duration,
        /// Its greatest value.
        max: Duration,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid_and_a_bad_value_is_named() {
        assert_eq!(DriverConfig::default().validate(), Ok(()));
        let config = DriverConfig { stream_window: 1 << 20, ..DriverConfig::default() };
        assert_eq!(config.validate().unwrap_err().to_string(), "stream_window is 1048576; it must be 16384 to 65536");
        let config = DriverConfig { keep_alive: Duration::from_secs(20), ..DriverConfig::default() };
        assert_eq!(config.validate().unwrap_err().to_string(), "keep_alive is 20s; it must be 500ms to 15s");
        let mut config = DriverConfig::default();
        config.mdns.groups = MdnsConfig::GROUPS.into();
        assert_eq!(config.validate(), Ok(()));
        let other = "224.0.0.250".parse().unwrap();
        config.mdns.groups.push(other);
        assert_eq!(config.validate(), Err(DriverConfigError::MdnsGroup(other)));
        for dialects in [vec![], vec![Dialect::Native, Dialect::Polykey, Dialect::Native]] {
            let config = DriverConfig { dialects: dialects.clone(), ..DriverConfig::default() };
            assert_eq!(config.validate(), Err(DriverConfigError::Dialects(dialects)));
        }
        let config = DriverConfig { dialects: vec![Dialect::Polykey], ..DriverConfig::default() };
        assert_eq!(config.validate(), Ok(()));
    }
}

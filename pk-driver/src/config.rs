//! Limits and durations of the driver.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use pk_proto::Dialect;
use pk_proto::cert::DEFAULT_LIFETIME_SECONDS;

/// Settings of the driver. Start from [`DriverConfig::default`];
/// [`Node::start`](crate::Node::start) validates them.
///
/// Maximum memory of one connection: `receive_window`, `send_window`, the core's `receive_window`,
/// about 50 KiB in QUIC, and 2 to 3 KiB per open stream.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct DriverConfig {
    // -- incoming handshakes
    /// Maximum number of incoming handshakes in progress. Above half of it, peers must validate
    /// their address (Retry). Four that failed less than 3 s ago, which QUIC still stores, count as
    /// one. Default 256, range 2–65,536.
    pub handshake_limit: usize,
    /// Maximum number of incoming handshakes in progress of one network (a /24 of IPv4 or a /48 of
    /// IPv6). Default 64, range 2–`handshake_limit`.
    pub handshake_network_limit: usize,
    /// Time limit of an incoming handshake. Default 15 s, range 1 s–5 min.
    pub handshake_timeout: Duration,
    /// Maximum number of first packets that wait for a decision; further ones are dropped. Default
    /// 256, range 1–65,536.
    pub incoming_limit: usize,

    // -- connections (QUIC transport parameters)
    /// Dialects, the preferred one first. If both ends support both, the preference of the acceptor
    /// decides. At least one, none twice. Default `pk/1`, then `quic`, which nodes of Polykey 1.x
    /// use.
    pub dialects: Vec<Dialect>,
    /// Time without a packet from the peer after which a connection is closed. Default 30 s (as the
    /// reference), range 1 s–10 min.
    pub idle_timeout: Duration,
    /// Interval of keep-alive packets on an idle connection. Default 10 s (as the reference), range
    /// 500 ms–half of `idle_timeout`.
    pub keep_alive: Duration,
    /// Time without a packet from the peer, after something was sent, until the connection is
    /// suspected; three round trips if that is longer, at most half of `idle_timeout`. The node of
    /// a suspected connection is dialed in parallel. Default 500 ms, range 50 ms–1 min.
    pub suspect_delay: Duration,
    /// Unread bytes that a peer may send on one stream. Default 64 KiB, range 16 KiB–64 KiB.
    pub stream_window: u32,
    /// Unread bytes that a peer may send on one connection. Default 1 MiB, range `stream_window`–64
    /// MiB.
    pub receive_window: u32,
    /// Unacknowledged bytes sent on one connection. Default 512 KiB, range 16 KiB–64 MiB.
    pub send_window: u32,

    // -- the embedder
    /// Maximum number of queued calls of the embedder; further callers wait. Default 1024, range
    /// 1–1,000,000.
    pub command_limit: usize,
    /// Events stored for a listener that falls behind; after that it receives the number of lost
    /// events. Default 1024, range 1–1,000,000.
    pub event_limit: usize,
    /// Maximum number of streams of one application protocol and one network (a /24 of IPv4 or a
    /// /48 of IPv6) that wait to be accepted; four times as many for all networks together. Further
    /// streams are refused. Default 64, range 1–65,536.
    pub accept_limit: usize,

    // -- mDNS (only if `Config::mdns` is on)
    /// Settings of mDNS.
    pub mdns: MdnsConfig,

    // -- storage
    /// Delay until a non-durable write is made durable. Default 5 s, range 0–1 h.
    pub sync_delay: Duration,
    /// Validity of certificates that the node issues to itself; they are reissued at two thirds of
    /// it. Default 365 days, range 3 s–10 years.
    pub certificate_lifetime: Duration,

    // -- other
    /// Time limit of the resolution of a host name. Default 5 s, range 1 ms–5 min.
    pub resolve_timeout: Duration,
    /// Time limit for peers to acknowledge the end of their connections during shutdown. Default
    /// 250 ms, range 0–1 min.
    pub drain_timeout: Duration,
}

/// Settings of mDNS. They have an effect only in a program built with the feature `mdns`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct MdnsConfig {
    /// UDP port; only nodes with the same port find each other. Default 5353 (the standard), range
    /// 1–65,535.
    pub port: u16,
    /// Multicast groups (specification: `mdnsOptions.groups`). Empty, the default, means the
    /// standard ones: `224.0.0.251` and `ff02::fb`. Others are refused, because mdns-sd does not
    /// support them.
    pub groups: Vec<IpAddr>,
    /// Network interfaces.
    pub interfaces: MdnsInterfaces,
}

impl MdnsConfig {
    /// The groups of RFC 6762.
    const GROUPS: [IpAddr; 2] = [
        IpAddr::V4(Ipv4Addr::new(224, 0, 0, 251)),
        IpAddr::V6(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0xfb)),
    ];
}

impl Default for MdnsConfig {
    fn default() -> Self {
        Self { port: 5353, groups: Vec::new(), interfaces: MdnsInterfaces::All }
    }
}

/// The network interfaces that mDNS uses; changes of the interfaces are followed.
///
/// An interface is used if it is up, supports multicast, is neither point-to-point nor a port of a
/// bridge, and has an address that the node listens on; at most 16 interfaces are used. Usable or
/// named interfaces that are left out are logged as a warning.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum MdnsInterfaces {
    /// All except loopback, in this order: those with a default route, devices, others with an
    /// address that is not link-local, bridges without a device, others. Only loopback if the node
    /// listens on a loopback address.
    #[default]
    All,
    /// Loopback only: this machine.
    Loopback,
    /// The interfaces with these names.
    /// [`StartError::MdnsInterface`](crate::StartError::MdnsInterface) if one does not exist.
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
            suspect_delay: Duration::from_millis(500),
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
    /// Names the first setting outside its range.
    pub fn validate(&self) -> Result<(), DriverConfigError> {
        const MS: Duration = Duration::from_millis(1);
        const SECOND: Duration = Duration::from_secs(1);
        const MINUTE: Duration = Duration::from_secs(60);
        const MIB: u32 = 1024 * 1024;

        let count = |name, value: usize, min: usize, max: usize| match (min..=max).contains(&value)
        {
            true => Ok(()),
            false => Err(DriverConfigError::Count { name, value, min, max }),
        };
        let bytes = |name, value: u32, min: u32, max: u32| {
            let wide = |value| usize::try_from(value).unwrap_or(usize::MAX);
            count(name, wide(value), wide(min), wide(max))
        };
        let time = |name, value: Duration, min: Duration, max: Duration| match (min..=max)
            .contains(&value)
        {
            true => Ok(()),
            false => Err(DriverConfigError::Time { name, value, min, max }),
        };

        count("handshake_limit", self.handshake_limit, 2, 65_536)?;
        count("handshake_network_limit", self.handshake_network_limit, 2, self.handshake_limit)?;
        time("handshake_timeout", self.handshake_timeout, SECOND, 5 * MINUTE)?;
        count("incoming_limit", self.incoming_limit, 1, 65_536)?;
        if self.dialects.is_empty()
            || (1..)
                .zip(&self.dialects)
                .any(|(n, one)| self.dialects.iter().skip(n).any(|other| other == one))
        {
            return Err(DriverConfigError::Dialects(self.dialects.clone()));
        }
        time("idle_timeout", self.idle_timeout, SECOND, 10 * MINUTE)?;
        time("keep_alive", self.keep_alive, SECOND / 2, self.idle_timeout / 2)?;
        time("suspect_delay", self.suspect_delay, 50 * MS, MINUTE)?;
        bytes("stream_window", self.stream_window, 16 * 1024, 64 * 1024)?;
        bytes("receive_window", self.receive_window, self.stream_window, 64 * MIB)?;
        bytes("send_window", self.send_window, 16 * 1024, 64 * MIB)?;
        count("command_limit", self.command_limit, 1, 1_000_000)?;
        count("event_limit", self.event_limit, 1, 1_000_000)?;
        count("accept_limit", self.accept_limit, 1, 65_536)?;
        count("mdns.port", usize::from(self.mdns.port), 1, 65_535)?;
        if let Some(group) =
            self.mdns.groups.iter().find(|group| !MdnsConfig::GROUPS.contains(group))
        {
            return Err(DriverConfigError::MdnsGroup(*group));
        }
        time("sync_delay", self.sync_delay, Duration::ZERO, 60 * MINUTE)?;
        time(
            "certificate_lifetime",
            self.certificate_lifetime,
            3 * SECOND,
            10 * 366 * 24 * 60 * MINUTE,
        )?;
        time("resolve_timeout", self.resolve_timeout, MS, 5 * MINUTE)?;
        time("drain_timeout", self.drain_timeout, Duration::ZERO, MINUTE)
    }
}

/// A setting outside its range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DriverConfigError {
    /// A count or a size in bytes.
    #[error("{name} is {value}; it must be {min} to {max}")]
    Count {
        /// Field of [`DriverConfig`].
        name: &'static str,
        /// Value of the setting.
        value: usize,
        /// Smallest valid value.
        min: usize,
        /// Largest valid value.
        max: usize,
    },
    /// No dialect, or one of them twice.
    #[error("dialects is {0:?}; it must contain at least one dialect, and none twice")]
    Dialects(Vec<Dialect>),
    /// A multicast group of [`MdnsConfig::groups`] that is not a standard one.
    #[error(
        "mdns.groups contains {0}; mdns-sd supports only 224.0.0.251 and ff02::fb (the port can \
            be changed)"
    )]
    MdnsGroup(IpAddr),
    /// A duration.
    #[error("{name} is {value:?}; it must be {min:?} to {max:?}")]
    Time {
        /// Field of [`DriverConfig`].
        name: &'static str,
        /// Value of the setting.
        value: Duration,
        /// Smallest valid value.
        min: Duration,
        /// Largest valid value.
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
        assert_eq!(
            config.validate().unwrap_err().to_string(),
            "stream_window is 1048576; it must be 16384 to 65536"
        );
        let config =
            DriverConfig { keep_alive: Duration::from_secs(20), ..DriverConfig::default() };
        assert_eq!(
            config.validate().unwrap_err().to_string(),
            "keep_alive is 20s; it must be 500ms to 15s"
        );
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

//! Limits and durations of the driver.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use pk_proto::cert::DEFAULT_LIFETIME_SECONDS;
use pk_quic::{SettingsError, TransportSettings};

/// Settings of the driver. Start from [`DriverConfig::default`];
/// [`Node::start`](crate::Node::start) validates them.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct DriverConfig {
    // -- the network
    /// Settings of QUIC. `streams` and `application_streams` are those of the core's `Config`.
    pub transport: TransportSettings,

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
            transport: TransportSettings::default(),
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

        let count = |name, value: usize, min: usize, max: usize| match (min..=max).contains(&value)
        {
            true => Ok(()),
            false => Err(DriverConfigError::Count { name, value, min, max }),
        };
        let time = |name, value: Duration, min: Duration, max: Duration| match (min..=max)
            .contains(&value)
        {
            true => Ok(()),
            false => Err(DriverConfigError::Time { name, value, min, max }),
        };

        self.transport.validate()?;
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
    /// A setting of the transport.
    #[error(transparent)]
    Transport(#[from] SettingsError),
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
        let config = DriverConfig { command_limit: 0, ..DriverConfig::default() };
        assert_eq!(
            config.validate().unwrap_err().to_string(),
            "command_limit is 0; it must be 1 to 1000000"
        );
        let mut config = DriverConfig::default();
        config.transport.keep_alive = Duration::from_secs(20);
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
    }
}

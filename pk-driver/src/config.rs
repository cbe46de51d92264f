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

    // -- port mapping
    /// Settings of the port mapping.
    pub port_mapping: PortMappingConfig,

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
    /// Multicast groups beside the standard ones (specification: `mdnsOptions.groups`). Only nodes
    /// with a common group and port find each other. Default `224.0.0.250` and `ff02::fa17`, the
    /// groups of the reference; at most one of each family. Empty: none.
    pub groups: Vec<IpAddr>,
    /// UDP port of `groups` (specification: `mdnsOptions.port`). Default 64023, that of the
    /// reference, range 1–65,535.
    pub port: u16,
    /// UDP port of the standard groups, `224.0.0.251` and `ff02::fb` (RFC 6762). Default 5353, the
    /// standard, range 1–65,535. `None`: the standard groups are not used.
    pub standard_port: Option<u16>,
    /// Network interfaces.
    pub interfaces: MdnsInterfaces,
}

impl MdnsConfig {
    /// The groups of RFC 6762.
    const STANDARD: [IpAddr; 2] = [
        IpAddr::V4(Ipv4Addr::new(224, 0, 0, 251)),
        IpAddr::V6(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0xfb)),
    ];
    /// The groups of the reference (docs/WIRE.md section 13).
    const REFERENCE: [IpAddr; 2] = [
        IpAddr::V4(Ipv4Addr::new(224, 0, 0, 250)),
        IpAddr::V6(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0xfa17)),
    ];

    /// Returns what is wrong with a list of groups.
    fn check_groups(&self) -> Result<(), DriverConfigError> {
        for (at, group) in self.groups.iter().enumerate() {
            let earlier = self.groups.iter().take(at);
            let why = if Self::STANDARD.contains(group) {
                "a standard group: set its port with standard_port"
            } else if !group.is_multicast() {
                "not a multicast address"
            } else if earlier.clone().any(|it| it.is_ipv4() == group.is_ipv4()) {
                "the second one of its address family"
            } else {
                continue;
            };
            return Err(DriverConfigError::MdnsGroup { group: *group, why });
        }
        Ok(())
    }
}

impl Default for MdnsConfig {
    fn default() -> Self {
        Self {
            groups: Self::REFERENCE.to_vec(),
            port: 64_023,
            standard_port: Some(5353),
            interfaces: MdnsInterfaces::All,
        }
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

/// Settings of the port mapping: whether the router of the local network is asked to pass packets
/// on to the node (docs/DESIGN.md, Port mapping).
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PortMappingConfig {
    /// Whether the port of the node is mapped, by PCP, NAT-PMP or UPnP-IGD. Default `false`:
    /// nothing is sent to the router.
    pub enabled: bool,
    /// Lifetime that is requested; the router may grant another one. The mapping is renewed at half
    /// of what it grants. Default 2 h, range 8 s–24 h.
    pub lifetime: Duration,
}

impl Default for PortMappingConfig {
    fn default() -> Self {
        Self { enabled: false, lifetime: Duration::from_secs(2 * 60 * 60) }
    }
}

impl Default for DriverConfig {
    fn default() -> Self {
        Self {
            transport: TransportSettings::default(),
            command_limit: 1024,
            event_limit: 1024,
            accept_limit: 64,
            mdns: MdnsConfig::default(),
            port_mapping: PortMappingConfig::default(),
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
        let standard = self.mdns.standard_port.map_or(1, usize::from);
        count("mdns.standard_port", standard, 1, 65_535)?;
        self.mdns.check_groups()?;
        time("port_mapping.lifetime", self.port_mapping.lifetime, 8 * SECOND, 24 * 60 * MINUTE)?;
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
    /// An invalid multicast group in [`MdnsConfig::groups`].
    #[error("mdns.groups contains {group}, {why}")]
    MdnsGroup {
        /// Address.
        group: IpAddr,
        /// Reason.
        why: &'static str,
    },
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
    fn defaults_are_valid_and_a_bad_value_is_named() {
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
        let groups = |groups: &[&str]| {
            let mut config = DriverConfig::default();
            config.mdns.groups = groups.iter().map(|group| group.parse().unwrap()).collect();
            config.validate().map_err(|error| error.to_string())
        };
        assert_eq!(groups(&[]), Ok(()));
        assert_eq!(groups(&["ff02::1234", "239.1.2.3"]), Ok(()));
        for (given, error) in [
            (&["10.0.0.1"][..], "10.0.0.1, not a multicast address"),
            (&["ff02::fb"], "ff02::fb, a standard group: set its port with standard_port"),
            (&["239.1.2.3", "239.1.2.4"], "239.1.2.4, the second one of its address family"),
        ] {
            assert_eq!(groups(given), Err(format!("mdns.groups contains {error}")));
        }
        let mut config = DriverConfig::default();
        config.mdns.standard_port = Some(0);
        assert!(config.validate().is_err());
        let mut config = DriverConfig::default();
        config.port_mapping.lifetime = Duration::from_secs(7);
        assert!(config.validate().is_err());
    }
}

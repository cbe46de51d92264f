//! Settings of relaying (docs/DESIGN.md, Relaying).

use core::time::Duration;

use serde::{Deserialize, Serialize};

/// The nodes for which a node forwards datagrams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
#[serde(rename_all = "lowercase")]
pub enum RelayPolicy {
    /// None.
    Off,
    /// The contacts of its graph and the nodes on its allow-list, at either end of a circuit.
    #[default]
    Known,
    /// Every connected node.
    All,
}

/// What a node relays, and how it uses relays, in
/// [`Config::relay`](crate::Config::relay).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct RelayConfig {
    // -- as the relay
    /// Nodes for which this node relays. Default [`RelayPolicy::Known`].
    pub policy: RelayPolicy,
    /// Circuits in total, those that are being opened included. Default 256, range 0–65,536.
    pub circuits: usize,
    /// Circuits that one node has requested. Default 16, range 1–65,536.
    pub circuits_per_node: usize,
    /// Bytes per second that all circuits of one node carry together, in both directions; datagrams
    /// beyond it are dropped. Default 4 MiB, range 16 KiB–16 GiB.
    pub rate_per_node: u64,
    /// Bytes per second of all circuits. Default 32 MiB, range 16 KiB–16 GiB.
    pub rate: u64,
    /// Bytes in 24 hours of all circuits of one node. A circuit ends when it has carried half of
    /// what was left when it was opened. Default 8 GiB, range 1 MiB–1 PiB.
    pub volume_per_node: u64,
    /// Bytes in 24 hours of all circuits. Default 128 GiB, range 1 MiB–1 PiB.
    pub volume: u64,
    /// Time without a datagram after which a circuit ends. Default 60 s, range 1 s–1 day.
    pub idle_timeout: Duration,

    // -- as an end of circuits
    /// Circuits that this node is an end of. Default 64, range 0–65,536; 0 disables relayed
    /// connections.
    pub paths: usize,
    /// Time from the start of punching to the first attempt by relay, and from one attempt to the
    /// next. Default 1 s, range 1 ms–1 min.
    pub delay: Duration,
    /// Interval at which the dialer of a relayed connection tries to make it direct. Default 20 s,
    /// range 1 s–1 day.
    pub upgrade_interval: Duration,
}

impl Default for RelayConfig {
    fn default() -> Self {
        const MIB: u64 = 1024 * 1024;
        Self {
            policy: RelayPolicy::Known,
            circuits: 256,
            circuits_per_node: 16,
            rate_per_node: 4 * MIB,
            rate: 32 * MIB,
            volume_per_node: 8 * 1024 * MIB,
            volume: 128 * 1024 * MIB,
            idle_timeout: Duration::from_secs(60),
            paths: 64,
            delay: Duration::from_secs(1),
            upgrade_interval: Duration::from_secs(20),
        }
    }
}

impl RelayConfig {
    /// Returns the durations with their names, minima and maxima.
    pub(super) fn times(&self) -> [(&'static str, Duration, Duration, Duration); 3] {
        const SECOND: Duration = Duration::from_secs(1);
        const DAY: Duration = Duration::from_secs(86_400);
        [
            ("relay.idle_timeout", self.idle_timeout, SECOND, DAY),
            ("relay.delay", self.delay, Duration::from_millis(1), 60 * SECOND),
            ("relay.upgrade_interval", self.upgrade_interval, SECOND, DAY),
        ]
    }

    /// Returns the counts with their names, minima and maxima.
    pub(super) fn counts(&self) -> [(&'static str, usize, usize, usize); 3] {
        [
            ("relay.circuits", self.circuits, 0, 65_536),
            ("relay.circuits_per_node", self.circuits_per_node, 1, 65_536),
            ("relay.paths", self.paths, 0, 65_536),
        ]
    }

    /// Returns the numbers of bytes with their names, minima and maxima.
    pub(super) fn sizes(&self) -> [(&'static str, u64, u64, u64); 4] {
        const KIB: u64 = 1024;
        let (rate, volume) = ((16 * KIB, 1 << 34), (KIB * KIB, 1 << 50));
        [
            ("relay.rate_per_node", self.rate_per_node, rate.0, rate.1),
            ("relay.rate", self.rate, rate.0, rate.1),
            ("relay.volume_per_node", self.volume_per_node, volume.0, volume.1),
            ("relay.volume", self.volume, volume.0, volume.1),
        ]
    }
}

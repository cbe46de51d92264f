//! Limits and durations of the transport.

use std::time::Duration;

use pk_proto::Dialect;

/// Settings of the transport. Start from [`TransportSettings::default`];
/// [`validate`](Self::validate) names a value outside of its range.
///
/// [`memory_per_peer`](Self::memory_per_peer) is the maximum memory of one connection.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TransportSettings {
    // -- incoming handshakes
    /// Maximum number of incoming handshakes in progress. Above half of it, peers must validate
    /// their address (Retry). Default 256, range 2–65,536.
    pub handshake_limit: usize,
    /// Maximum number of incoming handshakes in progress of one network (a /24 of IPv4 or a /48 of
    /// IPv6). Default 64, range 2–`handshake_limit`.
    pub handshake_network_limit: usize,
    /// Time limit of an incoming handshake. Default 15 s, range 1 s–5 min.
    pub handshake_timeout: Duration,
    /// Maximum number of first packets that wait for a decision. Default 256, range 1–65,536.
    pub incoming_limit: usize,

    // -- connections
    /// Dialects, the preferred one first. At least one, none twice. Default `pk/1`, then `quic`.
    pub dialects: Vec<Dialect>,
    /// Time without a packet from the peer after which a connection is closed. Default 30 s, range
    /// 1 s–10 min.
    pub idle_timeout: Duration,
    /// Interval of keep-alive packets on an idle connection. Default 10 s, range 500 ms–half of
    /// `idle_timeout`.
    pub keep_alive: Duration,
    /// Time without a packet from the peer, after something was sent, until the connection is
    /// suspected; three round trips if that is longer. Default 500 ms, range 50 ms–1 min.
    pub suspect_delay: Duration,
    /// Whether the peer's address may change, and changes of the local one are announced. Default
    /// true.
    pub migration: bool,

    // -- streams and windows
    /// Streams of the node protocol that a peer may have open on one connection. Default 100, range
    /// 2–4096.
    pub streams: usize,
    /// Application streams that a peer may have open on one connection. Each gives its id back to
    /// the node protocol when it is handed over. Default 512, range 0–65,536.
    pub application_streams: usize,
    /// Unread bytes that a peer may send on one stream. Default 1.5 MiB (15 MiB/s at 100 ms), range
    /// 16 KiB–64 MiB.
    pub stream_window: u32,
    /// Unread bytes that a peer may send on one connection; unread application streams add to it.
    /// Default 4 MiB, range `stream_window`–64 MiB.
    pub receive_window: u32,
    /// Memory for unread data of application streams on one connection, in bytes. A stream whose
    /// unread data does not fit in [`APPLICATION_BUFFER`](Self::APPLICATION_BUFFER) bytes counts
    /// with `stream_window`. Beyond the limit, the newest unread stream is reset. Default 32 MiB,
    /// range `stream_window`–1 GiB.
    pub application_memory: u32,
    /// Unacknowledged bytes sent on one connection. Default 8 MiB, range 128 KiB–64 MiB.
    pub send_window: u32,

    // -- datagrams
    /// Maximum number of datagrams in one transmit (UDP segmentation). Default 10, range 1–64.
    pub segments: usize,
    /// Whether larger packets are searched for than every path carries (MTU discovery). Off if the
    /// system may fragment datagrams. Default true.
    pub mtu_discovery: bool,
}

impl TransportSettings {
    /// Unread bytes of one application stream that are stored without using the window of the
    /// connection.
    pub const APPLICATION_BUFFER: usize = 64 * 1024;

    /// Part of `send_window` that application streams leave to the node protocol, in bytes.
    pub const SEND_RESERVE: u64 = 64 * 1024;

    /// Maximum length of a received datagram, in bytes; longer ones are dropped. Peers are informed
    /// of it.
    pub const MAX_DATAGRAM: usize = 1472;

    /// Maximum memory of one open stream without its data, in bytes. QUIC keeps datagrams of at
    /// most 32 KiB in memory because of fragments in them.
    pub const STREAM_MEMORY: u64 = 36 * 1024;

    /// Maximum memory of one connection without its streams, in bytes.
    pub const CONNECTION_MEMORY: u64 = 128 * 1024;

    /// Returns the maximum memory of one connection, in bytes: two and a half times
    /// `receive_window` and `application_memory` for received data that is not read, `send_window`
    /// for sent data that is not acknowledged, [`STREAM_MEMORY`](Self::STREAM_MEMORY) per stream
    /// that the peer may have open, and [`CONNECTION_MEMORY`](Self::CONNECTION_MEMORY).
    ///
    /// The windows count data. Data is kept in the datagrams in which it arrived until QUIC has
    /// allocated 2.5 times its length; then QUIC copies it. A peer that fills its datagrams reaches
    /// 1.1 times.
    pub fn memory_per_peer(&self) -> u64 {
        let received = u64::from(self.receive_window) + u64::from(self.application_memory);
        let streams = (self.streams + self.application_streams) as u64;
        received * 5 / 2
            + u64::from(self.send_window)
            + streams * Self::STREAM_MEMORY
            + Self::CONNECTION_MEMORY
    }

    /// Checks the ranges.
    ///
    /// # Errors
    ///
    /// The first setting outside of its range.
    pub fn validate(&self) -> Result<(), SettingsError> {
        const MIB: usize = 1024 * 1024;
        let (stream, receive) = (self.stream_window as usize, self.receive_window as usize);
        let counts = [
            ("handshake_limit", self.handshake_limit, 2, 65_536),
            ("handshake_network_limit", self.handshake_network_limit, 2, self.handshake_limit),
            ("incoming_limit", self.incoming_limit, 1, 65_536),
            ("streams", self.streams, 2, 4096),
            ("application_streams", self.application_streams, 0, 65_536),
            ("stream_window", stream, 16 * 1024, 64 * MIB),
            ("receive_window", receive, stream, 64 * MIB),
            ("application_memory", self.application_memory as usize, stream, 1024 * MIB),
            ("send_window", self.send_window as usize, 128 * 1024, 64 * MIB),
            ("segments", self.segments, 1, 64),
        ];
        for (name, value, min, max) in counts {
            if !(min..=max).contains(&value) {
                return Err(SettingsError::Number { name, value, min, max });
            }
        }
        let (second, ms) = (Duration::from_secs(1), Duration::from_millis(1));
        let times = [
            ("handshake_timeout", self.handshake_timeout, second, second * 300),
            ("idle_timeout", self.idle_timeout, second, second * 600),
            ("keep_alive", self.keep_alive, ms * 500, self.idle_timeout / 2),
            ("suspect_delay", self.suspect_delay, ms * 50, second * 60),
        ];
        for (name, value, min, max) in times {
            if !(min..=max).contains(&value) {
                return Err(SettingsError::Time { name, value, min, max });
            }
        }
        let twice = |(at, dialect)| self.dialects.iter().skip(at + 1).any(|other| other == dialect);
        if self.dialects.is_empty() || self.dialects.iter().enumerate().any(twice) {
            return Err(SettingsError::Dialects(self.dialects.clone()));
        }
        Ok(())
    }
}

impl Default for TransportSettings {
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
            migration: true,
            streams: 100,
            application_streams: 512,
            stream_window: 3 * 512 * 1024,
            receive_window: 4 * 1024 * 1024,
            application_memory: 32 * 1024 * 1024,
            send_window: 8 * 1024 * 1024,
            segments: 10,
            mtu_discovery: true,
        }
    }
}

/// A setting outside of its range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SettingsError {
    /// A number.
    #[error("{name} is {value}; it must be {min} to {max}")]
    Number {
        /// Field of [`TransportSettings`].
        name: &'static str,
        /// Value of the setting.
        value: usize,
        /// Smallest valid value.
        min: usize,
        /// Largest valid value.
        max: usize,
    },
    /// A duration.
    #[error("{name} is {value:?}; it must be {min:?} to {max:?}")]
    Time {
        /// Field of [`TransportSettings`].
        name: &'static str,
        /// Value of the setting.
        value: Duration,
        /// Smallest valid value.
        min: Duration,
        /// Largest valid value.
        max: Duration,
    },
    /// No dialect, or one of them twice.
    #[error("dialects is {0:?}; it must contain at least one dialect, and none twice")]
    Dialects(Vec<Dialect>),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_valid_and_a_value_outside_its_range_is_named() {
        assert_eq!(TransportSettings::default().validate(), Ok(()));
        let settings = TransportSettings { streams: 1, ..TransportSettings::default() };
        assert_eq!(
            settings.validate().unwrap_err().to_string(),
            "streams is 1; it must be 2 to 4096"
        );
        let settings = TransportSettings { dialects: Vec::new(), ..TransportSettings::default() };
        assert_eq!(settings.validate(), Err(SettingsError::Dialects(Vec::new())));
    }
}

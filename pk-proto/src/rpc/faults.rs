//! Faults of a peer on one connection, and their limit.
//!
//! A connection has a leaky bucket of points. A fault adds [`Weight::Fault`] points, an unknown
//! message or a refused request fewer; every `Config::fault_decay`, the points of one fault leak
//! out. An honest peer with an occasional refusal never comes near the limit, and a peer that does
//! nothing else is disconnected.

use super::event::RpcEvent;
use super::fault_meter::Weight;
use super::table::Rpc;
use crate::api::error::PeerFault;
use crate::machine::cx::Cx;
use crate::types::id::ConnectionId;
use crate::types::refusal::Refusal;
use crate::wire::frame::FrameFault;

impl Rpc {
    /// Counts a fault of a connection. A framing fault closes the connection at once, other faults
    /// when the limit is exceeded.
    pub(super) fn fault(&mut self, cx: &mut Cx, conn: ConnectionId, fault: PeerFault) {
        let Some(connection) = self.connections.get_mut(&conn) else { return };
        let fatal = match fault {
            PeerFault::Frame(FrameFault::Unknown) => {
                cx.metrics.unsupported += 1;
                connection.faults.add(cx.now, Weight::Unknown, &cx.config)
            }
            PeerFault::Frame(_) | PeerFault::Version => true,
            _ => connection.faults.add(cx.now, Weight::Fault, &cx.config),
        };
        let node = connection.node;
        self.events.push_back(RpcEvent::Fault { conn, node, fault, fatal });
    }

    /// Counts a refused request of a peer. A refusal that the peer has not caused counts nothing.
    pub(super) fn refused(&mut self, cx: &mut Cx, conn: ConnectionId, refusal: Refusal) {
        if !matches!(refusal, Refusal::Busy | Refusal::Stale) {
            self.weigh(cx, conn, Weight::Refused);
        }
    }

    /// Counts a request for something that is not supported.
    pub(super) fn unsupported(&mut self, cx: &mut Cx, conn: ConnectionId) {
        cx.metrics.unsupported += 1;
        self.weigh(cx, conn, Weight::Refused);
    }

    /// Counts a request with invalid parameters.
    pub(super) fn invalid(&mut self, cx: &mut Cx, conn: ConnectionId) {
        cx.metrics.questions_invalid += 1;
        self.weigh(cx, conn, Weight::Unknown);
    }

    fn weigh(&mut self, cx: &mut Cx, conn: ConnectionId, weight: Weight) {
        let Some(connection) = self.connections.get_mut(&conn) else { return };
        if connection.faults.add(cx.now, weight, &cx.config) {
            let (node, fault) = (connection.node, PeerFault::TooManyRefused);
            self.events.push_back(RpcEvent::Fault { conn, node, fault, fatal: true });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::config::Config;
    use crate::rpc::fault_meter::FaultMeter;
    use crate::types::time::Instant;
    use core::time::Duration;

    /// The number of faults of a kind, at this interval, until the limit; `None` if a thousand do
    /// not reach it.
    fn until_full(weight: Weight, apart: Duration, config: &Config) -> Option<usize> {
        let (mut meter, mut now) = (FaultMeter::default(), Instant::ORIGIN);
        (1..=1000).find(|_| {
            now = now + apart;
            meter.add(now, weight, config)
        })
    }

    #[test]
    fn each_kind_has_its_weight() {
        let config = Config::default();
        let full = |weight| until_full(weight, Duration::ZERO, &config);
        assert_eq!(
            [Weight::Fault, Weight::Unknown, Weight::Refused].map(full),
            [Some(16), Some(128), Some(256)]
        );
        let config = Config { fault_limit: 1, ..Config::default() };
        let full = |weight| until_full(weight, Duration::ZERO, &config);
        assert_eq!(
            [Weight::Fault, Weight::Unknown, Weight::Refused].map(full),
            [Some(1), Some(8), Some(16)]
        );
    }

    #[test]
    fn points_leak_at_the_rate_that_is_set() {
        let mut config = Config::default();
        let second = Duration::from_secs(1);
        assert_eq!(
            until_full(Weight::Fault, second, &config),
            Some(16),
            "not a whole fault has leaked"
        );
        assert_eq!(until_full(Weight::Fault, 60 * second, &config), None);
        assert!(until_full(Weight::Fault, 30 * second, &config).is_some());
        assert_eq!(until_full(Weight::Refused, 4 * second, &config), None);
        assert!(until_full(Weight::Refused, 2 * second, &config).is_some());
        config.fault_decay = Duration::ZERO;
        assert_eq!(until_full(Weight::Refused, 3600 * second, &config), Some(256), "never");
        config.fault_decay = Duration::from_nanos(1);
        assert_eq!(until_full(Weight::Fault, second, &config), None);
    }
}

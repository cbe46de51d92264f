//! How much was forwarded for each node lately.
//!
//! A volume is a leaky bucket: it holds what was carried, and loses its whole limit in a day.

use alloc::collections::BTreeMap;

use crate::types::id::NodeId;
use crate::types::time::Instant;

/// Time in which a full volume becomes empty, in microseconds.
const DAY: u128 = 86_400_000_000;
/// Maximum number of nodes with a volume. Beyond it new nodes are refused.
const NODES: usize = 4096;

/// Volumes of nodes, and that of all together.
#[derive(Debug, Default)]
pub(super) struct Volumes {
    nodes: BTreeMap<NodeId, Volume>,
    all: Volume,
}

/// What was carried and has not leaked.
#[derive(Debug, Clone, Copy, Default)]
struct Volume {
    used: u64,
    at: Instant,
}

impl Volume {
    /// Lets leak what has leaked until now, and returns what is left of the limit.
    fn left(&mut self, limit: u64, now: Instant) -> u64 {
        let passed = now.since(self.at).as_micros();
        let leaked = u128::from(limit).saturating_mul(passed) / DAY;
        if leaked > 0 {
            self.used = self.used.saturating_sub(u64::try_from(leaked).unwrap_or(u64::MAX));
            self.at = now;
        }
        limit.saturating_sub(self.used)
    }
}

impl Volumes {
    /// Reserves half of what is left for a node, so that several circuits of it together never
    /// carry more than the limits. `None` if that is less than `least`, or too many nodes have a
    /// volume.
    pub(super) fn reserve(
        &mut self,
        node: &NodeId,
        limits: (u64, u64),
        least: u64,
        now: Instant,
    ) -> Option<u64> {
        if !self.nodes.contains_key(node) && self.nodes.len() >= NODES {
            self.nodes.retain(|_, volume| volume.left(limits.0, now) < limits.0);
            if self.nodes.len() >= NODES {
                return None;
            }
        }
        let mut volume = self.nodes.get(node).copied().unwrap_or(Volume { used: 0, at: now });
        let left = volume.left(limits.0, now).min(self.all.left(limits.1, now));
        let reserved = left / 2;
        if reserved < least {
            return None;
        }
        volume.used = volume.used.saturating_add(reserved);
        self.nodes.insert(*node, volume);
        self.all.used = self.all.used.saturating_add(reserved);
        Some(reserved)
    }

    /// Returns what was reserved and not carried.
    pub(super) fn give_back(&mut self, node: &NodeId, unused: u64) {
        if let Some(volume) = self.nodes.get_mut(node) {
            volume.used = volume.used.saturating_sub(unused);
            if volume.used == 0 {
                self.nodes.remove(node);
            }
        }
        self.all.used = self.all.used.saturating_sub(unused);
    }

    pub(super) fn len(&self) -> usize {
        self.nodes.len()
    }
}

#[cfg(test)]
mod tests {
    use core::time::Duration;

    use super::*;

    #[test]
    fn circuits_of_a_node_carry_its_limit_together_and_a_day_restores_it() {
        let (mut volumes, node) = (Volumes::default(), NodeId::from_bytes([1; 32]));
        let now = Instant::ORIGIN + Duration::from_secs(100);
        let reserve = |volumes: &mut Volumes, now| volumes.reserve(&node, (800, 1000), 100, now);
        assert_eq!(reserve(&mut volumes, now), Some(400));
        assert_eq!(reserve(&mut volumes, now), Some(200));
        assert_eq!(reserve(&mut volumes, now), Some(100));
        assert_eq!(reserve(&mut volumes, now), None);
        volumes.give_back(&node, 400);
        assert_eq!(reserve(&mut volumes, now), Some(250));
        let tomorrow = now + Duration::from_secs(86_400);
        assert_eq!(reserve(&mut volumes, tomorrow), Some(400));
        // Others have what is left of the whole.
        let other = NodeId::from_bytes([2; 32]);
        assert_eq!(volumes.reserve(&other, (800, 1000), 100, tomorrow), Some(300));
    }

    #[test]
    fn node_without_volume_takes_no_memory_and_their_number_is_bounded() {
        let (mut volumes, limits) = (Volumes::default(), (1 << 40, 1 << 60));
        let now = Instant::ORIGIN;
        let id = |number: u32| {
            let mut bytes = [0; 32];
            bytes[..4].copy_from_slice(&number.to_be_bytes());
            NodeId::from_bytes(bytes)
        };
        for number in 0..5000 {
            if let Some(reserved) = volumes.reserve(&id(number), limits, 1, now) {
                volumes.give_back(&id(number), reserved);
            }
        }
        assert_eq!(volumes.len(), 0);
        let refused = (0..5000).filter(|n| volumes.reserve(&id(*n), limits, 1, now).is_none());
        assert_eq!(refused.count(), 5000 - NODES);
        assert_eq!(volumes.len(), NODES);
    }
}

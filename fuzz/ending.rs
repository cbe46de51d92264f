//! The end of the worlds of `datagrams` and `relay`: the network is good again, and both nodes
//! stop.

use std::time::Duration;

/// Calls and datagrams after which a node must be quiet, and steps after which it must have ended.
pub(crate) const MOST: usize = 20_000;

/// Two nodes, and the datagrams between them.
pub(crate) trait World {
    /// Asks a node to stop, and does everything that it can do now.
    fn stop(&mut self, node: usize);

    /// Delivers the first datagram. Returns whether there was one.
    fn deliver_first(&mut self) -> bool;

    /// Returns whether both nodes have ended.
    fn is_over(&self) -> bool;

    /// Advances to the next timeout, but at most this far.
    fn pass(&mut self, most: Duration);
}

/// Stops both nodes, which must end.
#[allow(clippy::panic, reason = "a broken invariant is a panic")]
pub(crate) fn end(mut world: impl World) {
    for node in 0..2 {
        world.stop(node);
    }
    for _ in 0..MOST {
        if !world.deliver_first() {
            if world.is_over() {
                return;
            }
            world.pass(Duration::from_secs(60));
        }
    }
    panic!("the nodes do not end");
}

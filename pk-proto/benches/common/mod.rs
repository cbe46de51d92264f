//! What the benchmarks of time and of instructions measure.

#![allow(missing_docs, reason = "not an interface")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a benchmark whose setup fails must not run")]
#![allow(dead_code, unreachable_pub, reason = "each benchmark uses a part")]

pub mod claims;
pub mod graphs;
pub mod messages;
pub mod node;

use pk_proto::{ContactMode, NodeAddress, NodeContactAddressData, NodeId, Scopes, UnixMillis};
use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};

/// Wall clock at the start.
pub const UNIX: UnixMillis = UnixMillis(1_767_225_600_000);

/// The data of every address.
pub const DATA: NodeContactAddressData = NodeContactAddressData {
    mode: ContactMode::Direct,
    connected_time: UNIX,
    scopes: Scopes::GLOBAL,
};

/// Random ids; the same ones for each seed.
pub fn ids(count: usize, seed: u8) -> Vec<NodeId> {
    let mut rng = ChaCha8Rng::from_seed([seed; 32]);
    let random = || {
        let mut bytes = [0; 32];
        rng.fill_bytes(&mut bytes);
        NodeId::from_bytes(bytes)
    };
    std::iter::repeat_with(random).take(count).collect()
}

/// One IPv4 address per number, each in a network of its own.
pub fn address(number: usize) -> NodeAddress {
    let host = 0x2000_0000 + u32::try_from(number).unwrap() * 257;
    NodeAddress::from_socket((std::net::Ipv4Addr::from(host), 4001).into())
}

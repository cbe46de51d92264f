//! Prints the table of docs/TRANSPORT.md: the scenarios of the packet level.
//!
//! `cargo run --release -p pk-sim --example packets`
#![allow(clippy::unwrap_used, clippy::panic, reason = "a scenario that cannot continue has failed")]
#![allow(missing_docs, unreachable_pub, reason = "shared with the tests")]

#[path = "../tests/packets/scenarios/mod.rs"]
mod scenarios;

fn main() {
    println!("| Scenario | Figure | Goal |\n|---|---|---|");
    for rows in [
        scenarios::migration::rows,
        scenarios::restart::rows,
        scenarios::network::rows,
        scenarios::mtu::rows,
        scenarios::streams::rows,
        scenarios::throughput::rows,
        scenarios::relay::rows,
        scenarios::memory::rows,
    ] {
        scenarios::print(&rows());
    }
}

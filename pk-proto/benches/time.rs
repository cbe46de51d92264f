//! Time of the operations of BENCHMARKS.md: `cargo bench -p pk-proto --bench time`, and a filter.

#![allow(missing_docs, reason = "not an interface")]
#![allow(clippy::unwrap_used, reason = "a benchmark whose setup fails must not run")]

mod common;

use divan::counter::ItemsCount;
use divan::{Bencher, black_box};

fn main() {
    divan::main();
}

/// Numbers of live connections: what grows with them is linear in them.
const CONNECTIONS: [usize; 3] = [100, 1_000, 5_000];

mod graph {
    use super::common::graphs::{self, Graphs};
    use super::{Bencher, ItemsCount};

    #[divan::bench]
    fn insert_accepted(bencher: Bencher) {
        let contacts = Graphs::new().contacts;
        let count = contacts.len();
        bencher
            .counter(ItemsCount::new(count))
            .with_inputs(|| (graphs::empty(), contacts.clone()))
            .bench_local_values(|(mut graph, contacts)| {
                graphs::set(&mut graph, contacts);
                graph
            });
    }

    #[divan::bench]
    fn insert_rejected(bencher: Bencher) {
        let Graphs { mut full, rejected, .. } = Graphs::new();
        bencher
            .counter(ItemsCount::new(rejected.len()))
            .with_inputs(|| rejected.clone())
            .bench_local_values(|rejected| graphs::set(&mut full, rejected));
    }

    #[divan::bench]
    fn update(bencher: Bencher) {
        let Graphs { mut full, contacts, .. } = Graphs::new();
        bencher
            .counter(ItemsCount::new(contacts.len()))
            .with_inputs(|| contacts.clone())
            .bench_local_values(|contacts| graphs::set(&mut full, contacts));
    }

    #[divan::bench]
    fn closest_20_of_random_targets(bencher: Bencher) {
        let Graphs { full, targets, .. } = Graphs::new();
        bencher
            .counter(ItemsCount::new(targets.len()))
            .bench_local(|| graphs::closest(&full, &targets));
    }

    #[divan::bench]
    fn closest_20_near_self(bencher: Bencher) {
        let Graphs { full, near, .. } = Graphs::new();
        bencher.counter(ItemsCount::new(near.len())).bench_local(|| graphs::closest(&full, &near));
    }
}

mod codec {
    use pk_proto::native;

    use super::common::messages::closest_response;
    use super::{Bencher, black_box};

    #[divan::bench(args = [false, true])]
    fn encode_closest(bencher: Bencher, connected: bool) {
        let message = closest_response(connected);
        bencher.bench_local(|| native::encode(black_box(&message)));
    }

    #[divan::bench(args = [false, true])]
    fn decode_closest(bencher: Bencher, connected: bool) {
        let frame = native::encode(&closest_response(connected)).unwrap();
        bencher.bench_local(|| native::decode(black_box(&frame[4..])));
    }
}

mod node {
    use super::common::node::Fed;
    use super::{Bencher, CONNECTIONS};

    #[divan::bench(args = CONNECTIONS)]
    fn serve_ping(bencher: Bencher, connections: usize) {
        let mut fed = Fed::new(connections);
        bencher.bench_local(|| fed.serve_ping());
    }

    #[divan::bench(args = CONNECTIONS)]
    fn serve_closest_contacts(bencher: Bencher, connections: usize) {
        let mut fed = Fed::new(connections);
        bencher.bench_local(|| fed.serve_closest(false));
    }

    #[divan::bench(args = CONNECTIONS)]
    fn serve_closest_both_lists(bencher: Bencher, connections: usize) {
        let mut fed = Fed::new(connections);
        bencher.bench_local(|| fed.serve_closest(true));
    }

    #[divan::bench(args = CONNECTIONS)]
    fn ping(bencher: Bencher, connections: usize) {
        let mut fed = Fed::new(connections);
        bencher.bench_local(|| fed.ping());
    }

    #[divan::bench(args = CONNECTIONS)]
    fn find_connected(bencher: Bencher, connections: usize) {
        let mut fed = Fed::new(connections);
        bencher.bench_local(|| fed.find_connected());
    }

    #[divan::bench(args = CONNECTIONS)]
    fn accept(bencher: Bencher, connections: usize) {
        let mut fed = Fed::new(connections);
        bencher.bench_local(|| fed.accept());
    }

    #[divan::bench(args = CONNECTIONS)]
    fn hand_over_and_close(bencher: Bencher, connections: usize) {
        let mut fed = Fed::new(connections);
        bencher.bench_local(|| fed.hand_over());
    }

    #[divan::bench(args = CONNECTIONS)]
    fn idle_poll(bencher: Bencher, connections: usize) {
        let mut fed = Fed::new(connections);
        bencher.bench_local(|| fed.idle());
    }

    #[divan::bench(args = CONNECTIONS)]
    fn metrics(bencher: Bencher, connections: usize) {
        let fed = Fed::new(connections);
        bencher.bench_local(|| fed.metrics());
    }
}

mod claims {
    use super::common::claims::Chain;
    use super::{Bencher, ItemsCount};

    const CLAIMS: u64 = 200;

    #[divan::bench]
    fn verify_in_chain(bencher: Bencher) {
        let chain = Chain::new(CLAIMS);
        bencher.counter(ItemsCount::new(CLAIMS)).bench_local(|| chain.verify());
    }

    #[divan::bench]
    fn two_bare_checks(bencher: Bencher) {
        let chain = Chain::new(CLAIMS);
        bencher.counter(ItemsCount::new(CLAIMS)).bench_local(|| chain.verify_bare());
    }
}

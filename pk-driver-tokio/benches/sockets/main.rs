//! CPU of two nodes over loopback beside bare quinn doing the same work, in one run, and the memory
//! and CPU of idle connections: `cargo bench -p pk-driver-tokio --bench sockets`. With the argument
//! `cpu` or `idle`, only one of both; with a further argument, such as `cpu closest`, only the rows
//! whose name contains it. With the argument `relay`, only what a relay costs and carries.
//!
//! Each row alternates between both in rounds; the figures are medians of the CPU of the whole
//! process, which contains both ends. Bare quinn uses the same certificates, windows and runtime.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a program that measures"
)]

mod idle;
mod node;
mod process;
mod quic;
mod relay;

use node::Nodes;
use process::cpu;
use quic::Quic;

const ROUNDS: usize = 7;
/// Length of an encoded answer with 20 contacts and 20 connected nodes.
const CLOSEST: usize = 3500;
const MIB: usize = 1024 * 1024;

/// Median CPU of an operation, in microseconds.
struct Cpu(f64);

/// Runs the work of both sides in turns, and prints the median CPU of one operation of each.
macro_rules! row {
    ($only:expr, $name:expr, $goal:expr, $count:expr, $ours:expr, $bare:expr) => {
        if $name.contains($only) {
            let (mut ours, mut bare) = (Vec::new(), Vec::new());
            for round in 0..=ROUNDS {
                for (side, times) in [(0, &mut ours), (1, &mut bare)] {
                    let before = cpu();
                    if side == 0 {
                        $ours.await
                    } else {
                        $bare.await
                    };
                    // The first round warms up.
                    if round > 0 {
                        times.push((cpu() - before).as_secs_f64() * 1e6 / $count as f64);
                    }
                }
            }
            print_row($name, $goal, &median(ours), &median(bare));
        }
    };
}

fn median(mut values: Vec<f64>) -> Cpu {
    values.sort_by(f64::total_cmp);
    Cpu(values[values.len() / 2])
}

fn print_row(name: &str, goal: &str, ours: &Cpu, bare: &Cpu) {
    println!("| {name} | {:.1} | {:.1} | **{:.2}x** | {goal} |", ours.0, bare.0, ours.0 / bare.0);
}

async fn rows(only: &str) {
    let nodes = Nodes::start().await;
    let quic = Quic::start().await;
    println!("| CPU of both ends, us | nodes | bare quinn | ratio | goal |\n|---|---|---|---|---|");
    let name = "ping, one at a time";
    row!(only, name, "<= 1.2x", 2000, nodes.pings(2000), quic.echoes(2000, 32));
    let name = "ping, 32 at once";
    row!(only, name, "<= 1.2x", 6400, nodes.parallel(32, 200), quic.parallel(32, 200));
    let name = "ask for the closest, 20 contacts";
    row!(only, name, "<= 1.3x", 1000, nodes.closest(1000), quic.echoes(1000, CLOSEST));
    let name = "connect and ping";
    row!(only, name, "<= 1.1x", 100, nodes.connects(100), quic.connects(100));
    let name = "one stream of 1 GiB, per MiB";
    row!(only, name, "<= 1.2x", 1024, nodes.bulk(1024 * MIB), quic.bulk(1024 * MIB));
    nodes.stop().await;
}

fn main() {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let Some((kind, rest)) = arguments.split_first()
        && kind == "peers"
    {
        return runtime.block_on(idle::peers(rest));
    }
    if arguments.first().is_some_and(|kind| kind == "relay-process") {
        return runtime.block_on(relay::process());
    }
    let only = |part| arguments.first().is_some_and(|first| first == part);
    if only("relay") {
        return runtime.block_on(relay::measure());
    }
    if !only("idle") {
        runtime.block_on(rows(arguments.get(1).map_or("", |row| row)));
    }
    if only("cpu") {
        return;
    }
    println!(
        "\n| idle connections | nodes: KiB each | bare quinn: KiB each | nodes: CPU ms a minute |\n|---|---|---|---|"
    );
    for count in [1, 500, 2000] {
        // Processes of their own, so that no row uses memory that another one has freed.
        let ours = idle::measure("nodes", count);
        let bare = idle::measure("quinn", count);
        println!("| {count} | {:.1} | {:.1} | {:.0} |", ours.kib, bare.kib, ours.cpu_per_minute);
    }
}

//! Instructions of the operations of BENCHMARKS.md, which are the same on a busy machine:
//! `cargo bench -p pk-proto --bench instructions` prints a row and its count per line, and fails
//! without valgrind. `.ci/instructions` compares them with the recorded ones.
//!
//! The program runs itself under callgrind, which writes the instructions since the last boundary
//! at each boundary. Every row has one before and one behind its work. With the argument `planted`
//! each operation of a node is repeated more often than its row says.

#![allow(missing_docs, reason = "a program that measures")]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "a program that measures"
)]

mod common;

use std::fs;
use std::hint::black_box;
use std::process::Command;

use common::claims::Chain;
use common::graphs::{self, Graphs};
use common::messages::closest_response;
use common::node::Fed;
use pk_proto::native;

/// The argument of the process that callgrind observes.
const OBSERVED: &str = "observed";
/// The argument for operations that cost a tenth more.
const PLANTED: &str = "planted";
/// An operation of a node, with its name.
type Operation = (&'static str, fn(&mut Fed));

/// Repetitions of an operation of a node.
const TIMES: usize = 20;

fn main() {
    let has = |wanted: &str| std::env::args().any(|argument| argument == wanted);
    let times = if has(PLANTED) { TIMES + TIMES / 10 } else { TIMES };
    if has(OBSERVED) {
        return rows(times, &mut |name, work| {
            println!("{name}");
            row_boundary();
            work();
            row_boundary();
        });
    }
    let directory = std::env::temp_dir().join(format!("pk-instructions-{}", std::process::id()));
    fs::create_dir_all(&directory).unwrap();
    let out = directory.join("out");
    let observed = Command::new("valgrind")
        .args(["--tool=callgrind", "--dump-before=*row_boundary*"])
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(std::env::current_exe().unwrap())
        .args([OBSERVED].into_iter().chain(has(PLANTED).then_some(PLANTED)))
        .output()
        .unwrap_or_else(|error| panic!("NOT RUN: valgrind cannot be started: {error}"));
    let messages = String::from_utf8_lossy(&observed.stderr).into_owned();
    assert!(observed.status.success(), "{messages}");
    // The even files contain the work, the odd ones what was prepared for it.
    let names = String::from_utf8(observed.stdout).unwrap();
    for (row, name) in names.lines().enumerate() {
        let profile = fs::read_to_string(out.with_extension((2 * row + 2).to_string())).unwrap();
        let total = profile.lines().find_map(|line| line.strip_prefix("totals: "));
        println!("{name} {}", total.unwrap_or_else(|| panic!("no total of {name}: {messages}")));
    }
    fs::remove_dir_all(&directory).unwrap();
}

/// Callgrind writes a file when it is called.
#[inline(never)]
fn row_boundary() {
    black_box(());
}

/// Prepares each row, and passes it with its work to `row`. Operations of a node are repeated.
fn rows(times: usize, row: &mut dyn FnMut(&str, &mut dyn FnMut())) {
    let Graphs { mut full, contacts, rejected, targets, near } = Graphs::new();
    let mut graph = graphs::empty();
    let mut added = contacts.clone();
    row("graph_set/accepted", &mut || graphs::set(&mut graph, std::mem::take(&mut added)));
    let (mut known, mut others) = (contacts, rejected);
    row("graph_set/known", &mut || graphs::set(&mut full, std::mem::take(&mut known)));
    row("graph_set/rejected", &mut || graphs::set(&mut full, std::mem::take(&mut others)));
    row("graph_closest/random", &mut || graphs::closest(&full, &targets));
    row("graph_closest/near_self", &mut || graphs::closest(&full, &near));

    for (lists, connected) in [("contacts", false), ("both_lists", true)] {
        let message = closest_response(connected);
        let mut frame = None;
        row(&format!("encode_closest/{lists}"), &mut || frame = native::encode(&message).ok());
        let frame = frame.unwrap();
        let mut decoded = None;
        row(&format!("decode_closest/{lists}"), &mut || decoded = native::decode(&frame[4..]).ok());
        assert_eq!(decoded, Some(message));
    }

    let operations: [Operation; 9] = [
        ("serve_ping", Fed::serve_ping),
        ("serve_closest_contacts", |fed| fed.serve_closest(false)),
        ("serve_closest_both_lists", |fed| fed.serve_closest(true)),
        ("ping", Fed::ping),
        ("find_connected", Fed::find_connected),
        ("accept", Fed::accept),
        ("hand_over_and_close", Fed::hand_over),
        ("idle_poll", Fed::idle),
        ("metrics", |fed| fed.metrics()),
    ];
    for connections in [100, 5_000] {
        let mut fed = Fed::new(connections);
        for (name, operation) in operations {
            let name = format!("{name}/of_{connections}");
            row(&name, &mut || (0..times).for_each(|_| operation(&mut fed)));
        }
    }

    for count in [10, 1_000] {
        let mut fed = Fed::new(20);
        row(&format!("searches_at_once/{count}"), &mut || fed.searches(count));
    }

    let chain = Chain::new(20);
    row("claims/in_chain", &mut || chain.verify());
    row("claims/two_checks", &mut || chain.verify_bare());
}

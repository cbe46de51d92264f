//! What a process has after its nodes have shut down is what it had before.

use pk_tests::Rt;
use pk_tests::child::{Child, number};

use crate::NODE;

pk_tests::cases!(a_node_leaves_nothing_behind);

/// In its own process, where nothing else opens anything.
async fn a_node_leaves_nothing_behind<R: Rt>(runtime: R) {
    let dir = tempfile::tempdir().unwrap();
    let child = Child::start::<R>(NODE, &["leaks", dir.path().to_str().unwrap()]);
    let seen = child.line(&runtime, "the life of four nodes").await;
    println!("{}: {seen}", R::NAME);
    let list =
        |path: &str| seen.pointer(path).unwrap_or_else(|| panic!("no {path} in {seen}")).clone();
    let before = list("/before/descriptors");
    assert_eq!(list("/after/descriptors"), before);
    assert_eq!(list("/after/threads"), list("/before/threads"));
    for gauge in ["tasks", "driver_tasks", "timers", "sockets"] {
        assert_eq!(number(&seen, &format!("/after/{gauge}")), 0, "{gauge}");
    }
    // There was something to be left: four sockets, a watch of addresses, a store, a recording and
    // mDNS's at least, and for each node its pump.
    let before = before.as_array().map_or(0, Vec::len) as u64;
    assert!(number(&seen, "/busy/descriptors") >= before + 8);
    assert!(number(&seen, "/busy/tasks") >= 4);
    match R::NAME {
        // What the runtime itself counts.
        "tokio" => assert_eq!(number(&seen, "/after/runtime_tasks"), 0),
        // No task of the driver has ever seen tokio, and there is none of its threads.
        _ => {
            assert_eq!(list("/after/saw_tokio"), false);
            let threads = list("/after/threads").to_string();
            assert!(!threads.contains("tokio"), "{threads}");
        }
    }
}

//! A process has the same resources after its nodes have shut down as before.

use pk_tests::Rt;
use pk_tests::child::{Child, number};

use crate::NODE;

pk_tests::cases!(stopped_node_releases_all_resources);

/// In a separate process, in which no other test opens resources.
async fn stopped_node_releases_all_resources<R: Rt>(runtime: R) {
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
    // Resources that could have been left: four sockets, a watch of addresses, a store, a recording
    // and mDNS's at least, and for each node its pump.
    let before = before.as_array().map_or(0, Vec::len) as u64;
    assert!(number(&seen, "/busy/descriptors") >= before + 8);
    assert!(number(&seen, "/busy/tasks") >= 4);
    match R::NAME {
        // The counters of the runtime.
        "tokio" => assert_eq!(number(&seen, "/after/runtime_tasks"), 0),
        // No task of the driver ran in a tokio context, and no thread of tokio exists.
        _ => {
            assert_eq!(list("/after/saw_tokio"), false);
            let threads = list("/after/threads").to_string();
            assert!(!threads.contains("tokio"), "{threads}");
        }
    }
}

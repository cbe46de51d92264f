//! Both drivers in one process.

use pk_proto::{FindNodeOptions, RequestOptions};
use pk_tests::node::{echo, exchange, join, seed, shutdown, start};
use pk_tests::wait::soon;
use pk_tests::{Rt, Smol, Tokio};

#[test]
fn nodes_on_tokio_and_on_smol_find_each_other() {
    pk_tests::case::run("nodes_on_both_runtimes_find_each_other", |tokio: Tokio| async move {
        let on_tokio = start(&tokio, 1).await;
        let on_smol = start(&Smol, 2).await;
        let third = start(&Smol, 3).await;
        echo(&tokio, &on_tokio, "echo/1").await;
        echo(&Smol, &on_smol, "echo/1").await;
        join(&Smol, &on_smol, seed(&on_tokio)).await;
        join(&Smol, &third, seed(&on_tokio)).await;
        let found =
            soon(&Smol, "find", third.find_node(on_tokio.own_id(), FindNodeOptions::default()))
                .await
                .unwrap();
        assert!(found.found.is_some(), "{found:?}");
        let found =
            soon(&tokio, "find", on_tokio.find_node(on_smol.own_id(), FindNodeOptions::default()))
                .await
                .unwrap();
        assert!(found.found.is_some(), "{found:?}");
        soon(&tokio, "ping", on_tokio.ping_node(third.own_id(), RequestOptions::default()))
            .await
            .unwrap();
        exchange(&tokio, &on_tokio, on_smol.own_id(), "echo/1", 100_000).await;
        exchange(&Smol, &on_smol, on_tokio.own_id(), "echo/1", 100_000).await;
        shutdown(&tokio, &[&on_tokio]).await;
        shutdown(&Smol, &[&on_smol, &third]).await;
    });
}

/// Code of embedders on smol is not in the context of a tokio runtime either. What the driver's own
/// tasks see, and the threads of a process, is in `leaks`.
#[test]
fn smol_tasks_have_no_tokio_context() {
    Smol::block_on(async {
        assert!(tokio::runtime::Handle::try_current().is_err());
        let node = start(&Smol, 1).await;
        let seen = smol::spawn(async { tokio::runtime::Handle::try_current().is_ok() }).await;
        assert!(!seen);
        shutdown(&Smol, &[&node]).await;
    });
}

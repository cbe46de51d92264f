//! A node renews its key, or the certificate of the same key.

use std::time::{Duration, Instant};

use pk_driver::{
    Access, Fault, Faults, FaultyStore, KeyStore, NodeConfig, NodeError, create_identity_for,
    unix_now,
};
use pk_proto::cert::{Certificate, MAX_CHAIN_LEN};
use pk_proto::{Event, Failure, FindEnd, FindNodeOptions, RequestOptions};
use pk_tests::Rt;
use pk_tests::case::slot;
use pk_tests::node::{
    config, connect, connections_with, echo, join, key, seed, shutdown, start, start_with,
};
use pk_tests::wait::{seen_within, sleep, soon, spawn, until};
use smol::future::zip;

use crate::kit::{Kept, key_files, open, owner, present_key};

pk_tests::cases!(
    renewed_node_is_found_under_both_ids_and_stays_renewed,
    node_without_a_directory_renews_its_key_in_memory,
    simultaneous_renewals_run_in_sequence,
    failed_renewal_keeps_only_the_old_key,
    renewal_fails_if_the_key_cannot_be_written,
    certificate_is_renewed_before_it_expires,
    key_can_be_renewed_many_times,
);

pk_tests::cases!(unslotted streams_of_the_old_key_finish_after_a_renewal);

async fn renewed_node_is_found_under_both_ids_and_stays_renewed<R: Rt>(runtime: R) {
    let dir = tempfile::tempdir().unwrap();
    let a = open(&runtime, dir.path()).await;
    let (b, c) = (start(&runtime, 2).await, start(&runtime, 3).await);
    join(&runtime, &a, seed(&b)).await;
    join(&runtime, &c, seed(&b)).await;
    let mut events = a.events();
    let old = a.own_id();
    let begun = Instant::now();
    let renewed = soon(&runtime, "renewal", a.renew()).await.unwrap();
    println!("{}: renewed in {:?}", R::NAME, begun.elapsed());
    assert_eq!((renewed.old, a.own_id()), (old, renewed.new));
    assert_ne!(renewed.new, old);
    let told = async {
        loop {
            match events.next().await {
                Some(pk_driver::EventOrLag::Event(Event::IdentityRenewed { old, new })) => {
                    return (old, new);
                }
                Some(_) => {}
                None => panic!("the node ended"),
            }
        }
    };
    assert_eq!(soon(&runtime, "event", told).await, (old, renewed.new));
    // The key is in its place when the renewal has returned.
    assert_eq!(present_key(dir.path()), renewed.new);
    assert_eq!(key_files(dir.path()), ["node.crt", "node.key", &format!("{old}.key")]);
    // A node with a contact for the old id has one for the new id.
    for id in [old, renewed.new] {
        let found =
            soon(&runtime, "find", c.find_node(id, FindNodeOptions::default())).await.unwrap();
        assert_eq!(found.ended, FindEnd::Connected, "{id}: {found:?}");
        soon(&runtime, "ping", b.ping_node(id, RequestOptions::default())).await.unwrap();
    }
    let fresh = start(&runtime, 4).await;
    connect(&runtime, &fresh, &b).await;
    let found =
        soon(&runtime, "find", fresh.find_node(old, FindNodeOptions::default())).await.unwrap();
    assert_eq!(found.ended, FindEnd::Connected, "a stranger finds the old id: {found:?}");
    shutdown(&runtime, &[&a]).await;
    assert_eq!(owner(dir.path()), Some(renewed.new));

    let a = open(&runtime, dir.path()).await;
    assert_eq!(a.own_id(), renewed.new);
    let found =
        soon(&runtime, "find", a.find_node(c.own_id(), FindNodeOptions::default())).await.unwrap();
    assert_eq!(found.ended, FindEnd::Connected);
    // Once more, with a key of the embedder.
    let again = soon(&runtime, "renewal", a.renew_to(key(77))).await.unwrap();
    assert_eq!((again.old, again.new), (renewed.new, key(77).node_id()));
    for id in [old, renewed.new, again.new] {
        soon(&runtime, "ping", c.ping_node(id, RequestOptions::default())).await.unwrap();
    }
    shutdown(&runtime, &[&a, &b, &c, &fresh]).await;
}

async fn node_without_a_directory_renews_its_key_in_memory<R: Rt>(runtime: R) {
    let (a, b) = (start(&runtime, 1).await, start(&runtime, 2).await);
    connect(&runtime, &b, &a).await;
    let renewed = soon(&runtime, "renewal", a.renew()).await.unwrap();
    assert_eq!(a.own_id(), renewed.new);
    soon(&runtime, "ping", b.ping_node(renewed.old, RequestOptions::default())).await.unwrap();
    let refused = soon(&runtime, "renewal", a.renew_to(key(1))).await.unwrap_err();
    assert!(matches!(refused, NodeError::Request(_)), "an old key is no new one: {refused}");
    shutdown(&runtime, &[&a, &b]).await;
    let closed = soon(&runtime, "renewal", a.renew()).await.unwrap_err();
    assert!(matches!(closed, NodeError::Closed), "{closed}");
}

async fn streams_of_the_old_key_finish_after_a_renewal<R: Rt>(runtime: R) {
    let work = slot();
    let (a, b) = (start(&runtime, 1).await, start(&runtime, 2).await);
    echo(&runtime, &a, "echo/1").await;
    let before = connect(&runtime, &b, &a).await;
    let mut stream =
        soon(&runtime, "open", b.open_stream(a.own_id(), "echo/1", RequestOptions::default()))
            .await
            .unwrap();
    let mut say = async |text: &[u8]| {
        stream.write_all(text).await.unwrap();
        let mut heard = vec![0; text.len()];
        let mut at = 0;
        while at < heard.len() {
            at += soon(&runtime, "the echo", stream.read(&mut heard[at..])).await.unwrap();
        }
        assert_eq!(heard, text);
    };
    say(b"before").await;
    let renewed = soon(&runtime, "renewal", a.renew()).await.unwrap();
    say(b"after").await;
    // New streams use a connection that the new key has proven.
    soon(&runtime, "ping", a.ping_node(b.own_id(), RequestOptions::default())).await.unwrap();
    let of_new = async || connections_with(&b, renewed.new).await;
    until(&runtime, "a connection of the new key", async || !of_new().await.is_empty()).await;
    assert!(of_new().await.iter().all(|connection| connection.conn != before.conn));
    for id in [renewed.old, renewed.new] {
        soon(&runtime, "ping", b.ping_node(id, RequestOptions::default())).await.unwrap();
    }
    say(b"long after").await;
    stream.finish().unwrap();
    assert_eq!(soon(&runtime, "the end", stream.read_to_end(10)).await.unwrap(), b"");
    drop(work);
    let limit = Duration::from_secs(40);
    seen_within(&runtime, limit, "the end of the old connection, within 30 s", async || {
        b.connections()
            .await
            .unwrap()
            .iter()
            .all(|connection| connection.conn != before.conn)
            .then_some(())
    })
    .await;
    let _work = slot();
    // Moved, not doubled.
    let known = b.closest_nodes(renewed.new, 20).await.unwrap();
    assert_eq!(known.iter().map(|(node, _)| *node).collect::<Vec<_>>(), [renewed.new]);
    shutdown(&runtime, &[&a, &b]).await;
}

async fn simultaneous_renewals_run_in_sequence<R: Rt>(runtime: R) {
    let dir = tempfile::tempdir().unwrap();
    let a = open(&runtime, dir.path()).await;
    let first = a.own_id();
    let both = zip(a.renew_to(key(71)), a.renew_to(key(72)));
    let (one, other) = soon(&runtime, "renewals", both).await;
    let (one, other) = (one.unwrap(), other.unwrap());
    let (earlier, later) = if one.old == first { (one, other) } else { (other, one) };
    assert_eq!((earlier.old, earlier.new), (first, later.old));
    assert_eq!(a.own_id(), later.new);
    assert_eq!(present_key(dir.path()), later.new);
    // A renewal whose future is dropped ends as well; the shutdown waits for it.
    let gone = spawn(&runtime, {
        let a = a.clone();
        async move {
            smol::future::or(async { drop(a.renew_to(key(73)).await) }, smol::future::yield_now())
                .await;
        }
    });
    gone.join(&runtime, "going away").await;
    until(&runtime, "a renewal that is not waited for", async || a.own_id() == key(73).node_id())
        .await;
    shutdown(&runtime, &[&a]).await;
    assert_eq!(
        (present_key(dir.path()), owner(dir.path())),
        (key(73).node_id(), Some(key(73).node_id()))
    );
}

async fn failed_renewal_keeps_only_the_old_key<R: Rt>(runtime: R) {
    let dir = tempfile::tempdir().unwrap();
    let faults = Faults::new();
    let store = FaultyStore::new(Kept::default(), faults.clone());
    let mut config = NodeConfig::with_store(KeyStore::new(dir.path()), store).unwrap();
    config.listen = pk_tests::socket::loopback();
    config.core.store_delay = Duration::from_millis(50);
    let a =
        soon(&runtime, "start", pk_driver::Node::start_on(runtime.clone(), config)).await.unwrap();
    let b = start(&runtime, 2).await;
    connect(&runtime, &b, &a).await;
    soon(&runtime, "flush", a.flush()).await.unwrap();
    let old = a.own_id();
    // The disk is full.
    faults.next(Access::Write, Fault::Fail);
    let error = soon(&runtime, "renewal", a.renew()).await.unwrap_err();
    assert!(matches!(error, NodeError::Failure(Failure::Store(_))), "{error}");
    assert_eq!((a.own_id(), present_key(dir.path())), (old, old));
    soon(&runtime, "ping", b.ping_node(old, RequestOptions::default())).await.unwrap();
    soon(&runtime, "flush", a.flush()).await.unwrap();
    assert_eq!(key_files(dir.path()), ["node.crt", "node.key"]);
    // The write succeeds but reports a failure: its outcome is determined.
    faults.next(Access::Write, Fault::DoneButFails);
    let renewed = soon(&runtime, "renewal", a.renew()).await.unwrap();
    assert_eq!((renewed.old, a.own_id(), present_key(dir.path())), (old, renewed.new, renewed.new));
    soon(&runtime, "ping", b.ping_node(renewed.new, RequestOptions::default())).await.unwrap();
    let renewed = soon(&runtime, "renewal", a.renew()).await.unwrap();
    assert_eq!(present_key(dir.path()), renewed.new);
    shutdown(&runtime, &[&a, &b]).await;
}

async fn renewal_fails_if_the_key_cannot_be_written<R: Rt>(runtime: R) {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (open(&runtime, dir.path()).await, start(&runtime, 2).await);
    connect(&runtime, &b, &a).await;
    let old = a.own_id();
    // A file replaces its directory.
    let (keys, away) = (dir.path().join("keys"), dir.path().join("away"));
    std::fs::rename(&keys, &away).unwrap();
    std::fs::write(&keys, b"").unwrap();
    let error = soon(&runtime, "renewal", a.renew()).await.unwrap_err();
    assert!(matches!(error, NodeError::Keys(_)), "{error}");
    assert_eq!(a.own_id(), old);
    soon(&runtime, "ping", b.ping_node(old, RequestOptions::default())).await.unwrap();
    std::fs::remove_file(&keys).unwrap();
    std::fs::rename(&away, &keys).unwrap();
    assert_eq!(key_files(dir.path()), ["node.crt", "node.key"]);
    let renewed = soon(&runtime, "renewal", a.renew()).await.unwrap();
    assert_eq!((renewed.old, present_key(dir.path())), (old, renewed.new));
    shutdown(&runtime, &[&a, &b]).await;
}

async fn certificate_is_renewed_before_it_expires<R: Rt>(runtime: R) {
    let dir = tempfile::tempdir().unwrap();
    let lifetime = Duration::from_secs(6);
    let keys = KeyStore::new(dir.path());
    keys.save_key(&key(1)).unwrap();
    let first = create_identity_for(&key(1), unix_now(), lifetime).unwrap();
    keys.save_identity(&first).unwrap();
    let expires = Certificate::parse(&first.chain[0]).unwrap().not_after();
    let a = start_with(&runtime, 1, |config| {
        config.identity = first.clone();
        config.keys = Some(keys.clone());
        config.driver.certificate_lifetime = lifetime;
    })
    .await;
    let b = start(&runtime, 2).await;
    let before = connect(&runtime, &b, &a).await;
    while unix_now().as_secs() <= expires + 1 {
        sleep(&runtime, Duration::from_millis(100)).await;
    }
    // The connection is the same; a new peer receives a valid certificate.
    let connections = connections_with(&b, a.own_id()).await;
    assert_eq!(connections.first().map(|connection| connection.conn), Some(before.conn));
    let late = start(&runtime, 3).await;
    connect(&runtime, &late, &a).await;
    let (_, identity) = keys.load_or_create(unix_now()).unwrap();
    assert_eq!(identity.chain.len(), 1);
    assert!(Certificate::parse(&identity.chain[0]).unwrap().not_after() > expires);
    assert_eq!(a.own_id(), config(1).key.node_id());
    shutdown(&runtime, &[&a, &b, &late]).await;
}

async fn key_can_be_renewed_many_times<R: Rt>(runtime: R) {
    const RENEWALS: usize = 40;
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (open(&runtime, dir.path()).await, start(&runtime, 2).await);
    let mut ids = vec![a.own_id()];
    let mut dropped = Vec::new();
    for _ in 0..RENEWALS {
        let renewed = soon(&runtime, "renewal", a.renew()).await.unwrap();
        ids.push(renewed.new);
        dropped.extend(renewed.dropped);
    }
    let lost = ids.len() - MAX_CHAIN_LEN;
    assert_eq!(dropped, ids[..lost], "the oldest leave, each with its renewal");
    shutdown(&runtime, &[&a]).await;

    // Peers accept the certificates in the files.
    let a = open(&runtime, dir.path()).await;
    assert_eq!(a.own_id(), ids[RENEWALS]);
    for id in [ids[RENEWALS], ids[lost]] {
        let address = seed(&a).address;
        soon(&runtime, "connect", b.connect(id, address, RequestOptions::default())).await.unwrap();
        assert_eq!(soon(&runtime, "disconnect", b.disconnect(id)).await.unwrap(), 1);
        until(&runtime, "closed", async || connections_with(&b, a.own_id()).await.is_empty()).await;
    }
    let address = seed(&a).address;
    let refused =
        soon(&runtime, "connect", b.connect(ids[lost - 1], address, RequestOptions::default()))
            .await
            .unwrap_err();
    assert!(matches!(refused, NodeError::Failure(Failure::Dial(_))), "{refused}");
    soon(&runtime, "connect", a.connect(b.own_id(), seed(&b).address, RequestOptions::default()))
        .await
        .unwrap();
    shutdown(&runtime, &[&a, &b]).await;
}

//! Errors of embedders: each is a typed error, and all resources are released.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use pk_driver::{
    DriverConfigError, IdentityError, KeyStore, KeyStoreError, Node, NodeConfig, NodeError,
    SettingsError, StartError, unix_now,
};
use pk_proto::cert::{Certificate, CertificateFault};
use pk_proto::{
    ConfigError, FindNodeOptions, Identity, NodeAddress, NodeId, RequestError, RequestOptions,
    SeedNode,
};
use pk_tests::Rt;
use pk_tests::certs::Presented;
use pk_tests::node::{address, config, find, key, shutdown, socket, start};
use pk_tests::wait::{soon, until};
use pk_tests::watched::Watched;

pk_tests::cases!(
    failed_start_is_a_typed_error_and_releases_its_resources,
    invalid_request_is_a_typed_error,
    key_store_starts_a_node_and_reports_its_defects,
);

async fn failed_start_is_a_typed_error_and_releases_its_resources<R: Rt>(runtime: R) {
    let other = start(&runtime, 2).await;
    let taken = socket(&other);
    let watched = Watched::new(runtime.clone());
    let fails = async |what: &str, change: &dyn Fn(&mut NodeConfig)| {
        let mut config = config(1);
        change(&mut config);
        let error = match soon(&runtime, what, Node::start_on(watched.clone(), config)).await {
            Err(NodeError::Start(error)) => error,
            Err(error) => panic!("{what}: {error:?}"),
            Ok(_) => panic!("{what}: the node has started"),
        };
        until(&runtime, "the end of what was started", async || watched.seen().tasks == 0).await;
        let seen = watched.seen();
        assert_eq!((seen.sockets, seen.timers), (0, 0), "{what} leaves something: {seen:?}");
        println!("{what}: {error}");
        error
    };

    let error = fails("an address in use", &|config| config.listen = taken).await;
    assert!(
        matches!(&error, StartError::Bind { addr, source } if *addr == taken && source.kind() == io::ErrorKind::AddrInUse)
    );
    assert!(error.to_string().contains(&taken.to_string()), "{error}");
    // RFC 5737: a documentation address, which no machine has.
    let foreign: SocketAddr = "192.0.2.1:0".parse().unwrap();
    let error = fails("an address of another machine", &|config| config.listen = foreign).await;
    assert!(
        matches!(&error, StartError::Bind { source, .. } if source.kind() == io::ErrorKind::AddrNotAvailable)
    );
    let error = fails("a driver setting out of range", &|config| {
        config.driver.transport.keep_alive = Duration::ZERO;
    })
    .await;
    assert!(matches!(
        error,
        StartError::Driver(DriverConfigError::Transport(SettingsError::Time {
            name: "keep_alive",
            ..
        }))
    ));
    let error = fails("a core setting out of range", &|config| config.core.bucket_limit = 0).await;
    assert!(matches!(
        error,
        StartError::Core(pk_proto::StartError::Config(ConfigError::Count {
            name: "bucket_limit",
            ..
        }))
    ));
    let error = fails("a certificate of another key", &|config| config.key = key(3)).await;
    assert!(matches!(error, StartError::ForeignKey { .. }));
    let error = fails("no certificate", &|config| config.identity.chain.clear()).await;
    assert!(matches!(error, StartError::Identity(IdentityError::Empty)));
    let garbage =
        |config: &mut NodeConfig| config.identity = identity(&Presented::garbage(&key(1)));
    let error = fails("a certificate that is none", &garbage).await;
    assert!(matches!(
        error,
        StartError::Identity(IdentityError::Certificate(CertificateFault::Malformed))
    ));
    let named = |config: &mut NodeConfig| {
        config.identity = identity(&Presented::naming(&key(1), key(3).node_id()));
    };
    let error = fails("a certificate with another name", &named).await;
    assert!(matches!(
        error,
        StartError::Identity(IdentityError::Certificate(CertificateFault::ForeignName { .. }))
    ));
    // A certificate that is not valid now is reissued: the clock may have been wrong, and the key
    // is here.
    let mut expired = config(1);
    expired.identity = identity(&Presented::expired(&key(1)));
    let node = soon(&runtime, "start", Node::start_on(watched.clone(), expired)).await.unwrap();
    let newest = Certificate::parse(&node.identity().chain[0]).unwrap();
    assert!(newest.not_after() > pk_driver::unix_now().as_secs());
    soon(&runtime, "shutdown", node.shutdown()).await;
    // And with valid files.
    let node = soon(&runtime, "start", Node::start_on(watched.clone(), config(1))).await.unwrap();
    soon(&runtime, "shutdown", node.shutdown()).await;
    shutdown(&runtime, &[&other]).await;
}

fn identity(presented: &Presented) -> Identity {
    Identity { chain: presented.chain.iter().cloned().map(Into::into).collect() }
}

async fn invalid_request_is_a_typed_error<R: Rt>(runtime: R) {
    let a = start(&runtime, 1).await;
    let other = key(2).node_id();
    let refused = |what: &str, result: Result<(), NodeError>| match result {
        Err(NodeError::Request(error)) => error,
        other => panic!("{what}: {other:?}"),
    };
    let own = a.ping_node(a.own_id(), RequestOptions::default()).await.map(drop);
    assert_eq!(refused("ping oneself", own), RequestError::OwnNode);
    let own = a.connect(a.own_id(), address(&a), RequestOptions::default()).await.map(drop);
    assert_eq!(refused("connect to oneself", own), RequestError::OwnNode);
    let none = a.sync_node_graph(vec![], true, RequestOptions::default()).await.map(drop);
    assert_eq!(refused("join no node", none), RequestError::NoSeeds);
    for (name, find) in [
        (
            "deadline",
            find(RequestOptions { deadline: Some(Duration::ZERO), connect_timeout: None }),
        ),
        (
            "connect_timeout",
            find(RequestOptions { deadline: None, connect_timeout: Some(Duration::MAX) }),
        ),
        ("concurrency", FindNodeOptions { concurrency: Some(0), ..FindNodeOptions::default() }),
        ("limit", FindNodeOptions { limit: Some(1025), ..FindNodeOptions::default() }),
    ] {
        let error = refused(name, a.find_node(other, find).await.map(drop));
        assert!(
            matches!(&error, RequestError::Option { name: named, .. } if *named == name),
            "{error:?}"
        );
    }
    // Input of an embedder's user.
    for text in ["", "v", "vha4e7nbk17opbvaircmjpeiteb56e2dv3ma146vjei403d0fdte", "xha4e7nb", "v!"]
    {
        assert!(text.parse::<NodeId>().is_err(), "{text:?}");
    }
    for text in ["", "1.2.3.4", "1.2.3.4:", "1.2.3.4:65536", ":1", "[::1:1", "a b:1", "-:1"] {
        assert!(text.parse::<NodeAddress>().is_err(), "{text:?}");
    }
    let id = other.to_string();
    for text in [
        format!("pk://{id}"),
        format!("http://{id}@a:1"),
        format!("pk://x{id}@a:1"),
        format!("pk://{id}@a"),
    ] {
        assert!(text.parse::<SeedNode>().is_err(), "{text:?}");
    }
    assert_eq!(a.metrics().await.unwrap().requests, 0, "nothing was started");
    shutdown(&runtime, &[&a]).await;
}

async fn key_store_starts_a_node_and_reports_its_defects<R: Rt>(runtime: R) {
    let dir = tempfile::tempdir().unwrap();
    let store = KeyStore::new(dir.path());
    let (key, identity) = store.load_or_create(unix_now()).unwrap();
    let mut config = NodeConfig::new(key.clone(), identity);
    config.listen = pk_tests::socket::loopback();
    let node = soon(&runtime, "start", Node::start_on(runtime.clone(), config)).await.unwrap();
    assert_eq!(node.own_id(), key.node_id());
    shutdown(&runtime, &[&node]).await;
    assert_eq!(
        store.load_or_create(unix_now()).unwrap().0.node_id(),
        key.node_id(),
        "the same node every time"
    );

    let file = dir.path().join("keys").join("node.key");
    let good = fs::read_to_string(&file).unwrap();
    let fails = |text: &str| {
        fs::write(&file, text).unwrap();
        let error = store.load_or_create(unix_now()).unwrap_err();
        assert_eq!(fs::read_to_string(&file).unwrap(), text, "a key file is never overwritten");
        println!("{error}");
        error
    };
    assert!(matches!(fails("not a key"), KeyStoreError::Foreign { .. }));
    assert!(matches!(
        fails(&good.replacen(" 1\n", " 2\n", 1)),
        KeyStoreError::Newer { version: 2, .. }
    ));
    assert!(matches!(fails("polykey-node-key 1\nAAAA\n"), KeyStoreError::Malformed { .. }));
    fs::write(&file, &good).unwrap();
    let chain = dir.path().join("keys").join("node.crt");
    fs::write(&chain, "polykey-node-certificates 9\n").unwrap();
    assert!(matches!(
        store.load_or_create(unix_now()),
        Err(KeyStoreError::Newer { version: 9, .. })
    ));
}

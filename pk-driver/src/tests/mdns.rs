//! mDNS, on loopback and on ports of these tests.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use pk_host::KeyPair;
use pk_proto::{EffectId, Instant, NodeId};
use pk_quic::{Effect, Response};

use super::Bench;
use crate::config::{DriverConfig, MdnsInterfaces};

/// A port that is not in use.
fn private_port() -> u16 {
    UdpSocket::bind("0.0.0.0:0").unwrap().local_addr().unwrap().port()
}

/// Uses the standard groups.
fn start(seed: u8, port: u16) -> Bench {
    let mut config = DriverConfig::default();
    config.mdns.standard_port = Some(port);
    config.mdns.groups.clear();
    config.mdns.interfaces = MdnsInterfaces::Loopback;
    Bench::new(seed, config)
}

/// Uses the groups of the reference.
fn start_in_group(seed: u8, port: u16) -> Bench {
    let mut config = DriverConfig::default();
    config.mdns.standard_port = None;
    config.mdns.port = port;
    config.mdns.interfaces = MdnsInterfaces::Loopback;
    Bench::new(seed, config)
}

fn id(seed: u8) -> NodeId {
    KeyPair::from_seed(&[seed; 32]).node_id()
}

fn browse(bench: &mut Bench, id: u64, node: NodeId) {
    bench.effect(Effect::Browse { id: EffectId(id), node, deadline: Instant::FAR_FUTURE });
}

/// The next result of a browse, and whether it is the last one.
async fn discovered(bench: &mut Bench) -> (u64, Vec<SocketAddr>, bool) {
    match bench.answer().await {
        Response::Discovered { id, addrs, done } => (id.0, addrs, done),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn only_an_advertised_node_is_found() {
    let port = private_port();
    let (mut a, mut b) = (start(1, port), start(2, port));
    let at = |port: u16| vec![SocketAddr::from(([127, 0, 0, 1], port))];
    a.effect(Effect::Advertise { node: id(1), port: Some(4321) });
    browse(&mut b, 1, id(1));
    assert_eq!(discovered(&mut b).await, (1, at(4321), false));
    // A later browse returns stored results.
    browse(&mut b, 2, id(1));
    assert_eq!(discovered(&mut b).await, (2, at(4321), false));
    browse(&mut b, 3, id(2));
    b.silence().await;
    for id in [1, 3, 2] {
        b.effect(Effect::CancelBrowse { id: EffectId(id) });
        assert_eq!(discovered(&mut b).await, (id, vec![], true));
    }
    b.effect(Effect::CancelBrowse { id: EffectId(2) });
    b.silence().await;
    // After a pause: mdns-sd has stored it.
    browse(&mut b, 4, id(1));
    assert_eq!(discovered(&mut b).await, (4, at(4321), false));
    assert_eq!(b.cx.metrics.mdns_failures, 0);
}

#[tokio::test]
async fn browse_ends_at_its_deadline() {
    let mut bench = start(1, private_port());
    let deadline = bench.cx.now + Duration::from_millis(80);
    bench.effect(Effect::Browse { id: EffectId(1), node: id(1), deadline });
    assert_eq!(discovered(&mut bench).await, (1, vec![], true));
}

#[tokio::test]
async fn withdrawn_or_ended_node_is_not_found() {
    let port = private_port();
    let (mut a, mut b) = (start(1, port), start(2, port));
    a.effect(Effect::Advertise { node: id(1), port: Some(4321) });
    browse(&mut b, 1, id(1));
    discovered(&mut b).await;
    b.effect(Effect::CancelBrowse { id: EffectId(1) });
    discovered(&mut b).await;
    a.effect(Effect::Advertise { node: id(1), port: None });
    // The goodbye leaves its record with a lifetime of one second.
    b.pass(Duration::from_millis(1500)).await;
    browse(&mut b, 2, id(1));
    b.pass(Duration::from_millis(400)).await;
    b.effect(Effect::CancelBrowse { id: EffectId(2) });
    assert_eq!(discovered(&mut b).await, (2, vec![], true));

    // The shutdown withdraws the rest, and waits for it.
    a.effect(Effect::Advertise { node: id(1), port: Some(4322) });
    browse(&mut b, 3, id(1));
    assert_eq!(discovered(&mut b).await.1.len(), 1);
    a.mdns.close(&mut a.cx, &a.tasks);
    tokio::time::timeout(super::PATIENCE, a.tasks.watch().idle()).await.expect("it ends");
    b.pass(Duration::from_millis(1500)).await;
    browse(&mut b, 4, id(1));
    b.pass(Duration::from_millis(400)).await;
    b.effect(Effect::CancelBrowse { id: EffectId(4) });
    assert_eq!(discovered(&mut b).await, (4, vec![], true));
}

/// An unsolicited mDNS response: instances of the service, by name.
fn announcement(names: &[String]) -> Vec<u8> {
    let name = |labels: &[&str]| -> Vec<u8> {
        let label =
            |label: &&str| [&[u8::try_from(label.len()).unwrap()], label.as_bytes()].concat();
        labels.iter().flat_map(label).chain([0]).collect()
    };
    let count = u8::try_from(names.len()).unwrap();
    let mut packet = vec![0, 0, 0x84, 0, 0, 0, 0, count, 0, 0, 0, 0];
    for instance in names {
        let instance = name(&[instance, "_polykey", "_udp", "local"]);
        packet.extend(name(&["_polykey", "_udp", "local"]));
        // PTR, IN, two minutes.
        packet.extend([0, 12, 0, 1, 0, 0, 0, 120, 0, u8::try_from(instance.len()).unwrap()]);
        packet.extend(instance);
    }
    packet
}

#[tokio::test]
async fn dropped_listener_is_restarted() {
    let port = private_port();
    let (mut a, mut b) = (start(1, port), start(2, port));
    browse(&mut b, 1, id(1));
    tokio::time::sleep(Duration::from_millis(300)).await;
    // More than mdns-sd queues for a listener, while the pump sleeps.
    let stranger = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None).unwrap();
    stranger.set_multicast_if_v4(&std::net::Ipv4Addr::LOCALHOST).unwrap();
    stranger.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    let group = SocketAddr::from(([224, 0, 0, 251], port)).into();
    for n in 0..150 {
        let names: Vec<_> = (0..10).map(|i| format!("n{n}-{i}")).collect();
        stranger.send_to(&announcement(&names), &group).unwrap();
        std::thread::sleep(Duration::from_millis(5));
    }
    std::thread::sleep(Duration::from_secs(1));
    b.until(|bench| (bench.cx.metrics.mdns_restarts > 0).then_some(())).await;
    a.effect(Effect::Advertise { node: id(1), port: Some(4321) });
    assert_eq!(discovered(&mut b).await.1.len(), 1);
}

/// The addresses of the results of a browse, while both nodes take turns.
async fn result(a: &mut Bench, b: &mut Bench) -> Vec<SocketAddr> {
    let begun = std::time::Instant::now();
    loop {
        assert!(begun.elapsed() < super::PATIENCE, "no result");
        a.pass(Duration::from_millis(1)).await;
        b.pass(Duration::from_millis(1)).await;
        if let Some(Response::Discovered { addrs, .. }) = b.cx.answers.pop_front() {
            return addrs;
        }
    }
}

#[tokio::test]
async fn node_in_the_group_of_the_reference_is_found_until_it_is_withdrawn() {
    let port = private_port();
    let (mut a, mut b) = (start_in_group(1, port), start_in_group(2, port));
    let at = |port: u16| vec![SocketAddr::from(([127, 0, 0, 1], port))];
    a.effect(Effect::Advertise { node: id(1), port: Some(4321) });
    browse(&mut b, 1, id(1));
    assert_eq!(result(&mut a, &mut b).await, at(4321));
    // A later browse returns stored results, and one for another node none.
    browse(&mut b, 2, id(1));
    assert_eq!(discovered(&mut b).await, (2, at(4321), false));
    browse(&mut b, 3, id(2));
    b.silence().await;
    // Another port is reported beside the former one.
    a.effect(Effect::Advertise { node: id(1), port: Some(4322) });
    assert_eq!(result(&mut a, &mut b).await, at(4322));
    // The goodbye is sent at the end.
    a.mdns.close(&mut a.cx, &a.tasks);
    b.pass(Duration::from_millis(1500)).await;
    b.cx.answers.clear();
    browse(&mut b, 4, id(1));
    b.silence().await;
    for bench in [&a, &b] {
        assert_eq!(bench.cx.metrics.mdns_failures, 0);
    }
}

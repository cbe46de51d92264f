//! mDNS, on loopback and on ports of these tests.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use pk_proto::{EffectId, Input, Instant, NodeId, Output};

use super::{Rig, Setup};
use crate::config::MdnsInterfaces;

/// A port that is not in use.
fn private_port() -> u16 {
    UdpSocket::bind("0.0.0.0:0").unwrap().local_addr().unwrap().port()
}

async fn start(seed: u8, port: u16) -> Rig {
    let mut setup = Setup::new(seed);
    setup.driver.mdns.port = port;
    setup.driver.mdns.interfaces = MdnsInterfaces::Loopback;
    setup.start().await
}

async fn browse(rig: &Rig, id: u64, node: NodeId) {
    rig.output(Output::Browse { id: EffectId(id), node, deadline: Instant::FAR_FUTURE }).await;
}

/// The next result of a browse, and whether it is the last one.
async fn discovered(rig: &mut Rig) -> (u64, Vec<SocketAddr>, bool) {
    match rig.input().await {
        Input::Discovered { id, addrs, done } => (id.0, addrs, done),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_node_that_is_advertised_is_found_and_nobody_else() {
    let port = private_port();
    let (a, mut b) = (start(1, port).await, start(2, port).await);
    let at = |port: u16| vec![SocketAddr::from(([127, 0, 0, 1], port))];
    a.output(Output::Advertise { node: a.id, port: Some(4321) }).await;
    browse(&b, 1, a.id).await;
    assert_eq!(discovered(&mut b).await, (1, at(4321), false));
    // A later browse returns stored results.
    browse(&b, 2, a.id).await;
    assert_eq!(discovered(&mut b).await, (2, at(4321), false));
    browse(&b, 3, b.id).await;
    b.silence().await;
    for id in [1, 3, 2] {
        b.output(Output::CancelBrowse { id: EffectId(id) }).await;
        assert_eq!(discovered(&mut b).await, (id, vec![], true));
    }
    b.output(Output::CancelBrowse { id: EffectId(2) }).await;
    b.silence().await;
    // After a pause: mdns-sd has stored it.
    browse(&b, 4, a.id).await;
    assert_eq!(discovered(&mut b).await, (4, at(4321), false));
    assert_eq!(b.metrics(|_| true).await.mdns_failures, 0);
}

#[tokio::test]
async fn a_browse_ends_at_its_deadline() {
    let mut rig = start(1, private_port()).await;
    let (id, node) = (EffectId(1), rig.id);
    let call = rig.handle.call(move |_, cx, core| {
        let deadline = cx.now + Duration::from_millis(80);
        core.output(Output::Browse { id, node, deadline });
    });
    call.await.unwrap();
    assert_eq!(discovered(&mut rig).await, (1, vec![], true));
}

#[tokio::test]
async fn a_node_that_is_taken_back_or_has_ended_is_not_found() {
    let port = private_port();
    let (a, mut b) = (start(1, port).await, start(2, port).await);
    a.output(Output::Advertise { node: a.id, port: Some(4321) }).await;
    browse(&b, 1, a.id).await;
    discovered(&mut b).await;
    b.output(Output::CancelBrowse { id: EffectId(1) }).await;
    discovered(&mut b).await;
    a.output(Output::Advertise { node: a.id, port: None }).await;
    // The goodbye leaves its record with a lifetime of one second.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    browse(&b, 2, a.id).await;
    tokio::time::sleep(Duration::from_millis(400)).await;
    b.output(Output::CancelBrowse { id: EffectId(2) }).await;
    assert_eq!(discovered(&mut b).await, (2, vec![], true));

    // The shutdown withdraws the rest, and waits for it.
    a.output(Output::Advertise { node: a.id, port: Some(4322) }).await;
    browse(&b, 3, a.id).await;
    assert_eq!(discovered(&mut b).await.1.len(), 1);
    a.shutdown().await;
    assert_eq!(a.handle.tasks.live(), 0);
    tokio::time::sleep(Duration::from_millis(1500)).await;
    browse(&b, 4, a.id).await;
    tokio::time::sleep(Duration::from_millis(400)).await;
    b.output(Output::CancelBrowse { id: EffectId(4) }).await;
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
async fn a_listener_that_is_dropped_listens_again() {
    let port = private_port();
    let (a, mut b) = (start(1, port).await, start(2, port).await);
    browse(&b, 1, a.id).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    // More than mdns-sd queues for a listener, while the pump sleeps.
    let stranger = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None).unwrap();
    stranger.set_multicast_if_v4(&std::net::Ipv4Addr::LOCALHOST).unwrap();
    stranger.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    let group = SocketAddr::from(([224, 0, 0, 251], port)).into();
    let flood = move |_: &mut _, _: &mut _, _: &mut _| {
        for n in 0..150 {
            let names: Vec<_> = (0..10).map(|i| format!("n{n}-{i}")).collect();
            stranger.send_to(&announcement(&names), &group).unwrap();
            std::thread::sleep(Duration::from_millis(5));
        }
        std::thread::sleep(Duration::from_secs(1));
    };
    b.handle.call(flood).await.unwrap();
    b.metrics(|metrics| metrics.mdns_restarts > 0).await;
    a.output(Output::Advertise { node: a.id, port: Some(4321) }).await;
    assert_eq!(discovered(&mut b).await.1.len(), 1);
}

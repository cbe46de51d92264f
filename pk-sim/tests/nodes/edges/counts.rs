//! Limits of one.

use std::time::Duration;

use pk_proto::{DialFailure, Input, Output, Reply, Request};
use pk_sim::Cluster;

use crate::common::{Bare, SECOND, absent, add_contact_at, address, connect_request};

#[test]
fn simultaneous_dials_leave_one_connection_if_one_is_allowed() {
    for seed in 0..12 {
        let mut cluster = Cluster::quiet()
            .nodes(2)
            .seed(seed)
            .config(|config| config.connections_per_node = 1)
            .start();
        let (there, back) = (connect_request(&cluster, 1), connect_request(&cluster, 0));
        let (there, back) = (cluster.request(0, there), cluster.request(1, back));
        assert!(matches!(cluster.await_done(0, there), Ok(Reply::Connect(_))), "seed {seed}");
        assert!(matches!(cluster.await_done(1, back), Ok(Reply::Connect(_))), "seed {seed}");
        cluster.drive(5 * SECOND);
        let live = [0, 1].map(|node| cluster.node(node).connections());
        assert_eq!([live[0].len(), live[1].len()], [1, 1], "seed {seed}");
        assert_eq!(live[0][0].shared_id, live[1][0].shared_id, "seed {seed}");
        cluster.stop_all();
    }
}

#[test]
fn node_with_a_limit_of_one_connection_has_it_in_either_direction() {
    let one = |config: &mut pk_proto::Config| config.connection_limit = 1;
    let mut cluster = Cluster::quiet().nodes(3).seed(5).config(one).start();
    assert!(matches!(cluster.connect(0, 1), Ok(Reply::Connect(_))));
    let refused = cluster.connect(1, 2);
    assert!(
        matches!(&refused, Err(error) if error.to_string().contains("too many connections")),
        "{refused:?}"
    );
    let other = cluster.id(0);
    assert_eq!(cluster.call(1, |node, now| node.disconnect(other, now)), 1);
    assert!(matches!(cluster.connect(1, 2), Ok(Reply::Connect(_))));
    cluster.stop_all();
}

#[test]
fn incoming_connections_leave_a_slot_for_a_dial_at_any_limit() {
    for dial_share in [1, 10, 90] {
        let two = |config: &mut pk_proto::Config| {
            (config.connection_limit, config.dial_share) = (2, dial_share);
        };
        let mut cluster = Cluster::quiet().nodes(4).seed(5).config(two).start();
        assert!(matches!(cluster.connect(0, 1), Ok(Reply::Connect(_))));
        let (second, begun) = (cluster.connect(2, 1), cluster.now());
        assert!(second.is_err(), "share {dial_share}: it would take the place of a dial");
        assert!(matches!(cluster.connect(1, 3), Ok(Reply::Connect(_))), "share {dial_share}");
        assert!(cluster.now().since(begun) < SECOND);
        cluster.stop_all();
    }
}

#[test]
fn embedder_request_gets_the_only_dial() {
    let background = |config: &mut pk_proto::Config| {
        config.dial_limit = 1;
        config.retry_delay = 10 * SECOND;
    };
    let mut cluster = Cluster::quiet().nodes(2).seed(3).config(background).start();
    for i in 0..60 {
        add_contact_at(&mut cluster, 0, absent(i), address(&format!("203.0.{i}.1:1")));
    }
    cluster.drive(15 * SECOND);
    assert_eq!(
        cluster.node(0).metrics().connections_pending,
        1,
        "the background has it while no other request needs it"
    );
    let begun = cluster.now();
    assert!(matches!(cluster.connect(0, 1), Ok(Reply::Connect(_))));
    assert!(cluster.now().since(begun) < SECOND, "{:?}", cluster.now().since(begun));
    // Waiting work continues.
    let dials = cluster.node(0).metrics().dials;
    cluster.drive(60 * SECOND);
    assert!(cluster.node(0).metrics().dials > dials);
    cluster.stop_all();
}

#[test]
fn waiting_dial_starts_as_soon_as_a_slot_is_free() {
    let mut bare = Bare::new(|config| {
        config.dial_limit = 1;
        // Long, so that only the end of the other dial can be the cause.
        config.dial_delay = Duration::from_secs(10);
        config.refresh_delay = Duration::from_secs(1);
        config.refresh_jitter = 0;
    });
    let add_contact_to = |bare: &mut Bare, node| {
        let data = pk_proto::NodeContactAddressData {
            mode: pk_proto::ContactMode::Direct,
            connected_time: pk_proto::UnixMillis(1),
            scopes: pk_proto::Scopes::GLOBAL,
        };
        let how = pk_proto::SetNodeOptions::default();
        bare.request(Request::SetNode {
            node: Bare::peer(node),
            address: address("192.0.2.7:7"),
            data,
            how,
        });
    };
    add_contact_to(&mut bare, 5);
    bare.take();
    bare.pass(Duration::from_secs(3));
    let conn = bare.take().into_iter().find_map(|output| match output {
        Output::Dial { conn, .. } => Some(conn),
        _ => None,
    });
    let conn = conn.unwrap();
    let options = pk_proto::RequestOptions::default();
    bare.request(Request::Connect {
        target: Bare::peer(9),
        address: address("192.0.2.9:9"),
        options,
    });
    assert!(bare.take().contains(&Output::CancelDial { conn }));
    bare.input(Input::DialFailed { conn, why: DialFailure::Cancelled });
    let nine = |output: &Output| matches!(output, Output::Dial { addr, .. } if addr.port() == 9);
    assert!(bare.take().iter().any(nine));
}

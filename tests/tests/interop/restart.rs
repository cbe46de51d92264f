//! A real node that is killed and restarted at its address. It keeps no reset key, so that only its
//! silence can be detected.

use std::time::{Duration, Instant};

use pk_driver::Node;
use pk_interop::{Peer, Polykey, Settings};
use pk_proto::{NodeId, RequestOptions};
use pk_tests::Rt;
use pk_tests::node::{shutdown, start};
use pk_tests::wait::soon;

use crate::kit::{dial, dialed, start_polykey};

cases!(restarted_polykey_node_is_used_again);

/// Maximum time until the next request is answered. It must not take until the idle timeout.
const AGAIN: Duration = Duration::from_secs(3);

/// The same node at the same port each time.
fn settings(port: u16) -> Settings {
    Settings { seed: Some([77; 32]), port, ..Settings::default() }
}

async fn ping_soon<R: Rt>(runtime: &R, ours: &Node<R>, node: NodeId, what: &str) {
    let begun = Instant::now();
    let pong = soon(runtime, what, ours.ping_node(node, RequestOptions::default())).await;
    let took = begun.elapsed();
    assert!(pong.is_ok(), "{what}: {pong:?} after {took:?}");
    println!("{what}: answered after {took:?}");
    assert!(took < AGAIN, "{what}: {took:?}");
}

async fn restarted<R: Rt>(runtime: &R, polykey: &Polykey, peer: &mut Peer) {
    let (node, port) = (peer.node_id(), peer.addr().port());
    peer.kill();
    *peer = start_polykey(runtime, polykey, settings(port)).await;
    assert_eq!((peer.node_id(), peer.addr().port()), (node, port));
}

async fn restarted_polykey_node_is_used_again<R: Rt>(runtime: R, polykey: Polykey) {
    let ours = start(&runtime, 1).await;
    let mut peer = start_polykey(&runtime, &polykey, settings(0)).await;
    dial(&runtime, &ours, &peer).await;
    restarted(&runtime, &polykey, &mut peer).await;
    ping_soon(&runtime, &ours, peer.node_id(), "a connection that we made").await;
    for round in 0..3 {
        // One dead connection and a live one; either has the smaller id.
        restarted(&runtime, &polykey, &mut peer).await;
        dialed(&runtime, &peer, &ours).await;
        ping_soon(&runtime, &ours, peer.node_id(), &format!("round {round}, after they connected"))
            .await;
    }
    shutdown(&runtime, &[&ours]).await;
}

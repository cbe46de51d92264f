//! Peers that send Hello and answer requests wrongly or not at all: each request fails with the
//! matching failure.

use std::time::{Duration, Instant};

use pk_driver::{Node, NodeError};
use pk_proto::native::V1;
use pk_proto::{
    ClosestNodes, ClosestNodesQuery, Failure, FrameFault, NodeAddress, NodeId, PeerFault,
    RequestOptions, RpcResponse,
};
use pk_tests::Rt;
use pk_tests::certs::Presented;
use pk_tests::node::{key, options, shutdown, start};
use pk_tests::raw::{self, NATIVE};
use pk_tests::wait::{soon, spawn};
use quinn::{RecvStream, SendStream, VarInt};

pk_tests::cases!(
    wrong_answer_fails_the_request_with_its_fault,
    request_without_an_answer_fails_at_its_deadline
);

/// What a peer does with a request.
#[derive(Debug, Clone, Copy)]
enum Answers {
    Nothing,
    AnotherNonce,
    AnotherKind,
    TwoAtOnce,
    Garbage,
    Oversized,
    Unknown,
    TheEnd,
    HalfAFrame,
    Reset(u32),
}

/// A scripted peer that sends Hello and then this answer to every request. Returns its address.
fn peer<R: Rt>(runtime: &R, presented: &Presented, answers: Answers) -> NodeAddress {
    let endpoint = raw::endpoint(runtime, Some(raw::server(presented, &[NATIVE], false)));
    let address = NodeAddress::from_socket(endpoint.local_addr().unwrap());
    drop(spawn(runtime, async move {
        while let Some(incoming) = endpoint.accept().await {
            let Ok(connection) = incoming.await else { continue };
            let Ok((mut control, _control)) = connection.accept_bi().await else { continue };
            if control.write_all(&raw::hello()).await.is_err() {
                continue;
            }
            let mut open = Vec::new();
            while let Ok((mut send, mut recv)) = connection.accept_bi().await {
                answer(answers, &mut send, &mut recv).await;
                open.push((send, recv));
            }
        }
    }));
    address
}

async fn answer(answers: Answers, send: &mut SendStream, recv: &mut RecvStream) {
    let pong = |nonce| raw::frame(V1::Answer(RpcResponse::Pong { nonce }));
    let frame = |length: u32, payload: &[u8]| [&length.to_be_bytes(), payload].concat();
    let bytes: Vec<u8> = match answers {
        Answers::Nothing => return,
        Answers::AnotherNonce => pong(0x1234).into(),
        Answers::AnotherKind => {
            raw::frame(V1::Answer(RpcResponse::Closest(ClosestNodes::default()))).into()
        }
        // The second one is not read.
        Answers::TwoAtOnce => [pong(0x1234), pong(0x1234)].concat(),
        Answers::Garbage => frame(100, &[0xa5; 100]),
        Answers::Oversized => frame(65_537, &[]),
        // Version 1, and an unknown message.
        Answers::Unknown => frame(2, &[0, 100]),
        Answers::TheEnd => Vec::new(),
        Answers::HalfAFrame => frame(100, &[0; 50]),
        Answers::Reset(code) => {
            let _ = (send.reset(VarInt::from_u32(code)), recv.stop(VarInt::from_u32(code)));
            return;
        }
    };
    let _ = send.write_all(&bytes).await;
    let _ = send.finish();
}

async fn connected<R: Rt>(runtime: &R, node: &Node<R>, answers: Answers) -> NodeId {
    let presented = Presented::valid(&key(2));
    let address = peer(runtime, &presented, answers);
    node.disconnect(presented.node_id()).await.unwrap();
    soon(runtime, "connect", node.connect(presented.node_id(), address, RequestOptions::default()))
        .await
        .unwrap();
    presented.node_id()
}

async fn wrong_answer_fails_the_request_with_its_fault<R: Rt>(runtime: R) {
    let node = start(&runtime, 1).await;
    let frame = |fault| Failure::Peer(PeerFault::Frame(fault));
    for (answers, expected, ends_the_connection) in [
        (Answers::AnotherNonce, Failure::Peer(PeerFault::Unexpected), false),
        (Answers::AnotherKind, Failure::Peer(PeerFault::Unexpected), false),
        (Answers::TwoAtOnce, Failure::Peer(PeerFault::Unexpected), false),
        (Answers::Garbage, frame(FrameFault::Malformed), true),
        (Answers::Oversized, frame(FrameFault::TooLong(65_537)), true),
        (Answers::Unknown, frame(FrameFault::Unknown), false),
        (Answers::TheEnd, Failure::Peer(PeerFault::Truncated), false),
        (Answers::HalfAFrame, Failure::Peer(PeerFault::Truncated), false),
        (Answers::Reset(1), Failure::Unsupported, false),
        (Answers::Reset(77), Failure::Aborted(77), false),
    ] {
        let target = connected(&runtime, &node, answers).await;
        let failed =
            soon(&runtime, "ping", node.ping_node(target, RequestOptions::default())).await;
        assert!(
            matches!(&failed, Err(NodeError::Failure(failure)) if *failure == expected),
            "{answers:?}: {failed:?}"
        );
        let open = !node.connections().await.unwrap().is_empty();
        assert_eq!(open, !ends_the_connection, "{answers:?}");
    }
    // Wrong answers to closest-nodes requests add nothing to the graph.
    let target = connected(&runtime, &node, Answers::AnotherNonce).await;
    let query = ClosestNodesQuery { known: true, connected: true };
    let asked =
        node.query_closest_nodes(target, key(9).node_id(), query, RequestOptions::default());
    let failed = soon(&runtime, "ask", asked).await;
    assert!(
        matches!(failed, Err(NodeError::Failure(Failure::Peer(PeerFault::Unexpected)))),
        "{failed:?}"
    );
    let metrics = node.metrics().await.unwrap();
    assert_eq!((metrics.nodes, metrics.requests_open), (1, 0), "{metrics:?}");
    shutdown(&runtime, &[&node]).await;
}

async fn request_without_an_answer_fails_at_its_deadline<R: Rt>(runtime: R) {
    let node = start(&runtime, 1).await;
    let target = connected(&runtime, &node, Answers::Nothing).await;
    let deadline = Duration::from_millis(500);
    let limits = options(deadline, deadline);
    let begun = Instant::now();
    let failed = soon(&runtime, "ping", node.ping_node(target, limits)).await;
    assert!(matches!(failed, Err(NodeError::Failure(Failure::DeadlineExceeded))), "{failed:?}");
    let failed = soon(&runtime, "open", node.open_stream(target, "x", limits)).await;
    assert!(matches!(failed, Err(NodeError::Failure(Failure::DeadlineExceeded))), "{failed:?}");
    let query = ClosestNodesQuery { known: true, connected: true };
    let failed =
        soon(&runtime, "ask", node.query_closest_nodes(target, target, query, limits)).await;
    assert!(matches!(failed, Err(NodeError::Failure(Failure::DeadlineExceeded))), "{failed:?}");
    assert!(begun.elapsed() >= 3 * deadline, "a deadline came early");
    let metrics = node.metrics().await.unwrap();
    assert_eq!(metrics.requests_open, 0, "{metrics:?}");
    // Only the control stream remains.
    assert_eq!(metrics.streams, 1, "{metrics:?}");
    shutdown(&runtime, &[&node]).await;
}

//! Messages of `pk/1`.

use bytes::Bytes;
use pk_proto::native::{self, Hello, Message, V1};
use pk_proto::{
    ActiveConnection, ActiveNode, ClosestNodes, ClosestNodesQuery, NodeContact, NodeId, RpcRequest,
    RpcResponse,
};

use super::{DATA, address, ids};

/// Encodes a message as a frame.
pub fn frame(message: V1) -> Bytes {
    native::encode(&Message::V1(message)).unwrap()
}

/// A request as a frame.
pub fn request(request: RpcRequest) -> Bytes {
    frame(V1::Call { deadline_ms: 15_000, request })
}

/// A request for the closest nodes.
pub fn closest_request(target: NodeId, connected: bool) -> Bytes {
    let query = ClosestNodesQuery { known: true, connected };
    request(RpcRequest::Closest { target, query })
}

/// The first message of a peer.
pub fn hello() -> Bytes {
    let features = Hello::EXCHANGE | Hello::CLAIMS | Hello::PLAIN_SIGNALS;
    frame(V1::Hello(Hello { version_min: 1, version_max: 1, features, agent: "pk/0.1.0".into() }))
}

/// A response with 20 contacts, and as many connected nodes if `connected`.
pub fn closest_response(connected: bool) -> Message {
    let known = ids(20, 5).into_iter().enumerate();
    let known = known.map(|(i, node)| (node, NodeContact::new(address(i), DATA))).collect();
    let active = ids(if connected { 20 } else { 0 }, 6).into_iter().enumerate();
    let active = active.map(|(i, node)| {
        let connection = ActiveConnection {
            shared_id: Bytes::from(vec![7; 32]),
            address: address(i),
            primary: true,
            idle_in_ms: Some(60_000),
        };
        ActiveNode { node, connections: vec![connection] }
    });
    let closest = ClosestNodes { known, connected: active.collect() };
    Message::V1(V1::Answer(RpcResponse::Closest(closest)))
}

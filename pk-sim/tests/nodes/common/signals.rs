//! Scripted peers that signal: their calls and signatures.

use pk_proto::native::{self, Message, V1};
use pk_proto::signal::{address_text, relay_bytes, request_bytes};
use pk_proto::{
    ConnectionId, FrameDecoder, NodeAddress, NodeId, PunchRequest, RpcRequest, RpcResponse,
    SignalRequest, SignalTerms, UnixMillis,
};
use pk_sim::{Cluster, HostId, Key};

use super::{Peer, SECOND};

/// A request to signal, as its source signs it.
pub fn request(key: &Key, target: NodeId, expires: UnixMillis, nonce: u8) -> SignalRequest {
    request_on(key, target, SignalTerms::Once { expires, nonce: [nonce; 16] })
}

/// A request to signal on any terms, as its source signs it.
pub fn request_on(key: &Key, target: NodeId, terms: SignalTerms) -> SignalRequest {
    let signature = key.sign(&request_bytes(&key.id(), &target, &terms));
    SignalRequest { target, terms, signature }
}

/// The expiry of a request that is not a plain one.
pub fn expires(request: &SignalRequest) -> UnixMillis {
    match request.terms {
        SignalTerms::Once { expires, .. } => expires,
        SignalTerms::Plain => panic!("a plain one"),
    }
}

/// A forwarded request, signed by its relay.
pub fn punch(
    relay: &Key,
    source: NodeId,
    address: NodeAddress,
    request: SignalRequest,
) -> PunchRequest {
    let address_text = address_text(&request.terms, &address);
    let relay_signature = relay.sign(&relay_bytes(&source, &address_text, &request));
    PunchRequest { source, address, address_text, request, relay_signature }
}

/// The time of a host's clock plus these seconds.
pub fn in_seconds(cluster: &Cluster, host: HostId, seconds: i64) -> UnixMillis {
    UnixMillis(cluster.unix(host).0.saturating_add_signed(1000 * seconds))
}

impl Peer {
    /// Sends requests at once, each on its own stream. Returns the answers that arrive within a
    /// second.
    pub fn ask(
        &mut self,
        cluster: &mut Cluster,
        conn: ConnectionId,
        questions: Vec<RpcRequest>,
    ) -> Vec<Option<RpcResponse>> {
        let streams: Vec<_> = questions
            .into_iter()
            .map(|question| {
                let call =
                    native::encode(&Message::V1(V1::Call { deadline_ms: 5000, request: question }))
                        .unwrap();
                let stream = self.send(cluster, conn, call, true);
                cluster.pull(self.host(), |scripted_peer| scripted_peer.grant(stream, 1 << 20));
                stream
            })
            .collect();
        self.drive(cluster, SECOND);
        let answers = streams.into_iter().map(|stream| {
            let mut decoder = FrameDecoder::new();
            decoder.push(cluster.scripted_peer(self.host()).read(stream).0.into());
            match decoder.next().unwrap().map(|payload| native::decode(&payload).unwrap()) {
                Some(Message::V1(V1::Answer(answer))) => Some(answer),
                None => None,
                Some(other) => panic!("{other:?}"),
            }
        });
        answers.collect()
    }

    /// Sends one request.
    pub fn ask_one(
        &mut self,
        cluster: &mut Cluster,
        conn: ConnectionId,
        question: RpcRequest,
    ) -> Option<RpcResponse> {
        self.ask(cluster, conn, vec![question]).remove(0)
    }
}

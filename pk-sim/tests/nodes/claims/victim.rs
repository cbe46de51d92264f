//! The victim of hostile peers: one machine whose driver is the test; and the tokens that its peers
//! send.
#![allow(unreachable_pub, reason = "a module of a test")]

use std::collections::BTreeMap;

use bytes::Bytes;
use pk_proto::claims::{
    Claim, ClaimContent, ClaimLinkNode, ClaimPolicy, ClaimStep, DoublySigned, TokenFault,
};
use pk_proto::native::{self, Hello, Message, V1};
use pk_proto::{
    ConnectionId, EffectId, Event, Failure, FrameDecoder, Input, NodeId, Output, PeerFault,
    Refusal, Reply, Request, RequestId, RequestOptions, Side, SignatureFault, StoreOp, StreamId,
    Table,
};
use pk_sim::Key;

use crate::common::chains::Draft;
use crate::common::{Bare, SECOND};

/// A machine that allows all claims, and the key and store of its driver.
pub struct Victim {
    pub bare: Bare,
    pub rows: BTreeMap<(Table, Bytes), Bytes>,
    /// The messages that it has signed.
    pub signed: Vec<Bytes>,
    /// Rows that it has loaded.
    pub store_reads: usize,
    /// All its other outputs.
    pub said: Vec<Output>,
    /// The bytes that it sent on each stream.
    pub heard: BTreeMap<StreamId, FrameDecoder>,
}

pub fn local_key() -> Key {
    Key::numbered(77, 0)
}

/// The key of a peer.
pub fn key(number: u64) -> Key {
    Key::numbered(77, 1 + number)
}

impl Victim {
    pub fn new() -> Self {
        Self::with(ClaimPolicy::All)
    }

    /// A machine with another policy.
    pub fn with(policy: ClaimPolicy) -> Self {
        let bare = Bare::new(|config| config.claim_policy = policy);
        let (rows, heard) = (BTreeMap::new(), BTreeMap::new());
        Self { bare, rows, signed: Vec::new(), store_reads: 0, said: Vec::new(), heard }
    }

    /// A peer that supports claims has connected.
    pub fn connect(&mut self, peer: NodeId) -> ConnectionId {
        self.connect_from(peer, "198.51.100.1:1314")
    }

    /// A peer has connected from an address.
    pub fn connect_from(&mut self, peer: NodeId, at: &str) -> ConnectionId {
        let conn = ConnectionId(self.bare.next_id());
        let shared = u8::try_from(conn.0 % 251).unwrap();
        self.bare.connected(conn, Side::Acceptor, peer, at.parse().unwrap(), shared);
        let control = self.bare.opened(conn);
        let hello = Hello {
            version_min: 1,
            version_max: 1,
            features: Hello::EXCHANGE,
            agent: "test".into(),
        };
        self.bare.feed(control, &native::encode(&Message::V1(V1::Hello(hello))).unwrap(), false);
        self.settle();
        conn
    }

    /// Answers effects until there are none.
    pub fn settle(&mut self) {
        loop {
            let outputs = self.bare.take();
            if outputs.is_empty() {
                return;
            }
            for output in outputs {
                self.perform(output);
            }
        }
    }

    pub fn perform(&mut self, output: Output) {
        match output {
            Output::Sign { id, key, bytes } => {
                assert_eq!(key, local_key().id());
                let result = Ok(local_key().sign(&bytes));
                self.signed.push(bytes);
                self.bare.input(Input::Signed { id, result });
            }
            Output::Persist { id, ops, .. } => self.persist(id, ops),
            Output::Load { id, range, .. } => {
                self.store_reads += 1;
                let rows = self.rows.iter().filter(|((table, key), _)| {
                    *table == range.table
                        && *key >= range.from
                        && range.to.as_ref().is_none_or(|to| key < to)
                });
                let rows = rows.map(|((_, key), value)| (key.clone(), value.clone())).collect();
                self.bare.input(Input::Loaded { id, result: Ok((rows, false)) });
            }
            Output::SendStream { stream, bytes, .. } => {
                let length = bytes.len() as u64;
                self.heard.entry(stream).or_default().push(bytes);
                self.bare.input(Input::StreamWritten { stream, bytes: length });
            }
            output => self.said.push(output),
        }
    }

    pub fn persist(&mut self, id: EffectId, ops: Vec<StoreOp>) {
        for op in ops {
            match op {
                StoreOp::Put { table, key, value } => drop(self.rows.insert((table, key), value)),
                StoreOp::Delete { table, key } => drop(self.rows.remove(&(table, key))),
                StoreOp::Clear { table } => self.rows.retain(|(of, _), _| *of != table),
            }
        }
        self.bare.input(Input::Persisted { id, result: Ok(()) });
    }

    pub fn pass(&mut self, seconds: u32) {
        for _ in 0..seconds {
            self.bare.pass(SECOND);
            self.settle();
        }
    }

    /// The peer starts an exchange.
    pub fn begin(&mut self, conn: ConnectionId, first: &[u8]) -> StreamId {
        let stream = self.bare.opened(conn);
        let message = V1::Exchange { deadline_ms: 60_000, token: Bytes::copy_from_slice(first) };
        self.send(stream, message, false);
        stream
    }

    pub fn send(&mut self, stream: StreamId, message: V1, fin: bool) {
        self.bare.feed(stream, &native::encode(&Message::V1(message)).unwrap(), fin);
        self.settle();
    }

    pub fn token(&mut self, stream: StreamId, token: &[u8]) {
        self.send(stream, V1::Token { token: Bytes::copy_from_slice(token) }, false);
    }

    /// Returns the messages that the victim has sent on a stream since the last call.
    pub fn received(&mut self, stream: StreamId) -> Vec<V1> {
        let decoder = self.heard.entry(stream).or_default();
        let frames = std::iter::from_fn(|| decoder.next().unwrap());
        frames
            .map(|frame| match native::decode(&frame) {
                Ok(Message::V1(message)) => message,
                other => panic!("{other:?}"),
            })
            .collect()
    }

    pub fn received_tokens(&mut self, stream: StreamId) -> Vec<Claim> {
        self.received(stream)
            .iter()
            .map(|message| match message {
                V1::Token { token } | V1::Exchange { token, .. } => Claim::parse(token).unwrap(),
                other => panic!("{other:?}"),
            })
            .collect()
    }

    pub fn refusal(&mut self, stream: StreamId) -> Option<Refusal> {
        self.received(stream).iter().find_map(|message| match message {
            V1::Answer(pk_proto::RpcResponse::Refused(refusal)) => Some(*refusal),
            _ => None,
        })
    }

    /// Returns the faults that were reported since the last call.
    pub fn faults(&mut self) -> Vec<PeerFault> {
        let said = std::mem::take(&mut self.said);
        let fault = |output: Output| match output {
            Output::Event(Event::PeerMisbehaved { fault, .. }) => Some(fault),
            _ => None,
        };
        said.into_iter().filter_map(fault).collect()
    }

    pub fn chain_len(&self) -> usize {
        self.rows.keys().filter(|(table, _)| *table == Table::Claims).count()
    }

    /// Starts a claim with a connected peer. Returns the stream of its first token.
    pub fn claim(&mut self, peer: NodeId) -> (RequestId, StreamId, Claim) {
        let id = self
            .bare
            .request(Request::ClaimNode { target: peer, options: RequestOptions::default() });
        self.settle();
        let opened = self.said.iter().rev().find_map(|output| match output {
            Output::OpenStream { stream, .. } => Some(*stream),
            _ => None,
        });
        let stream = opened.unwrap();
        let [first] = &self.received_tokens(stream)[..] else { panic!() };
        (id, stream, first.clone())
    }

    pub fn done(&self, id: RequestId) -> Option<Result<Reply, Failure>> {
        self.said.iter().find_map(|output| match output {
            Output::Event(Event::Done { id: done, result }) if *done == id => Some(result.clone()),
            _ => None,
        })
    }

    // -- honest peers

    /// A complete exchange that an honest peer starts.
    pub fn honest_initiator(&mut self, number: u64) {
        let before = self.chain_len();
        let (peer, conn) = (key(number), self.connect(key(number).id()));
        let stream = self.begin(conn, &json(&first(&peer)));
        if self
            .bare
            .node
            .exchanges()
            .iter()
            .any(|open| open.node == peer.id() && open.step == ClaimStep::WaitingToDraft)
        {
            // A silent peer keeps its turn for a quarter of `claim_wait_timeout`, and no longer.
            self.pass(3);
        }
        let answer = self.received_tokens(stream);
        let [theirs, mine] = &answer[..] else { panic!("{answer:?}") };
        assert!(DoublySigned::verify(theirs.clone(), &peer.id(), &local_key().id()).is_ok());
        self.token(stream, &json(&counter_signed(mine, &peer)));
        self.bare.feed(stream, &[], true);
        assert_eq!(self.chain_len(), before + 1);
        assert_eq!(
            self.bare.node.exchanges().iter().filter(|exchange| exchange.node == peer.id()).count(),
            0
        );
    }

    /// A complete exchange that the victim starts with an honest peer.
    pub fn honest_responder(&mut self, number: u64) {
        let before = self.chain_len();
        let peer = key(number);
        self.connect(peer.id());
        let (id, stream, first) = self.claim(peer.id());
        self.token(stream, &json(&counter_signed(&first, &peer)));
        self.token(stream, &json(&second(&peer)));
        let [last] = &self.received_tokens(stream)[..] else { panic!() };
        assert!(DoublySigned::verify(last.clone(), &peer.id(), &local_key().id()).is_ok());
        self.bare.feed(stream, &[], true);
        self.settle();
        assert!(matches!(self.done(id), Some(Ok(Reply::ClaimNode(_)))));
        assert_eq!(self.chain_len(), before + 1);
    }
}

// -- tokens

pub fn json(claim: &Claim) -> Vec<u8> {
    claim.token().to_json().into_bytes()
}

pub fn linking(issuer: NodeId, subject: NodeId) -> ClaimContent {
    ClaimContent::link(&ClaimLinkNode { issuer, subject })
}

/// The first claim of a peer as the initiator.
pub fn first(peer: &Key) -> Claim {
    Draft::new(&peer.id(), linking(peer.id(), local_key().id()), None).signed(&[peer])
}

/// The claim of a peer as the responder.
pub fn second(peer: &Key) -> Claim {
    Draft::new(&peer.id(), linking(local_key().id(), peer.id()), None).signed(&[peer])
}

pub fn counter_signed(claim: &Claim, signer: &Key) -> Claim {
    let mut token = claim.token().clone();
    let signature = signer.sign(&token.signing_input(&signer.id()));
    token.add_signature(signer.id(), signature).unwrap();
    token.try_into().unwrap()
}

/// A claim with a signature that names a node that has not made it.
pub fn forged(claim: &Claim, signer: NodeId, signature: [u8; 64]) -> Vec<u8> {
    let header = format!("{{\"alg\":\"EdDSA\",\"kid\":\"{signer}\"}}");
    let base64 = data_encoding::BASE64URL_NOPAD;
    let (protected, signature) = (base64.encode(header.as_bytes()), base64.encode(&signature));
    let text = claim.token().to_json();
    let open = text.strip_suffix("]}").unwrap();
    format!("{open},{{\"protected\":\"{protected}\",\"signature\":\"{signature}\"}}]}}")
        .into_bytes()
}

/// A link with this signature of its owner.
pub fn signed_link(issuer: NodeId, subject: NodeId, owner: NodeId, signature: [u8; 64]) -> Vec<u8> {
    json(&Draft::new(&owner, linking(issuer, subject), None).forged(&[(owner, signature)]))
}

pub fn mismatch() -> TokenFault {
    TokenFault::Signature(SignatureFault::Mismatch)
}

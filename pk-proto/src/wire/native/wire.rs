//! The wire format of the native dialect, as postcard types.
//!
//! Only these types define the format, so that changes elsewhere cannot change it. Variants may be
//! appended to the enums; nothing else may change. Variants whose kind a reader must recognize as
//! new are counted in [`kinds`].
//!
//! Decoding borrows from the frame, and lists are refused at the first element above their limit,
//! so that the memory of a frame is bounded by the limits and not by the counts in it.

use core::fmt;
use core::marker::PhantomData;

use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, de};
use smallvec::SmallVec;

use crate::types::address::ContactMode;
use crate::types::id::NodeId;

/// Number of variants at each level at which a new one makes a message unknown and not malformed.
pub(crate) mod kinds {
    pub(crate) const VERSIONS: u32 = 1;
    pub(crate) const V1: u32 = 9;
    pub(crate) const V1_CALL: u32 = 1;
    pub(crate) const V1_ANSWER: u32 = 2;
    pub(crate) const QUESTIONS: u32 = 11;
    pub(crate) const ANSWERS: u32 = 9;
}

/// Nodes in one list of a response.
pub(crate) const NODES: usize = 20;
/// Claims in one response: more than fit.
pub(crate) const CLAIMS: usize = 256;
/// Addresses or connections of one node in a response.
pub(crate) const PER_NODE: usize = 8;

#[derive(Serialize, Deserialize)]
pub(crate) enum Message<'a> {
    #[serde(borrow)]
    V1(V1<'a>),
}

#[derive(Serialize, Deserialize)]
pub(crate) enum V1<'a> {
    Hello {
        version_min: u16,
        version_max: u16,
        features: u64,
        agent: &'a str,
    },
    Call {
        deadline_ms: u32,
        #[serde(borrow)]
        question: RpcRequest<'a>,
    },
    #[serde(borrow)]
    Answer(RpcResponse<'a>),
    Open {
        protocol: &'a str,
    },
    Accepted,
    Exchange {
        deadline_ms: u32,
        token: Octets<'a>,
    },
    Token {
        token: Octets<'a>,
    },
    Network {
        name: &'a str,
    },
    External {
        #[serde(borrow)]
        address: Option<Address<'a>>,
    },
}

#[derive(Serialize, Deserialize)]
pub(crate) enum RpcRequest<'a> {
    Ping {
        nonce: u64,
    },
    Closest {
        target: NodeId,
        local: bool,
        active: bool,
    },
    #[serde(borrow)]
    Signal(Signal<'a>),
    Punch {
        source: NodeId,
        #[serde(borrow)]
        address: Address<'a>,
        request: Signal<'a>,
        relay_signature: Octets<'a>,
    },
    Claims {
        after: Option<[u8; 16]>,
        max_bytes: u32,
    },
    SignClaim {
        token: Octets<'a>,
    },
    PlainSignal {
        target: NodeId,
        #[serde(borrow)]
        signature: Octets<'a>,
    },
    PlainPunch {
        source: NodeId,
        target: NodeId,
        address: &'a str,
        #[serde(borrow)]
        signature: Octets<'a>,
        relay_signature: Octets<'a>,
    },
    Relay {
        target: NodeId,
    },
    Circuit {
        source: NodeId,
        #[serde(borrow)]
        address: Option<Address<'a>>,
        same_network: bool,
    },
    Candidates {
        #[serde(borrow)]
        addresses: List<Address<'a>, PER_NODE>,
    },
}

/// The signature has 64 bytes.
#[derive(Serialize, Deserialize)]
pub(crate) struct Signal<'a> {
    pub(crate) target: NodeId,
    pub(crate) expires: u64,
    pub(crate) nonce: [u8; 16],
    #[serde(borrow)]
    pub(crate) signature: Octets<'a>,
}

#[derive(Serialize, Deserialize)]
pub(crate) enum RpcResponse<'a> {
    Pong {
        nonce: u64,
    },
    Closest {
        #[serde(borrow)]
        local: List<Known<'a>, NODES>,
        active: List<Active<'a>, NODES>,
    },
    Signalled {
        #[serde(borrow)]
        address: Address<'a>,
    },
    Punching,
    /// A number from [`refusals`].
    Refused(u8),
    Claims {
        claims: List<Claim<'a>, CLAIMS>,
        more: bool,
    },
    SignedClaim {
        token: Octets<'a>,
    },
    Circuit {
        #[serde(borrow)]
        address: Option<Address<'a>>,
        same_network: bool,
    },
    Candidates {
        #[serde(borrow)]
        addresses: List<Address<'a>, PER_NODE>,
    },
}

/// Numbers of refusals. New ones may be appended.
pub(crate) mod refusals {
    use crate::types::refusal::Refusal;

    const ALL: [Refusal; 14] = [
        Refusal::NotConnected,
        Refusal::RateLimited,
        Refusal::Signature,
        Refusal::Expired,
        Refusal::Replayed,
        Refusal::NotTarget,
        Refusal::Address,
        Refusal::Busy,
        Refusal::Denied,
        Refusal::Stale,
        Refusal::Claim,
        Refusal::Terms,
        Refusal::RelaySignature,
        Refusal::Volume,
    ];

    pub(crate) fn read(number: u8) -> Option<Refusal> {
        ALL.get(usize::from(number)).copied()
    }

    pub(crate) fn write(refusal: Refusal) -> u8 {
        ALL.iter()
            .position(|known| *known == refusal)
            .and_then(|at| u8::try_from(at).ok())
            .unwrap_or_default()
    }
}

/// A claim of a chain: its id, and the JSON text of its token.
#[derive(Serialize, Deserialize)]
pub(crate) struct Claim<'a> {
    pub(crate) id: [u8; 16],
    #[serde(borrow)]
    pub(crate) token: Octets<'a>,
}

/// A node and its addresses, the newest first.
#[derive(Serialize, Deserialize)]
pub(crate) struct Known<'a> {
    pub(crate) node: NodeId,
    #[serde(borrow)]
    pub(crate) addresses: List<KnownAddress<'a>, PER_NODE>,
}

/// Without scopes, because only global addresses are sent.
#[derive(PartialEq, Serialize, Deserialize)]
pub(crate) struct KnownAddress<'a> {
    #[serde(borrow)]
    pub(crate) address: Address<'a>,
    #[serde(with = "Mode")]
    pub(crate) mode: ContactMode,
    pub(crate) connected_time: u64,
}

/// Order on the wire of variants that are declared elsewhere.
#[derive(Serialize, Deserialize)]
#[serde(remote = "ContactMode")]
enum Mode {
    Direct,
    Signal,
    Relay,
}

/// A node and its live connections.
#[derive(Serialize, Deserialize)]
pub(crate) struct Active<'a> {
    pub(crate) node: NodeId,
    #[serde(borrow)]
    pub(crate) connections: List<Connection<'a>, PER_NODE>,
}

#[derive(Serialize, Deserialize)]
pub(crate) struct Connection<'a> {
    #[serde(borrow)]
    pub(crate) shared_id: Octets<'a>,
    pub(crate) address: Address<'a>,
    pub(crate) primary: bool,
    pub(crate) idle_in_ms: Option<u64>,
}

#[derive(PartialEq, Serialize, Deserialize)]
pub(crate) struct Address<'a> {
    #[serde(borrow)]
    pub(crate) host: Host<'a>,
    pub(crate) port: u16,
}

/// Without zones, which are meaningless on another machine.
#[derive(PartialEq, Serialize, Deserialize)]
pub(crate) enum Host<'a> {
    V4([u8; 4]),
    V6([u8; 16]),
    Name(&'a str),
}

/// Bytes after their count.
pub(crate) struct Octets<'a>(pub(crate) &'a [u8]);

impl Serialize for Octets<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.0)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Octets<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        <&[u8]>::deserialize(deserializer).map(Self)
    }
}

/// At most `CAP` elements after their count. One element needs no heap memory.
#[derive(Serialize)]
pub(crate) struct List<T, const CAP: usize>(pub(crate) SmallVec<[T; 1]>);

impl<'de, T: Deserialize<'de>, const CAP: usize> Deserialize<'de> for List<T, CAP> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Elements<T, const CAP: usize>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>, const CAP: usize> Visitor<'de> for Elements<T, CAP> {
            type Value = SmallVec<[T; 1]>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "at most {CAP} elements")
            }

            fn visit_seq<A: SeqAccess<'de>>(
                self,
                mut sequence: A,
            ) -> Result<Self::Value, A::Error> {
                // Nothing is allocated for a count without an element.
                let expected = sequence.size_hint().unwrap_or(CAP).min(CAP).min(NODES);
                let mut elements = SmallVec::new();
                while let Some(element) = sequence.next_element()? {
                    if elements.len() == CAP {
                        return Err(de::Error::invalid_length(CAP + 1, &self));
                    }
                    if elements.is_empty() {
                        elements.reserve_exact(expected);
                    }
                    elements.push(element);
                }
                Ok(elements)
            }
        }

        deserializer.deserialize_seq(Elements::<T, CAP>(PhantomData)).map(Self)
    }
}

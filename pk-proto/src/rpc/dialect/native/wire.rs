//! Everything that the native dialect puts on the wire, as postcard sees it.
//!
//! These types are the format, and only they are, so that no change elsewhere can change it. Variants may be appended to
//! the enums; nothing else may ever change. Variants whose kind a reader must recognise as new are counted in
//! [`kinds`].
//!
//! Reading borrows from the frame, and lists are refused at the first element over their cap, so that what a frame
//! allocates is bounded by the caps and not by the counts in it.

use alloc::vec::Vec;
use core::fmt;
use core::marker::PhantomData;

use serde::de::{self, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::address::ContactMode;
use crate::id::NodeId;

/// How many variants there are at each level at which a new one makes a message unknown and not malformed.
pub(super) mod kinds {
    pub(in super::super) const VERSIONS: u32 = 1;
    pub(in super::super) const V1: u32 = 7;
    pub(in super::super) const V1_CALL: u32 = 1;
    pub(in super::super) const V1_ANSWER: u32 = 2;
    pub(in super::super) const QUESTIONS: u32 = 8;
    pub(in super::super) const ANSWERS: u32 = 7;
}

/// Nodes in one list of an answer.
pub(super) const NODES: usize = 20;
/// Claims in one answer: more than fit.
pub(super) const CLAIMS: usize = 256;
/// Addresses or connections of one node in an answer.
pub(super) const PER_NODE: usize = 8;

#[derive(Serialize, Deserialize)]
pub(super) enum Message<'a> {
    #[serde(borrow)]
    V1(V1<'a>),
}

#[derive(Serialize, Deserialize)]
pub(super) enum V1<'a> {
    Hello {
        version_min: u16,
        version_max: u16,
        features: u64,
        agent: &'a str,
    },
    Call {
        deadline_ms: u32,
        #[serde(borrow)]
        question: Question<'a>,
    },
    #[serde(borrow)]
    Answer(Answer<'a>),
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
}

#[derive(Serialize, Deserialize)]
pub(super) enum Question<'a> {
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
}

/// The signature has 64 bytes.
#[derive(Serialize, Deserialize)]
pub(super) struct Signal<'a> {
    pub(super) target: NodeId,
    pub(super) expires: u64,
    pub(super) nonce: [u8; 16],
    #[serde(borrow)]
    pub(super) signature: Octets<'a>,
}

#[derive(Serialize, Deserialize)]
pub(super) enum Answer<'a> {
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
    /// A number of [`refusals`].
    Refused(u8),
    Claims {
        claims: List<Claim<'a>, CLAIMS>,
        more: bool,
    },
    SignedClaim {
        token: Octets<'a>,
    },
}

/// The numbers of refusals. They may be appended to.
pub(super) mod refusals {
    use crate::rpc::call::Refusal;

    const ALL: [Refusal; 13] = [
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
    ];

    pub(in super::super) fn read(number: u8) -> Option<Refusal> {
        ALL.get(usize::from(number)).copied()
    }

    pub(in super::super) fn write(refusal: Refusal) -> u8 {
        ALL.iter().position(|known| *known == refusal).and_then(|at| u8::try_from(at).ok()).unwrap_or_default()
    }
}

/// A claim of a chain: its id, and the JSON text of its token.
#[derive(Serialize, Deserialize)]
pub(super) struct Claim<'a> {
    pub(super) id: [u8; 16],
    #[serde(borrow)]
    pub(super) token: Octets<'a>,
}

/// A node and its addresses, the newest first.
#[derive(Serialize, Deserialize)]
pub(super) struct Known<'a> {
    pub(super) node: NodeId,
    #[serde(borrow)]
    pub(super) addresses: List<KnownAddress<'a>, PER_NODE>,
}

/// Has no scopes: only what was learnt from the network at large is told.
#[derive(Serialize, Deserialize)]
pub(super) struct KnownAddress<'a> {
    #[serde(borrow)]
    pub(super) address: Address<'a>,
    #[serde(with = "Mode")]
    pub(super) mode: ContactMode,
    pub(super) connected_time: u64,
}

/// The order on the wire of what is declared elsewhere.
#[derive(Serialize, Deserialize)]
#[serde(remote = "ContactMode")]
enum Mode {
    Direct,
    Signal,
    Relay,
}

/// A node and its live connections.
#[derive(Serialize, Deserialize)]
pub(super) struct Active<'a> {
    pub(super) node: NodeId,
    #[serde(borrow)]
    pub(super) connections: List<Connection<'a>, PER_NODE>,
}

#[derive(Serialize, Deserialize)]
pub(super) struct Connection<'a> {
    #[serde(borrow)]
    pub(super) shared_id: Octets<'a>,
    pub(super) address: Address<'a>,
    pub(super) primary: bool,
    pub(super) idle_in_ms: Option<u64>,
}

#[derive(Serialize, Deserialize)]
pub(super) struct Address<'a> {
    #[serde(borrow)]
    pub(super) host: Host<'a>,
    pub(super) port: u16,
}

/// Has no zones: they mean nothing on another machine.
#[derive(Serialize, Deserialize)]
pub(super) enum Host<'a> {
    V4([u8; 4]),
    V6([u8; 16]),
    Name(&'a str),
}

/// Bytes with their count in front.
pub(super) struct Octets<'a>(pub(super) &'a [u8]);

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

/// At most `CAP` elements with their count in front.
#[derive(Serialize)]
pub(super) struct List<T, const CAP: usize>(pub(super) Vec<T>);

impl<'de, T: Deserialize<'de>, const CAP: usize> Deserialize<'de> for List<T, CAP> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Elements<T, const CAP: usize>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>, const CAP: usize> Visitor<'de> for Elements<T, CAP> {
            type Value = Vec<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "at most {CAP} elements")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Vec<T>, A::Error> {
                let mut elements = Vec::new();
                while let Some(element) = sequence.next_element()? {
                    if elements.len() == CAP {
                        return Err(de::Error::invalid_length(CAP + 1, &self));
                    }
                    elements.push(element);
                }
                Ok(elements)
            }
        }

        deserializer.deserialize_seq(Elements::<T, CAP>(PhantomData)).map(Self)
    }
}

//! Signed statements of nodes about themselves and each other, and the chains of them
//! (docs/DESIGN.md, Claims; docs/WIRE.md sections 6 and 7).
//!
//! ```text
//! SignedToken      a payload and signatures, as general JWS JSON; well-formed, nothing verified
//!  └ Claim         a token whose payload is a link of a sigchain
//!     ├ UnsignedClaim → SinglySigned → DoublySigned  made only by verifying what they promise
//!     └ ChainVerifier                                judges the claims of one owner, one after the other
//! ClaimId, Digest  what a claim is called, and what the next one says of it
//! exchange         two nodes sign for each other: Initiator and Responder, step by step
//! Sigchain         our own chain: its head, and what moves it
//! gestalt          which nodes are linked by claims
//! ```
//!
//! All of it is pure. What peers sign is stored, verified and forwarded as the bytes that they
//! signed.

mod chain;
mod claim;
mod digest;
mod draft;
pub(crate) mod exchange;
pub(crate) mod gestalt;
mod head;
mod id;
pub(crate) mod json;
mod policy;
pub(crate) mod rows;
pub(crate) mod sigchain;
mod signed;
pub(crate) mod token;

pub use self::chain::{ChainFault, ChainFaultKind, ChainVerifier};
pub use self::claim::{Claim, ClaimContent, ClaimFault, ClaimLinkNode, MAX_TYP_LEN};
pub use self::digest::{Digest, DigestAlgorithm, ParseDigestError};
pub use self::exchange::{ClaimStep, ExchangeFault};
pub use self::gestalt::{Gestalt, GestaltLink, GestaltProof};
pub use self::head::ChainHead;
pub use self::id::{ClaimId, ParseClaimIdError};
pub use self::json::{JsonFault, MAX_JSON_DEPTH, MAX_JSON_INTEGER};
pub use self::policy::ClaimPolicy;
pub(crate) use self::policy::Verdict;
pub use self::rows::claim_row;
pub use self::sigchain::OpenExchange;
pub use self::signed::{DoublySigned, SignedFault, SinglySigned, UnsignedClaim};
pub use self::token::{
    MAX_SIGNATURES, MAX_TOKEN_LEN, SignatureEncoded, SignedToken, SignedTokenEncoded, TokenFault,
    TokenSignature,
};

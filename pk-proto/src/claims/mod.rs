//! Signed statements of nodes about themselves and each other, and the chains that they form (DESIGN section 6, WIRE.md
//! sections 6 and 7).
//!
//! ```text
//! Token            a payload and signatures, as general JWS JSON; well-formed, nothing verified
//!  └ Claim         a token whose payload is a link of a sigchain
//!     ├ UnsignedClaim → HalfSigned → FullySigned     made only by verifying what they promise
//!     └ ChainVerifier                                judges the claims of one owner, one after the other
//! ClaimId, Digest  what a claim is called, and what the next one says of it
//! exchange         two nodes sign for each other: Initiator and Responder, step by step
//! Sigchain         our own chain: its head, and what moves it
//! gestalt          which nodes are linked by claims
//! ```
//!
//! All of it is pure: bytes in, verdict out. What peers sign is kept, verified and passed on as the bytes that they signed.

mod chain;
mod claim;
mod digest;
pub(crate) mod exchange;
pub(crate) mod gestalt;
mod id;
pub(crate) mod json;
mod policy;
pub(crate) mod rows;
pub(crate) mod sigchain;
mod signed;
mod token;

pub use chain::{ChainFault, ChainFaultKind, ChainHead, ChainVerifier};
pub use claim::{Claim, ClaimContent, ClaimFault, ClaimLinkNode, MAX_TYP_LEN};
pub use digest::{Digest, DigestAlgorithm, ParseDigestError};
pub use exchange::{ClaimStep, ExchangeFault};
pub use gestalt::{Gestalt, GestaltLink, GestaltProof};
pub use id::{ClaimId, ParseClaimIdError};
pub use json::{JsonFault, MAX_JSON_DEPTH, MAX_JSON_INTEGER};
pub use policy::ClaimPolicy;
pub(crate) use policy::Verdict;
pub use rows::claim_row;
pub use sigchain::OpenExchange;
pub use signed::{FullySigned, HalfSigned, SignedFault, UnsignedClaim};
pub use token::{MAX_SIGNATURES, MAX_TOKEN_LEN, SignatureEncoded, Token, TokenEncoded, TokenFault, TokenSignature};

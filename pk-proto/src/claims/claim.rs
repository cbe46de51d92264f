//! Claims: the tokens of a sigchain.

use alloc::borrow::Cow;
use alloc::boxed::Box;
use alloc::string::{String, ToString};

use serde::{Deserialize, Serialize};

use super::digest::{Digest, ParseDigestError};
use super::id::ClaimId;
use super::json;
use super::json::{JsonFault, MAX_JSON_INTEGER, Members};
use super::token::{SignedToken, TokenFault};
use crate::types::id::NodeId;

/// Maximum length of the name of a claim type, in bytes.
pub const MAX_TYP_LEN: usize = 64;

/// An entry of a sigchain: a token with its issuer, its time, and its predecessor.
///
/// Only its form is checked, neither its signatures nor its place in a chain. Unknown members of
/// its type stay in the payload ([`member`](Self::member)).
///
/// Serde reads and writes its token, whose form is checked again when it is read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "SignedToken", into = "SignedToken")]
pub struct Claim(Box<Parts>);

/// In a box, so that a claim is cheap to move.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Parts {
    token: SignedToken,
    id: ClaimId,
    seq: u64,
    issued_at: u64,
    not_before: u64,
    prev_claim_id: Option<ClaimId>,
    prev_digest: Option<Digest>,
    typ: String,
    issuer: Option<String>,
    subject: Option<String>,
    link: Option<ClaimLinkNode>,
}

/// Content of a claim of type `ClaimLinkNode`, which links two nodes. Both sign it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ClaimLinkNode {
    /// Node that started the exchange (`iss`).
    pub issuer: NodeId,
    /// Other node (`sub`).
    pub subject: NodeId,
}

impl ClaimLinkNode {
    /// Name of the type (`typ`).
    pub const TYP: &'static str = "ClaimLinkNode";

    /// Returns the other node of the link; `None` for a third node.
    pub fn other(&self, node: &NodeId) -> Option<NodeId> {
        match () {
            () if *node == self.issuer => Some(self.subject),
            () if *node == self.subject => Some(self.issuer),
            () => None,
        }
    }
}

/// Content of a claim, before it has a place in a chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClaimContent {
    /// Type (`typ`): 1 to [`MAX_TYP_LEN`] bytes.
    pub typ: String,
    /// Issuer (`iss`), usually a node id.
    pub issuer: Option<String>,
    /// Subject (`sub`).
    pub subject: Option<String>,
    /// Members of the type: a canonical JSON object, `{}` if there are none. Names of members that
    /// every claim has are not allowed.
    pub members: String,
}

impl ClaimContent {
    /// Returns the content of a link.
    pub fn link(link: &ClaimLinkNode) -> Self {
        Self {
            typ: ClaimLinkNode::TYP.into(),
            issuer: Some(link.issuer.to_string()),
            subject: Some(link.subject.to_string()),
            members: "{}".into(),
        }
    }
}

impl Claim {
    /// Parses the JSON text of a claim's token.
    ///
    /// # Errors
    /// [`Token`](ClaimFault::Token) as for [`SignedToken::parse`]; otherwise the missing or
    /// invalid part of the payload.
    pub fn parse(json: &[u8]) -> Result<Self, ClaimFault> {
        SignedToken::parse(json)?.try_into()
    }

    /// Returns the token.
    pub fn token(&self) -> &SignedToken {
        &self.0.token
    }

    /// Returns the token, to be verified and forwarded.
    pub fn into_token(self) -> SignedToken {
        self.0.token
    }

    /// Returns the id (`jti`).
    pub fn id(&self) -> ClaimId {
        self.0.id
    }

    /// Returns its number in the chain, from 1.
    pub fn seq(&self) -> u64 {
        self.0.seq
    }

    /// Returns its creation time, in unix seconds (`iat`).
    pub fn issued_at(&self) -> u64 {
        self.0.issued_at
    }

    /// Returns the time from which on it is valid, in unix seconds (`nbf`).
    pub fn not_before(&self) -> u64 {
        self.0.not_before
    }

    /// Returns the id of the claim before it; `None` for the first one.
    pub fn prev_claim_id(&self) -> Option<ClaimId> {
        self.0.prev_claim_id
    }

    /// Returns the digest of the claim before it; `None` for the first one.
    pub fn prev_digest(&self) -> Option<&Digest> {
        self.0.prev_digest.as_ref()
    }

    /// Returns the type.
    pub fn typ(&self) -> &str {
        &self.0.typ
    }

    /// Returns the issuer.
    pub fn issuer(&self) -> Option<&str> {
        self.0.issuer.as_deref()
    }

    /// Returns the subject.
    pub fn subject(&self) -> Option<&str> {
        self.0.subject.as_deref()
    }

    /// Returns the linked nodes, if it is a [`ClaimLinkNode`].
    pub fn link(&self) -> Option<&ClaimLinkNode> {
        self.0.link.as_ref()
    }

    /// Returns the canonical JSON of a member of the payload.
    pub fn member(&self, name: &str) -> Option<&str> {
        let members = json::object(self.0.token.payload()).ok()?;
        members.into_iter().find(|(found, _)| found == name).map(|(_, value)| value)
    }

    /// Returns the members that not every claim has: a canonical JSON object.
    pub fn members(&self) -> String {
        let mut members = json::object(self.0.token.payload()).unwrap_or_default();
        members.retain(|(name, _)| !NAMES.contains(&&**name));
        object(&members)
    }

    pub(super) fn token_mut(&mut self) -> &mut SignedToken {
        &mut self.0.token
    }
}

pub(super) const IAT: &str = "iat";
pub(super) const ISS: &str = "iss";
pub(super) const JTI: &str = "jti";
pub(super) const NBF: &str = "nbf";
pub(super) const PREV_CLAIM_ID: &str = "prevClaimId";
pub(super) const PREV_DIGEST: &str = "prevDigest";
pub(super) const SEQ: &str = "seq";
pub(super) const SUB: &str = "sub";
pub(super) const TYP: &str = "typ";
/// The members that every claim may have, regardless of its type.
const NAMES: [&str; 9] = [IAT, ISS, JTI, NBF, PREV_CLAIM_ID, PREV_DIGEST, SEQ, SUB, TYP];

/// Returns the canonical text of an object whose members are sorted.
pub(super) fn object(members: &Members<'_>) -> String {
    let mut text = String::from("{");
    for (i, (name, value)) in members.iter().enumerate() {
        if i > 0 {
            text.push(',');
        }
        json::write_string(&mut text, name);
        text.push(':');
        text.push_str(value);
    }
    text.push('}');
    text
}

impl TryFrom<SignedToken> for Claim {
    type Error = ClaimFault;

    fn try_from(token: SignedToken) -> Result<Self, ClaimFault> {
        let members = json::object(token.payload()).map_err(TokenFault::Payload)?;
        let member =
            |name| members.iter().find(|(found, _)| found == name).map(|(_, value)| *value);
        let string = |name| member(name).map(|value| json::string(value).map(Cow::into_owned));
        let time = |name| member(name).and_then(json::integer);

        let id = string(JTI).flatten().and_then(|id| id.parse().ok()).ok_or(ClaimFault::Id)?;
        let issued_at = time(IAT).ok_or(ClaimFault::Time)?;
        let not_before = time(NBF).ok_or(ClaimFault::Time)?;
        let seq =
            time(SEQ).filter(|seq| (1..=MAX_JSON_INTEGER).contains(seq)).ok_or(ClaimFault::Seq)?;
        let prev_claim_id = match member(PREV_CLAIM_ID).ok_or(ClaimFault::PrevClaimId)? {
            "null" => None,
            value => {
                let id = json::string(value).and_then(|id| id.parse().ok());
                Some(id.ok_or(ClaimFault::PrevClaimId)?)
            }
        };
        let prev_digest =
            match member(PREV_DIGEST).ok_or(ClaimFault::PrevDigest(ParseDigestError::Malformed))? {
                "null" => None,
                value => {
                    let digest = json::string(value)
                        .ok_or(ClaimFault::PrevDigest(ParseDigestError::Malformed))?;
                    Some(digest.parse().map_err(ClaimFault::PrevDigest)?)
                }
            };
        let typ = string(TYP)
            .flatten()
            .filter(|typ| (1..=MAX_TYP_LEN).contains(&typ.len()))
            .ok_or(ClaimFault::Typ)?;
        let issuer = string(ISS).map(|iss| iss.ok_or(ClaimFault::Issuer)).transpose()?;
        let subject = string(SUB).map(|sub| sub.ok_or(ClaimFault::Subject)).transpose()?;
        let node = |text: &Option<String>| text.as_deref().and_then(|text| text.parse().ok());
        let link = match typ == ClaimLinkNode::TYP {
            true => Some(ClaimLinkNode {
                issuer: node(&issuer).ok_or(ClaimFault::Issuer)?,
                subject: node(&subject).ok_or(ClaimFault::Subject)?,
            }),
            false => None,
        };
        drop(members);
        let parts = Parts {
            token,
            id,
            seq,
            issued_at,
            not_before,
            prev_claim_id,
            prev_digest,
            typ,
            issuer,
            subject,
            link,
        };
        Ok(Self(Box::new(parts)))
    }
}

impl From<Claim> for SignedToken {
    fn from(claim: Claim) -> Self {
        claim.into_token()
    }
}

/// Why a token is not a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[non_exhaustive]
pub enum ClaimFault {
    /// It is not a token.
    #[error(transparent)]
    Token(#[from] TokenFault),
    /// `jti` is not a claim id.
    #[error("jti is not a claim id")]
    Id,
    /// `iat` or `nbf` is not a time.
    #[error("iat or nbf is not a time")]
    Time,
    /// `seq` is not a number of at least 1.
    #[error("seq is not a number of at least 1")]
    Seq,
    /// `prevClaimId` is neither a claim id nor null.
    #[error("prevClaimId is neither a claim id nor null")]
    PrevClaimId,
    /// `prevDigest` is neither a digest nor null.
    #[error("prevDigest: {0}")]
    PrevDigest(ParseDigestError),
    /// `typ` is not 1 to [`MAX_TYP_LEN`] bytes of text.
    #[error("typ is not a text of 1 to {MAX_TYP_LEN} bytes")]
    Typ,
    /// `iss` is not a text, or not a node id in a link.
    #[error("iss is not a node id")]
    Issuer,
    /// `sub` is not a text, or not a node id in a link.
    #[error("sub is not a node id")]
    Subject,
    /// The members of a custom type are not a canonical object, or one has a name that every claim
    /// has.
    #[error("members: {0}")]
    Members(JsonFault),
}

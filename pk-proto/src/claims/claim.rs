//! Claims: the tokens that a sigchain is made of.

use alloc::borrow::Cow;
use alloc::boxed::Box;
use alloc::string::{String, ToString};

use serde::{Deserialize, Serialize};

use super::chain::ChainHead;
use super::digest::{Digest, ParseDigestError};
use super::id::ClaimId;
use super::json::{self, JsonFault, MAX_JSON_INTEGER, Members};
use super::signed::UnsignedClaim;
use super::token::{Token, TokenFault};
use crate::id::NodeId;
use crate::time::UnixMillis;

/// The longest name of a type of claims, in bytes.
pub const MAX_TYP_LEN: usize = 64;

/// A link of a sigchain: a token that says who made it, when, and after which other claim.
///
/// Its form is checked, and nothing else: neither its signatures nor its place in a chain. Members of its type that are not
/// known here stay in the payload ([`member`](Self::member)).
///
/// Serde reads and writes its token, whose form is checked again when it is read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Token", into = "Token")]
pub struct Claim(Box<Parts>);

/// In a box, so that a claim on its way from hand to hand is a pointer.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Parts {
    token: Token,
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

/// What a claim of type `ClaimLinkNode` says: that these two nodes belong together. Both sign it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ClaimLinkNode {
    /// The node that began the exchange (`iss`).
    pub issuer: NodeId,
    /// The other one (`sub`).
    pub subject: NodeId,
}

impl ClaimLinkNode {
    /// The name of the type (`typ`).
    pub const TYP: &'static str = "ClaimLinkNode";

    /// The other node of the two, as one of them sees it; `None` for a third.
    pub fn other(&self, node: &NodeId) -> Option<NodeId> {
        match () {
            () if *node == self.issuer => Some(self.subject),
            () if *node == self.subject => Some(self.issuer),
            () => None,
        }
    }
}

/// What a claim is to say, before it has a place in a chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClaimContent {
    /// The type (`typ`): 1 to [`MAX_TYP_LEN`] bytes.
    pub typ: String,
    /// Who claims (`iss`), usually a node id.
    pub issuer: Option<String>,
    /// Of whom (`sub`).
    pub subject: Option<String>,
    /// The members of the type: a canonical JSON object, `{}` if there are none. Names that every claim has are taken.
    pub members: String,
}

impl ClaimContent {
    /// The content of a link.
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
    /// Reads the JSON text of a claim's token.
    ///
    /// # Errors
    /// [`Token`](ClaimFault::Token) as for [`Token::parse`]; otherwise which part of the payload is missing or wrong.
    pub fn parse(json: &[u8]) -> Result<Self, ClaimFault> {
        Token::parse(json)?.try_into()
    }

    /// A claim of this content, made at this time, as the next one of the chain that ends with `prev`.
    ///
    /// # Errors
    /// [`Members`](ClaimFault::Members) if the members are not a canonical object or use a name that every claim has;
    /// otherwise as for [`parse`](Self::parse).
    pub fn draft(
        content: &ClaimContent,
        id: ClaimId,
        unix: UnixMillis,
        prev: Option<&ChainHead>,
    ) -> Result<UnsignedClaim, ClaimFault> {
        let quoted = |text: &str| {
            let mut value = String::new();
            json::write_string(&mut value, text);
            value
        };
        let or_null = |value: Option<String>| value.map_or_else(|| "null".into(), |value| quoted(&value));
        let seconds = unix.as_secs().to_string();
        let seq = prev.map_or(0, |prev| prev.seq).saturating_add(1);
        let own: [(&str, Option<String>); 9] = [
            (IAT, Some(seconds.clone())),
            (ISS, content.issuer.as_deref().map(quoted)),
            (JTI, Some(quoted(&id.to_string()))),
            (NBF, Some(seconds)),
            (PREV_CLAIM_ID, Some(or_null(prev.map(|prev| prev.id.to_string())))),
            (PREV_DIGEST, Some(or_null(prev.map(|prev| prev.digest.to_string())))),
            (SEQ, Some(seq.to_string())),
            (SUB, content.subject.as_deref().map(quoted)),
            (TYP, Some(quoted(&content.typ))),
        ];
        let mut members = json::object(&content.members).map_err(ClaimFault::Members)?;
        if members.iter().any(|(name, _)| own.iter().any(|(own, _)| own == name)) {
            return Err(ClaimFault::Members(JsonFault::Duplicate));
        }
        let own = own.iter().filter_map(|(name, value)| Some((Cow::Borrowed(*name), value.as_deref()?)));
        members.extend(own);
        members.sort_by(|(a, _), (b, _)| json::order(a, b));
        let claim = Self::try_from(Token::new(object(&members))?)?;
        Ok(UnsignedClaim::new(claim))
    }

    /// The token.
    pub fn token(&self) -> &Token {
        &self.0.token
    }

    /// The token, as it is to be verified and passed on.
    pub fn into_token(self) -> Token {
        self.0.token
    }

    /// What the claim is called (`jti`).
    pub fn id(&self) -> ClaimId {
        self.0.id
    }

    /// Its number in the chain, from 1.
    pub fn seq(&self) -> u64 {
        self.0.seq
    }

    /// When it was made, in unix seconds (`iat`).
    pub fn issued_at(&self) -> u64 {
        self.0.issued_at
    }

    /// From when on it holds, in unix seconds (`nbf`).
    pub fn not_before(&self) -> u64 {
        self.0.not_before
    }

    /// The claim before it; `None` for the first one.
    pub fn prev_claim_id(&self) -> Option<ClaimId> {
        self.0.prev_claim_id
    }

    /// The digest of the claim before it; `None` for the first one.
    pub fn prev_digest(&self) -> Option<&Digest> {
        self.0.prev_digest.as_ref()
    }

    /// What kind of claim it is.
    pub fn typ(&self) -> &str {
        &self.0.typ
    }

    /// Who claims.
    pub fn issuer(&self) -> Option<&str> {
        self.0.issuer.as_deref()
    }

    /// Of whom.
    pub fn subject(&self) -> Option<&str> {
        self.0.subject.as_deref()
    }

    /// Which nodes it links, if it is a [`ClaimLinkNode`].
    pub fn link(&self) -> Option<&ClaimLinkNode> {
        self.0.link.as_ref()
    }

    /// The canonical JSON of a member of the payload, whichever it is.
    pub fn member(&self, name: &str) -> Option<&str> {
        let members = json::object(self.0.token.payload()).ok()?;
        members.into_iter().find(|(found, _)| found == name).map(|(_, value)| value)
    }

    /// The members that not every claim has: a canonical JSON object.
    pub fn members(&self) -> String {
        let mut members = json::object(self.0.token.payload()).unwrap_or_default();
        members.retain(|(name, _)| !NAMES.contains(&&**name));
        object(&members)
    }

    pub(super) fn token_mut(&mut self) -> &mut Token {
        &mut self.0.token
    }
}

const IAT: &str = "iat";
const ISS: &str = "iss";
const JTI: &str = "jti";
const NBF: &str = "nbf";
const PREV_CLAIM_ID: &str = "prevClaimId";
const PREV_DIGEST: &str = "prevDigest";
const SEQ: &str = "seq";
const SUB: &str = "sub";
const TYP: &str = "typ";
/// The members that every claim may have, whatever its type.
const NAMES: [&str; 9] = [IAT, ISS, JTI, NBF, PREV_CLAIM_ID, PREV_DIGEST, SEQ, SUB, TYP];

/// The canonical text of an object whose members are sorted.
fn object(members: &Members<'_>) -> String {
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

impl TryFrom<Token> for Claim {
    type Error = ClaimFault;

    fn try_from(token: Token) -> Result<Self, ClaimFault> {
        let members = json::object(token.payload()).map_err(TokenFault::Payload)?;
        let member = |name| members.iter().find(|(found, _)| found == name).map(|(_, value)| *value);
        let string = |name| member(name).map(|value| json::string(value).map(Cow::into_owned));
        let time = |name| member(name).and_then(json::integer);

        let id = string(JTI).flatten().and_then(|id| id.parse().ok()).ok_or(ClaimFault::Id)?;
        let issued_at = time(IAT).ok_or(ClaimFault::Time)?;
        let not_before = time(NBF).ok_or(ClaimFault::Time)?;
        let seq = time(SEQ).filter(|seq| (1..=MAX_JSON_INTEGER).contains(seq)).ok_or(ClaimFault::Seq)?;
        let prev_claim_id = match member(PREV_CLAIM_ID).ok_or(ClaimFault::PrevClaimId)? {
            "null" => None,
            value => {
                let id = json::string(value).and_then(|id| id.parse().ok());
                Some(id.ok_or(ClaimFault::PrevClaimId)?)
            }
        };
        let prev_digest = match member(PREV_DIGEST).ok_or(ClaimFault::PrevDigest(ParseDigestError::Malformed))? {
            "null" => None,
            value => {
                let digest = json::string(value).ok_or(ClaimFault::PrevDigest(ParseDigestError::Malformed))?;
                Some(digest.parse().map_err(ClaimFault::PrevDigest)?)
            }
        };
        let typ = string(TYP).flatten().filter(|typ| (1..=MAX_TYP_LEN).contains(&typ.len())).ok_or(ClaimFault::Typ)?;
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
        let parts =
            Parts { token, id, seq, issued_at, not_before, prev_claim_id, prev_digest, typ, issuer, subject, link };
        Ok(Self(Box::new(parts)))
    }
}

impl From<Claim> for Token {
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
    /// `seq` is not a number from 1 on.
    #[error("seq is not a number from 1 on")]
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
    /// `iss` is not a text, or of a link not a node id.
    #[error("iss is not a node id")]
    Issuer,
    /// `sub` is not a text, or of a link not a node id.
    #[error("sub is not a node id")]
    Subject,
    /// Members of an own type are not a canonical object, or one has a name that every claim has.
    #[error("members: {0}")]
    Members(JsonFault),
}

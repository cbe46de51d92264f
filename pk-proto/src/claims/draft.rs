//! The next claim of a chain, before it is signed.

use alloc::borrow::Cow;
use alloc::string::{String, ToString};

use super::claim::{
    Claim, ClaimContent, ClaimFault, IAT, ISS, JTI, NBF, PREV_CLAIM_ID, PREV_DIGEST, SEQ, SUB, TYP,
    object,
};
use super::head::ChainHead;
use super::id::ClaimId;
use super::json;
use super::json::JsonFault;
use super::signed::UnsignedClaim;
use super::token::SignedToken;
use crate::types::time::UnixMillis;

impl Claim {
    /// Creates a claim with this content and time, as the next one of the chain that ends with
    /// `prev`.
    ///
    /// # Errors
    /// [`Members`](ClaimFault::Members) if the members are not a canonical object or use a name
    /// that every claim has; otherwise those of [`parse`](Self::parse).
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
        let or_null =
            |value: Option<String>| value.map_or_else(|| "null".into(), |value| quoted(&value));
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
        let own =
            own.iter().filter_map(|(name, value)| Some((Cow::Borrowed(*name), value.as_deref()?)));
        members.extend(own);
        members.sort_by(|(a, _), (b, _)| json::order(a, b));
        let claim = Self::try_from(SignedToken::new(object(&members))?)?;
        Ok(UnsignedClaim::new(claim))
    }
}

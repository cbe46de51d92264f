//! Tokens: a payload and signatures of nodes, as general JWS JSON.

use alloc::string::{String, ToString};
use alloc::vec::Vec;

use bytes::Bytes;
use data_encoding::BASE64URL_NOPAD;
use serde::{Deserialize, Serialize};

use super::digest::{Digest, DigestAlgorithm};
use super::json;
use super::json::JsonFault;
use crate::types::id::NodeId;
use crate::types::signature;
use crate::types::signature::{Signature, SignatureFault};

/// Maximum length of a token, in bytes of its JSON text. It fits into one message in both dialects.
pub const MAX_TOKEN_LEN: usize = 60 * 1024;
/// Maximum number of signatures of one token.
pub const MAX_SIGNATURES: usize = 8;

/// A token as it is sent (docs/WIRE.md section 6, SignedTokenEncoded). Only the shape of the JSON
/// is checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedTokenEncoded {
    /// Canonical JSON of the payload, in base64url.
    pub payload: String,
    /// Signatures, in order.
    pub signatures: Vec<SignatureEncoded>,
}

/// A signature as it is sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignatureEncoded {
    /// Canonical JSON of the header, in base64url.
    pub protected: String,
    /// The 64 bytes, in base64url.
    pub signature: String,
}

/// A well-formed token: a canonical JSON object as payload, and signatures, none of which is
/// verified yet.
///
/// It stores the texts that were signed. Every check is strict, so that no two texts are the same
/// token: the received text and the written one differ at most outside of what is signed, in white
/// space and unknown members.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedToken {
    payload: String,
    encoded: String,
    signatures: Vec<TokenSignature>,
}

/// One signature of a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenSignature {
    header: String,
    protected: String,
    signer: NodeId,
    signature: Signature,
}

impl TokenSignature {
    /// Returns the node named as signer: `kid` of the header.
    pub fn signer(&self) -> NodeId {
        self.signer
    }

    /// Returns the canonical JSON of the header.
    pub fn header(&self) -> &str {
        &self.header
    }

    /// Returns the signature.
    pub fn signature(&self) -> &Signature {
        &self.signature
    }

    fn parse(encoded: &SignatureEncoded) -> Result<Self, TokenFault> {
        let header = text(&encoded.protected)?;
        let members = json::object(&header).map_err(TokenFault::Header)?;
        let member = |name| {
            members
                .iter()
                .find(|(found, _)| found == name)
                .and_then(|(_, value)| json::string(value))
        };
        if member("alg").as_deref() != Some(ALGORITHM) {
            return Err(TokenFault::Algorithm);
        }
        let signer = member("kid").and_then(|kid| kid.parse().ok()).ok_or(TokenFault::Signer)?;
        drop(members);
        let signature =
            BASE64URL_NOPAD.decode(encoded.signature.as_bytes()).map_err(|_| TokenFault::Base64)?;
        let signature =
            <[u8; 64]>::try_from(signature).map(Signature).map_err(|_| TokenFault::Length)?;
        Ok(Self { header, protected: encoded.protected.clone(), signer, signature })
    }

    fn encoded(&self) -> SignatureEncoded {
        SignatureEncoded {
            protected: self.protected.clone(),
            signature: BASE64URL_NOPAD.encode(&self.signature.0),
        }
    }
}

/// The only algorithm between nodes.
const ALGORITHM: &str = "EdDSA";

impl SignedToken {
    /// Creates a token without signatures. The payload must be the canonical JSON of an object.
    ///
    /// # Errors
    /// [`Payload`](TokenFault::Payload), or [`TooLong`](TokenFault::TooLong) if its first signature
    /// would exceed the limit.
    pub fn new(payload: String) -> Result<Self, TokenFault> {
        json::object(&payload).map_err(TokenFault::Payload)?;
        let encoded = BASE64URL_NOPAD.encode(payload.as_bytes());
        Self { payload, encoded, signatures: Vec::new() }.fitting(MAX_SIGNATURE_LEN)
    }

    /// Parses the JSON text of a token.
    ///
    /// # Errors
    /// [`TooLong`](TokenFault::TooLong) before anything is parsed; those of [`TryFrom`] a
    /// [`SignedTokenEncoded`]; [`Malformed`](TokenFault::Malformed) if it is not the JSON of one.
    pub fn parse(json: &[u8]) -> Result<Self, TokenFault> {
        if json.len() > MAX_TOKEN_LEN {
            return Err(TokenFault::TooLong);
        }
        let encoded: SignedTokenEncoded =
            serde_json::from_slice(json).map_err(|_| TokenFault::Malformed)?;
        Self::try_from(&encoded)
    }

    /// Returns the canonical JSON of the payload.
    pub fn payload(&self) -> &str {
        &self.payload
    }

    /// Returns the signatures, in order.
    pub fn signatures(&self) -> &[TokenSignature] {
        &self.signatures
    }

    /// Returns the JSON text, which [`parse`](Self::parse) accepts; always the same for a token.
    pub fn to_json(&self) -> String {
        // None of the texts has a character that JSON escapes.
        let mut json = String::with_capacity(self.len());
        json.push_str("{\"payload\":\"");
        json.push_str(&self.encoded);
        json.push_str("\",\"signatures\":[");
        for (i, signature) in self.signatures.iter().enumerate() {
            json.push_str(if i == 0 { "{\"protected\":\"" } else { ",{\"protected\":\"" });
            json.push_str(&signature.protected);
            json.push_str("\",\"signature\":\"");
            BASE64URL_NOPAD.encode_append(&signature.signature.0, &mut json);
            json.push_str("\"}");
        }
        json.push_str("]}");
        json
    }

    /// Returns the parts as they are sent.
    pub fn encoded(&self) -> SignedTokenEncoded {
        let signatures = self.signatures.iter().map(TokenSignature::encoded).collect();
        SignedTokenEncoded { payload: self.encoded.clone(), signatures }
    }

    /// Returns what this node must sign to add a signature.
    pub fn signing_input(&self, signer: &NodeId) -> Bytes {
        self.input(&BASE64URL_NOPAD.encode(header(signer).as_bytes())).into()
    }

    /// Adds the signature of a node over [`signing_input`](Self::signing_input) as the last one.
    ///
    /// # Errors
    /// [`Signature`](TokenFault::Signature) if it is invalid, [`Repeated`](TokenFault::Repeated) if
    /// it exists already, [`Signatures`](TokenFault::Signatures) or
    /// [`TooLong`](TokenFault::TooLong) if there is no room. The token is unchanged.
    pub fn add_signature(
        &mut self,
        signer: NodeId,
        signature: Signature,
    ) -> Result<(), TokenFault> {
        let header = header(&signer);
        let protected = BASE64URL_NOPAD.encode(header.as_bytes());
        let added = TokenSignature { header, protected, signer, signature };
        if self.signatures.contains(&added) {
            return Err(TokenFault::Repeated);
        }
        if self.signatures.len() >= MAX_SIGNATURES {
            return Err(TokenFault::Signatures);
        }
        if self.len() + MAX_SIGNATURE_LEN > MAX_TOKEN_LEN {
            return Err(TokenFault::TooLong);
        }
        self.check(&added, &signature::Key::new(&signer)?)?;
        self.signatures.push(added);
        Ok(())
    }

    /// Verifies that this node has signed: one of the signatures names it, and is valid.
    ///
    /// Costs one signature verification for each that names it, until one is valid.
    ///
    /// # Errors
    /// [`NotSigned`](TokenFault::NotSigned) if none names it, otherwise the fault of the last one
    /// that does.
    pub fn verify(&self, signer: &NodeId) -> Result<(), TokenFault> {
        let key = signature::Key::new(signer)?;
        let mut why = TokenFault::NotSigned;
        for signature in self.signatures.iter().filter(|signature| signature.signer == *signer) {
            match self.check(signature, &key) {
                Ok(()) => return Ok(()),
                Err(fault) => why = fault.into(),
            }
        }
        Err(why)
    }

    /// Returns the digest of this claim for the next claim of a chain (docs/WIRE.md section 6).
    pub fn digest(&self, algorithm: DigestAlgorithm) -> Digest {
        algorithm.digest(&self.digest_preimage())
    }

    /// Returns what is digested: the payload, the headers and the signatures, as JSON.
    pub fn digest_preimage(&self) -> Vec<u8> {
        let signatures: usize =
            self.signatures.iter().map(|signature| signature.header.len() + 350).sum();
        let mut text = Vec::with_capacity(self.payload.len() + signatures + 32);
        text.extend_from_slice(b"{\"payload\":");
        text.extend_from_slice(self.payload.as_bytes());
        text.extend_from_slice(b",\"signatures\":[");
        for (i, signature) in self.signatures.iter().enumerate() {
            text.extend_from_slice(if i == 0 { b"{\"protected\":" } else { b",{\"protected\":" });
            text.extend_from_slice(signature.header.as_bytes());
            // As Node.js writes a Buffer: the only object whose members are not sorted.
            text.extend_from_slice(b",\"signature\":{\"type\":\"Buffer\",\"data\":[");
            for (i, byte) in signature.signature.0.iter().enumerate() {
                if i > 0 {
                    text.push(b',');
                }
                // Without the formatting machinery, which would take longer than the digest.
                if *byte >= 100 {
                    text.push(b'0' + byte / 100);
                }
                if *byte >= 10 {
                    text.push(b'0' + byte / 10 % 10);
                }
                text.push(b'0' + byte % 10);
            }
            text.extend_from_slice(b"]}}");
        }
        text.extend_from_slice(b"]}");
        text
    }

    /// Verifies one signature with the key of its signer.
    pub(super) fn check(
        &self,
        signature: &TokenSignature,
        key: &signature::Key,
    ) -> Result<(), SignatureFault> {
        key.verify(self.input(&signature.protected).as_bytes(), &signature.signature.0)
    }

    fn input(&self, protected: &str) -> String {
        [&*self.encoded, ".", protected].concat()
    }

    /// Returns the length of the JSON text.
    fn len(&self) -> usize {
        let signatures =
            self.signatures.iter().map(|signature| signature.protected.len() + 86 + 34);
        let commas = self.signatures.len().saturating_sub(1);
        self.encoded.len() + signatures.sum::<usize>() + commas + 31
    }

    fn fitting(self, more: usize) -> Result<Self, TokenFault> {
        if self.len() + more > MAX_TOKEN_LEN { Err(TokenFault::TooLong) } else { Ok(self) }
    }
}

/// Length of one more signature in the JSON text, with a margin.
const MAX_SIGNATURE_LEN: usize = 256;

impl TryFrom<&SignedTokenEncoded> for SignedToken {
    type Error = TokenFault;

    fn try_from(encoded: &SignedTokenEncoded) -> Result<Self, TokenFault> {
        if encoded.payload.len() > MAX_TOKEN_LEN {
            return Err(TokenFault::TooLong);
        }
        if !(1..=MAX_SIGNATURES).contains(&encoded.signatures.len()) {
            return Err(TokenFault::Signatures);
        }
        let payload = text(&encoded.payload)?;
        json::object(&payload).map_err(TokenFault::Payload)?;
        let mut signatures = Vec::with_capacity(encoded.signatures.len());
        for signature in &encoded.signatures {
            let signature = TokenSignature::parse(signature)?;
            if signatures.contains(&signature) {
                return Err(TokenFault::Repeated);
            }
            signatures.push(signature);
        }
        Self { payload, encoded: encoded.payload.clone(), signatures }.fitting(0)
    }
}

/// Why a token is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[non_exhaustive]
pub enum TokenFault {
    /// Longer than [`MAX_TOKEN_LEN`].
    #[error("the token is longer than {MAX_TOKEN_LEN} bytes")]
    TooLong,
    /// Not the JSON of a token.
    #[error("not the JSON of a token")]
    Malformed,
    /// A part is not base64url without padding, or not UTF-8.
    #[error("a part of the token is not the base64url of a text")]
    Base64,
    /// The payload is not a canonical JSON object.
    #[error("payload: {0}")]
    Payload(JsonFault),
    /// A header is not a canonical JSON object.
    #[error("header: {0}")]
    Header(JsonFault),
    /// A signature has another algorithm than EdDSA.
    #[error("a signature is not by EdDSA")]
    Algorithm,
    /// A signature does not name its signer.
    #[error("a signature has no node id")]
    Signer,
    /// A signature does not have 64 bytes.
    #[error("a signature does not have 64 bytes")]
    Length,
    /// No signature, or more than [`MAX_SIGNATURES`].
    #[error("a token must have 1 to {MAX_SIGNATURES} signatures")]
    Signatures,
    /// A signature occurs twice.
    #[error("a signature occurs twice")]
    Repeated,
    /// The node has not signed the token.
    #[error("the node has not signed the token")]
    NotSigned,
    /// A signature is invalid.
    #[error(transparent)]
    Signature(#[from] SignatureFault),
}

/// Returns the header of a signature that this node makes.
fn header(signer: &NodeId) -> String {
    alloc::format!("{{\"alg\":\"{ALGORITHM}\",\"kid\":\"{signer}\"}}")
}

fn text(base64: &str) -> Result<String, TokenFault> {
    let bytes = BASE64URL_NOPAD.decode(base64.as_bytes()).map_err(|_| TokenFault::Base64)?;
    String::from_utf8(bytes).map_err(|_| TokenFault::Base64)
}

impl Serialize for SignedToken {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.encoded().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for SignedToken {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let encoded = SignedTokenEncoded::deserialize(deserializer)?;
        Self::try_from(&encoded).map_err(|fault| serde::de::Error::custom(fault.to_string()))
    }
}

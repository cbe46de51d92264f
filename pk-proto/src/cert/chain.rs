//! Verification of the chain that a peer presents (docs/WIRE.md section 3.4).
//!
//! A chain leads from the present key of the peer (the leaf) to its former keys: each certificate
//! is issued by the key of the next one. The same chains are accepted as by the reference, except
//! that here the subject name of every certificate must be the id of its own key.

use alloc::vec::Vec;

use super::certificate::Unnamed;
use super::fault::MAX_CHAIN_LEN;
use super::known::KnownSignatures;
use super::{Certificate, CertificateFault};
use crate::types::id::NodeId;

/// Ids that a peer has proved.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Verified {
    /// Present id: the node whose key must sign the TLS handshake.
    pub leaf: NodeId,
    /// Expected id that was found in the chain; `None` for an incoming connection.
    pub matched_id: Option<NodeId>,
    /// Present and former ids, newest first, each once: `leaf`, then every id whose certificate is
    /// linked to it by valid issuer signatures. Contains `leaf` and `matched_id`, and ends at the
    /// end of the chain or at the first invalid link.
    pub chain: Vec<NodeId>,
}

/// Verifies the chain of an acceptor, leaf first, as DER.
///
/// The certificates from the leaf to the first one of an expected node must be valid at `now`, in
/// unix seconds, signed by their own key, and each issued by the next. Those after it only have to
/// be well-formed and carry their own name; the issuer of the certificate of the expected node is
/// not checked.
///
/// # Errors
///
/// The first rule that the chain violates. [`NotAsked`](CertificateFault::NotAsked) if `expected`
/// is empty.
pub fn verify_server(
    chain: &[impl AsRef<[u8]>],
    expected: &[NodeId],
    now: u64,
) -> Result<Verified, CertificateFault> {
    KnownSignatures::default().verify_server(chain, expected, now)
}

/// Verifies the chain of a dialer, leaf first, as DER.
///
/// Every certificate must be signed by its own key and issued by the next; only the leaf must be
/// valid at `now`, in unix seconds.
///
/// # Errors
///
/// The first rule that the chain violates.
pub fn verify_client(chain: &[impl AsRef<[u8]>], now: u64) -> Result<Verified, CertificateFault> {
    KnownSignatures::default().verify_client(chain, now)
}

impl KnownSignatures {
    /// [`verify_server`], with this memory.
    ///
    /// # Errors
    ///
    /// Those of [`verify_server`].
    pub fn verify_server(
        &mut self,
        chain: &[impl AsRef<[u8]>],
        expected: &[NodeId],
        now: u64,
    ) -> Result<Verified, CertificateFault> {
        let mut unvisited = parse(chain)?.into_iter();
        let mut visited: Vec<Certificate> = Vec::new();
        let matched_id = loop {
            let certificate = unvisited.next().ok_or(CertificateFault::NotAsked)?;
            certificate.check_validity(now)?;
            let certificate = certificate.into_named()?;
            self.verify_own(&certificate)?;
            let id = certificate.node_id();
            visited.push(certificate);
            if expected.contains(&id) {
                break id;
            }
        };
        self.verify_links(&visited)?;
        let beyond = unvisited.map(Unnamed::into_named).collect::<Result<Vec<_>, _>>()?;
        self.extend(&mut visited, beyond);
        verified(&visited, Some(matched_id))
    }

    /// [`verify_client`], with this memory.
    ///
    /// # Errors
    ///
    /// Those of [`verify_client`].
    pub fn verify_client(
        &mut self,
        chain: &[impl AsRef<[u8]>],
        now: u64,
    ) -> Result<Verified, CertificateFault> {
        let certificates = parse(chain)?;
        if let Some(leaf) = certificates.first() {
            leaf.check_validity(now)?;
        }
        let certificates =
            certificates.into_iter().map(Unnamed::into_named).collect::<Result<Vec<_>, _>>()?;
        certificates.iter().try_for_each(|it| self.verify_own(it))?;
        self.verify_links(&certificates)?;
        verified(&certificates, None)
    }

    fn verify_links(&mut self, certificates: &[Certificate]) -> Result<(), CertificateFault> {
        certificates
            .iter()
            .zip(certificates.iter().skip(1))
            .try_for_each(|(child, issuer)| self.verify_link(child, issuer))
    }

    /// Appends the certificates that are linked without a gap.
    fn extend(&mut self, proven: &mut Vec<Certificate>, beyond: Vec<Certificate>) {
        for certificate in beyond {
            let linked =
                proven.last().is_some_and(|last| self.verify_link(last, &certificate).is_ok());
            if !linked || self.verify_own(&certificate).is_err() {
                return;
            }
            proven.push(certificate);
        }
    }
}

fn parse(chain: &[impl AsRef<[u8]>]) -> Result<Vec<Unnamed>, CertificateFault> {
    if chain.is_empty() {
        return Err(CertificateFault::Missing);
    }
    if chain.len() > MAX_CHAIN_LEN {
        return Err(CertificateFault::ChainTooLong(u32::try_from(chain.len()).unwrap_or(u32::MAX)));
    }
    chain.iter().map(|der| Unnamed::parse(der.as_ref())).collect()
}

fn verified(
    proven: &[Certificate],
    matched_id: Option<NodeId>,
) -> Result<Verified, CertificateFault> {
    // A certificate that was reissued under the same key is issued by itself, so that an id may
    // occur twice.
    let mut chain: Vec<NodeId> = Vec::with_capacity(proven.len());
    for id in proven.iter().map(Certificate::node_id) {
        if !chain.contains(&id) {
            chain.push(id);
        }
    }
    let leaf = *chain.first().ok_or(CertificateFault::Missing)?;
    Ok(Verified { leaf, matched_id, chain })
}

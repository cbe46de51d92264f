//! Judging the chain that a peer presents (WIRE.md section 3.4).
//!
//! A chain leads from the key that the peer uses now (the leaf) to those it had before: each certificate is issued by the key of the
//! next one. Acceptance is the reference's, verdict for verdict, but for one thing that it forgets: here every certificate of the chain
//! has to carry the name of its own key.

use alloc::vec::Vec;

use super::certificate::Unnamed;
use super::{Certificate, CertificateFault, MAX_CHAIN_LEN};
use crate::NodeId;

/// Who a peer has shown to be.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Verified {
    /// Who the peer is now: the node whose key has to sign the TLS handshake.
    pub leaf: NodeId,
    /// Who was asked for, found in the chain; `None` for a peer that dialled us.
    pub asked: Option<NodeId>,
    /// Who the peer is and was, newest first, each once: `leaf`, then every node up to which each key is vouched for by the one before
    /// it. Has `leaf` and `asked`, and ends where the chain ends or the first link that does not hold.
    pub chain: Vec<NodeId>,
}

/// Judges the chain of a peer that we dialled, leaf first, as DER.
///
/// The certificates from the leaf to the first of an expected node have to be valid at `now`, in unix seconds, signed by their own key,
/// and issued each by the next. Beyond, they only have to be well-formed and to carry their own name; by whom the certificate of the
/// expected node is issued does not matter.
///
/// # Errors
///
/// The first rule that the chain breaks. [`NotAsked`](CertificateFault::NotAsked) if `expected` is empty.
pub fn verify_server(chain: &[impl AsRef<[u8]>], expected: &[NodeId], now: u64) -> Result<Verified, CertificateFault> {
    let mut unvisited = parse(chain)?.into_iter();
    let mut visited: Vec<Certificate> = Vec::new();
    let asked = loop {
        let certificate = unvisited.next().ok_or(CertificateFault::NotAsked)?;
        certificate.check_validity(now)?;
        let certificate = certificate.into_named()?;
        certificate.verify_node_signature()?;
        let id = certificate.node_id();
        visited.push(certificate);
        if expected.contains(&id) {
            break id;
        }
    };
    verify_links(&visited)?;
    let beyond = unvisited.map(Unnamed::into_named).collect::<Result<Vec<_>, _>>()?;
    extend(&mut visited, beyond);
    verified(&visited, Some(asked))
}

/// Judges the chain of a peer that dialled us, leaf first, as DER.
///
/// Every certificate has to be signed by its own key and issued by the next; only the leaf has to be valid at `now`, in unix seconds.
///
/// # Errors
///
/// The first rule that the chain breaks.
pub fn verify_client(chain: &[impl AsRef<[u8]>], now: u64) -> Result<Verified, CertificateFault> {
    let certificates = parse(chain)?;
    if let Some(leaf) = certificates.first() {
        leaf.check_validity(now)?;
    }
    let certificates = certificates.into_iter().map(Unnamed::into_named).collect::<Result<Vec<_>, _>>()?;
    certificates.iter().try_for_each(Certificate::verify_node_signature)?;
    verify_links(&certificates)?;
    verified(&certificates, None)
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

fn verify_links(certificates: &[Certificate]) -> Result<(), CertificateFault> {
    certificates.iter().zip(certificates.iter().skip(1)).try_for_each(|(child, issuer)| child.verify_issued_by(issuer))
}

/// Appends what is vouched for without a gap.
fn extend(proven: &mut Vec<Certificate>, beyond: Vec<Certificate>) {
    for certificate in beyond {
        let linked = proven.last().is_some_and(|last| last.verify_issued_by(&certificate).is_ok());
        if !linked || certificate.verify_node_signature().is_err() {
            return;
        }
        proven.push(certificate);
    }
}

fn verified(proven: &[Certificate], asked: Option<NodeId>) -> Result<Verified, CertificateFault> {
    // A certificate that is renewed under the same key is issued by itself, so an id may come twice.
    let mut chain: Vec<NodeId> = Vec::with_capacity(proven.len());
    for id in proven.iter().map(Certificate::node_id) {
        if !chain.contains(&id) {
            chain.push(id);
        }
    }
    let leaf = *chain.first().ok_or(CertificateFault::Missing)?;
    Ok(Verified { leaf, asked, chain })
}

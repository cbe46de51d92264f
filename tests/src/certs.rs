//! Valid and invalid certificates that peers present in their handshakes.

use pk_driver::{KeyPair, unix_now};
use pk_proto::NodeId;
use pk_proto::cert::{CertId, CertificateRequest};

/// An hour, in seconds.
pub const HOUR: u64 = 3600;

/// A key, and the certificates that are presented with it.
#[derive(Debug, Clone)]
pub struct Presented {
    /// The private key.
    pub key: KeyPair,
    /// DER, newest first.
    pub chain: Vec<Vec<u8>>,
}

impl Presented {
    /// A key with a valid certificate.
    pub fn valid(key: &KeyPair) -> Self {
        Self::of(key, issue(key, |_| {}).der)
    }

    /// A key with a certificate that expired an hour ago.
    pub fn expired(key: &KeyPair) -> Self {
        let now = unix_now().as_secs();
        Self::of(key, issue(key, |request| request.not_after = now - HOUR).der)
    }

    /// A key with a certificate that is valid in an hour.
    pub fn not_yet_valid(key: &KeyPair) -> Self {
        let now = unix_now().as_secs();
        Self::of(key, issue(key, |request| request.not_before = now + HOUR).der)
    }

    /// A key with a certificate that is valid, signatures included, except that it names the node
    /// `name`.
    pub fn naming(key: &KeyPair, name: NodeId) -> Self {
        let honest = issue(key, |_| {});
        let rename = |bytes: &[u8]| {
            replace(bytes, key.node_id().to_string().as_bytes(), name.to_string().as_bytes())
        };
        let by_subject = key.sign(&rename(&honest.first)).0;
        let second = replace(&rename(&honest.second), &honest.by_subject, &by_subject);
        let by_issuer = key.sign(&second).0;
        let der = replace(&honest.der, &honest.second, &second);
        Self::of(key, replace(&der, &honest.by_issuer, &by_issuer))
    }

    /// A key with a certificate of another node.
    pub fn stolen(key: &KeyPair, from: &KeyPair) -> Self {
        Self { key: key.clone(), ..Self::valid(from) }
    }

    /// A key with bytes that are no certificate.
    pub fn garbage(key: &KeyPair) -> Self {
        Self::of(key, vec![0x30, 0x03, 1, 2, 3])
    }

    /// A key with its certificate this many times.
    pub fn repeated(key: &KeyPair, count: usize) -> Self {
        let Self { key, chain } = Self::valid(key);
        let chain = chain.into_iter().cycle().take(count).collect();
        Self { key, chain }
    }

    fn of(key: &KeyPair, der: Vec<u8>) -> Self {
        Self { key: key.clone(), chain: vec![der] }
    }

    /// Node id of the key.
    pub fn node_id(&self) -> NodeId {
        self.key.node_id()
    }
}

/// A certificate and the inputs of its signatures.
struct Issued {
    /// What the subject signed, and its signature.
    first: Vec<u8>,
    by_subject: [u8; 64],
    /// What the issuer signed, and its signature.
    second: Vec<u8>,
    by_issuer: [u8; 64],
    der: Vec<u8>,
}

/// Issues a certificate; the key signs as subject and as issuer.
fn issue(key: &KeyPair, change: impl FnOnce(&mut CertificateRequest)) -> Issued {
    let now = unix_now();
    let mut request = CertificateRequest {
        serial: CertId::new(now.0, 0, 0),
        subject: key.node_id(),
        issuer: key.node_id(),
        not_before: now.as_secs() - 2 * HOUR,
        not_after: now.as_secs() + 2 * HOUR,
        version: "0.0.0".to_owned(),
        subject_extra: Vec::new(),
        issuer_extra: Vec::new(),
    };
    change(&mut request);
    let unsigned = request.prepare().expect("it can be asked for");
    let first = unsigned.message().to_vec();
    let by_subject = key.sign(&first).0;
    let half_signed =
        unsigned.signed_by_subject(&by_subject).expect("the signature is the subject's");
    let second = half_signed.message().to_vec();
    let by_issuer = key.sign(&second).0;
    let der = half_signed.signed_by_issuer(&by_issuer).expect("the signature is the issuer's");
    Issued { first, by_subject, second, by_issuer, der }
}

/// Replaces every occurrence of `from` by `to`, which has the same length.
fn replace(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let mut bytes = bytes.to_vec();
    let places: Vec<_> = bytes
        .windows(from.len())
        .enumerate()
        .filter(|(_, at)| *at == from)
        .map(|(i, _)| i)
        .collect();
    assert!(!places.is_empty(), "there is nothing to replace");
    for place in places {
        bytes.get_mut(place..place + to.len()).expect("it was found there").copy_from_slice(to);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use pk_proto::cert::{CertificateFault, verify_client};

    use super::*;

    /// If the forged certificate had another defect, its refusal would show nothing.
    #[test]
    fn forged_certificate_is_invalid_only_for_its_name() {
        let (key, other) = (KeyPair::from_seed(&[1; 32]), KeyPair::from_seed(&[2; 32]));
        let now = unix_now().as_secs();
        assert!(verify_client(&Presented::valid(&key).chain, now).is_ok());
        assert!(verify_client(&Presented::naming(&key, key.node_id()).chain, now).is_ok());
        let forged = Presented::naming(&key, other.node_id());
        let foreign = CertificateFault::ForeignName { name: other.node_id(), key: key.node_id() };
        assert_eq!(verify_client(&forged.chain, now), Err(foreign));
    }
}

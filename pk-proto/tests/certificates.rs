//! Certificates: the vectors of Polykey 1.15.1, and invalid ones.

#![allow(clippy::unwrap_used, reason = "the helpers belong to tests, too")]

use std::collections::BTreeSet;

use data_encoding::HEXLOWER;
use ed25519_dalek::{Signer, SigningKey};
use pk_proto::cert::{
    BuildFault, CertId, Certificate, CertificateFault, CertificateRequest, MAX_CERTIFICATE_LEN,
    MAX_CHAIN_LEN, NameAttribute, Verified, verify_client, verify_server,
};
use pk_proto::{NodeId, SignatureFault, UnixMillis};
use serde_json::Value;

/// 2026-11-22T00:00:00Z, the date of the vectors.
const NOW: u64 = 1_795_305_600;

/// The chains for which the verdict differs from the reference, with their faults: the reference
/// does not verify the node id in a name.
const DIFFERENCES: [(&str, &str); 2] = [
    (
        "verifyServer",
        "CN is not the public key (REFERENCE ACCEPTS; a safe implementation must reject)",
    ),
    (
        "verifyClient",
        "CN is not the public key (REFERENCE ACCEPTS; a safe implementation must reject)",
    ),
];

fn vectors() -> Value {
    serde_json::from_str(include_str!("vectors/certificates.json")).unwrap()
}

fn hex(value: &Value) -> Vec<u8> {
    HEXLOWER.decode(value.as_str().unwrap().as_bytes()).unwrap()
}

fn der(vectors: &Value, name: &str) -> Vec<u8> {
    hex(&vectors["certs"][name]["derHex"])
}

fn key(seed: u8) -> SigningKey {
    SigningKey::from_bytes(&[seed; 32])
}

fn id(seed: u8) -> NodeId {
    NodeId::from_bytes(key(seed).verifying_key().to_bytes())
}

fn sign(seed: u8) -> impl FnOnce(&[u8]) -> [u8; 64] {
    move |message| key(seed).sign(message).to_bytes()
}

fn request(subject: u8, issuer: u8) -> CertificateRequest {
    CertificateRequest {
        serial: CertId::new(NOW * 1000, 0, 0x1234),
        subject: id(subject),
        issuer: id(issuer),
        not_before: NOW,
        not_after: NOW + 100,
        version: "1.15.1".into(),
        subject_extra: vec![],
        issuer_extra: vec![],
    }
}

fn certificate(subject: u8, issuer: u8) -> Vec<u8> {
    request(subject, issuer).sign(sign(subject), sign(issuer)).unwrap()
}

#[test]
fn every_vector_parses_to_what_the_reference_reads() {
    let vectors = vectors();
    for (name, vector) in vectors["certs"].as_object().unwrap() {
        let der = hex(&vector["derHex"]);
        let key = NodeId::from_bytes(hex(&vector["subjectPublicKeyHex"]).try_into().unwrap());
        if name == "foreignCN" {
            let claimed = vector["subjectCN"].as_str().unwrap().parse().unwrap();
            assert_eq!(
                Certificate::parse(&der),
                Err(CertificateFault::ForeignName { name: claimed, key })
            );
            continue;
        }
        let certificate = Certificate::parse(&der).unwrap();
        assert_eq!(certificate.as_der(), der, "{name}");
        assert_eq!(certificate.node_id(), key, "{name}");
        if name == "tamperedNodeSignature" {
            let fault = CertificateFault::NodeSignature(SignatureFault::Mismatch);
            assert_eq!(certificate.verify_node_signature(), Err(fault));
            continue;
        }
        assert_eq!(
            HEXLOWER.encode(certificate.serial()),
            vector["serial"].as_str().unwrap(),
            "{name}"
        );
        assert_eq!(
            certificate.node_id().to_string(),
            vector["subjectCN"].as_str().unwrap(),
            "{name}"
        );
        assert_eq!(
            certificate.issuer().unwrap().to_string(),
            vector["issuerCN"].as_str().unwrap(),
            "{name}"
        );
        match vector["nodeSignatureHex"].as_str() {
            Some(signature) => {
                assert_eq!(
                    HEXLOWER.encode(certificate.node_signature().unwrap()),
                    signature,
                    "{name}"
                );
                assert_eq!(certificate.verify_node_signature(), Ok(()), "{name}");
            }
            None => {
                assert_eq!(certificate.node_signature(), None, "{name}");
                assert_eq!(
                    certificate.verify_node_signature(),
                    Err(CertificateFault::NoNodeSignature),
                    "{name}"
                );
            }
        }
    }
    let c1 = Certificate::parse(&der(&vectors, "c1_self")).unwrap();
    // 2025-01-01T00:00:00Z and 2044-12-27T00:00:00Z.
    assert_eq!((c1.not_before(), c1.not_after()), (1_735_689_600, 2_366_409_600));
    assert_eq!(c1.cert_id(), Some(CertId::new(1_700_000_000_000, 0, 0x1696_9696_9696_9696)));
}

#[test]
fn built_bytes_equal_those_of_the_reference_at_every_step() {
    let vectors = vectors();
    let extra =
        vec![NameAttribute::Organization("Org".into()), NameAttribute::Country("AU".into())];
    let cases = [
        ("c1_self", 1, 1, vec![]),
        ("c2_issuedBy1", 2, 1, vec![]),
        ("c3_issuedBy2", 3, 2, vec![]),
        ("expired_self", 4, 4, vec![]),
        ("extraAttrs_self", 5, 5, extra),
    ];
    for (number, (name, subject, issuer, subject_extra)) in (0..).zip(cases) {
        let vector = &vectors["certs"][name];
        let parsed = Certificate::parse(&hex(&vector["derHex"])).unwrap();
        let request = CertificateRequest {
            serial: CertId::new(1_700_000_000_000 + 1000 * number, 0, 0x1696_9696_9696_9696),
            not_before: parsed.not_before(),
            not_after: parsed.not_after(),
            subject_extra,
            ..request(subject, issuer)
        };

        let unsigned = request.clone().prepare().unwrap();
        assert_eq!(unsigned.signer(), id(subject), "{name}");
        assert_eq!(unsigned.message(), hex(&vector["tbsWithoutNodeSignatureHex"]), "{name}");
        let signature = sign(subject)(unsigned.message());
        let half_signed = unsigned.signed_by_subject(&signature).unwrap();
        assert_eq!(half_signed.signer(), id(issuer), "{name}");
        assert_eq!(half_signed.message(), hex(&vector["tbsHex"]), "{name}");
        let signature = sign(issuer)(half_signed.message());
        assert_eq!(half_signed.signed_by_issuer(&signature).unwrap(), parsed.as_der(), "{name}");

        assert_eq!(request.sign(sign(subject), sign(issuer)).unwrap(), parsed.as_der(), "{name}");
    }
}

#[test]
fn every_chain_has_the_verdict_of_the_reference_except_listed_differences() {
    let vectors = vectors();
    let cases = vectors["verification"].as_array().unwrap();
    assert_eq!(cases.len(), 23);
    let mut differences = BTreeSet::new();
    for case in cases {
        let (side, name) = (case["side"].as_str().unwrap(), case["name"].as_str().unwrap());
        let chain: Vec<_> = case["chain"]
            .as_array()
            .unwrap()
            .iter()
            .map(|n| der(&vectors, n.as_str().unwrap()))
            .collect();
        let targets = case["targets"].as_array().map(Vec::as_slice).unwrap_or_default();
        let targets: Vec<NodeId> =
            targets.iter().map(|target| target.as_str().unwrap().parse().unwrap()).collect();
        let (verdict, matched_id) = match side {
            "verifyServer" => {
                (verify_server(&chain, &targets, NOW), case["result"]["nodeId"].as_str())
            }
            "verifyClient" => (verify_client(&chain, NOW), None),
            other => panic!("{other}"),
        };
        let ours = verdict.as_ref().map(|verified| verified.matched_id.map(|id| id.to_string()));
        let ours = ours.map_err(|fault| (fault.quic_code(), u64::from(fault.alert())));
        let result = &case["result"];
        let reference = if result["ok"].as_bool().unwrap() {
            Ok(matched_id.map(str::to_owned))
        } else {
            Err((result["code"].as_u64().unwrap(), result["tlsAlert"].as_u64().unwrap()))
        };
        if ours != reference {
            assert!(
                matches!(verdict, Err(CertificateFault::ForeignName { .. })),
                "{side}: {name}: {verdict:?}"
            );
            differences.insert((side, name));
        }
    }
    assert_eq!(differences, BTreeSet::from(DIFFERENCES));
}

#[test]
fn proven_chain_continues_beyond_the_match_while_links_are_valid() {
    let vectors = vectors();
    let [c1, c2, c3] = ["c1_self", "c2_issuedBy1", "c3_issuedBy2"].map(|name| der(&vectors, name));
    let ids = |verdict: Result<Verified, _>| {
        verdict.map(|verified| (verified.leaf, verified.matched_id, verified.chain))
    };
    let all = [c3.clone(), c2.clone(), c1.clone()];
    for matched_id in [1, 2, 3] {
        let expected = Ok((id(3), Some(id(matched_id)), vec![id(3), id(2), id(1)]));
        assert_eq!(ids(verify_server(&all, &[id(9), id(matched_id)], NOW)), expected);
    }
    assert_eq!(ids(verify_client(&all, NOW)), Ok((id(3), None, vec![id(3), id(2), id(1)])));

    // An invalid link beyond the match ends the chain, by name and by signature.
    assert_eq!(
        ids(verify_server(&[&c3, &c1], &[id(3)], NOW)),
        Ok((id(3), Some(id(3)), vec![id(3)]))
    );
    let mut forged = c2.clone();
    *forged.last_mut().unwrap() ^= 0x10;
    let chain = [&c3, &forged, &c1];
    assert_eq!(
        ids(verify_server(&chain, &[id(2)], NOW)),
        Ok((id(3), Some(id(2)), vec![id(3), id(2)]))
    );
    let fault = CertificateFault::IssuerSignature(SignatureFault::Mismatch);
    assert_eq!(verify_server(&chain, &[id(1)], NOW), Err(fault));
    assert_eq!(verify_client(&chain, NOW), Err(fault));
    assert_eq!(verify_client(&[&c3, &c1], NOW), Err(CertificateFault::IssuerName));

    // So does a certificate beyond the match that its own key did not sign.
    let tampered = der(&vectors, "tamperedNodeSignature");
    assert_eq!(
        ids(verify_server(&[&c2, &tampered], &[id(2)], NOW)),
        Ok((id(2), Some(id(2)), vec![id(2)]))
    );
}

#[test]
fn foreign_name_anywhere_in_the_chain_is_refused() {
    let vectors = vectors();
    let (c1, foreign) = (der(&vectors, "c1_self"), der(&vectors, "foreignCN"));
    let fault = CertificateFault::ForeignName { name: id(7), key: id(8) };
    assert_eq!(verify_server(&[&c1, &foreign], &[id(1)], NOW), Err(fault));
    assert_eq!(verify_client(&[&c1, &foreign], NOW), Err(fault));
    assert_eq!(fault.quic_code(), 298);
}

#[test]
fn only_certificates_up_to_the_match_must_be_valid_now() {
    let expired = CertificateRequest { not_before: 0, not_after: NOW - 1, ..request(1, 1) };
    let expired = expired.sign(sign(1), sign(1)).unwrap();
    let chain = [certificate(2, 1), expired];
    assert_eq!(verify_server(&chain, &[id(2)], NOW).unwrap().chain, [id(2), id(1)]);
    assert_eq!(
        verify_server(&chain, &[id(1)], NOW),
        Err(CertificateFault::Expired { not_after: NOW - 1, now: NOW })
    );
    assert_eq!(verify_client(&chain, NOW).unwrap().chain, [id(2), id(1)]);

    // Both bounds are included in the validity.
    let leaf = [certificate(1, 1)];
    for (now, verdict) in [
        (NOW - 1, Err(CertificateFault::NotYetValid { not_before: NOW, now: NOW - 1 })),
        (NOW, Ok(id(1))),
        (NOW + 100, Ok(id(1))),
        (NOW + 101, Err(CertificateFault::Expired { not_after: NOW + 100, now: NOW + 101 })),
    ] {
        assert_eq!(verify_client(&leaf, now).map(|verified| verified.leaf), verdict);
        assert_eq!(verify_server(&leaf, &[id(1)], now).map(|verified| verified.leaf), verdict);
    }
}

#[test]
fn renewal_under_the_same_key_and_extra_attributes_keep_the_chain_valid() {
    let extra = vec![NameAttribute::Organization("Org".into())];
    let old = CertificateRequest { subject_extra: extra.clone(), ..request(1, 1) };
    let old = old.sign(sign(1), sign(1)).unwrap();
    let renewed = CertificateRequest { issuer_extra: extra.clone(), ..request(1, 1) };
    let renewed = renewed.sign(sign(1), sign(1)).unwrap();
    let rotated = certificate(2, 1);
    let chain = [&rotated, &renewed, &old];
    assert_eq!(verify_client(&chain, NOW).unwrap().chain, [id(2), id(1)]);
    assert_eq!(verify_server(&chain, &[id(1)], NOW).unwrap().chain, [id(2), id(1)]);
    // Without the extra attributes the issuer is another node.
    assert_eq!(verify_client(&[&rotated, &old], NOW), Err(CertificateFault::IssuerName));
}

#[test]
fn empty_list_of_expected_nodes_matches_no_certificate() {
    assert_eq!(verify_server(&[certificate(1, 1)], &[], NOW), Err(CertificateFault::NotAsked));
}

#[test]
fn caps_are_checked_before_anything_is_read() {
    let too_large = vec![0; MAX_CERTIFICATE_LEN + 1];
    let fault = CertificateFault::TooLarge(8193);
    assert_eq!(Certificate::parse(&too_large), Err(fault));
    assert_eq!(verify_client(&[certificate(1, 1), too_large], NOW), Err(fault));
    assert_eq!(fault.quic_code(), 298);

    let mut chain = vec![certificate(1, 1); MAX_CHAIN_LEN];
    assert_eq!(verify_client(&chain, NOW).unwrap().chain, [id(1)]);
    chain.push(vec![]);
    assert_eq!(verify_client(&chain, NOW), Err(CertificateFault::ChainTooLong(33)));
    assert_eq!(verify_server(&chain, &[id(1)], NOW), Err(CertificateFault::ChainTooLong(33)));
    let none: [&[u8]; 0] = [];
    assert_eq!(verify_client(&none, NOW).unwrap_err().quic_code(), 372);
}

#[test]
fn changed_certificate_never_proves_the_same_node() {
    let vectors = vectors();
    let (c1, c2) = (der(&vectors, "c1_self"), der(&vectors, "c2_issuedBy1"));
    // The header of the certificate is followed by the TBSCertificate, then the algorithm and the
    // issuer's signature.
    let tbs = 4..4 + hex(&vectors["certs"]["c2_issuedBy1"]["tbsHex"]).len();
    let mut without_issuer_signature = 0;
    for at in 0..c2.len() {
        for mask in [0x01, 0x02, 0x04, 0x08, 0x10, 0x20, 0x40, 0x80, 0xff, c2[at]] {
            let mut tampered = c2.clone();
            tampered[at] ^= mask;
            if tampered == c2 {
                continue;
            }
            let chain = [&tampered, &c1];
            let client = verify_client(&chain, NOW);
            assert!(client.is_err(), "byte {at} ^ {mask:#x}");
            let old = verify_server(&chain, &[id(1)], NOW);
            assert!(old.is_err(), "byte {at} ^ {mask:#x}");
            // The issuer of the certificate of the requested node is not checked, so this one may
            // be accepted, for its own node.
            let new = verify_server(&chain, &[id(2)], NOW);
            if let Ok(verified) = new {
                assert!(at >= tbs.end, "byte {at} ^ {mask:#x}");
                assert_eq!(verified.chain, [id(2)], "byte {at} ^ {mask:#x}");
                without_issuer_signature += 1;
            }
        }
    }
    assert!(without_issuer_signature > 500, "{without_issuer_signature}");
}

#[test]
fn truncated_or_extended_certificate_is_malformed() {
    let c2 = certificate(2, 1);
    for len in 0..c2.len() {
        assert_eq!(Certificate::parse(&c2[..len]), Err(CertificateFault::Malformed), "{len} bytes");
    }
    for at in 0..=c2.len() {
        for byte in [0x00, 0x05, 0x30, 0xff] {
            let mut longer = c2.clone();
            longer.insert(at, byte);
            assert!(Certificate::parse(&longer).is_err(), "{byte:#x} at {at}");
        }
    }
}

/// The certificate with `from` replaced by `to`, which makes it longer by `more` bytes, in every
/// length that encloses the extensions.
fn edited(hex: &str, from: &str, to: &str, more: usize) -> Vec<u8> {
    let lengths = |more: usize| {
        let head = format!("3082{:04x}3082{:04x}a003", 0x2ca + more, 0x27c + more);
        (head, format!("a382{:04x}3082{:04x}", 0x18a + more, 0x186 + more))
    };
    let (old, new) = (lengths(0), lengths(more));
    for part in [old.0.as_str(), old.1.as_str(), from] {
        assert!(hex.contains(part), "{part}");
    }
    let edited = hex.replacen(&old.0, &new.0, 1).replacen(&old.1, &new.1, 1).replace(from, to);
    assert_eq!(edited.len(), hex.len() + 2 * more);
    HEXLOWER.decode(edited.as_bytes()).unwrap()
}

#[test]
fn encodings_that_no_polykey_node_writes_are_faults() {
    let vectors = vectors();
    let c1 = vectors["certs"]["c1_self"]["derHex"].as_str().unwrap();
    let fault =
        |from: &str, to: &str, more| Certificate::parse(&edited(c1, from, to, more)).unwrap_err();

    let constraints = "0603551d13040530030101ff";
    assert!(Certificate::parse(&edited(c1, constraints, constraints, 0)).is_ok());
    // An extension that is marked "not critical", which DER leaves out.
    let marked = "300f0603551d13010100040530030101ff";
    assert_eq!(fault(&format!("300c{constraints}"), marked, 3), CertificateFault::Malformed);
    // Two node signatures.
    let (_, tail) = c1.split_once("3051060b2b0601040183be4f020202").unwrap();
    let node_signature = format!("3051060b2b0601040183be4f020202{}", &tail[..136]);
    assert_eq!(fault(&node_signature, &node_signature.repeat(2), 83), CertificateFault::Malformed);
    // A malformed node signature.
    assert_eq!(fault("0202044204401562", "02020442043f1562", 0), CertificateFault::Malformed);
    // X.509 v1.
    assert_eq!(fault("a003020102", "a003020100", 0), CertificateFault::Malformed);
    // Ed448 as algorithm and as key.
    assert_eq!(
        fault("300506032b6570034100", "300506032b6571034100", 0),
        CertificateFault::NotEd25519
    );
    assert_eq!(
        fault("300506032b6570032100", "300506032b6571032100", 0),
        CertificateFault::NotEd25519
    );
    // An invalid name (`w` for the first `v`).
    assert_eq!(fault("133576686134", "133577686134", 0), CertificateFault::NoNodeId);
}

#[test]
fn dates_from_2050_on_are_generalized_time() {
    const END_OF_2049: u64 = 2_524_607_999;
    for (not_before, not_after, tags) in [
        (0, END_OF_2049, [0x17, 0x17]),
        (END_OF_2049, END_OF_2049 + 1, [0x17, 0x18]),
        (END_OF_2049 + 1, CertificateRequest::MAX_NOT_AFTER, [0x18, 0x18]),
    ] {
        let request = CertificateRequest { not_before, not_after, ..request(1, 1) };
        let der = request.sign(sign(1), sign(1)).unwrap();
        let certificate = Certificate::parse(&der).unwrap();
        assert_eq!((certificate.not_before(), certificate.not_after()), (not_before, not_after));
        // The text of a time, after its tag and length.
        let tag_before = |text: &str| {
            der[der.windows(text.len()).position(|bytes| bytes == text.as_bytes()).unwrap() - 2]
        };
        let text = |secs: u64, tag: u8| {
            let date = UnixMillis::from_secs(secs).to_string().replace(['-', 'T', ':'], "");
            if tag == 0x17 { date[2..].to_owned() } else { date }
        };
        assert_eq!(tag_before(&text(not_before, tags[0])), tags[0]);
        assert_eq!(tag_before(&text(not_after, tags[1])), tags[1]);
        assert_eq!(verify_client(&[&der], not_before).unwrap().leaf, id(1));
        assert_eq!(verify_client(&[&der], not_after).unwrap().leaf, id(1));
    }
}

#[test]
fn fault_of_time_names_dates_and_clocks() {
    let leaf = [certificate(1, 1)];
    for (now, date) in [(NOW - 1, NOW), (NOW + 101, NOW + 100)] {
        let fault = verify_client(&leaf, now).unwrap_err();
        assert!(fault.is_of_time());
        let text = fault.to_string();
        for part in [
            UnixMillis::from_secs(date).to_string(),
            UnixMillis::from_secs(now).to_string(),
            "the clock of this node".into(),
        ] {
            assert!(text.contains(&part), "{text}: {part}");
        }
    }
}

#[test]
fn request_for_an_unacceptable_certificate_is_refused() {
    let fault = |request: CertificateRequest| request.sign(sign(2), sign(1)).unwrap_err();
    let max = CertificateRequest::MAX_NOT_AFTER;
    assert!(CertificateRequest { not_after: max, ..request(2, 1) }.sign(sign(2), sign(1)).is_ok());
    assert!(
        CertificateRequest { not_before: 0, not_after: 0, ..request(2, 1) }
            .sign(sign(2), sign(1))
            .is_ok()
    );
    let late = BuildFault::Validity { not_before: NOW, not_after: max + 1 };
    assert_eq!(fault(CertificateRequest { not_after: max + 1, ..request(2, 1) }), late);
    let reversed = BuildFault::Validity { not_before: NOW, not_after: NOW - 1 };
    assert_eq!(fault(CertificateRequest { not_after: NOW - 1, ..request(2, 1) }), reversed);
    assert_eq!(
        fault(CertificateRequest { version: "1.15.1é".into(), ..request(2, 1) }),
        BuildFault::Text
    );
    let unprintable = vec![NameAttribute::Organization("Org_".into())];
    assert_eq!(
        fault(CertificateRequest { subject_extra: unprintable, ..request(2, 1) }),
        BuildFault::Text
    );
    let long = "1".repeat(MAX_CERTIFICATE_LEN);
    assert_eq!(fault(CertificateRequest { version: long, ..request(2, 1) }), BuildFault::TooLarge);

    let mismatch = SignatureFault::Mismatch;
    assert_eq!(request(2, 1).sign(sign(1), sign(1)), Err(BuildFault::SubjectSignature(mismatch)));
    assert_eq!(request(2, 1).sign(sign(2), sign(2)), Err(BuildFault::IssuerSignature(mismatch)));
}

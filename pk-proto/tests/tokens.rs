//! Valid and invalid tokens and claims, singly and doubly signed.

#![allow(clippy::unwrap_used, reason = "helpers of tests are not seen as tests by the lint")]

use data_encoding::BASE64URL_NOPAD;
use ed25519_dalek::{Signer, SigningKey};
use pk_proto::claims::{
    Claim, ClaimContent, ClaimFault, ClaimId, ClaimLinkNode, DoublySigned, JsonFault,
    MAX_SIGNATURES, MAX_TOKEN_LEN, SignatureEncoded, SignedFault, SignedToken, SignedTokenEncoded,
    SinglySigned, TokenFault,
};
use pk_proto::{NodeId, Signature, SignatureFault, UnixMillis};

fn key(number: u8) -> SigningKey {
    SigningKey::from_bytes(&[number; 32])
}

fn id(number: u8) -> NodeId {
    NodeId::from_bytes(key(number).verifying_key().to_bytes())
}

fn sign(number: u8, bytes: &[u8]) -> Signature {
    Signature(key(number).sign(bytes).to_bytes())
}

fn base64(text: &str) -> String {
    BASE64URL_NOPAD.encode(text.as_bytes())
}

fn header(number: u8) -> String {
    format!("{{\"alg\":\"EdDSA\",\"kid\":\"{}\"}}", id(number))
}

/// Any payload with any header and a valid signature by a key.
fn encoded(payload: &str, header: &str, number: u8) -> SignedTokenEncoded {
    let (payload, protected) = (base64(payload), base64(header));
    let signature = sign(number, format!("{payload}.{protected}").as_bytes());
    let signature = SignatureEncoded { protected, signature: BASE64URL_NOPAD.encode(&signature.0) };
    SignedTokenEncoded { payload, signatures: vec![signature] }
}

fn read(payload: &str, header: &str) -> Result<SignedToken, TokenFault> {
    SignedToken::try_from(&encoded(payload, header, 1))
}

fn signed(payload: &str, signers: &[u8]) -> SignedToken {
    let mut token = SignedToken::new(payload.into()).unwrap();
    for number in signers {
        let signature = sign(*number, &token.signing_input(&id(*number)));
        token.add_signature(id(*number), signature).unwrap();
    }
    token
}

#[test]
fn each_invalid_part_is_named() {
    assert!(read("{}", &header(1)).is_ok());
    assert!(
        read("{}", &format!("{{\"alg\":\"EdDSA\",\"extra\":[1],\"kid\":\"{}\"}}", id(1))).is_ok()
    );
    for (payload, header, fault) in [
        ("[]", header(1), TokenFault::Payload(JsonFault::Malformed)),
        ("{\"b\":1,\"a\":1}", header(1), TokenFault::Payload(JsonFault::Order)),
        ("{\"a\":1,\"a\":1}", header(1), TokenFault::Payload(JsonFault::Duplicate)),
        ("{\"a\": 1}", header(1), TokenFault::Payload(JsonFault::Malformed)),
        ("{\"a\":9007199254740992}", header(1), TokenFault::Payload(JsonFault::Integer)),
        (
            "{}",
            format!("{{\"kid\":\"{}\",\"alg\":\"EdDSA\"}}", id(1)),
            TokenFault::Header(JsonFault::Order),
        ),
        ("{}", "{\"alg\":\"EdDSA\"}".into(), TokenFault::Signer),
        ("{}", "{\"alg\":\"EdDSA\",\"kid\":7}".into(), TokenFault::Signer),
        ("{}", "{\"alg\":\"EdDSA\",\"kid\":\"v0\"}".into(), TokenFault::Signer),
        ("{}", format!("{{\"alg\":\"none\",\"kid\":\"{}\"}}", id(1)), TokenFault::Algorithm),
        ("{}", format!("{{\"alg\":\"BLAKE2b\",\"kid\":\"{}\"}}", id(1)), TokenFault::Algorithm),
        ("{}", format!("{{\"kid\":\"{}\"}}", id(1)), TokenFault::Algorithm),
    ] {
        assert_eq!(read(payload, &header).err(), Some(fault), "{payload} {header}");
    }

    let good = encoded("{\"a\":1}", &header(1), 1);
    let change = |change: &dyn Fn(&mut SignedTokenEncoded)| {
        let mut encoded = good.clone();
        change(&mut encoded);
        SignedToken::try_from(&encoded).err()
    };
    assert_eq!(change(&|_| {}), None);
    assert_eq!(change(&|token| token.payload.push('=')), Some(TokenFault::Base64));
    assert_eq!(change(&|token| token.payload.push('+')), Some(TokenFault::Base64));
    // The last character has bits that belong to no byte.
    assert_eq!(
        change(&|token| token.payload = token.payload.replace("fQ", "fR")),
        Some(TokenFault::Base64)
    );
    assert_eq!(
        change(&|token| token.payload = BASE64URL_NOPAD.encode(b"{\"\xff\":1}")),
        Some(TokenFault::Base64)
    );
    assert_eq!(
        change(&|token| token.signatures[0].signature.truncate(84)),
        Some(TokenFault::Length)
    );
    assert_eq!(change(&|token| token.signatures.clear()), Some(TokenFault::Signatures));
    assert_eq!(
        change(&|token| token.signatures.push(token.signatures[0].clone())),
        Some(TokenFault::Repeated)
    );
    assert_eq!(
        change(&|token| token.signatures = vec![token.signatures[0].clone(); MAX_SIGNATURES + 1]),
        Some(TokenFault::Signatures)
    );
}

#[test]
fn json_of_a_token_may_have_space_and_unsigned_members() {
    let token = signed("{\"a\":1}", &[1, 2]);
    let json = token.to_json();
    let loose = json.replace(':', " :\n").replacen('{', "{\"header\":{\"x\":[1]},", 1);
    assert_eq!(SignedToken::parse(loose.as_bytes()).as_ref(), Ok(&token));
    assert_eq!(SignedToken::try_from(&token.encoded()).as_ref(), Ok(&token));
    assert_eq!(serde_json::to_string(&token).unwrap(), json);
    assert_eq!(serde_json::from_str::<SignedToken>(&json).unwrap(), token);
    for bad in [
        "",
        "null",
        "{}",
        "[]",
        &json[1..],
        &format!("{json}{json}"),
        &json.replacen("payload", "payload\":\"\",\"payload", 1),
    ] {
        assert_eq!(SignedToken::parse(bad.as_bytes()), Err(TokenFault::Malformed), "{bad}");
    }
}

#[test]
fn every_changed_bit_is_refused_or_fails_verification() {
    let token = signed("{\"a\":[\"é\",1]}", &[1, 2]);
    let json = token.to_json().into_bytes();
    let mut read = 0;
    for at in 0..json.len() {
        for bit in 0..8 {
            let mut changed = json.clone();
            changed[at] ^= 1 << bit;
            let Ok(changed) = SignedToken::parse(&changed) else { continue };
            read += 1;
            assert!(
                changed.verify(&id(1)).is_err() || changed.verify(&id(2)).is_err(),
                "{at} {bit}"
            );
        }
    }
    // Many values are well-formed signatures.
    assert!(read > 500, "{read}");
}

#[test]
fn token_length_is_limited_and_the_longest_can_be_sent_and_signed() {
    let payload = |len: usize| format!("{{\"a\":\"{}\"}}", "x".repeat(len));
    let longest = (0..MAX_TOKEN_LEN)
        .rev()
        .step_by(1)
        .find(|len| SignedToken::new(payload(*len)).is_ok())
        .unwrap();
    assert!(longest > MAX_TOKEN_LEN / 4 * 3 - 1000, "{longest}");
    let mut token = SignedToken::new(payload(longest)).unwrap();
    let signature = sign(1, &token.signing_input(&id(1)));
    assert_eq!(token.add_signature(id(1), signature), Ok(()));
    assert!(token.to_json().len() <= MAX_TOKEN_LEN);
    assert_eq!(SignedToken::parse(token.to_json().as_bytes()).as_ref(), Ok(&token));
    let before = token.clone();
    let signature = sign(2, &token.signing_input(&id(2)));
    assert_eq!(token.add_signature(id(2), signature), Err(TokenFault::TooLong));
    assert_eq!(token, before);

    let spaced = format!("{}{}", token.to_json(), " ".repeat(MAX_TOKEN_LEN));
    assert_eq!(SignedToken::parse(spaced.as_bytes()), Err(TokenFault::TooLong));
    let long = encoded(&payload(MAX_TOKEN_LEN), &header(1), 1);
    assert_eq!(SignedToken::try_from(&long), Err(TokenFault::TooLong));
    let long_header = format!(
        "{{\"alg\":\"EdDSA\",\"kid\":\"{}\",\"z\":\"{}\"}}",
        id(1),
        "x".repeat(MAX_TOKEN_LEN)
    );
    assert_eq!(read("{}", &long_header), Err(TokenFault::TooLong));
}

#[test]
fn only_valid_new_signatures_are_added() {
    let mut token = signed("{}", &[1]);
    let before = token.clone();
    let input = token.signing_input(&id(2));
    let refused = [
        (id(2), sign(3, &input), TokenFault::Signature(SignatureFault::Mismatch)),
        (id(2), sign(2, b"something else"), TokenFault::Signature(SignatureFault::Mismatch)),
        (id(1), *token.signatures()[0].signature(), TokenFault::Repeated),
        (
            NodeId::from_bytes([0; 32]),
            sign(2, &input),
            TokenFault::Signature(SignatureFault::WeakKey),
        ),
    ];
    for (signer, signature, fault) in refused {
        assert_eq!(token.add_signature(signer, signature), Err(fault));
        assert_eq!(token, before);
    }
    let numbers: Vec<u8> = (2..=MAX_SIGNATURES as u8).collect();
    for number in numbers {
        let signature = sign(number, &token.signing_input(&id(number)));
        assert_eq!(token.add_signature(id(number), signature), Ok(()));
        assert_eq!(token.verify(&id(number)), Ok(()));
    }
    let signature = sign(99, &token.signing_input(&id(99)));
    assert_eq!(token.add_signature(id(99), signature), Err(TokenFault::Signatures));
    assert_eq!(token.verify(&id(99)), Err(TokenFault::NotSigned));
}

// -- claims

fn content() -> ClaimContent {
    ClaimContent::link(&ClaimLinkNode { issuer: id(1), subject: id(2) })
}

fn draft() -> pk_proto::claims::UnsignedClaim {
    let unix = UnixMillis(1_700_000_000_000);
    Claim::draft(&content(), ClaimId::next(&id(1), unix, None).unwrap(), unix, None).unwrap()
}

fn half() -> SinglySigned {
    let signature = sign(1, &draft().signing_input(&id(1)));
    draft().sign(id(1), signature).unwrap()
}

fn claim(signers: &[u8]) -> Claim {
    Claim::try_from(signed(draft().claim().token().payload(), signers)).unwrap()
}

#[test]
fn missing_member_of_a_claim_is_named() {
    let good = draft().claim().token().payload().to_owned();
    let read = |payload: String| Claim::try_from(signed(&payload, &[1])).err();
    assert_eq!(read(good.clone()), None);
    let digest_len = good.replace("\"prevDigest\":null", "\"prevDigest\":\"z2Drjgb\"");
    for (from, to, fault) in [
        ("\"jti\":\"v", "\"jti\":\"w", ClaimFault::Id),
        ("\"jti\"", "\"jtj\"", ClaimFault::Id),
        ("\"iat\":1700000000", "\"iat\":-1", ClaimFault::Time),
        ("\"iat\":1700000000", "\"iat\":\"1\"", ClaimFault::Time),
        ("\"nbf\":1700000000", "\"nbf\":1.5", ClaimFault::Time),
        ("\"seq\":1", "\"seq\":0", ClaimFault::Seq),
        ("\"seq\":1", "\"seq\":null", ClaimFault::Seq),
        ("\"prevClaimId\":null", "\"prevClaimId\":\"\"", ClaimFault::PrevClaimId),
        ("\"prevClaimId\":null", "\"prevClaimJd\":null", ClaimFault::PrevClaimId),
        ("\"typ\":\"ClaimLinkNode\"", "\"typ\":\"\"", ClaimFault::Typ),
        ("\"typ\":\"ClaimLinkNode\"", "\"typ\":null", ClaimFault::Typ),
        ("\"iss\":\"v", "\"iss\":\"x", ClaimFault::Issuer),
        ("\"iss\":", "\"isr\":", ClaimFault::Issuer),
        ("\"sub\":\"v", "\"sub\":\"x", ClaimFault::Subject),
    ] {
        let payload = good.replacen(from, to, 1);
        assert_ne!(payload, good, "{from}");
        assert_eq!(read(payload), Some(fault), "{to}");
    }
    assert!(matches!(read(digest_len), Some(ClaimFault::PrevDigest(_))));
    assert!(matches!(Claim::parse(b"{}"), Err(ClaimFault::Token(TokenFault::Malformed))));
}

#[test]
fn claim_is_signed_first_by_its_owner_and_then_by_the_other_node() {
    let full = half().counter_sign(id(2), sign(2, &half().signing_input(&id(2)))).unwrap();
    assert_eq!((half().owner(), full.owner(), full.counter()), (id(1), id(1), id(2)));
    assert_eq!(SinglySigned::verify(claim(&[1]), &id(1)), Ok(half()));
    assert_eq!(DoublySigned::verify(claim(&[1, 2]), &id(1), &id(2)), Ok(full.clone()));
    assert_eq!(half().completed_by(claim(&[1, 2]), &id(2)), Ok(full));

    use SignedFault::{Changed, Count, Counter, Owner};
    let not_signed = TokenFault::NotSigned;
    assert_eq!(SinglySigned::verify(claim(&[1]), &id(2)), Err(Owner(not_signed)));
    assert_eq!(SinglySigned::verify(claim(&[1, 2]), &id(1)), Err(Count(2)));
    assert_eq!(SinglySigned::verify(draft().claim().clone(), &id(1)), Err(Count(0)));
    assert_eq!(DoublySigned::verify(claim(&[1]), &id(1), &id(2)), Err(Count(1)));
    assert_eq!(DoublySigned::verify(claim(&[1, 2, 3]), &id(1), &id(2)), Err(Count(3)));
    assert_eq!(DoublySigned::verify(claim(&[2, 1]), &id(1), &id(2)), Err(Owner(not_signed)));
    assert_eq!(DoublySigned::verify(claim(&[1, 3]), &id(1), &id(2)), Err(Counter(not_signed)));
    assert_eq!(half().completed_by(claim(&[1]), &id(2)), Err(Count(1)));
    assert_eq!(half().completed_by(claim(&[2, 1]), &id(2)), Err(Changed));
    assert_eq!(half().completed_by(claim(&[1, 3]), &id(2)), Err(Counter(not_signed)));

    // A changed claim is not the sent one, also with valid signatures.
    let payload = draft().claim().token().payload().replace("\"seq\":1", "\"seq\":2");
    let other = Claim::try_from(signed(&payload, &[1, 2])).unwrap();
    assert_eq!(half().completed_by(other, &id(2)), Err(Changed));

    // Tokens whose signatures are attributed to the wrong node.
    let mut forged = claim(&[1, 3]).token().encoded();
    forged.signatures[1].protected = base64(&header(2));
    let forged = Claim::try_from(SignedToken::try_from(&forged).unwrap()).unwrap();
    let mismatch = TokenFault::Signature(SignatureFault::Mismatch);
    assert_eq!(DoublySigned::verify(forged.clone(), &id(1), &id(2)), Err(Counter(mismatch)));
    assert_eq!(half().completed_by(forged, &id(2)), Err(Counter(mismatch)));
    assert_eq!(draft().sign(id(1), sign(3, &draft().signing_input(&id(1)))), Err(mismatch));
    assert_eq!(half().counter_sign(id(2), sign(3, &half().signing_input(&id(2)))), Err(mismatch));
}

#[test]
fn claims_are_recorded_unchanged_and_invalid_ones_are_not_read() {
    let request = pk_proto::Request::RequestChainData {
        target: id(2),
        since: Some(claim(&[1, 2])),
        limit: Some(7),
        options: pk_proto::RequestOptions::default(),
    };
    let recorded = postcard::to_allocvec(&request).unwrap();
    assert_eq!(postcard::from_bytes(&recorded), Ok(request));
    let recorded = postcard::to_allocvec(&claim(&[1])).unwrap();
    assert_eq!(postcard::from_bytes(&recorded), Ok(claim(&[1])));
    let other = postcard::to_allocvec(&signed("{}", &[1])).unwrap();
    assert!(postcard::from_bytes::<SignedToken>(&other).is_ok());
    assert!(postcard::from_bytes::<Claim>(&other).is_err());
}

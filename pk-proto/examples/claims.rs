//! Measures the verification of doubly signed claims, beside the bare signature checks in it:
//!
//! ```text
//! cargo run --release -p pk-proto --example claims
//! cargo run --release -p pk-proto --example claims -- instructions   (counted by valgrind: the same on a noisy machine)
//! ```
//!
//! A claim is parsed from its JSON text and verified in its chain: form, order, digest of the
//! previous claim, both signatures.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "a program that measures"
)]

use std::process::Command;
use std::time::{Duration, Instant};

use ed25519_dalek::{Signer, SigningKey, VerifyingKey};
use pk_proto::claims::{
    ChainHead, ChainVerifier, Claim, ClaimContent, ClaimId, ClaimLinkNode, DigestAlgorithm,
    TokenSignature,
};
use pk_proto::{NodeId, Signature, UnixMillis};

/// Claims of the chain. Each links another node, so that only the owner's key occurs twice.
const CLAIMS: u64 = 1000;
/// Claims of the chain when instructions are counted.
const FEW: u64 = 100;
/// Measurements of each variant, alternating; the fastest counts.
const ROUNDS: usize = 15;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => times(&Chain::new(CLAIMS)),
        ["instructions"] => instructions(),
        [way, rounds] => {
            let chain = Chain::new(FEW);
            for _ in 0..rounds.parse().unwrap() {
                if way == "bare" { chain.verify_bare() } else { chain.verify_claims() }
            }
        }
        _ => println!(
            "usage: no argument, or `instructions`, or `bare` or `claims` and a number of rounds"
        ),
    }
}

fn times(chain: &Chain) {
    let (mut claims, mut bare) = (Duration::MAX, Duration::MAX);
    for _ in 0..ROUNDS {
        claims = claims.min(time(|| chain.verify_claims()));
        bare = bare.min(time(|| chain.verify_bare()));
    }
    let count = chain.tokens.len() as f64;
    let each = |time: Duration| time.as_secs_f64() * 1e6 / count;
    println!(
        "bare: two strict checks of a known key     {:7.1} us, {:6.0} pairs/s",
        each(bare),
        1e6 / each(bare)
    );
    println!(
        "a claim with two signatures, in its chain  {:7.1} us, {:6.0} claims/s",
        each(claims),
        1e6 / each(claims)
    );
    println!("ratio                                      {:7.3}", each(claims) / each(bare));
}

fn time(work: impl FnOnce()) -> Duration {
    let begun = Instant::now();
    work();
    begun.elapsed()
}

/// Runs this program under valgrind, each variant with one round and with three: the difference is
/// two rounds.
fn instructions() {
    let [bare, claims] = ["bare", "claims"].map(|way| {
        let [once, thrice] = ["1", "3"].map(|rounds| count(&[way, rounds]));
        (thrice - once) / (2 * FEW)
    });
    println!("two bare checks  {bare:8} instructions");
    println!("a claim          {claims:8} instructions");
    println!("ratio            {:8.3}", claims as f64 / bare as f64);
}

fn count(arguments: &[&str]) -> u64 {
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]);
    let output = valgrind
        .arg(std::env::current_exe().unwrap())
        .args(arguments)
        .output()
        .expect("valgrind does not run");
    let output = String::from_utf8_lossy(&output.stderr).into_owned();
    let collected = output.lines().find_map(|line| line.split_once("Collected : "));
    collected.unwrap_or_else(|| panic!("valgrind says: {output}")).1.trim().parse().unwrap()
}

/// A valid chain: the texts of its tokens, and their signatures with messages and keys.
struct Chain {
    owner: NodeId,
    tokens: Vec<Vec<u8>>,
    bare: Vec<(VerifyingKey, Vec<u8>, ed25519_dalek::Signature)>,
}

impl Chain {
    fn new(claims: u64) -> Self {
        let owner = key(u64::MAX);
        let mut chain = Self { owner: id(&owner), tokens: Vec::new(), bare: Vec::new() };
        let mut last: Option<Claim> = None;
        for number in 0..claims {
            let other = key(number);
            let link = ClaimLinkNode { issuer: id(&owner), subject: id(&other) };
            let unix = UnixMillis(1_700_000_000_000 + number);
            let claim_id = ClaimId::next(&id(&owner), unix, last.as_ref().map(Claim::id)).unwrap();
            let head = last.as_ref().map(|last| ChainHead::of(last, DigestAlgorithm::default()));
            let draft =
                Claim::draft(&ClaimContent::link(&link), claim_id, unix, head.as_ref()).unwrap();
            let signature = sign(&owner, &draft.signing_input(&id(&owner)));
            let half = draft.sign(id(&owner), signature).unwrap();
            let signature = sign(&other, &half.signing_input(&id(&other)));
            let full = half.counter_sign(id(&other), signature).unwrap();
            let token = full.claim().token();
            for (key, signature) in [&owner, &other].into_iter().zip(token.signatures()) {
                chain.bare.push((
                    key.verifying_key(),
                    token.signing_input(&id(key)).to_vec(),
                    dalek(signature),
                ));
            }
            chain.tokens.push(token.to_json().into_bytes());
            last = Some(full.into_claim());
        }
        chain
    }

    fn verify_claims(&self) {
        let mut verifier = ChainVerifier::new(vec![self.owner]);
        for token in &self.tokens {
            let claim = verifier.read(None, token).unwrap();
            verifier.verify(&claim).unwrap();
        }
    }

    fn verify_bare(&self) {
        for (key, message, signature) in &self.bare {
            key.verify_strict(message, signature).unwrap();
        }
    }
}

fn dalek(signature: &TokenSignature) -> ed25519_dalek::Signature {
    ed25519_dalek::Signature::from_bytes(&signature.signature().0)
}

fn key(number: u64) -> SigningKey {
    let mut seed = [7; 32];
    seed[..8].copy_from_slice(&number.to_be_bytes());
    SigningKey::from_bytes(&seed)
}

fn id(key: &SigningKey) -> NodeId {
    NodeId::from_bytes(key.verifying_key().to_bytes())
}

fn sign(key: &SigningKey, bytes: &[u8]) -> Signature {
    Signature(key.sign(bytes).to_bytes())
}

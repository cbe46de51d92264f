//! The signer: holds the root key, and signs certificates and nothing else.

use std::io::{self, Read, Write};
use std::path::Path;

use pk_host::{KeyPair, KeyStore};

use crate::protocol;

/// Answers requests until the input ends. Creates the key if there is none.
pub(crate) fn serve(dir: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let keys = KeyStore::new(dir);
    let key = match keys.load_key()? {
        Some(key) => key,
        None => {
            let key = KeyPair::generate()?;
            keys.save_key(&key)?;
            key
        }
    };
    answer_all(&key, &mut io::stdin().lock(), &mut io::stdout().lock())?;
    Ok(())
}

fn answer_all(key: &KeyPair, input: &mut impl Read, output: &mut impl Write) -> io::Result<()> {
    while let Some(request) = protocol::read(input)? {
        if request.is_empty() {
            protocol::answer(output, Ok(key.node_id().as_bytes()))?;
        } else if is_certificate(&request) {
            protocol::answer(output, Ok(&key.sign(&request).0))?;
        } else {
            protocol::answer(output, Err("this signer signs certificates only"))?;
        }
    }
    Ok(())
}

/// Returns whether this can be the signed part of a certificate: one DER SEQUENCE with a length of
/// two bytes. Signing requests of other kinds, those of claims and of signalling, never look like
/// this; with them, the root key would act as a node.
fn is_certificate(message: &[u8]) -> bool {
    match message {
        [0x30, 0x82, high, low, content @ ..] => {
            usize::from(u16::from_be_bytes([*high, *low])) == content.len()
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_certificates_are_signed() {
        let key = KeyPair::from_seed(&[1; 32]);
        let ask = |request: &[u8]| {
            let (mut input, mut output) = (Vec::new(), Vec::new());
            protocol::write(&mut input, request).unwrap();
            answer_all(&key, &mut input.as_slice(), &mut output).unwrap();
            output
        };
        let answer = ask(&[]);
        let id = protocol::read_answer::<32>(&mut answer.as_slice()).unwrap();
        assert_eq!(id, *key.node_id().as_bytes());
        let der = [&[0x30, 0x82, 1, 0][..], &[5; 256]].concat();
        let answer = ask(&der);
        let signature = protocol::read_answer::<64>(&mut answer.as_slice()).unwrap();
        assert_eq!(signature, key.sign(&der).0);
        for other in [&b"eyJ0eXAiOiJDbGFpbUxpbmtOb2RlIn0.eyJhbGciOiJFZERTQSJ9"[..], &[0x30; 64]] {
            let answer = ask(other);
            let error = protocol::read_answer::<64>(&mut answer.as_slice()).unwrap_err();
            assert!(error.to_string().contains("certificates only"), "{error}");
        }
    }
}

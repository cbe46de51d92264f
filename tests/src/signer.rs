//! A signer that holds its key elsewhere: slow, failing, silent or wrong.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use pk_driver::{KeyPair, PendingSignature, RootKey, SignatureSender, Signer, SignerError};
use pk_proto::{NodeId, Signature};

/// What a [`Remote`] does with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Behavior {
    /// It signs after this delay.
    Signs(Duration),
    /// It reports an error.
    Fails,
    /// It never answers.
    Hangs,
    /// It signs with another key.
    Forges,
}

/// A signer whose behavior can be changed. Clones are the same signer.
#[derive(Debug, Clone)]
pub struct Remote(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    key: KeyPair,
    requests: AtomicUsize,
    behavior: Mutex<Behavior>,
    /// Requests that are never answered.
    unanswered: Mutex<Vec<SignatureSender>>,
}

impl Remote {
    /// A signer with the key of this seed, that signs at once.
    pub fn new(seed: u8) -> Self {
        Self(Arc::new(Inner {
            key: KeyPair::from_seed(&[seed; 32]),
            requests: AtomicUsize::new(0),
            behavior: Mutex::new(Behavior::Signs(Duration::ZERO)),
            unanswered: Mutex::default(),
        }))
    }

    /// The root key of a node.
    pub fn root(&self) -> RootKey {
        RootKey::new(self.clone())
    }

    /// Changes its behavior.
    pub fn becomes(&self, behavior: Behavior) {
        *self.0.behavior.lock().unwrap() = behavior;
    }

    /// The requests that it has received so far.
    pub fn requests(&self) -> usize {
        self.0.requests.load(Ordering::SeqCst)
    }
}

impl Signer for Remote {
    fn node_id(&self) -> NodeId {
        self.0.key.node_id()
    }

    fn sign(&self, message: &[u8]) -> PendingSignature {
        self.0.requests.fetch_add(1, Ordering::SeqCst);
        let signature = self.0.key.sign(message);
        let behavior = *self.0.behavior.lock().unwrap();
        match behavior {
            Behavior::Signs(delay) if delay.is_zero() => PendingSignature::ready(Ok(signature)),
            Behavior::Signs(delay) => PendingSignature::on_thread(move || {
                thread::sleep(delay);
                Ok(signature)
            }),
            Behavior::Fails => {
                PendingSignature::ready(Err(SignerError::Failed("the card is locked".into())))
            }
            Behavior::Hangs => {
                let (sender, pending) = PendingSignature::channel();
                self.0.unanswered.lock().unwrap().push(sender);
                pending
            }
            Behavior::Forges => {
                let Signature(bytes) = KeyPair::from_seed(&[0xee; 32]).sign(message);
                PendingSignature::ready(Ok(Signature(bytes)))
            }
        }
    }
}

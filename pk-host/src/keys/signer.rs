//! Signers: keys that sign at once or later, in this process or elsewhere.

use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::{Duration, Instant};

use pk_proto::{NodeId, Signature, SignatureFault};

use crate::keys::pair::KeyPair;

/// A key that signs: a [`KeyPair`] in memory, or one that only another program or device can use
/// (an agent, a hardware module, a service) and that may be slow, fail or never answer.
///
/// A node with a [`RootKey`](crate::RootKey) has two keys. The **root key** belongs to its signer.
/// The **hot key** is a local [`KeyPair`]; TLS needs a key that signs at once. Which key signs
/// what:
///
/// | what | signed by | because |
/// |---|---|---|
/// | root certificate | root key | it is the end of the certificate chain and its own issuer |
/// | certificate of the hot key | hot key and root key | the subject proves its key, the issuer certifies it |
/// | TLS handshakes | hot key | each needs a signature at once |
/// | claims and their counter-signatures | hot key | peers verify them with the newest id that TLS has proved |
/// | signalling requests | hot key | the same |
///
/// The signer is therefore used when a certificate is issued, and not by connections. The node id
/// is that of the hot key; the id of the root key is a former id of the node, under which peers
/// find and verify it like under any other.
///
/// - *Hot key stolen:* the thief is the node under the id of the hot key, without end: a key proves
///   its own id. As an acceptor it proves the id of the root key until the certificate that the
///   root key issued expires; as a dialer without end, because peers check only the validity of a
///   dialer's newest certificate. Create a new directory with the same signer: the node gets
///   another id and keeps that of its root key.
/// - *Hot key lost:* the same remedy. Its sigchain ends; no other key can continue it.
/// - *Root key stolen:* the thief can create nodes that prove the id of the root key. It cannot act
///   under the id of the hot key, nor sign claims of it.
/// - *Root key lost, or the signer unavailable:* the node runs until the certificate of its hot key
///   expires, and after that does not start with its signer. Without the signer its directory opens
///   as that of an ordinary node, whose hot key certifies itself. It is no longer found under the
///   id of the root key once the certificates that the root key issued have expired.
pub trait Signer: Send + Sync {
    /// Returns the node id of the key. It is always the same.
    fn node_id(&self) -> NodeId;

    /// Starts to sign a message (Ed25519, RFC 8032, without prehash), and returns at once. The
    /// signature or an error follows through the [`SignatureSender`]. Signatures are verified
    /// before they are used. The caller may drop the result before it is complete.
    fn sign(&self, message: &[u8]) -> PendingSignature;
}

impl Signer for KeyPair {
    fn node_id(&self) -> NodeId {
        self.node_id()
    }

    fn sign(&self, message: &[u8]) -> PendingSignature {
        PendingSignature::ready(Ok(self.sign(message)))
    }
}

/// Why a signer did not sign.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SignerError {
    /// The signer reported an error.
    #[error("the signer failed: {0}")]
    Failed(String),
    /// The signer dropped the request without an answer.
    #[error("the signer dropped the request")]
    Dropped,
    /// There was no answer within the time limit.
    #[error("the signer did not answer within {0:?}")]
    TimedOut(Duration),
    /// The signature is not by the signer's key, or is of another message. It was not used.
    #[error("the signer returned a signature that {key} has not made: {fault}")]
    Wrong {
        /// Node id of the signer's key.
        key: NodeId,
        /// Fault of the signature.
        fault: SignatureFault,
    },
}

/// A signature that a [`Signer`] has started to make.
///
/// Blocking callers use [`wait`](Self::wait). It is also a future, of no particular runtime.
#[must_use = "the signature is the result"]
pub struct PendingSignature(Arc<Shared>);

/// The end of a [`PendingSignature`] that its signer keeps, on any thread. Dropping it fails the
/// request with [`SignerError::Dropped`].
pub struct SignatureSender(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    completed: Condvar,
}

#[derive(Default)]
struct State {
    result: Option<Result<Signature, SignerError>>,
    waker: Option<Waker>,
}

impl PendingSignature {
    /// Returns both ends.
    pub fn channel() -> (SignatureSender, Self) {
        let shared = Arc::<Shared>::default();
        (SignatureSender(Arc::clone(&shared)), Self(shared))
    }

    /// Returns a complete one.
    pub fn ready(result: Result<Signature, SignerError>) -> Self {
        let (sender, pending) = Self::channel();
        sender.complete(result);
        pending
    }

    /// Runs a function that blocks on a new thread, for signers with a blocking interface.
    pub fn on_thread(
        sign: impl FnOnce() -> Result<Signature, SignerError> + Send + 'static,
    ) -> Self {
        let (sender, pending) = Self::channel();
        let work = move || sender.complete(sign());
        match thread::Builder::new().name("pk-signer".to_owned()).spawn(work) {
            Ok(_) => pending,
            Err(error) => {
                Self::ready(Err(SignerError::Failed(format!("failed to spawn thread: {error}"))))
            }
        }
    }

    /// Blocks until the signature is complete.
    ///
    /// # Errors
    ///
    /// [`SignerError::TimedOut`] after `timeout`, or the error of the signer.
    pub fn wait(self, timeout: Duration) -> Result<Signature, SignerError> {
        let start = Instant::now();
        let mut state = self.0.lock();
        loop {
            if let Some(result) = state.result.take() {
                return result;
            }
            let left = timeout.saturating_sub(start.elapsed());
            if left.is_zero() {
                return Err(SignerError::TimedOut(timeout));
            }
            let waited = self.0.completed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Future for PendingSignature {
    type Output = Result<Signature, SignerError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.0.lock();
        match state.result.take() {
            Some(result) => Poll::Ready(result),
            None => {
                state.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl SignatureSender {
    /// Completes the request.
    pub fn complete(self, result: Result<Signature, SignerError>) {
        self.0.complete(result);
    }
}

impl Drop for SignatureSender {
    fn drop(&mut self) {
        self.0.complete(Err(SignerError::Dropped));
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Only assignments happen under this lock, so that a poisoned one is consistent.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stores the first result and wakes the caller; ignores further ones.
    fn complete(&self, result: Result<Signature, SignerError>) {
        let mut state = self.lock();
        if state.result.is_none() {
            state.result = Some(result);
        }
        let waker = state.waker.take();
        drop(state);
        self.completed.notify_all();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl fmt::Debug for PendingSignature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PendingSignature(..)")
    }
}

impl fmt::Debug for SignatureSender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SignatureSender(..)")
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);
    const SHORT: Duration = Duration::from_millis(20);

    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn signature_is_awaited_by_blocking_and_by_async_callers() {
        let key = KeyPair::from_seed(&[1; 32]);
        let signature = key.sign(b"message");
        assert_eq!(Signer::sign(&key, b"message").wait(Duration::ZERO), Ok(signature));
        let slow = PendingSignature::on_thread(move || {
            thread::sleep(SHORT);
            Ok(signature)
        });
        assert_eq!(slow.wait(LONG), Ok(signature));

        let (sender, mut pending) = PendingSignature::channel();
        let count = Arc::new(Count(AtomicUsize::new(0)));
        let waker = Waker::from(Arc::clone(&count));
        let mut cx = Context::from_waker(&waker);
        assert!(Pin::new(&mut pending).poll(&mut cx).is_pending());
        sender.complete(Ok(signature));
        assert_eq!(count.0.load(Ordering::SeqCst), 1);
        assert_eq!(Pin::new(&mut pending).poll(&mut cx), Poll::Ready(Ok(signature)));
    }

    #[test]
    fn signer_that_never_answers_fails() {
        let (sender, pending) = PendingSignature::channel();
        assert_eq!(pending.wait(SHORT), Err(SignerError::TimedOut(SHORT)));
        // Its late answer has no effect.
        sender.complete(Err(SignerError::Failed("late".into())));
        let (sender, pending) = PendingSignature::channel();
        drop(sender);
        assert_eq!(pending.wait(LONG), Err(SignerError::Dropped));
        let died = PendingSignature::on_thread(|| panic!("a signer that ends"));
        assert_eq!(died.wait(LONG), Err(SignerError::Dropped));
    }
}

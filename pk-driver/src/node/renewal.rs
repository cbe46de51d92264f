//! Renewals: of the key, on request of the embedder; of the certificate, when two thirds of its
//! validity are over or it is not valid after the wall clock was set.
//!
//! A new key is first written to the key store as pending. The core's transaction, which changes
//! the owner of the store, commits the renewal; then the new key takes its place. After a crash in
//! between, the next start asks the store for its owner.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use pk_proto::{Identity, NodeId, Reply, Request, Snapshot, UnixMillis};
use tokio::sync::oneshot;

use crate::error::{NodeError, StartError, unexpected};
use crate::job::StoreJob;
use crate::pump::handle::{Handle, WeakHandle};
use crate::system::blocking;
use pk_host::{
    IdentityError, KeyPair, KeyStore, RootKey, SignerError, StoreError, Validity, certified,
    certified_is_due, check_room, clock_warning, dropped, relinked, renewed, succeeded, unix,
};

/// Longest interval of checks of the certificate.
const LONGEST_CHECK_INTERVAL: Duration = Duration::from_secs(60 * 60);
/// Shortest interval of attempts to reissue it.
const SHORTEST_RETRY: Duration = Duration::from_secs(1);
/// Longest delay after which a signer is asked again.
const LONGEST_SIGNER_RETRY: Duration = Duration::from_secs(10 * 60);

/// Result of a renewal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Renewed {
    /// Id before the renewal.
    pub old: NodeId,
    /// Id after the renewal. The node is found and reached under both.
    pub new: NodeId,
    /// Former ids under which the node is no longer found or reached: a chain contains at most
    /// [`MAX_CHAIN_LEN`](pk_proto::cert::MAX_CHAIN_LEN) certificates, and the oldest were dropped.
    /// Usually empty.
    pub dropped: Vec<NodeId>,
}

/// Why the latest attempts to reissue a certificate failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFailure {
    /// Error of the latest attempt.
    pub error: String,
    /// Number of failed attempts since the last success.
    pub attempts: u32,
    /// Time at which the newest certificate expires. After it, peers refuse new connections with
    /// this node.
    pub expires: UnixMillis,
}

/// Manages the key and the certificates of a running node.
pub(crate) struct IdentityManager {
    /// Locked during a renewal: only one at a time. Not locked while a signer signs.
    present: Mutex<(KeyPair, Identity)>,
    validity: Mutex<Option<Validity>>,
    /// The presented certificates, for readers; not locked during a renewal.
    presented: Mutex<Identity>,
    signer: Option<RootKey>,
    keys: Option<KeyStore>,
    lifetime: Duration,
    /// Whether a renewal of the certificate is in progress.
    renewing: AtomicBool,
    /// The failed attempts to reissue the certificate, with the time of the latest.
    failed: Mutex<Option<(CertificateFailure, Instant)>>,
    /// Whether the signer is to issue certificates although the newest one is not due.
    wanted: AtomicBool,
}

impl IdentityManager {
    pub(crate) fn new(
        key: KeyPair,
        identity: Identity,
        signer: Option<RootKey>,
        keys: Option<KeyStore>,
        lifetime: Duration,
    ) -> Arc<Self> {
        Arc::new(Self {
            validity: Mutex::new(Validity::of(&identity, unix()).ok()),
            presented: Mutex::new(identity.clone()),
            present: Mutex::new((key, identity)),
            signer,
            keys,
            lifetime,
            renewing: AtomicBool::new(false),
            failed: Mutex::default(),
            wanted: AtomicBool::new(false),
        })
    }

    /// Returns the identity to start with: the stored one, or if it is not valid by the wall clock,
    /// one whose newest certificate is reissued. Waits for the signer in that case only.
    pub(crate) async fn start(self: &Arc<Self>) -> Result<Identity, StartError> {
        let now = unix();
        if let Some(warning) = clock_warning(now) {
            tracing::warn!("{warning}");
        }
        let stored = self.identity();
        let is_valid = !stored.chain.is_empty() && Validity::of(&stored, now)?.is_valid(now);
        if let Some(root) = &self.signer {
            self.wanted.store(certified_is_due(&stored, root, now)?, Ordering::Release);
        }
        if is_valid {
            return Ok(stored);
        }
        let identity = match &self.signer {
            None => renewed(&stored, &lock(&self.present).0, now, self.lifetime)?,
            Some(_) => {
                let (manager, keys) = (Arc::clone(self), self.keys.clone());
                let identity = wait("pk-signer", move || manager.issue()).await??.identity;
                // A step of its own: if the caller is gone, nothing is stored, because the
                // directory may have another user then.
                if let Some(keys) = keys {
                    let saved = identity.clone();
                    wait("pk-keys", move || keys.save_identity(&saved)).await??;
                }
                self.wanted.store(false, Ordering::Release);
                identity
            }
        };
        self.present(&identity);
        lock(&self.present).1.clone_from(&identity);
        Ok(identity)
    }

    /// Lets the signer certify the present key.
    fn issue(&self) -> Result<Issued, IdentityError> {
        let (key, before) = lock(&self.present).clone();
        let root = self.signer.as_ref().ok_or(IdentityError::Empty)?;
        let keys = |id| match &self.keys {
            Some(keys) => keys.key_of(id, &key),
            None => Some(key.clone()).filter(|key| key.node_id() == id),
        };
        let identity = certified(&before, &key, &keys, root, unix(), self.lifetime)?;
        Ok(Issued { before, identity })
    }

    /// Shows an identity to readers and to the checks of its certificates.
    fn present(&self, identity: &Identity) {
        *lock(&self.validity) = Validity::of(identity, unix()).ok();
        lock(&self.presented).clone_from(identity);
    }

    /// Renews on a separate thread, to the end even if the caller is gone: to another key, or with
    /// the same one, which only reissues the certificate.
    pub(crate) fn begin(
        self: &Arc<Self>,
        handle: Handle,
        next: Option<KeyPair>,
    ) -> Result<oneshot::Receiver<Result<Renewed, NodeError>>, NodeError> {
        let identity_manager = Arc::clone(self);
        // The shutdown waits until the keys are in their places.
        let hold = handle.tasks.hold();
        let work = move || {
            if identity_manager.is_for_signer(next.as_ref()) {
                // It does not wait for a signer.
                let weak = handle.downgrade();
                drop((handle, hold));
                identity_manager.renew_by_signer(&weak)
            } else {
                let result = identity_manager.renew(&handle, next);
                drop((handle, hold));
                result
            }
        };
        blocking::spawn("pk-renewal", work).map_err(NodeError::Thread)
    }

    /// Returns whether a renewal to this key, or with the present one, is a matter of the signer.
    fn is_for_signer(&self, next: Option<&KeyPair>) -> bool {
        let present = || lock(&self.present).0.node_id();
        self.signer.is_some() && next.is_none_or(|next| next.node_id() == present())
    }

    /// Returns why the latest attempts to reissue the certificate failed.
    pub(crate) fn failure(&self) -> Option<CertificateFailure> {
        lock(&self.failed).as_ref().map(|(failure, _)| failure.clone())
    }

    /// Returns the presented identity.
    pub(crate) fn identity(&self) -> Identity {
        lock(&self.presented).clone()
    }

    /// Starts to reissue the certificate if it is due. Returns when to check again. Also called
    /// when the wall clock was set.
    pub(crate) fn check_certificate(self: &Arc<Self>, handle: &WeakHandle) -> Duration {
        let Some(validity) = lock(&self.validity).clone() else { return LONGEST_CHECK_INTERVAL };
        let now = unix();
        if !validity.is_due(now) && !self.wanted.load(Ordering::Acquire) {
            return validity.left(now).clamp(SHORTEST_RETRY, LONGEST_CHECK_INTERVAL);
        }
        let delay = self.signer_delay();
        if !delay.is_zero() {
            return delay;
        }
        if !self.renewing.swap(true, Ordering::AcqRel)
            && let Some(handle) = handle.upgrade()
            && let Err(error) = self.begin(handle, None)
        {
            self.certificate_renewed(Err(&error));
        }
        if self.signer.is_some() {
            return SHORTEST_RETRY;
        }
        let left = if validity.is_valid(now) { validity.until_end(now) } else { Duration::ZERO };
        (left / 10).clamp(SHORTEST_RETRY, LONGEST_CHECK_INTERVAL)
    }

    /// Returns the time until a signer that has failed is asked again.
    fn signer_delay(&self) -> Duration {
        match &*lock(&self.failed) {
            Some((failure, at)) if self.signer.is_some() => {
                retry_delay(failure.attempts).saturating_sub(at.elapsed())
            }
            _ => Duration::ZERO,
        }
    }

    /// Handles the result of reissuing the certificate.
    fn certificate_renewed(&self, result: Result<(), &NodeError>) {
        match result {
            Ok(()) => {
                tracing::debug!("the certificate was reissued");
                self.wanted.store(false, Ordering::Release);
                *lock(&self.failed) = None;
            }
            Err(NodeError::Closed) => {}
            Err(error) => {
                let expires =
                    lock(&self.validity).as_ref().map_or(UnixMillis(0), Validity::expires);
                let mut failed = lock(&self.failed);
                let attempts = failed.as_ref().map_or(0, |(failure, _)| failure.attempts) + 1;
                tracing::warn!(%error, attempts, %expires, "the certificate could not be reissued");
                let failure = CertificateFailure { error: error.to_string(), attempts, expires };
                *failed = Some((failure, Instant::now()));
            }
        }
        self.renewing.store(false, Ordering::Release);
    }

    /// Lets the signer reissue the certificate, then presents it if the node still runs and has not
    /// changed its key or certificates in between.
    fn renew_by_signer(&self, handle: &WeakHandle) -> Result<Renewed, NodeError> {
        let result = self.issue().map_err(NodeError::from).and_then(|issued| {
            let handle = handle.upgrade().ok_or(NodeError::Closed)?;
            let hold = handle.tasks.hold();
            let mut present = lock(&self.present);
            let id = present.0.node_id();
            let result = if present.1 == issued.before {
                self.renew_present(&handle, &mut present, None, Some(issued.identity))
            } else {
                Ok(Renewed { old: id, new: id, dropped: Vec::new() })
            };
            drop((present, handle, hold));
            result
        });
        self.certificate_renewed(result.as_ref().map(drop));
        result
    }

    fn renew(&self, handle: &Handle, next: Option<KeyPair>) -> Result<Renewed, NodeError> {
        let of_the_certificate = next.is_none();
        let mut present = lock(&self.present);
        let result = self.renew_present(handle, &mut present, next, None);
        if of_the_certificate {
            self.certificate_renewed(result.as_ref().map(drop));
        }
        result
    }

    fn renew_present(
        &self,
        handle: &Handle,
        present: &mut (KeyPair, Identity),
        next: Option<KeyPair>,
        issued: Option<Identity>,
    ) -> Result<Renewed, NodeError> {
        let (key, before) = &*present;
        let old = key.node_id();
        let next = next.filter(|next| next.node_id() != old);
        let now = unix();
        let identity = match (&next, issued) {
            (Some(next), _) => {
                if self.signer.is_some() {
                    check_room(before)?;
                }
                succeeded(before, key, next, now, self.lifetime)?
            }
            (None, Some(issued)) => issued,
            (None, None) => renewed(before, key, now, self.lifetime)?,
        };
        let keys = |id| match next.iter().chain([key]).find(|key| key.node_id() == id) {
            Some(key) => Some(key.clone()),
            None => self.keys.as_ref()?.key_of(id, key),
        };
        let identity = relinked(&identity, &keys, now, self.lifetime)?;
        let dropped = dropped(before, &identity);
        if let (Some(keys), Some(next)) = (&self.keys, &next) {
            keys.add(next, &identity)?;
        }
        let key = next.as_ref().unwrap_or(key).clone();
        let new = key.node_id();
        if let Err(error) = request(handle, key.clone(), identity.clone()) {
            if next.is_some() {
                self.give_up(handle, new, &error);
            }
            return Err(error);
        }
        self.present(&identity);
        if let Some(keys) = &self.keys {
            let placed =
                if next.is_some() { keys.activate(new) } else { keys.save_identity(&identity) };
            if let Err(error) = placed {
                // The renewal is committed nevertheless: the owner of the store shows it, and the
                // next start moves the files into place.
                tracing::warn!(%error, "the files of the renewed key or certificate could not be moved into place yet");
            }
        }
        if !dropped.is_empty() {
            tracing::warn!(
                dropped = ?dropped,
                "the certificate chain has its maximum length: this node is no longer reachable \
                    under its oldest ids"
            );
        }
        *present = (key, identity);
        Ok(Renewed { old, new, dropped })
    }

    /// Handles a failed renewal. Its key is removed, unless the store may have changed its owner
    /// nevertheless, for example if the disk lost the answer.
    fn give_up(&self, handle: &Handle, new: NodeId, error: &NodeError) {
        let refused = matches!(error, NodeError::Request(_));
        let owner = if refused { None } else { owner(handle) };
        if !refused && !matches!(owner, Some(owner) if owner != Some(new)) {
            tracing::warn!(%error, %new, "a renewal failed and may have been committed; the next start will determine it");
            return;
        }
        if let Some(keys) = &self.keys
            && let Err(error) = keys.forget(new)
        {
            tracing::warn!(%error, %new, "the key of a failed renewal could not be removed yet");
        }
    }
}

/// What a signer has issued.
struct Issued {
    /// The identity before.
    before: Identity,
    /// The identity with the new certificate.
    identity: Identity,
}

/// Runs work that blocks on a thread and waits for it. If the work panics, that counts as a signer
/// that does not answer.
async fn wait<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, StartError> {
    let answer = blocking::spawn(name, work).map_err(StartError::Thread)?.await;
    Ok(answer.map_err(|_| IdentityError::from(SignerError::Dropped))?)
}

/// Returns the delay after this number of failed attempts.
fn retry_delay(attempts: u32) -> Duration {
    let factor = 1_u32.checked_shl(attempts.saturating_sub(1)).unwrap_or(u32::MAX);
    SHORTEST_RETRY.saturating_mul(factor).min(LONGEST_SIGNER_RETRY)
}

/// Requests the core to present another identity, and waits for it.
fn request(handle: &Handle, key: KeyPair, identity: Identity) -> Result<(), NodeError> {
    let id = key.node_id();
    let (caller, answer) = oneshot::channel();
    handle.command_blocking(Box::new(move |registry, cx| {
        let requested = cx.node.with(|node| {
            node.add_key(key);
            // The core must validate the certificate by the clock that it was created with, which
            // may have been set a moment ago.
            node.set_wall_clock(cx.now, unix());
            node.request(cx.now, Request::Renew { identity })
        });
        match requested {
            Ok(id) => registry.wait(cx, id, caller),
            Err(error) => {
                let _ = caller.send(Err(error.into()));
            }
        }
    }))?;
    match answer.blocking_recv().unwrap_or(Err(NodeError::Closed)) {
        Ok(answer) => match answer.reply {
            Reply::Renew { .. } => Ok(()),
            other => unexpected(&other),
        },
        Err(error) => {
            // The node continues under its present key, if it runs.
            let _ = handle.command_blocking(Box::new(move |_, cx| {
                cx.node.with(|node| {
                    if node.manager().own_id() != id {
                        node.remove_key(&id);
                    }
                });
            }));
            Err(error)
        }
    }
}

/// Returns the owner of the store, `Some(None)` if it has none. `None` if the store cannot be read.
fn owner(handle: &Handle) -> Option<Option<NodeId>> {
    let (done, rows) = oneshot::channel();
    handle
        .command_blocking(Box::new(move |_, cx| cx.jobs.push_back(StoreJob::Load { done })))
        .ok()?;
    let rows = rows
        .blocking_recv()
        .unwrap_or_else(|_| Err(StoreError("the store has ended".to_owned())))
        .ok()?;
    Some(Snapshot::from_rows(rows).ok()?.meta.map(|meta| meta.owner))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every assignment under these locks is complete.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

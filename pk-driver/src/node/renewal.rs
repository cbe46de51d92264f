//! Renewals: of the key, on request of the embedder; of the certificate, when two thirds of its
//! validity are over or it is not valid after the wall clock was set.
//!
//! A new key is first written to the key store as pending. The core's transaction, which changes
//! the owner of the store, commits the renewal; then the new key takes its place. After a crash in
//! between, the next start asks the store for its owner.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pk_proto::{Identity, Input, NodeId, NodeManager, Reply, Request, Snapshot};
use tokio::sync::oneshot;

use crate::error::{NodeError, unexpected};
use crate::job::StoreJob;
use crate::pump::handle::{Handle, WeakHandle};
use crate::system::blocking;
use pk_host::KeyPair;
use pk_host::KeyStore;
use pk_host::StoreError;
use pk_host::unix;
use pk_host::{Validity, dropped, relinked, renewed, succeeded};

/// Longest interval of checks of the certificate.
const LONGEST_CHECK_INTERVAL: Duration = Duration::from_secs(60 * 60);
/// Shortest interval of attempts to reissue it.
const SHORTEST_RETRY: Duration = Duration::from_secs(1);

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

/// Manages the key and the certificates of a running node.
pub(crate) struct IdentityManager {
    /// Locked during a renewal: only one at a time.
    present: Mutex<(KeyPair, Identity)>,
    validity: Mutex<Option<Validity>>,
    /// The presented certificates, for readers; not locked during a renewal.
    presented: Mutex<Identity>,
    keys: Option<KeyStore>,
    lifetime: Duration,
    /// Whether a renewal of the certificate is in progress.
    renewing: AtomicBool,
}

impl IdentityManager {
    pub(crate) fn new(
        key: KeyPair,
        identity: Identity,
        keys: Option<KeyStore>,
        lifetime: Duration,
    ) -> Arc<Self> {
        let validity = Mutex::new(Validity::of(&identity, unix()).ok());
        let presented = Mutex::new(identity.clone());
        let present = Mutex::new((key, identity));
        Arc::new(Self {
            present,
            validity,
            presented,
            keys,
            lifetime,
            renewing: AtomicBool::new(false),
        })
    }

    /// Renews on a separate thread, to the end even if the caller is gone: to another key, or with
    /// the same one, which only reissues the certificate.
    pub(crate) fn begin(
        self: &Arc<Self>,
        handle: Handle<NodeManager>,
        next: Option<KeyPair>,
    ) -> Result<oneshot::Receiver<Result<Renewed, NodeError>>, NodeError> {
        let identity_manager = Arc::clone(self);
        // The shutdown waits until the keys are in their places.
        let hold = handle.tasks.hold();
        let work = move || {
            let result = identity_manager.renew(&handle, next);
            drop((handle, hold));
            result
        };
        blocking::spawn("pk-renewal", work).map_err(NodeError::Thread)
    }

    /// Returns the presented identity.
    pub(crate) fn identity(&self) -> Identity {
        lock(&self.presented).clone()
    }

    /// Starts to reissue the certificate if it is due. Returns when to check again. Also called
    /// when the wall clock was set.
    pub(crate) fn check_certificate(
        self: &Arc<Self>,
        handle: &WeakHandle<NodeManager>,
    ) -> Duration {
        let Some(validity) = lock(&self.validity).clone() else { return LONGEST_CHECK_INTERVAL };
        let now = unix();
        if !validity.is_due(now) {
            return validity.left(now).clamp(SHORTEST_RETRY, LONGEST_CHECK_INTERVAL);
        }
        if !self.renewing.swap(true, Ordering::AcqRel)
            && let Some(handle) = handle.upgrade()
            && let Err(error) = self.begin(handle, None)
        {
            tracing::warn!(%error, "the certificate could not be reissued");
            self.renewing.store(false, Ordering::Release);
        }
        let left = if validity.is_valid(now) { validity.until_end(now) } else { Duration::ZERO };
        (left / 10).clamp(SHORTEST_RETRY, LONGEST_CHECK_INTERVAL)
    }

    fn renew(
        &self,
        handle: &Handle<NodeManager>,
        next: Option<KeyPair>,
    ) -> Result<Renewed, NodeError> {
        let of_the_certificate = next.is_none();
        let mut present = lock(&self.present);
        let result = self.renew_present(handle, &mut present, next);
        if of_the_certificate {
            self.renewing.store(false, Ordering::Release);
            match &result {
                Ok(_) => tracing::debug!("the certificate was reissued"),
                Err(NodeError::Closed) => {}
                Err(error) => tracing::warn!(%error, "the certificate could not be reissued"),
            }
        }
        result
    }

    fn renew_present(
        &self,
        handle: &Handle<NodeManager>,
        present: &mut (KeyPair, Identity),
        next: Option<KeyPair>,
    ) -> Result<Renewed, NodeError> {
        let (key, before) = &*present;
        let old = key.node_id();
        let next = next.filter(|next| next.node_id() != old);
        let now = unix();
        let identity = match &next {
            Some(next) => succeeded(before, key, next, now, self.lifetime)?,
            None => renewed(before, key, now, self.lifetime)?,
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
        *lock(&self.validity) = Validity::of(&identity, unix()).ok();
        lock(&self.presented).clone_from(&identity);
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
    fn give_up(&self, handle: &Handle<NodeManager>, new: NodeId, error: &NodeError) {
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

/// Requests the core to present another identity, and waits for it.
fn request(
    handle: &Handle<NodeManager>,
    key: KeyPair,
    identity: Identity,
) -> Result<(), NodeError> {
    let id = key.node_id();
    let (caller, answer) = oneshot::channel();
    handle.command_blocking(Box::new(move |registry, cx, core| {
        cx.keys.add(key);
        // The core must validate the certificate by the clock that it was created with, which may
        // have been set a moment ago.
        core.handle_input(Input::WallClock(unix()), cx.now);
        match core.request(Request::Renew { identity }, cx.now) {
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
            let _ = handle.command_blocking(Box::new(move |_, cx, core| {
                if core.own_id() != id {
                    cx.keys.remove(&id);
                }
            }));
            Err(error)
        }
    }
}

/// Returns the owner of the store, `Some(None)` if it has none. `None` if the store cannot be read.
fn owner(handle: &Handle<NodeManager>) -> Option<Option<NodeId>> {
    let (done, rows) = oneshot::channel();
    handle
        .command_blocking(Box::new(move |_, cx, _| cx.jobs.push_back(StoreJob::Load { done })))
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

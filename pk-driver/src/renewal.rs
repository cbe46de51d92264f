//! Renewals: of the key, when the embedder wants it; of the certificate, when two thirds of its life are over.
//!
//! A new key is written to the key store first and waits there. The core's transaction decides (the store changes its
//! owner); then the new key takes its place. Whatever happens in between, the next start asks the store who it belongs to.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pk_proto::{Identity, NodeId, NodeManager, Reply, Request, Snapshot};
use tokio::sync::oneshot;

use crate::blocking;
use crate::clock::unix;
use crate::error::NodeError;
use crate::identity::{Life, renewed, succeeded};
use crate::key_store::KeyStore;
use crate::keys::KeyPair;
use crate::launch::{Handle, WeakHandle};
use crate::node::unexpected;
use crate::store::StoreError;
use crate::store_place::Job;

/// The longest time between two looks at the certificate: the wall clock may be set.
const LONGEST_LOOK: Duration = Duration::from_secs(60 * 60);
/// The shortest time between two attempts to renew it.
const SHORTEST_RETRY: Duration = Duration::from_secs(1);

/// Who a node was and is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Renewed {
    /// The id before.
    pub old: NodeId,
    /// The id from now on. The node is found and reached under both.
    pub new: NodeId,
}

/// Keeps the key and the certificates of a running node.
pub(crate) struct Custody {
    /// Locked as long as a renewal is under way: one at a time.
    present: Mutex<(KeyPair, Identity)>,
    life: Mutex<Option<Life>>,
    /// The certificates that are presented, for whoever asks; not locked during a renewal.
    shown: Mutex<Identity>,
    keys: Option<KeyStore>,
    lifetime: Duration,
    /// A renewal of the certificate is under way.
    renewing: AtomicBool,
}

impl Custody {
    pub(crate) fn new(key: KeyPair, identity: Identity, keys: Option<KeyStore>, lifetime: Duration) -> Arc<Self> {
        let life = Mutex::new(Life::of(&identity).ok());
        let shown = Mutex::new(identity.clone());
        let present = Mutex::new((key, identity));
        Arc::new(Self { present, life, shown, keys, lifetime, renewing: AtomicBool::new(false) })
    }

    /// Renews on a thread of its own, to the end, whether anybody waits for it or not: under another key, or under the same
    /// one, which makes another certificate.
    pub(crate) fn begin(
        self: &Arc<Self>,
        handle: Handle<NodeManager>,
        next: Option<KeyPair>,
    ) -> Result<oneshot::Receiver<Result<Renewed, NodeError>>, NodeError> {
        let custody = Arc::clone(self);
        // A node has not shut down before its keys are in their places.
        let hold = handle.tasks.hold();
        let work = move || {
            let result = custody.renew(&handle, next);
            drop((handle, hold));
            result
        };
        blocking::spawn("pk-renewal", work).map_err(NodeError::Thread)
    }

    /// What is presented now.
    pub(crate) fn identity(&self) -> Identity {
        lock(&self.shown).clone()
    }

    /// Looks whether the certificate is due, and begins to renew it. Returns when to look again.
    pub(crate) fn look(self: &Arc<Self>, handle: &WeakHandle<NodeManager>) -> Duration {
        let Some(life) = *lock(&self.life) else { return LONGEST_LOOK };
        let now = unix().as_secs();
        if now < life.due {
            return Duration::from_secs(life.due - now).min(LONGEST_LOOK);
        }
        if !self.renewing.swap(true, Ordering::AcqRel)
            && let Some(handle) = handle.upgrade()
            && let Err(error) = self.begin(handle, None)
        {
            tracing::warn!(%error, "the certificate is not renewed");
            self.renewing.store(false, Ordering::Release);
        }
        Duration::from_secs(life.end.saturating_sub(now) / 10).clamp(SHORTEST_RETRY, LONGEST_LOOK)
    }

    fn renew(&self, handle: &Handle<NodeManager>, next: Option<KeyPair>) -> Result<Renewed, NodeError> {
        let of_the_certificate = next.is_none();
        let mut present = lock(&self.present);
        let result = self.renew_present(handle, &mut present, next);
        if of_the_certificate {
            self.renewing.store(false, Ordering::Release);
            match &result {
                Ok(_) => tracing::debug!("the certificate was renewed"),
                Err(NodeError::Closed) => {}
                Err(error) => tracing::warn!(%error, "the certificate was not renewed"),
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
        let (key, identity) = &*present;
        let old = key.node_id();
        let next = next.filter(|next| next.node_id() != old);
        let identity = match &next {
            Some(next) => succeeded(identity, key, next, unix(), self.lifetime)?,
            None => renewed(identity, key, unix(), self.lifetime)?,
        };
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
        *lock(&self.life) = Life::of(&identity).ok();
        lock(&self.shown).clone_from(&identity);
        if let Some(keys) = &self.keys {
            let placed = if next.is_some() { keys.activate(new) } else { keys.save_identity(&identity) };
            if let Err(error) = placed {
                // The renewal is done nevertheless: the store says so, and the next start puts the files in their places.
                tracing::warn!(%error, "the renewed key or certificate is not in its place yet");
            }
        }
        *present = (key, identity);
        Ok(Renewed { old, new })
    }

    /// A renewal has failed. Its key is removed, unless the store may have changed its owner nevertheless, as where a disk
    /// loses the answer.
    fn give_up(&self, handle: &Handle<NodeManager>, new: NodeId, error: &NodeError) {
        let refused = matches!(error, NodeError::Request(_));
        let owner = if refused { None } else { owner(handle) };
        if !refused && !matches!(owner, Some(owner) if owner != Some(new)) {
            tracing::warn!(%error, %new, "a renewal failed, and may have been written; the next start will tell");
            return;
        }
        if let Some(keys) = &self.keys
            && let Err(error) = keys.forget(new)
        {
            tracing::warn!(%error, %new, "the key of a renewal that failed is not removed yet");
        }
    }
}

/// Has the core present another identity, and waits for it.
fn request(handle: &Handle<NodeManager>, key: KeyPair, identity: Identity) -> Result<(), NodeError> {
    let id = key.node_id();
    let (caller, answer) = oneshot::channel();
    handle.command_blocking(Box::new(move |desk, cx, core| {
        cx.keys.add(key);
        match core.request(Request::Renew { identity }, cx.now) {
            Ok(id) => desk.wait(cx, id, caller),
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
            // The node still runs under the key that it had, if it runs.
            let _ = handle.command_blocking(Box::new(move |_, cx, core| {
                if core.own_id() != id {
                    cx.keys.remove(&id);
                }
            }));
            Err(error)
        }
    }
}

/// Who the store says it belongs to, `Some(None)` if it says nothing. `None` if it cannot be asked.
fn owner(handle: &Handle<NodeManager>) -> Option<Option<NodeId>> {
    let (done, rows) = oneshot::channel();
    handle.command_blocking(Box::new(move |_, cx, _| cx.jobs.push_back(Job::Load { done }))).ok()?;
    let rows = rows.blocking_recv().unwrap_or_else(|_| Err(StoreError("the store has ended".to_owned()))).ok()?;
    Some(Snapshot::from_rows(rows).ok()?.meta.map(|meta| meta.owner))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is assigned under these locks is assigned whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Looks after the certificate; called by the pump, which is told when to call again.
pub(crate) type Upkeep = Box<dyn FnMut() -> Duration + Send>;

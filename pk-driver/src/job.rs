//! A job for a store, as a value that can be sent to the thread of the store.

use bytes::Bytes;
use pk_host::{Store, StoreError};
use pk_proto::{Table, WriteFailure};
use pk_quic::{Effect, Response};
use tokio::sync::oneshot;

/// Rows of several tables.
type Rows = Vec<(Table, Bytes, Bytes)>;

/// A job for the store.
#[derive(Debug)]
pub(crate) enum StoreJob {
    /// Requested by the core.
    Effect(Effect),
    /// Requested by the driver: the rows that a start would load.
    Load { done: oneshot::Sender<Result<Rows, StoreError>> },
}

impl StoreJob {
    /// Returns whether the job writes, and if so whether durably.
    pub(crate) fn durable(&self) -> Option<bool> {
        match self {
            Self::Effect(Effect::Persist { durable, .. }) => Some(*durable),
            Self::Effect(_) | Self::Load { .. } => None,
        }
    }

    /// Executes the job. Returns the completion for the core, if the core requested it.
    pub(crate) fn run(self, store: &mut dyn Store) -> Option<Response> {
        match self {
            Self::Effect(effect) => effect.run(store).ok(),
            Self::Load { done } => {
                let _ = done.send(store.load());
                None
            }
        }
    }

    /// Returns the completion for the core if the store has ended.
    pub(crate) fn fail(self) -> Option<Response> {
        let ended = || "the store has ended".to_owned();
        match self {
            Self::Effect(Effect::Persist { id, .. }) => {
                Some(Response::Persisted { id, result: Err(WriteFailure::Closed(ended())) })
            }
            Self::Effect(Effect::Load { id, .. }) => {
                Some(Response::Loaded { id, result: Err(ended()) })
            }
            // The caller is informed by the end of the channel.
            Self::Effect(_) | Self::Load { .. } => None,
        }
    }
}

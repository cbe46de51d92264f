//! A job for a store, as a value that can be sent to the thread of the store.

use bytes::Bytes;
use pk_host::{Store, StoreError};
use pk_proto::{EffectId, Input, StoreOp, StoreRange, StoreRow, Table, WriteFailure};
use tokio::sync::oneshot;

/// Rows of several tables.
type Rows = Vec<(Table, Bytes, Bytes)>;

/// A job for the store.
#[derive(Debug)]
pub(crate) enum StoreJob {
    Apply {
        id: EffectId,
        ops: Vec<StoreOp>,
        durable: bool,
    },
    Range {
        id: EffectId,
        range: StoreRange,
        max_bytes: u64,
    },
    /// Requested by the driver: the rows that a start would load.
    Load {
        done: oneshot::Sender<Result<Rows, StoreError>>,
    },
}

impl StoreJob {
    /// Returns whether the job writes, and if so whether durably.
    pub(crate) fn durable(&self) -> Option<bool> {
        match self {
            Self::Apply { durable, .. } => Some(*durable),
            Self::Range { .. } | Self::Load { .. } => None,
        }
    }

    /// Executes the job. Returns the completion for the core, if the core requested it.
    pub(crate) fn run(self, store: &mut dyn Store) -> Option<Input> {
        match self {
            Self::Apply { id, ops, durable } => {
                Some(Input::Persisted { id, result: store.apply(&ops, durable) })
            }
            Self::Range { id, range, max_bytes } => {
                Some(loaded(id, store.range(&range, max_bytes)))
            }
            Self::Load { done } => {
                let _ = done.send(store.load());
                None
            }
        }
    }

    /// Returns the completion for the core if the store has ended.
    pub(crate) fn fail(self) -> Option<Input> {
        let ended = || "the store has ended".to_owned();
        match self {
            Self::Apply { id, .. } => {
                Some(Input::Persisted { id, result: Err(WriteFailure::Closed(ended())) })
            }
            Self::Range { id, .. } => Some(loaded(id, Err(StoreError(ended())))),
            // The caller is informed by the end of the channel.
            Self::Load { .. } => None,
        }
    }
}

fn loaded(id: EffectId, result: Result<(Vec<StoreRow>, bool), StoreError>) -> Input {
    Input::Loaded { id, result: result.map_err(|error| error.0) }
}

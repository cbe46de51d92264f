//! State of requests that read from the store.

use crate::claims::gestalt::GestaltWalk;

/// What a request of the embedder reads.
#[derive(Debug)]
pub(in crate::manager) enum Reading {
    Claims { limit: usize },
    Gestalt(GestaltWalk),
}

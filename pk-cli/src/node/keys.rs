//! Keys that a node is started with, on disk and in memory.

use std::path::Path;

use pk_driver::{KeyPair, KeyStore};

use crate::args::KeySeed;
use crate::error::{CliError, FOREIGN_KEYS, Result};

/// Returns the key of the node in a directory. Does not create one, so that a mistyped directory
/// does not become a new node.
///
/// # Errors
///
/// The directory contains no node, or its key cannot be read.
pub(crate) fn expect(dir: &Path) -> Result<KeyPair> {
    KeyStore::new(dir).load_key()?.ok_or_else(|| no_key(dir))
}

/// Returns a key that is not stored: a new one, or that of the given seed.
pub(crate) fn ephemeral(seed: Option<KeySeed>) -> Result<KeyPair> {
    match seed {
        Some(KeySeed(seed)) => Ok(KeyPair::from_seed(&seed)),
        None => generate(),
    }
}

/// Returns a new key.
///
/// # Errors
///
/// Reading system randomness failed.
pub(crate) fn generate() -> Result<KeyPair> {
    KeyPair::generate().map_err(|error| {
        CliError::new("Random", format!("failed to read system randomness: {error}"))
    })
}

/// Returns whether a node has run in a directory.
pub(crate) fn has_store(dir: &Path) -> bool {
    dir.join("store.redb").exists()
}

/// Returns the error for a directory without a node.
pub(crate) fn no_key(dir: &Path) -> CliError {
    let lost = has_store(dir);
    let dir = dir.display();
    if lost {
        let message = format!(
            "the keys of the node in {dir} are missing: its store exists, but {dir}/keys/node.key does not"
        );
        return CliError::new("NoKey", message).tip(FOREIGN_KEYS);
    }
    CliError::new("NoKey", format!("there is no node in {dir}"))
        .tip(format!("`pk keygen --dir {dir}` creates one"))
}

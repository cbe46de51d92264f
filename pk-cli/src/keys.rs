//! Keys on disk and in memory: `pk keygen`, `pk id`, and what a node is started with.

use std::path::Path;

use pk_driver::{KeyPair, KeyStore, KeyStoreError, now};
use serde_json::json;

use crate::args::{KeySeed, KeysArgs};
use crate::error::{CliError, Result};
use crate::output;

/// `pk keygen`.
pub(crate) fn keygen(args: &KeysArgs) -> Result<()> {
    let store = KeyStore::new(&args.dir);
    let key = generate()?;
    store.save_key(&key).map_err(|error| match error {
        KeyStoreError::Exists { .. } => CliError::from(error)
            .tip(format!("`pk id --dir {}` prints its id; choose another --dir", args.dir.display())),
        error => error.into(),
    })?;
    store.load_or_create(now())?;
    print_id(&key, args);
    Ok(())
}

/// `pk id`.
pub(crate) fn id(args: &KeysArgs) -> Result<()> {
    print_id(&expect(&args.dir)?, args);
    Ok(())
}

fn print_id(key: &KeyPair, args: &KeysArgs) {
    let id = key.node_id();
    if args.json { output::json(&json!({ "ok": true, "nodeId": id.to_string() })) } else { output::line(id) }
}

/// That there is a node in a folder: a mistyped one shall not become a new node.
///
/// # Errors
///
/// There is none, or its key cannot be read.
pub(crate) fn expect(dir: &Path) -> Result<KeyPair> {
    KeyStore::new(dir).load_key()?.ok_or_else(|| no_key(dir))
}

/// A key that is kept nowhere, a new one unless its seed is given.
pub(crate) fn ephemeral(seed: Option<KeySeed>) -> Result<KeyPair> {
    match seed {
        Some(KeySeed(seed)) => Ok(KeyPair::from_seed(&seed)),
        None => generate(),
    }
}

fn generate() -> Result<KeyPair> {
    KeyPair::generate().map_err(|error| CliError::new("Random", format!("no randomness: {error}")))
}

fn no_key(dir: &Path) -> CliError {
    let dir = dir.display();
    CliError::new("NoKey", format!("there is no node in {dir}")).tip(format!("`pk keygen --dir {dir}` makes one"))
}

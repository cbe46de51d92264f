//! Keys on disk and in memory: `pk keygen`, `pk id`, and what a node is started with.

use std::path::Path;

use pk_driver::{KeyPair, KeyStore, KeyStoreError, create_identity, now};
use pk_proto::Identity;
use serde_json::json;

use crate::args::{KeySeed, KeysArgs};
use crate::error::{CliError, Result};
use crate::output;

/// What a node proves itself with.
pub(crate) struct NodeKeys {
    pub(crate) key: KeyPair,
    pub(crate) identity: Identity,
}

/// `pk keygen`.
pub(crate) fn keygen(args: &KeysArgs) -> Result<()> {
    let store = KeyStore::new(&args.dir);
    let key = KeyPair::generate().map_err(|error| CliError::new("Random", format!("no randomness: {error}")))?;
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
    let key = KeyStore::new(&args.dir).load_key()?.ok_or_else(|| no_key(&args.dir))?;
    print_id(&key, args);
    Ok(())
}

fn print_id(key: &KeyPair, args: &KeysArgs) {
    let id = key.node_id();
    if args.json { output::json(&json!({ "ok": true, "nodeId": id.to_string() })) } else { output::line(id) }
}

/// The keys of the node in a folder. A certificate that is about to expire is made anew.
pub(crate) fn load(dir: &Path) -> Result<NodeKeys> {
    let store = KeyStore::new(dir);
    // A mistyped folder shall not become a new node.
    store.load_key()?.ok_or_else(|| no_key(dir))?;
    let (key, identity) = store.load_or_create(now())?;
    Ok(NodeKeys { key, identity })
}

/// Keys that are kept nowhere, new ones unless their seed is given.
pub(crate) fn ephemeral(seed: Option<KeySeed>) -> Result<NodeKeys> {
    let key = match seed {
        Some(KeySeed(seed)) => KeyPair::from_seed(&seed),
        None => KeyPair::generate().map_err(|error| CliError::new("Random", format!("no randomness: {error}")))?,
    };
    let identity = create_identity(&key, now()).map_err(|error| CliError::new("Identity", error.to_string()))?;
    Ok(NodeKeys { key, identity })
}

fn no_key(dir: &Path) -> CliError {
    let dir = dir.display();
    CliError::new("NoKey", format!("there is no node in {dir}")).tip(format!("`pk keygen --dir {dir}` makes one"))
}

//! `pk keygen` and `pk id`.

use pk_driver::{DirLock, KeyPair, KeyStore, KeyStoreError, clock_warning, unix_now};
use serde_json::json;

use crate::args::KeysArgs;
use crate::error::{CliError, Result};
use crate::node::keys::{expect, generate, has_store, no_key};
use crate::output;

/// `pk keygen`.
pub(crate) fn keygen(args: &KeysArgs) -> Result<()> {
    let store = KeyStore::new(&args.dir);
    if store.load_key()?.is_none() && has_store(&args.dir) {
        return Err(no_key(&args.dir));
    }
    let _lock = DirLock::take(&args.dir)?;
    let key = generate()?;
    store.save_key(&key).map_err(|error| match error {
        KeyStoreError::Exists { .. } => CliError::from(error).tip(format!(
            "`pk id --dir {}` prints its id; choose another --dir",
            args.dir.display()
        )),
        error => error.into(),
    })?;
    if let Some(warning) = clock_warning(unix_now()) {
        tracing::warn!("{warning}");
    }
    store.load_or_create(unix_now())?;
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
    if args.json {
        output::json(&json!({ "ok": true, "nodeId": id.to_string() }));
    } else {
        output::line(id);
    }
}

//! Keys and what they sign: private keys, certificates, and where both are kept.

pub(crate) mod identity;
pub(crate) mod issue;
pub(crate) mod key_store;
pub(crate) mod pair;
pub(crate) mod root;
pub(crate) mod signer;
pub(crate) mod transport_secret;

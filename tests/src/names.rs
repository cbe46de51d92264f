//! A machine with its own resolver.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use pk_driver::{AddressChanges, BoxFuture, Runtime};

/// A runtime that resolves only these names.
#[derive(Debug, Clone)]
pub struct Named<R> {
    inner: R,
    names: BTreeMap<String, Vec<SocketAddr>>,
}

impl<R> Named<R> {
    /// A runtime that resolves no names.
    pub fn new(inner: R) -> Self {
        Self { inner, names: BTreeMap::new() }
    }

    /// Makes a name resolve to these addresses, for any port.
    #[must_use]
    pub fn with(mut self, name: &str, addrs: &[SocketAddr]) -> Self {
        self.names.insert(name.to_owned(), addrs.to_vec());
        self
    }
}

impl<R: Runtime> Runtime for Named<R> {
    fn quinn(&self) -> Arc<dyn quinn::Runtime> {
        self.inner.quinn()
    }

    fn resolve(&self, host: String, _: u16) -> BoxFuture<io::Result<Vec<SocketAddr>>> {
        let addrs = self.names.get(&host).cloned();
        Box::pin(async move {
            addrs.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "there is no such name"))
        })
    }

    fn address_changes(&self) -> io::Result<AddressChanges> {
        self.inner.address_changes()
    }
}

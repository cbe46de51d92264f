//! Progress of a chain that is received page by page.

use crate::claims::ClaimId;
use crate::wire::message::{ClaimsPage, RpcRequest};
use crate::wire::native::MAX_CLAIMS;

/// Progress of a received chain.
#[derive(Debug)]
pub(super) struct Paging {
    /// Claims up to this id are skipped or were already returned.
    pub(super) after: Option<ClaimId>,
    pub(super) max_bytes: u64,
    pub(super) bytes: u64,
    /// The page is full: nothing is read until the next one is requested.
    pub(super) parked: bool,
}

impl Paging {
    /// Returns the paging of the answer to this request, if it has pages.
    pub(super) fn of(question: &RpcRequest) -> Option<Self> {
        match question {
            RpcRequest::Claims { after, max_bytes } => Some(Self {
                after: *after,
                max_bytes: u64::from(*max_bytes),
                bytes: 0,
                parked: false,
            }),
            _ => None,
        }
    }

    /// Takes the next claims of the peer; returns whether they are new. The reference sends its
    /// whole chain, whatever was requested.
    pub(super) fn take(&mut self, page: &ClaimsPage) -> bool {
        let bytes: usize = page.claims.iter().map(|(_, token)| token.len()).sum();
        self.bytes = self.bytes.saturating_add(bytes as u64);
        page.claims.first().is_some_and(|(id, _)| self.after.is_none_or(|after| *id > after))
    }

    /// Returns whether the page is full. Skipped claims count as well, because they took time.
    pub(super) fn is_full(&self, page: &ClaimsPage) -> bool {
        !page.claims.is_empty() && (self.bytes >= self.max_bytes || page.claims.len() >= MAX_CLAIMS)
    }
}

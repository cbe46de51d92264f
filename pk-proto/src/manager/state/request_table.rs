//! The table of open requests.

use alloc::collections::{BTreeMap, BTreeSet};

use super::bucket_gc::Collect;
use super::chain::Chain;
use super::outgoing::OutgoingExchange;
use super::reading::Reading;
use super::renewal::Renewal;
use super::self_issued::SelfIssuedClaim;
use super::stage::{
    MdnsQuery, OnConnected, OnDialed, OpenRequest, OpeningStream, PendingCall, Recipient,
    RequestStage, RoomWaiter, Search,
};
use super::sync::Sync;
use super::upkeep::Errand;
use crate::types::id::{NodeId, RequestId};
use crate::types::nearest;
use crate::types::time::Instant;

/// State of a request in one of its stages.
pub(in crate::manager) trait Payload: Sized {
    /// Returns the payload of a stage, if the stage is the one of this payload.
    fn of(stage: &RequestStage) -> Option<&Self>;

    fn of_mut(stage: &mut RequestStage) -> Option<&mut Self>;
}

macro_rules! payloads {
    ($($stage:ident($payload:ty))*) => {$(
        impl Payload for $payload {
            fn of(stage: &RequestStage) -> Option<&Self> {
                if let RequestStage::$stage(payload) = stage { Some(payload) } else { None }
            }

            fn of_mut(stage: &mut RequestStage) -> Option<&mut Self> {
                if let RequestStage::$stage(payload) = stage { Some(payload) } else { None }
            }
        }
    )*};
}

payloads! {
    Find(Search) Dial(OnDialed) Call(PendingCall) OpenStream(OpeningStream) Sync(Sync) WaitForRoom(RoomWaiter)
    Collect(Collect) Renew(Renewal) QueryMdns(MdnsQuery) ClaimNode(OutgoingExchange) AddClaim(SelfIssuedClaim) ChainData(Chain)
    Reading(Reading) Upkeep(Errand)
}

/// A request in a known stage.
pub(in crate::manager) struct Entry<'a, T> {
    pub(in crate::manager) recipient: Recipient,
    pub(in crate::manager) deadline: Instant,
    pub(in crate::manager) payload: &'a mut T,
}

/// All open requests.
#[derive(Debug, Default)]
pub(in crate::manager) struct RequestTable {
    requests: BTreeMap<RequestId, OpenRequest>,
    /// Number of requests that the embedder did not make: parts of others, and background work.
    internal_requests: usize,
    /// Number of refreshes in the background.
    refreshes: usize,
    /// Number of searches of a node that is isolated.
    retries: usize,
    /// Searches in progress, by their target.
    searches: BTreeMap<NodeId, BTreeSet<RequestId>>,
    /// Searches that may have a next step.
    runnable_searches: BTreeSet<RequestId>,
    /// Requests for local claims.
    claiming: BTreeSet<RequestId>,
}

/// Returns whether a request in this stage is one for a local claim.
fn is_claiming(stage: &RequestStage) -> bool {
    matches!(
        stage,
        RequestStage::ClaimNode(_)
            | RequestStage::AddClaim(_)
            | RequestStage::Find(Search { on_connected: OnConnected::ClaimNode(_), .. })
    )
}

impl RequestTable {
    pub(in crate::manager) fn insert(&mut self, id: RequestId, open: OpenRequest) {
        self.count(open.recipient, |count| count.saturating_add(1));
        if let RequestStage::Find(search) = &open.stage {
            self.searches.entry(*search.lookup.target()).or_default().insert(id);
        }
        let is_claiming = is_claiming(&open.stage);
        if let Some(before) = self.requests.insert(id, open) {
            self.uncount(id, &before);
        }
        if is_claiming {
            self.claiming.insert(id);
        }
    }

    fn uncount(&mut self, id: RequestId, open: &OpenRequest) {
        self.count(open.recipient, |count| count.saturating_sub(1));
        self.claiming.remove(&id);
        if let RequestStage::Find(search) = &open.stage
            && let Some(searches) = self.searches.get_mut(search.lookup.target())
        {
            searches.remove(&id);
            if searches.is_empty() {
                self.searches.remove(search.lookup.target());
            }
        }
    }

    fn count(&mut self, recipient: Recipient, change: fn(usize) -> usize) {
        match recipient {
            Recipient::Embedder => return,
            Recipient::Refresh => self.refreshes = change(self.refreshes),
            Recipient::Retry => self.retries = change(self.retries),
            Recipient::Parent(_) | Recipient::None | Recipient::Join => {}
        }
        self.internal_requests = change(self.internal_requests);
    }

    /// Returns the number of refreshes in the background.
    pub(in crate::manager) fn refreshes(&self) -> usize {
        self.refreshes
    }

    /// Returns whether an isolated node searches for a connection.
    pub(in crate::manager) fn is_retrying(&self) -> bool {
        self.retries > 0
    }

    /// Returns the searches for a target.
    pub(in crate::manager) fn searches_for(
        &self,
        target: &NodeId,
    ) -> impl Iterator<Item = RequestId> {
        self.searches.get(target).into_iter().flatten().copied()
    }

    pub(in crate::manager) fn remove(&mut self, id: RequestId) -> Option<OpenRequest> {
        let open = self.requests.remove(&id)?;
        self.uncount(id, &open);
        Some(open)
    }

    pub(in crate::manager) fn get(&self, id: RequestId) -> Option<&OpenRequest> {
        self.requests.get(&id)
    }

    pub(in crate::manager) fn deadline(&self, id: RequestId) -> Option<Instant> {
        self.requests.get(&id).map(|open| open.deadline)
    }

    /// Returns the payload of a request, if the request is in the stage of that payload.
    pub(in crate::manager) fn stage<T: Payload>(&self, id: RequestId) -> Option<&T> {
        T::of(&self.requests.get(&id)?.stage)
    }

    pub(in crate::manager) fn stage_mut<T: Payload>(&mut self, id: RequestId) -> Option<&mut T> {
        T::of_mut(&mut self.requests.get_mut(&id)?.stage)
    }

    /// Returns a request with its payload, if it is in the stage of that payload.
    pub(in crate::manager) fn entry<T: Payload>(&mut self, id: RequestId) -> Option<Entry<'_, T>> {
        let OpenRequest { recipient, deadline, stage } = self.requests.get_mut(&id)?;
        Some(Entry { recipient: *recipient, deadline: *deadline, payload: T::of_mut(stage)? })
    }

    /// Returns the requests for local claims: those that search for the node included.
    pub(in crate::manager) fn claiming(&self) -> impl Iterator<Item = (RequestId, &OpenRequest)> {
        self.claiming.iter().filter_map(|id| Some((*id, self.requests.get(id)?)))
    }

    /// Returns the oldest request for which `is` returns true.
    pub(in crate::manager) fn find(&self, is: impl Fn(&OpenRequest) -> bool) -> Option<RequestId> {
        self.requests.iter().find(|(_, open)| is(open)).map(|(id, _)| *id)
    }

    /// Returns the requests for local claims that are in the stage of a payload.
    pub(in crate::manager) fn claiming_in<T: Payload + 'static>(
        &self,
    ) -> impl Iterator<Item = (RequestId, &T)> {
        self.claiming().filter_map(|(id, open)| Some((id, T::of(&open.stage)?)))
    }

    /// Returns the requests in the stage of a payload. Looks through all requests.
    pub(in crate::manager) fn in_stage<T: Payload + 'static>(
        &self,
    ) -> impl Iterator<Item = (RequestId, &T)> {
        self.requests.iter().filter_map(|(id, open)| Some((*id, T::of(&open.stage)?)))
    }

    /// Calls a function for the searches whose targets are closest to a node, and wakes them. The
    /// searches for the node itself are among them.
    pub(in crate::manager) fn wake_searches_near(
        &mut self,
        node: &NodeId,
        limit: usize,
        mut with: impl FnMut(&mut Search),
    ) {
        let targets = nearest::closest(&self.searches, node, limit);
        let ids = targets.iter().filter_map(|target| self.searches.get(target)).flatten();
        for id in ids {
            if let Some(OpenRequest { stage: RequestStage::Find(search), .. }) =
                self.requests.get_mut(id)
            {
                with(search);
                self.runnable_searches.insert(*id);
            }
        }
    }

    /// Marks a search for its next step.
    pub(in crate::manager) fn wake(&mut self, id: RequestId) {
        self.runnable_searches.insert(id);
    }

    /// Returns the next search to advance, and removes its mark.
    pub(in crate::manager) fn next_runnable(&mut self) -> Option<RequestId> {
        self.runnable_searches.pop_first()
    }

    /// Continues a request of the embedder in the background. Returns whether it was one of the
    /// embedder.
    pub(in crate::manager) fn move_to_background(&mut self, id: RequestId) -> bool {
        match self.requests.get_mut(&id) {
            Some(open) if open.recipient == Recipient::Embedder => {
                open.recipient = Recipient::None;
                self.internal_requests += 1;
                true
            }
            _ => false,
        }
    }

    pub(in crate::manager) fn len(&self) -> usize {
        self.requests.len()
    }

    /// Returns how many requests of the embedder are open.
    pub(in crate::manager) fn by_embedder(&self) -> usize {
        self.requests.len() - self.internal_requests
    }

    pub(in crate::manager) fn runnable_searches(&self) -> usize {
        self.runnable_searches.len()
    }
}

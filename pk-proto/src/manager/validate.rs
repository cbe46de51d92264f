//! Validation of requests. An invalid request is not started.

use core::time::Duration;

use super::node::NodeManager;
use crate::api::error::RequestError;
use crate::api::request::{FindNodeOptions, Request, RequestOptions};
use crate::wire::message::is_protocol_name;

impl NodeManager {
    /// Returns an error if a request must not start. Nothing is changed.
    pub(super) fn check(&self, request: &Request) -> Result<(), RequestError> {
        if self.requests.by_embedder() >= self.cx.config.request_limit {
            return Err(RequestError::TooMany(self.cx.config.request_limit));
        }
        check_options(request.options())?;
        match request {
            Request::FindNode { find, .. } => check_find(find),
            Request::FindClosest { count, find, .. } => {
                check_find(find)?;
                check_range("count", Some(*count), 1..=20, "1 to 20")
            }
            Request::PingNode { target, .. }
            | Request::PingNodeAddress { target, .. }
            | Request::Connect { target, .. }
            | Request::AcquireConnection { target, .. }
            | Request::QueryClosestNodes { via: target, .. }
                if self.cx.is_own(target) =>
            {
                Err(RequestError::OwnNode)
            }
            Request::ConnectThrough { target, relay, .. }
                if self.cx.is_own(target) || self.cx.is_own(relay) =>
            {
                Err(RequestError::OwnNode)
            }
            Request::OpenStream { target, protocol, .. } => match self.cx.is_own(target) {
                true => Err(RequestError::OwnNode),
                false => check_protocol(protocol),
            },
            Request::ClaimNode { target, .. } => match self.cx.is_own(target) {
                true => Err(RequestError::OwnNode),
                false => self.check_claims(),
            },
            Request::AddClaim { content, .. } => self.check_claim(content),
            Request::ClaimNetwork { target, content, .. } => match self.cx.is_own(target) {
                true => Err(RequestError::OwnNode),
                false => self.check_claim(content),
            },
            Request::AllowClaim { node, allowed: true, .. } => match self.cx.is_own(node) {
                true => Err(RequestError::OwnNode),
                false => self.check_allow(node),
            },
            Request::RequestChainData { target, .. } if self.cx.is_own(target) => {
                Err(RequestError::OwnNode)
            }
            Request::RequestChainData { limit, .. } => {
                check_range("limit", *limit, 1..=u64::MAX, "at least 1")
            }
            Request::Claims { query, .. } => {
                check_range("limit", Some(query.limit), 1..=1000, "1 to 1000")
            }
            Request::Gestalt { query, .. } => {
                check_range("limit", Some(query.limit), 1..=4096, "1 to 4096")
            }
            Request::Renew { identity } => self.check_renewal(identity).map(drop),
            Request::QueryMdns { timeout, .. } => check_mdns_timeout(*timeout),
            Request::SyncNodeGraph { seeds, .. }
                if seeds.is_empty()
                    && self.nodes.graph.is_empty()
                    && self.connections.is_empty() =>
            {
                Err(RequestError::NoSeeds)
            }
            _ => Ok(()),
        }
    }
}

pub(super) fn check_protocol(protocol: &str) -> Result<(), RequestError> {
    if is_protocol_name(protocol) { Ok(()) } else { Err(RequestError::Protocol) }
}

fn check_options(options: RequestOptions) -> Result<(), RequestError> {
    const MS: Duration = Duration::from_millis(1);
    const HOUR: Duration = Duration::from_secs(3600);
    check_range("deadline", options.deadline, MS..=24 * HOUR, "1 ms to 24 h")?;
    check_range("connect_timeout", options.connect_timeout, MS..=HOUR, "1 ms to 1 h")
}

fn check_find(find: &FindNodeOptions) -> Result<(), RequestError> {
    check_mdns_timeout(find.mdns_timeout)?;
    check_range("concurrency", find.concurrency, 1..=256, "1 to 256")?;
    check_range("limit", find.limit, 0..=1024, "0 to 1024")
}

fn check_mdns_timeout(timeout: Option<Duration>) -> Result<(), RequestError> {
    let range = Duration::from_millis(1)..=Duration::from_secs(3600);
    check_range("mdns_timeout", timeout, range, "1 ms to 1 h")
}

fn check_range<T: PartialOrd>(
    name: &'static str,
    value: Option<T>,
    allowed: core::ops::RangeInclusive<T>,
    range: &'static str,
) -> Result<(), RequestError> {
    match value {
        Some(value) if !allowed.contains(&value) => Err(RequestError::Option { name, range }),
        _ => Ok(()),
    }
}

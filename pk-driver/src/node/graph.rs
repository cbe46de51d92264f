//! Calls about the node graph: refreshing, flushing, mDNS. Part of [`Node`].

use std::time::Duration;

use pk_proto::{
    BucketIndex, FindOutcome, NodeAddress, NodeId, NodeManager, Reply, Request, RequestOptions,
};

use crate::error::{NodeError, unexpected};
use crate::node::Node;

impl<R> Node<R> {
    /// Refreshes a bucket: searches for a random id in its range.
    ///
    /// # Errors
    ///
    /// [`NodeError::Request`], [`NodeError::Failure`], [`NodeError::Closed`]. The same applies to
    /// every request.
    pub async fn refresh_bucket(
        &self,
        bucket: BucketIndex,
        options: RequestOptions,
    ) -> Result<FindOutcome, NodeError> {
        match self.request(Request::RefreshBucket { bucket, options }).await?.reply {
            Reply::RefreshBucket(outcome) => Ok(outcome),
            other => unexpected(&other),
        }
    }

    /// Refreshes a bucket after `delay`, and periodically after that. With `lazy` only if it is not
    /// due earlier.
    ///
    /// # Errors
    ///
    /// [`NodeError::Request`] for more than 30 days or before the node is ready,
    /// [`NodeError::Closed`].
    pub async fn set_refresh_delay(
        &self,
        bucket: BucketIndex,
        delay: Duration,
        lazy: bool,
    ) -> Result<(), NodeError> {
        let set = self
            .handle
            .call(move |_, cx| {
                cx.core(|core, now| core.set_refresh_delay(bucket, delay, lazy, now))
            })
            .await?;
        Ok(set?)
    }

    /// Moves every contact into its bucket relative to the local id. A renewal does this itself.
    ///
    /// # Errors
    ///
    /// [`NodeError::Request`] while the node stops, [`NodeError::Closed`]. Nothing was changed.
    pub async fn reset_buckets(&self) -> Result<(), NodeError> {
        let reset = self.handle.call(|_, cx| cx.core(NodeManager::reset_buckets)).await?;
        Ok(reset?)
    }

    /// Queries the local network for the addresses of a node; `None` waits for
    /// `Config::mdns_timeout`. Uses and makes no connection.
    pub async fn query_mdns(
        &self,
        target: NodeId,
        timeout: Option<Duration>,
    ) -> Result<Vec<NodeAddress>, NodeError> {
        match self.request(Request::QueryMdns { target, timeout }).await?.reply {
            Reply::QueryMdns(addresses) => Ok(addresses),
            other => unexpected(&other),
        }
    }

    /// Writes the present graph durably: it survives a crash and a power failure once this returns.
    pub async fn flush(&self) -> Result<(), NodeError> {
        match self.request(Request::Flush { options: RequestOptions::default() }).await?.reply {
            Reply::Flush => Ok(()),
            other => unexpected(&other),
        }
    }
}

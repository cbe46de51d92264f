//! Calls about the life of the graph: refreshing, flushing, the local network. Part of [`Node`].

use std::time::Duration;

use pk_proto::{BucketIndex, FindOutcome, NodeAddress, NodeId, Options, Reply, Request};

use crate::error::NodeError;
use crate::node::{Node, unexpected};

impl<R> Node<R> {
    /// Looks up a random id of a bucket, so that its nodes are found.
    ///
    /// # Errors
    ///
    /// [`NodeError::Request`], [`NodeError::Failure`], [`NodeError::Closed`]. The same for every request.
    pub async fn refresh_bucket(&self, bucket: BucketIndex, options: Options) -> Result<FindOutcome, NodeError> {
        match self.request(Request::RefreshBucket { bucket, options }).await?.reply {
            Reply::RefreshBucket(outcome) => Ok(outcome),
            other => unexpected(&other),
        }
    }

    /// Refreshes a bucket this long from now, and in its usual rhythm after that. `lazy`: only if it is not due earlier.
    ///
    /// # Errors
    ///
    /// [`NodeError::Request`] for more than 30 days and before the node is ready, [`NodeError::Closed`].
    pub async fn set_refresh_delay(&self, bucket: BucketIndex, delay: Duration, lazy: bool) -> Result<(), NodeError> {
        let set = self.handle.call(move |_, cx, core| core.set_refresh_delay(bucket, delay, lazy, cx.now)).await?;
        Ok(set?)
    }

    /// Puts every node into the bucket where the own id has it. A renewal does this itself.
    ///
    /// # Errors
    ///
    /// [`NodeError::Closed`].
    pub async fn reset_buckets(&self) -> Result<(), NodeError> {
        self.handle.call(|_, cx, core| core.reset_buckets(cx.now)).await
    }

    /// Asks the local network where a node is; `None` waits for `Config::mdns_timeout`. Nobody needs to be connected, and
    /// nobody is connected to.
    pub async fn query_mdns(&self, target: NodeId, timeout: Option<Duration>) -> Result<Vec<NodeAddress>, NodeError> {
        match self.request(Request::QueryMdns { target, timeout }).await?.reply {
            Reply::QueryMdns(addresses) => Ok(addresses),
            other => unexpected(&other),
        }
    }

    /// Writes the graph as it is now, durably: when this returns, it survives a crash and a power failure.
    pub async fn flush(&self) -> Result<(), NodeError> {
        match self.request(Request::Flush { options: Options::default() }).await?.reply {
            Reply::Flush => Ok(()),
            other => unexpected(&other),
        }
    }
}

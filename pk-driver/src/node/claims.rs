//! Calls about claims: the local chain, chains of other nodes, and gestalts. Part of [`Node`].

use pk_proto::claims::{ChainHead, Claim, ClaimContent, ClaimId, Gestalt};
use pk_proto::{
    ApprovalId, ChainData, ClaimsFound, ClaimsQuery, GestaltQuery, NodeId, Reply, Request,
    RequestOptions,
};

use crate::error::{NodeError, unexpected};
use crate::node::Node;

impl<R> Node<R> {
    // -- the local chain

    /// Cross-signs a claim with a node: the chains of both then contain a claim that links them.
    /// Returns the id of the claim in the local chain.
    ///
    /// Dropping the future cancels the request until the claim is being written; after that the
    /// request is completed in any case.
    ///
    /// # Errors
    ///
    /// [`NodeError::Request`], [`NodeError::Failure`], [`NodeError::Closed`]. The same applies to
    /// every request. [`Failure::ClaimUnconfirmed`](pk_proto::Failure::ClaimUnconfirmed) if the
    /// claim is committed locally and the peer was lost before it confirmed.
    pub async fn claim_node(
        &self,
        target: NodeId,
        options: RequestOptions,
    ) -> Result<ClaimId, NodeError> {
        match self.request(Request::ClaimNode { target, options }).await?.reply {
            Reply::ClaimNode(claim) => Ok(claim),
            other => unexpected(&other),
        }
    }

    /// Appends a claim of a custom type to the local chain, signed by the local node.
    pub async fn add_claim(
        &self,
        content: ClaimContent,
        options: RequestOptions,
    ) -> Result<ClaimId, NodeError> {
        match self.request(Request::AddClaim { content, options }).await?.reply {
            Reply::AddClaim(claim) => Ok(claim),
            other => unexpected(&other),
        }
    }

    /// Appends a claim about a network to the local chain, signed by the local node and by the node
    /// that the network belongs to.
    pub async fn claim_network(
        &self,
        target: NodeId,
        content: ClaimContent,
        options: RequestOptions,
    ) -> Result<Claim, NodeError> {
        match self.request(Request::ClaimNetwork { target, content, options }).await?.reply {
            Reply::ClaimNetwork(claim) => Ok(claim),
            other => unexpected(&other),
        }
    }

    /// Reads claims of the local chain, by id, range, order and limit.
    pub async fn claims(
        &self,
        query: ClaimsQuery,
        options: RequestOptions,
    ) -> Result<ClaimsFound, NodeError> {
        match self.request(Request::Claims { query, options }).await?.reply {
            Reply::Claims(found) => Ok(found),
            other => unexpected(&other),
        }
    }

    /// Returns the head of the local chain; `None` if the chain is empty.
    ///
    /// # Errors
    ///
    /// [`NodeError::Closed`].
    pub async fn chain_head(&self) -> Result<Option<ChainHead>, NodeError> {
        self.handle.ask(|core| core.chain_head().copied()).await
    }

    /// Returns the committed claims that their peers have not confirmed, with the peer, oldest
    /// first. Each is resumed when its peer is next connected.
    ///
    /// # Errors
    ///
    /// [`NodeError::Closed`].
    pub async fn unconfirmed_claims(&self) -> Result<Vec<(ClaimId, NodeId)>, NodeError> {
        self.handle.ask(|core| core.unconfirmed_claims().collect()).await
    }

    // -- claim policy

    /// Adds a node to the allow-list of the claim policy, durably.
    pub async fn allow_claim(
        &self,
        node: NodeId,
        options: RequestOptions,
    ) -> Result<(), NodeError> {
        self.set_allowed(node, true, options).await
    }

    /// Removes a node from the allow-list of the claim policy, durably.
    pub async fn disallow_claim(
        &self,
        node: NodeId,
        options: RequestOptions,
    ) -> Result<(), NodeError> {
        self.set_allowed(node, false, options).await
    }

    async fn set_allowed(
        &self,
        node: NodeId,
        allowed: bool,
        options: RequestOptions,
    ) -> Result<(), NodeError> {
        match self.request(Request::AllowClaim { node, allowed, options }).await?.reply {
            Reply::AllowClaim => Ok(()),
            other => unexpected(&other),
        }
    }

    /// Returns the nodes on the allow-list, in the order of their ids.
    ///
    /// # Errors
    ///
    /// [`NodeError::Closed`].
    pub async fn allowed_claims(&self) -> Result<Vec<NodeId>, NodeError> {
        self.handle.ask(|core| core.allowed_claims().collect()).await
    }

    /// Answers [`Event::ClaimApprovalRequested`](pk_proto::Event::ClaimApprovalRequested): signs
    /// the claim, or refuses it. Has no effect if that is already decided, or the peer is gone.
    ///
    /// # Errors
    ///
    /// [`NodeError::Closed`].
    pub async fn resolve_claim_approval(
        &self,
        approval: ApprovalId,
        sign: bool,
    ) -> Result<(), NodeError> {
        self.handle
            .call(move |_, cx| {
                cx.core(|core, now| core.resolve_claim_approval(approval, sign, now));
            })
            .await
    }

    // -- other nodes

    /// Searches for a node, reads its chain and verifies it. Returns the claims after `since`, at
    /// most `limit`, and how reading ended.
    ///
    /// All claims are held in memory until the end, with at most `Config::chain_byte_limit` of
    /// tokens. To use less memory, and to keep what was verified before a failure, read the chain
    /// in parts:
    ///
    /// ```no_run
    /// # use pk_driver::{Node, NodeError, Runtime};
    /// # use pk_proto::{NodeId, RequestOptions};
    /// # async fn example<R: Runtime>(node: Node<R>, peer: NodeId) -> Result<(), NodeError> {
    /// let mut known = None;
    /// loop {
    ///     let (claims, end) = node.request_chain_data(peer, known, Some(100), RequestOptions::default()).await?;
    ///     println!("{} more claims are verified", claims.len());
    ///     if let Some(fault) = end.fault {
    ///         println!("and then {fault}");
    ///     }
    ///     if !end.more {
    ///         break;
    ///     }
    ///     known = end.head;
    /// }
    /// # Ok(()) }
    /// ```
    pub async fn request_chain_data(
        &self,
        target: NodeId,
        since: Option<Claim>,
        limit: Option<u64>,
        options: RequestOptions,
    ) -> Result<(Vec<Claim>, ChainData), NodeError> {
        let answer =
            self.request(Request::RequestChainData { target, since, limit, options }).await?;
        match answer.reply {
            Reply::RequestChainData(end) => Ok((answer.claims, end)),
            other => unexpected(&other),
        }
    }

    /// Returns the nodes that are linked with a node, over any number of links or directly.
    pub async fn gestalt(
        &self,
        node: NodeId,
        query: GestaltQuery,
        options: RequestOptions,
    ) -> Result<Gestalt, NodeError> {
        match self.request(Request::Gestalt { node, query, options }).await?.reply {
            Reply::Gestalt(gestalt) => Ok(gestalt),
            other => unexpected(&other),
        }
    }
}

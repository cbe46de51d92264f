//! Calls about claims: the own chain, those of others, and who is linked with whom. Part of [`Node`].

use pk_proto::claims::{ChainHead, Claim, ClaimContent, ClaimId, Gestalt};
use pk_proto::{
    AskId, ChainData, ClaimsFound, ClaimsQuery, GestaltQuery, NodeId, NodeManager, Options, Reply, Request,
};

use crate::error::NodeError;
use crate::node::{Node, unexpected};

impl<R> Node<R> {
    // -- our chain

    /// Cross-signs a claim with a node: both get one into their own chain that says they belong together. The id of ours.
    ///
    /// Dropping the future cancels the request until our claim is being written; from then on it is finished, whoever waits.
    ///
    /// # Errors
    ///
    /// [`NodeError::Request`], [`NodeError::Failure`], [`NodeError::Closed`]. The same for every request.
    /// [`Failure::ClaimInDoubt`](pk_proto::Failure::ClaimInDoubt) if ours stands and the peer was lost before it said so.
    pub async fn claim_node(&self, target: NodeId, options: Options) -> Result<ClaimId, NodeError> {
        match self.request(Request::ClaimNode { target, options }).await?.reply {
            Reply::ClaimNode(claim) => Ok(claim),
            other => unexpected(&other),
        }
    }

    /// Appends a claim of a type of your own to our chain, signed by us.
    pub async fn add_claim(&self, content: ClaimContent, options: Options) -> Result<ClaimId, NodeError> {
        match self.request(Request::AddClaim { content, options }).await?.reply {
            Reply::AddClaim(claim) => Ok(claim),
            other => unexpected(&other),
        }
    }

    /// Appends a claim about a network to our chain, signed by us and by the node that it belongs to.
    pub async fn claim_network(
        &self,
        target: NodeId,
        content: ClaimContent,
        options: Options,
    ) -> Result<Claim, NodeError> {
        match self.request(Request::ClaimNetwork { target, content, options }).await?.reply {
            Reply::ClaimNetwork(claim) => Ok(claim),
            other => unexpected(&other),
        }
    }

    /// Reads claims of our chain, by id, range, order and limit.
    pub async fn claims(&self, query: ClaimsQuery, options: Options) -> Result<ClaimsFound, NodeError> {
        match self.request(Request::Claims { query, options }).await?.reply {
            Reply::Claims(found) => Ok(found),
            other => unexpected(&other),
        }
    }

    /// Where our chain ends; `None` if there is none.
    ///
    /// # Errors
    ///
    /// [`NodeError::Closed`].
    pub async fn chain_head(&self) -> Result<Option<ChainHead>, NodeError> {
        self.handle.ask(|core| core.chain_head().copied()).await
    }

    /// Claims of ours that stand and whose peer may not have its own, with the peer, oldest first. Each is settled when the
    /// peer is next connected.
    ///
    /// # Errors
    ///
    /// [`NodeError::Closed`].
    pub async fn claims_in_doubt(&self) -> Result<Vec<(ClaimId, NodeId)>, NodeError> {
        self.handle.ask(|core: &NodeManager| core.claims_in_doubt().collect()).await
    }

    // -- who may claim us

    /// Puts a node on the allow-list of the claim policy, durably.
    pub async fn allow_claim(&self, node: NodeId, options: Options) -> Result<(), NodeError> {
        self.set_allowed(node, true, options).await
    }

    /// Takes a node off the allow-list of the claim policy, durably.
    pub async fn disallow_claim(&self, node: NodeId, options: Options) -> Result<(), NodeError> {
        self.set_allowed(node, false, options).await
    }

    async fn set_allowed(&self, node: NodeId, allowed: bool, options: Options) -> Result<(), NodeError> {
        match self.request(Request::AllowClaim { node, allowed, options }).await?.reply {
            Reply::AllowClaim => Ok(()),
            other => unexpected(&other),
        }
    }

    /// The nodes on the allow-list, in the order of their ids.
    ///
    /// # Errors
    ///
    /// [`NodeError::Closed`].
    pub async fn allowed_claims(&self) -> Result<Vec<NodeId>, NodeError> {
        self.handle.ask(|core: &NodeManager| core.allowed_claims().collect()).await
    }

    /// Answers [`Event::ClaimAsked`](pk_proto::Event::ClaimAsked): signs the claim, or refuses to. Nothing happens if that is
    /// decided already, or the peer has gone.
    ///
    /// # Errors
    ///
    /// [`NodeError::Closed`].
    pub async fn answer_claim(&self, ask: AskId, sign: bool) -> Result<(), NodeError> {
        self.handle.call(move |_, cx, core| core.answer_claim(ask, sign, cx.now)).await
    }

    // -- others

    /// Finds a node, reads its chain and verifies it: the claims behind `since`, up to `limit`, and how it ended.
    ///
    /// All of them are held until the end, at most `Config::chain_byte_limit` of tokens; for less, and to keep what was
    /// verified before a failure, read in pieces:
    ///
    /// ```no_run
    /// # use pk_driver::{Node, NodeError, Runtime};
    /// # use pk_proto::{NodeId, Options};
    /// # async fn example<R: Runtime>(node: Node<R>, peer: NodeId) -> Result<(), NodeError> {
    /// let mut known = None;
    /// loop {
    ///     let (claims, end) = node.request_chain_data(peer, known, Some(100), Options::default()).await?;
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
        options: Options,
    ) -> Result<(Vec<Claim>, ChainData), NodeError> {
        let answer = self.request(Request::RequestChainData { target, since, limit, options }).await?;
        match answer.reply {
            Reply::ChainData(end) => Ok((answer.claims, end)),
            other => unexpected(&other),
        }
    }

    /// Reads which nodes are linked with one, over any number of links or only by its own.
    pub async fn gestalt(&self, node: NodeId, query: GestaltQuery, options: Options) -> Result<Gestalt, NodeError> {
        match self.request(Request::Gestalt { node, query, options }).await?.reply {
            Reply::Gestalt(gestalt) => Ok(gestalt),
            other => unexpected(&other),
        }
    }
}

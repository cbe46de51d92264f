//! Messages and their encodings, for each dialect. Nothing here has state beyond one stream.

pub(crate) mod closest;
pub(crate) mod codec;
pub(crate) mod dialect;
pub(crate) mod fault;
pub(crate) mod frame;
pub(crate) mod message;
pub mod native;
pub(crate) mod parsed_message;
pub mod polykey;
pub mod signal;

pub use self::closest::{ActiveConnection, ActiveNode, ClosestNodes, ClosestNodesQuery};
pub use self::dialect::Dialect;
pub use self::frame::{FrameDecoder, FrameFault, MAX_FRAME, encode_frame};
pub use self::message::{
    ClaimsPage, PunchRequest, RpcRequest, RpcResponse, SignalRequest, SignalTerms, is_protocol_name,
};

//! Streams and the calls on them.

mod call;
mod dialect;
mod frame;

pub use call::{Answer, Question, is_protocol_name};
pub use dialect::native;
pub use frame::{FrameDecoder, FrameFault, MAX_FRAME, encode_frame};

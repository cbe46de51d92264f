//! Transports without a core, over virtual datagrams in virtual time: which inputs they produce.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot continue has failed")]
#![allow(clippy::expect_used, clippy::indexing_slicing, reason = "a test")]
#![allow(missing_docs, unreachable_pub, reason = "a test")]

mod applications;
mod dialects;
mod handshakes;
mod rig;
mod streams;
mod tls;

//! Real nodes of Polykey 1.15.1, to speak with: the published npm package, pinned, and one small program around it.
//!
//! [`Polykey::install`] has npm fetch the package once into a folder; [`Polykey::start`] starts a node in a process of its
//! own, on loopback; [`Peer::ask`] tells it what to do. A node ends with its [`Peer`], also in a panic, and if the process
//! that started it is killed.
//!
//! Polykey is licensed under the GPL: it is a peer that is talked to, and no part of this project.

mod for_tests;
mod install;
mod peer;

pub use for_tests::for_tests;
pub use install::{InstallError, Polykey, cache_dir};
pub use peer::{Peer, PeerError, RemoteError, Settings};

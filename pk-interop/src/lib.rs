//! Starts nodes of Polykey 1.15.1: the published npm package, pinned, and a small program around
//! it.
//!
//! [`Polykey::install`] installs the package in a directory; [`Polykey::start`] starts a node in a
//! separate process, on loopback; [`Peer::ask`] sends a command to it. A node ends when its
//! [`Peer`] is dropped, also during a panic, and when the process that started it is killed.
//!
//! Polykey is licensed under the GPL. It runs as a separate process and is no part of this project.

mod for_tests;
mod install;
mod peer;
mod processes;

pub use for_tests::for_tests;
pub use install::{InstallError, Polykey, cache_dir};
pub use peer::{Peer, PeerError, RemoteError, Settings};
pub use processes::end_all;

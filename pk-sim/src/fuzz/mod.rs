//! Fuzzing of whole machines: the bodies of the targets `machine` and `pair` of `fuzz/`.
//!
//! - [`machine`] drives one [`NodeManager`](pk_proto::NodeManager) through a script that the fuzzer
//!   writes: requests, peers of both dialects, effects that succeed, fail, are late or never
//!   answered, time, restarts. The driver keeps the contract of [`pk_proto::api`] or, if the script
//!   says so, breaks it.
//! - [`pair`] runs two or three machines in a simulated network that loses, delays, kills and
//!   forges time.
//!
//! Both take any bytes and panic if an invariant is broken. What they check:
//!
//! | invariant | check |
//! |---|---|
//! | no panic, no endless call | the target itself |
//! | each request ends once | checker `requests` |
//! | each dial ends | checker `discipline`, and `quiet` for what the machine remembers of it |
//! | timers make progress | checker `timers` |
//! | caps, windows, buckets | checkers `caps`, `windows`, `graph` |
//! | nothing after Stopped | checker `discipline`, `silence` |
//! | the store equals the graph | checker `stored`, `restart` |
//! | no table keeps finished work | `quiet`: [`NodeManager::census`](pk_proto::NodeManager::census) |
//! | a replay of the recording is equal | `replay` |
//! | two nodes agree after calm | `pair`: answers, primary connection, ends of exchanges, chains, links |
//!
//! The tests of this module plant a bug for each of them. The corpus in `fuzz/corpus` is replayed
//! by `tests/simulator/fuzz.rs`, which also requires that it reaches every input, request and kind
//! of timer.

mod cast;
mod driver;
mod machine;
mod pair;
mod peers;
mod run;
mod script;
#[cfg(test)]
mod tests;

pub use self::machine::machine;
pub use self::pair::pair;
pub use self::run::Run;

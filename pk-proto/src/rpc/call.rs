//! What nodes ask each other, in whatever dialect.

use crate::id::NodeId;
use crate::request::{Closest, ClosestLists};

/// What one node asks of another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Question {
    /// Whether it answers.
    Ping {
        /// Comes back in the answer.
        nonce: u64,
    },
    /// Which nodes it knows that are closest to `target`.
    Closest {
        /// Closest to whom.
        target: NodeId,
        /// Which of its nodes.
        lists: ClosestLists,
    },
}

/// What the other answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// To `Ping`.
    Pong {
        /// That of the question.
        nonce: u64,
    },
    /// To `Closest`; a list that was not asked for is empty.
    Closest(Closest),
}

/// Whether this can name an application protocol: 1 to 64 printable ASCII characters.
pub fn is_protocol_name(name: &str) -> bool {
    (1..=64).contains(&name.len()) && name.bytes().all(|b| matches!(b, b' '..=b'~'))
}

//! Queues that are usually short.

use std::collections::VecDeque;

/// Capacity of a queue that is kept while it is empty.
const KEPT: usize = 64;

/// Takes the first element. An empty queue gives back the memory of a burst.
pub(crate) fn take<T>(queue: &mut VecDeque<T>) -> Option<T> {
    let first = queue.pop_front();
    if queue.is_empty() && queue.capacity() > KEPT {
        queue.shrink_to(KEPT);
    }
    first
}

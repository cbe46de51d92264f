//! Queues that are usually short.

use alloc::collections::VecDeque;

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_queue_keeps_no_memory_of_a_burst() {
        let mut queue: VecDeque<usize> = (0..10 * KEPT).collect();
        for number in 0..10 * KEPT {
            assert_eq!(take(&mut queue), Some(number));
        }
        assert!(queue.capacity() <= 2 * KEPT, "{}", queue.capacity());
        assert_eq!(take(&mut queue), None);
    }
}

//! Timers make progress (docs/DESIGN.md, Timers).

use pk_proto::Instant;

use super::violation::Violation;

/// Checks, after a due timer has fired, that it caused an output or that the next one is due later.
pub(super) fn fired(
    before: Instant,
    after: Option<Instant>,
    outputs: u64,
) -> Result<(), Violation> {
    if outputs > 0 || after.is_none_or(|after| after > before) {
        return Ok(());
    }
    Err(violation(format!(
        "a timer due at {before:?} fired without an output, and the next is due at {after:?}"
    )))
}

/// Checks, after a drain, that a stopped machine has no timer.
pub(super) fn drained(stopped: bool, timeout: Option<Instant>) -> Result<(), Violation> {
    match timeout.filter(|_| stopped) {
        Some(due) => Err(violation(format!("stopped, but a timer is due at {due:?}"))),
        None => Ok(()),
    }
}

fn violation(what: String) -> Violation {
    Violation::new("timers", what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn planted_bugs_are_caught() {
        let [early, late] = [5, 6].map(Instant::from_micros);
        assert_eq!(fired(early, Some(late), 0), Ok(()));
        assert_eq!(fired(early, Some(early), 1), Ok(()));
        assert_eq!(fired(early, None, 0), Ok(()));
        assert!(fired(early, Some(early), 0).is_err());
        assert!(fired(late, Some(early), 0).is_err());

        assert_eq!(drained(true, None), Ok(()));
        assert_eq!(drained(false, Some(late)), Ok(()));
        assert!(drained(true, Some(late)).is_err());
    }
}

//! Every accepted request ends with exactly one event, before the machine has stopped.

use std::collections::BTreeSet;

use pk_proto::{Event, RequestId};

use super::violation::Violation;

#[derive(Debug, Default)]
pub(super) struct Requests {
    open: BTreeSet<RequestId>,
    /// Ids are given in ascending order, which distinguishes ended requests from those that never
    /// existed.
    last: Option<RequestId>,
}

impl Requests {
    /// A request was accepted.
    pub(super) fn begun(&mut self, id: RequestId) -> Result<(), Violation> {
        if self.last.is_some_and(|last| id <= last) {
            return Err(violation(format!("request id {id} was given again")));
        }
        self.last = Some(id);
        self.open.insert(id);
        Ok(())
    }

    /// The machine emitted an event.
    pub(super) fn event(&mut self, event: &Event) -> Result<(), Violation> {
        match event {
            Event::Done { id, .. } if self.open.remove(id) => Ok(()),
            Event::Done { id, .. } if self.last.is_some_and(|last| *id <= last) => {
                Err(violation(format!("request {id} ended twice")))
            }
            Event::Done { id, .. } => {
                Err(violation(format!("request {id} ended, but was never started")))
            }
            Event::Stopped => self.stopped(),
            _ => Ok(()),
        }
    }

    /// The machine has stopped.
    pub(super) fn stopped(&self) -> Result<(), Violation> {
        match self.open.first() {
            Some(id) => Err(violation(format!("stopped, but request {id} has not ended"))),
            None => Ok(()),
        }
    }
}

fn violation(what: String) -> Violation {
    Violation::new("requests", what)
}

#[cfg(test)]
mod tests {
    use super::*;
    use pk_proto::Failure;

    fn done(id: u64) -> Event {
        Event::Done { id: RequestId(id), result: Err(Failure::Cancelled) }
    }

    fn two() -> Requests {
        let mut requests = Requests::default();
        requests.begun(RequestId(0)).unwrap();
        requests.begun(RequestId(1)).unwrap();
        requests
    }

    #[test]
    fn one_end_of_each_request_passes() {
        let mut requests = two();
        for event in [done(1), done(0), Event::Stopped] {
            assert_eq!(requests.event(&event), Ok(()));
        }
    }

    #[test]
    fn planted_bugs_are_caught() {
        let mut requests = two();
        requests.event(&done(0)).unwrap();
        assert!(requests.event(&done(0)).unwrap_err().what.contains("twice"));
        assert!(requests.event(&done(7)).unwrap_err().what.contains("never started"));
        assert!(
            requests.event(&Event::Stopped).unwrap_err().what.contains("request 1 has not ended")
        );
        assert!(requests.begun(RequestId(1)).unwrap_err().what.contains("given again"));
    }
}

//! One request and its answer: when the request is repeated, and when the gateway counts as silent.

use std::time::Duration;

use super::fault::Fault;
use super::messages::{Granted, Request};

/// Waits for an answer after each copy of a request, in milliseconds. RFC 6886 section 3.1 doubles
/// them up to 64 s; a gateway in the same network that has not answered in 2 s does not answer.
pub const PATIENT: &[u64] = &[250, 500, 1000];
/// The same for a withdrawal, for which the stop of the node waits.
pub const HURRIED: &[u64] = &[100, 200, 400];

/// Datagrams of the gateway that are read for one request.
const DATAGRAMS: usize = 32;

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// Send the request, then ask again.
    Send,
    /// Wait this long for a datagram, then ask again.
    Wait(Duration),
    /// The exchange has failed.
    Over(Fault),
}

/// An exchange. The time is that since its start.
#[derive(Debug)]
pub struct Exchange {
    request: Request,
    waits: std::slice::Iter<'static, u64>,
    until: Duration,
    received: usize,
    /// What was wrong with the last datagram that was not an answer.
    fault: Option<Fault>,
}

impl Exchange {
    /// Creates an exchange with these waits, in milliseconds.
    pub fn new(request: Request, waits: &'static [u64]) -> Self {
        Self { request, waits: waits.iter(), until: Duration::ZERO, received: 0, fault: None }
    }

    /// Returns what is to be done at this time.
    pub fn poll(&mut self, elapsed: Duration) -> Step {
        if elapsed < self.until {
            return Step::Wait(self.until - elapsed);
        }
        match self.waits.next() {
            Some(wait) => {
                self.until = elapsed + Duration::from_millis(*wait);
                Step::Send
            }
            None => Step::Over(self.fault.take().unwrap_or(Fault::Silent)),
        }
    }

    /// Handles a datagram of the gateway. Returns the end of the exchange. An invalid datagram does
    /// not end it, because the answer may follow.
    pub fn receive(&mut self, bytes: &[u8]) -> Option<Result<Granted, Fault>> {
        self.received += 1;
        if self.received > DATAGRAMS {
            return Some(Err(Fault::Malformed("too many datagrams")));
        }
        match self.request.read(bytes) {
            Ok(Some(granted)) => Some(Ok(granted)),
            Ok(None) => None,
            Err(fault @ Fault::Malformed(_)) => {
                self.fault = Some(fault);
                None
            }
            Err(failure) => Some(Err(failure)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn request_is_sent_three_times_and_then_the_gateway_is_silent() {
        let mut exchange = Exchange::new(Request::Address, PATIENT);
        let (mut elapsed, mut sent) = (Duration::ZERO, Vec::new());
        let why = loop {
            match exchange.poll(elapsed) {
                Step::Send => sent.push(elapsed),
                Step::Wait(time) => elapsed += time,
                Step::Over(why) => break why,
            }
        };
        assert_eq!(sent, [Duration::ZERO, 250 * MS, 750 * MS]);
        assert_eq!((elapsed, why), (1750 * MS, Fault::Silent));
    }

    #[test]
    fn invalid_datagram_does_not_end_the_exchange_but_names_its_failure() {
        let mut exchange = Exchange::new(Request::Address, HURRIED);
        assert_eq!(exchange.poll(Duration::ZERO), Step::Send);
        assert_eq!(exchange.receive(&[0]), None);
        assert_eq!(exchange.poll(100 * MS), Step::Send);
        assert_eq!(exchange.poll(300 * MS), Step::Send);
        let truncated = Fault::Malformed("truncated");
        assert_eq!(exchange.poll(700 * MS), Step::Over(truncated));
        let answer = [0, 128, 0, 0, 0, 0, 0, 42, 203, 0, 113, 7];
        assert!(matches!(exchange.receive(&answer), Some(Ok(_))));
    }

    #[test]
    fn flood_ends_the_exchange() {
        let mut exchange = Exchange::new(Request::Address, PATIENT);
        for _ in 0..DATAGRAMS {
            assert_eq!(exchange.receive(&[]), None);
        }
        let flooded = Fault::Malformed("too many datagrams");
        assert_eq!(exchange.receive(&[]), Some(Err(flooded)));
    }
}

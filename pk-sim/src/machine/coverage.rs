//! Coverage of the vocabulary, to show that a scenario exercised its subject.

use std::collections::BTreeMap;

use pk_proto::{Census, Event, Input, Instant, Output, Request};

/// Number of occurrences of each variant of [`Output`], [`Input`], [`Event`] and [`Request`], by
/// name, for example `Output::Dial`; and of calls that fired a timer of each kind
/// ([`Census::TIMERS`]).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Coverage(BTreeMap<&'static str, u64>);

impl Coverage {
    /// Returns the number of occurrences of a variant.
    pub fn count(&self, name: &str) -> u64 {
        self.0.get(name).copied().unwrap_or(0)
    }

    /// Returns every variant that occurred, with its number.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.0.iter().map(|(name, count)| (*name, *count))
    }

    /// Adds the occurrences of another run.
    pub fn add(&mut self, other: &Self) {
        other.iter().for_each(|(name, count)| *self.0.entry(name).or_default() += count);
    }

    /// Returns the variants of [`Output`] and [`Input`] that did not occur.
    pub fn missing(&self) -> Vec<&'static str> {
        OUTPUTS.iter().chain(INPUTS).copied().filter(|name| self.count(name) == 0).collect()
    }

    /// Returns the variants of [`Request`] that were not started. Only fuzz runs count them.
    pub fn missing_requests(&self) -> Vec<&'static str> {
        REQUESTS.iter().copied().filter(|name| self.count(name) == 0).collect()
    }

    /// Returns the kinds of timers that did not fire. Only fuzz runs count them.
    pub fn missing_timers(&self) -> Vec<&'static str> {
        Census::TIMERS.iter().copied().filter(|name| self.count(name) == 0).collect()
    }

    pub(crate) fn request(&mut self, request: &Request) {
        *self.0.entry(request_name(request)).or_default() += 1;
    }

    /// Called before timers fire.
    pub(crate) fn timers(&mut self, census: &Census, now: Instant) {
        for (kind, (_, due)) in &census.timers {
            *self.0.entry(kind).or_default() += u64::from(*due <= now);
        }
    }

    pub(crate) fn output(&mut self, output: &Output) {
        *self.0.entry(output_name(output)).or_default() += 1;
        if let Output::Event(event) = output {
            *self.0.entry(event_name(event)).or_default() += 1;
        }
    }

    pub(crate) fn input(&mut self, input: &Input) {
        *self.0.entry(input_name(input)).or_default() += 1;
    }
}

/// Declares the names once: the list, and the match that finds them.
macro_rules! names {
    ($list:ident, $find:ident, $of:ident: $($variant:ident)* $(, else $other:literal)?) => {
        #[cfg_attr(not(test), allow(dead_code, reason = "not every list is looked through outside of tests"))]
        const $list: &[&str] = &[$(concat!(stringify!($of), "::", stringify!($variant))),*];

        fn $find(of: &$of) -> &'static str {
            match of {
                $($of::$variant { .. } => concat!(stringify!($of), "::", stringify!($variant)),)*
                $(_ => $other,)?
            }
        }
    };
}

names! { OUTPUTS, output_name, Output:
    Dial CancelDial CloseConnection OpenStream SendStream ResetStream StopStream ReadCredit DetachStream
    AttachCircuit JoinCircuit CloseCircuit ProbePath
    Sign Persist Load Resolve Browse CancelBrowse ReplaceIdentity Punch Advertise Event
}

names! { INPUTS, input_name, Input:
    Listening LocalAddresses WallClock Connected DialFailed Disconnected Suspected Heard RemoteAddressChanged
    StreamOpened StreamData StreamWritten StreamReset StreamStopped OpenFailed StreamClosed CircuitClosed
    Signed Persisted Loaded Resolved Discovered IdentityReplaced External, else "Input::(new)"
}

names! { REQUESTS, request_name, Request:
    FindNode PingNode PingNodeAddress Connect ConnectThrough AcquireConnection OpenStream QueryClosestNodes SyncNodeGraph SetNode
    RefreshBucket Renew ClaimNode AddClaim ClaimNetwork AllowClaim QueryMdns RequestChainData Claims Gestalt Flush FindClosest
}

names! { EVENTS, event_name, Event:
    Ready Done ConnectionOpened ConnectionClosed LeaseLost NodeAdded NodeRemoved IdentityRenewed PeerMisbehaved
    ChainData ClaimAdded ClaimApprovalRequested ClaimUnconfirmed ClaimConfirmed ChainForked StoreClosed Stopped FormerIdsDropped,
    else "Event::(new)"
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::de::DeserializeOwned;

    /// Returns the number of variants of an enum, found with postcard.
    fn variants<T: DeserializeOwned>() -> usize {
        (0..127u8)
            .take_while(|index| {
                !matches!(postcard::from_bytes::<T>(&[*index]), Err(postcard::Error::SerdeDeCustom))
            })
            .count()
    }

    /// `Output` is matched exhaustively; the others cannot be, so that a new variant fails this
    /// test.
    #[test]
    fn every_variant_has_its_name() {
        assert_eq!(variants::<Output>(), OUTPUTS.len());
        assert_eq!(variants::<Input>(), INPUTS.len());
        assert_eq!(variants::<Event>(), EVENTS.len());
        assert_eq!(variants::<Request>(), REQUESTS.len());
    }

    #[test]
    fn absent_variants_are_missing() {
        let mut coverage = Coverage::default();
        coverage.output(&Output::Event(Event::Stopped));
        assert_eq!((coverage.count("Output::Event"), coverage.count("Event::Stopped")), (1, 1));
        assert_eq!(coverage.missing().len(), OUTPUTS.len() + INPUTS.len() - 1);
        let mut sum = coverage.clone();
        sum.add(&coverage);
        assert_eq!(sum.count("Event::Stopped"), 2);
    }
}

//! Which words of the vocabulary were spoken: to show that a scenario exercised what it is about.

use std::collections::BTreeMap;

use pk_proto::{Event, Input, Output};

/// How often each variant of [`Output`], [`Input`] and [`Event`] occurred, by name: `Output::Dial`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Coverage(BTreeMap<&'static str, u64>);

impl Coverage {
    /// How often a variant occurred.
    pub fn count(&self, name: &str) -> u64 {
        self.0.get(name).copied().unwrap_or(0)
    }

    /// Every variant that occurred, and how often.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.0.iter().map(|(name, count)| (*name, *count))
    }

    /// Adds what occurred elsewhere.
    pub fn add(&mut self, other: &Self) {
        other.iter().for_each(|(name, count)| *self.0.entry(name).or_default() += count);
    }

    /// The variants of [`Output`] and [`Input`] that did not occur.
    pub fn missing(&self) -> Vec<&'static str> {
        OUTPUTS.iter().chain(INPUTS).copied().filter(|name| self.count(name) == 0).collect()
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
    Dial CancelDial CloseConnection OpenStream SendStream ResetStream StopStream ReadCredit HandOver
    Sign Persist Load Resolve Browse CancelBrowse ReplaceIdentity Punch Advertise Event
}

names! { INPUTS, input_name, Input:
    Listening WallClock Connected DialFailed Disconnected RemoteAddressChanged
    StreamOpened StreamData StreamSent StreamReset StreamStopped OpenFailed StreamClosed
    Signed Persisted Loaded Resolved Discovered IdentityReplaced, else "Input::(new)"
}

names! { EVENTS, event_name, Event:
    Ready Done ConnectionOpened ConnectionClosed LeaseLost NodeAdded NodeRemoved IdentityRenewed PeerMisbehaved
    ChainData ClaimAdded ClaimAsked ClaimInDoubt ClaimSettled Stopped, else "Event::(new)"
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::de::DeserializeOwned;

    /// How many variants an enum has: postcard finds a known one too short, and an unknown one wrong.
    fn variants<T: DeserializeOwned>() -> usize {
        (0..127u8)
            .take_while(|index| !matches!(postcard::from_bytes::<T>(&[*index]), Err(postcard::Error::SerdeDeCustom)))
            .count()
    }

    /// `Output` is matched exhaustively; the others cannot be, so that a new variant shows here.
    #[test]
    fn every_variant_has_its_name() {
        assert_eq!(variants::<Output>(), OUTPUTS.len());
        assert_eq!(variants::<Input>(), INPUTS.len());
        assert_eq!(variants::<Event>(), EVENTS.len());
    }

    #[test]
    fn what_did_not_occur_is_missing() {
        let mut coverage = Coverage::default();
        coverage.output(&Output::Event(Event::Stopped));
        assert_eq!((coverage.count("Output::Event"), coverage.count("Event::Stopped")), (1, 1));
        assert_eq!(coverage.missing().len(), OUTPUTS.len() + INPUTS.len() - 1);
        let mut sum = coverage.clone();
        sum.add(&coverage);
        assert_eq!(sum.count("Event::Stopped"), 2);
    }
}

//! What a simulator needs in addition: reproducible TLS, and the inputs and outputs of the core.

use pk_proto::{Input, Output, Phase};
use quinn_proto::ConnectionId;
use rustls::crypto::{SecureRandom, SupportedKxGroup};

/// Random numbers and the key exchange of TLS, in place of those of ring. The secrecy of every
/// connection depends on them, so that only simulators may replace them.
#[derive(Debug, Clone, Copy)]
pub struct TlsRandom {
    /// Random numbers.
    pub numbers: &'static dyn SecureRandom,
    /// The only key exchange that is offered and accepted.
    pub exchange: &'static dyn SupportedKxGroup,
}

impl TlsRandom {
    /// Returns the connection id with which a dial starts.
    pub(crate) fn connection_id(self) -> ConnectionId {
        let mut id = [0; 20];
        // A simulator's source does not fail; if it did, the id would only be predictable.
        let _ = self.numbers.fill(&mut id);
        ConnectionId::new(&id)
    }
}

/// An input or an output of the core.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Crossing {
    /// An input, before the core handled it.
    Input(Input),
    /// An output, before it was executed.
    Output {
        /// Output.
        output: Output,
        /// Phase of the core when the output was taken.
        phase: Phase,
    },
}

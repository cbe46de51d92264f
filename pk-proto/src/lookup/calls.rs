//! The dial and the call of each contact of a search.
//!
//! A contact that was dialed is asked as soon as the handshake is complete, before it has accepted
//! the connection. If that connection ends, the dial of the contact continues, and it is asked
//! again on the connection that it accepts.

use super::Lookup;
use super::call_result::{Accepted, Unanswered};
use super::candidates::{Candidate, Stage, State};
use crate::api::search::FindStepEnd;
use crate::machine::cx::Cx;
use crate::types::id::{ConnectionId, NodeId, StreamId};

impl Lookup {
    /// The call to a contact was sent.
    pub(crate) fn asked(&mut self, cx: &Cx, node: NodeId, stream: StreamId) {
        self.begin_call(cx, node, stream, Stage::Asked { stream, early: false });
    }

    /// The call to a contact was sent on a connection that it has not accepted yet.
    pub(crate) fn asked_early(
        &mut self,
        cx: &Cx,
        node: NodeId,
        stream: StreamId,
        conn: ConnectionId,
    ) {
        self.begin_call(cx, node, stream, Stage::Early(stream, conn));
    }

    fn begin_call(&mut self, cx: &Cx, node: NodeId, stream: StreamId, stage: Stage) {
        self.stats.calls += 1;
        self.calls.insert(stream, node);
        let early = matches!(stage, Stage::Early(..));
        self.walk.connected(cx.now, &node, early);
        self.walk.candidates.advance(&node, stage);
    }

    /// A contact has accepted a connection.
    pub(crate) fn accepted(&mut self, node: &NodeId, conn: ConnectionId) -> Accepted {
        let instead_of = match self.stage(node) {
            Some(Stage::Early(stream, on)) if on == conn => {
                self.walk.candidates.advance(node, Stage::Asked { stream, early: true });
                return Accepted::Done;
            }
            Some(Stage::Early(stream, _)) => {
                self.calls.remove(&stream);
                self.walk.candidates.advance(node, Stage::Dialing);
                Some(stream)
            }
            Some(Stage::Dialing) => None,
            Some(Stage::Asked { .. }) | None => return Accepted::Done,
        };
        Accepted::ToAsk { target: self.query(node), instead_of }
    }

    fn stage(&self, node: &NodeId) -> Option<Stage> {
        let contact = self.walk.candidates.get(node).and_then(Candidate::contact);
        contact.map(|contact| contact.stage)
    }

    /// Returns whether a contact is being dialed, and was not asked.
    pub(crate) fn is_unasked(&self, node: &NodeId) -> bool {
        self.stage(node) == Some(Stage::Dialing)
    }

    /// Returns whether a contact is being dialed.
    pub(super) fn is_dialing(&self, node: &NodeId) -> bool {
        matches!(self.stage(node), Some(Stage::Dialing | Stage::Early(..)))
    }

    /// A call ended without a valid answer.
    pub(crate) fn not_answered(&mut self, cx: &mut Cx, stream: StreamId, why: Unanswered) {
        let Some(node) = self.calls.remove(&stream) else { return };
        match self.stage(&node).filter(|stage| stage.stream() == Some(stream)) {
            // The dial continues without it.
            Some(Stage::Early(..)) => self.walk.candidates.advance(&node, Stage::Dialing),
            Some(Stage::Asked { early, .. }) => match why {
                Unanswered::Lost => self.again(cx, &node),
                Unanswered::Aborted if early => self.again(cx, &node),
                Unanswered::Aborted | Unanswered::Otherwise => self.not_asked(cx, &node),
            },
            Some(Stage::Dialing) | None => {}
        }
    }

    /// A contact is retried once.
    fn again(&mut self, cx: &mut Cx, node: &NodeId) {
        let again = self
            .walk
            .candidates
            .get_mut(node)
            .is_some_and(|known| !core::mem::replace(&mut known.was_lost, true));
        let state = if again { State::New } else { State::Mute };
        self.end_contact(cx, node, state, FindStepEnd::NoAnswer);
    }

    /// A contact was connected, but could not be asked.
    pub(crate) fn not_asked(&mut self, cx: &mut Cx, node: &NodeId) {
        self.end_contact(cx, node, State::Mute, FindStepEnd::NoAnswer);
    }
}

//! Upkeep of the node graph in the background (docs/DESIGN.md, Upkeep of the graph). The decisions
//! are those of `crate::upkeep`.

mod checks;
mod far;
mod lost;
mod near;
mod newcomers;

use super::lifecycle::{OnRaceEnded, RaceResult, Reactions};
use super::node::NodeManager;
use super::state::stage::{OpenRequest, Recipient, RequestStage};
use super::state::upkeep::Errand;
use crate::api::error::Failure;
use crate::api::transport::DialFailure;
use crate::machine::dial::DialTarget;
use crate::types::address::NodeAddress;
use crate::types::contact::NodeContact;
use crate::types::id::{NodeId, RequestId};

impl Reactions for Errand {
    fn on_race_ended(&self) -> Option<OnRaceEnded> {
        Some(|node, id, contact, result| {
            if let Some(errand) = node.requests.stage::<Self>(id).copied() {
                node.errand_ended(id, errand, contact, &result);
            }
        })
    }
}

impl NodeManager {
    /// Dials a contact in the background. Returns whether the dial was started; it is not if the
    /// node is no contact, or has a connection.
    fn dial_contact(&mut self, node: NodeId, errand: Errand) -> bool {
        let contact = self.nodes.graph.get(&node).cloned();
        let Some(contact) = contact.filter(|_| self.connections.primary(&node).is_none()) else {
            return false;
        };
        self.dial_known(node, &contact, errand);
        true
    }

    /// Dials a node in the background.
    fn dial_known(&mut self, node: NodeId, contact: &NodeContact, errand: Errand) {
        let timeout = self.cx.config.connect_timeout;
        let mut dial_target = DialTarget::known(node, contact, timeout);
        if matches!(errand, Errand::Recheck | Errand::Lost) {
            // The contact may be behind a NAT.
            dial_target.relays = self.likely_relays(&node);
        }
        let id = self.cx.ids.request();
        // The race ends at its own deadline, which is earlier.
        let deadline = self.cx.now + timeout * 2;
        self.cx.metrics.upkeep_dials += 1;
        let stage = RequestStage::Upkeep(errand);
        self.begin(id, OpenRequest { recipient: Recipient::None, deadline, stage });
        self.connections.dial(&mut self.cx, id, dial_target);
    }

    /// Handles the end of a dial in the background.
    fn errand_ended(&mut self, id: RequestId, errand: Errand, node: NodeId, result: &RaceResult) {
        self.end(id, Err(Failure::Cancelled));
        match errand {
            Errand::Far => self.far_dialed(node, result.is_ok()),
            Errand::Near => self.near_dialed(result.is_ok()),
            Errand::Check if result.is_ok() => {
                self.upkeep.pace.found_alive(&self.cx.config.upkeep);
            }
            // Without records the one probe decides.
            Errand::Newcomer if self.cx.config.retry_delay.is_zero() => {
                if result.as_ref().err().is_some_and(|failures| is_silent(failures)) {
                    self.contact_leaves(&node);
                }
            }
            Errand::Check | Errand::Newcomer | Errand::Lost => {}
            Errand::Recheck => {
                let again = self.cx.now + self.cx.config.upkeep.first_retry;
                self.upkeep.failing.postpone(&node, again);
                self.arm_recheck();
            }
            Errand::Watch => self.upkeep.watched = self.upkeep.watched.saturating_sub(1),
            Errand::Witness => self.upkeep.calls_witness = false,
        }
    }
}

/// Returns whether a dial failed because nothing answered, which is a sign that the node is gone.
fn is_silent(failures: &[(NodeAddress, DialFailure)]) -> bool {
    let silent = |why: &DialFailure| {
        matches!(
            why,
            DialFailure::TimedOut | DialFailure::TimedOutAfterSignal | DialFailure::Transport(_)
        )
    };
    let answered = |why: &DialFailure| {
        matches!(why, DialFailure::Rejected { .. } | DialFailure::OtherNetwork(_))
    };
    failures.iter().any(|(_, why)| silent(why)) && !failures.iter().any(|(_, why)| answered(why))
}

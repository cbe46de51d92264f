//! Completions of effects. Each is passed to the owner that was registered when the effect started.

use super::node::NodeManager;
use crate::api::input::Input;
use crate::machine::effects::EffectOwner;
use crate::store::table::WriteFailure;
use crate::types::id::EffectId;

impl NodeManager {
    /// Passes the completion of an effect to its owner. A completion without an outstanding effect
    /// of its kind is counted and ignored.
    pub(super) fn effect_completed(&mut self, id: EffectId, completion: Input) {
        if let Input::Persisted { result: Err(WriteFailure::Closed(why)), .. } = &completion {
            self.store_closed(why);
        }
        match (self.cx.effects.take(id), completion) {
            (Some(EffectOwner::Resolve { race, name }), Input::Resolved { result, .. }) => {
                self.connections.resolved(&mut self.cx, race, name, result);
            }
            (Some(owner @ EffectOwner::Browse(request)), Input::Discovered { addrs, done, .. }) => {
                if !done {
                    self.cx.effects.restore(id, owner);
                }
                self.discovered(request, &addrs, done);
            }
            (
                Some(EffectOwner::ReplaceIdentity(request)),
                Input::IdentityReplaced { result, .. },
            ) => {
                self.identity_replaced(request, result);
            }
            (Some(EffectOwner::Sign(owner)), Input::Signed { result, .. }) => {
                self.signed(owner, result);
            }
            (Some(EffectOwner::Persist(owner)), Input::Persisted { result, .. }) => {
                self.persisted(id, owner, result);
            }
            (Some(EffectOwner::Load(owner)), Input::Loaded { result, .. }) => {
                self.loaded(owner, result);
            }
            // All owners are listed, so that the compiler reports a new one that is not handled
            // above.
            (
                owner @ (None
                | Some(
                    EffectOwner::Resolve { .. }
                    | EffectOwner::Browse(_)
                    | EffectOwner::ReplaceIdentity(_)
                    | EffectOwner::Sign(_)
                    | EffectOwner::Persist(_)
                    | EffectOwner::Load(_),
                )),
                _,
            ) => {
                if let Some(owner) = owner {
                    self.cx.effects.restore(id, owner);
                }
                self.cx.metrics.late_inputs += 1;
            }
        }
    }
}

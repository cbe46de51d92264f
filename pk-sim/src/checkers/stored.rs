//! What was written is what exists: the graph equals the mirror that its transactions build.

use std::collections::BTreeMap;

use bytes::Bytes;
use pk_proto::{EffectId, Input, Output, Snapshot, StoreOp, Table, WriteFailure};

use super::violation::Violation;
use crate::machine::StoredView;

/// A store as far as the machine knows it.
#[derive(Debug, Default)]
pub(super) struct Stored {
    rows: BTreeMap<(Table, Bytes), Bytes>,
    waiting: BTreeMap<EffectId, Vec<StoreOp>>,
    /// Whether claims may have been written.
    claims: bool,
}

impl Stored {
    /// Creates the mirror of a store with these rows.
    pub(super) fn new(rows: impl IntoIterator<Item = (Table, Bytes, Bytes)>) -> Self {
        let rows = rows.into_iter().map(|(table, key, value)| ((table, key), value)).collect();
        Self { rows, ..Self::default() }
    }

    pub(super) fn output(&mut self, output: &Output) {
        if let Output::Persist { id, ops, .. } = output {
            self.waiting.insert(*id, ops.clone());
        }
    }

    /// Returns whether something was written. `truth` are the actual rows, which the machine does
    /// not know while the outcome of a write is unknown to it.
    pub(super) fn input<R: IntoIterator<Item = (Table, Bytes, Bytes)>>(
        &mut self,
        input: &Input,
        truth: impl FnOnce() -> R,
    ) -> bool {
        let Input::Persisted { id, result } = input else { return false };
        if matches!(result, Err(WriteFailure::Unknown(_))) {
            self.waiting.remove(id);
            self.claims = true;
            self.rows =
                truth().into_iter().map(|(table, key, value)| ((table, key), value)).collect();
            return false;
        }
        let ops = self.waiting.remove(id).filter(|_| result.is_ok());
        for op in ops.iter().flatten() {
            match op {
                StoreOp::Put { table, key, value } => {
                    self.claims |= *table == Table::Claims;
                    drop(self.rows.insert((*table, key.clone()), value.clone()));
                }
                StoreOp::Delete { table, key } => drop(self.rows.remove(&(*table, key.clone()))),
                StoreOp::Clear { table } => self.rows.retain(|(of, _), _| of != table),
            }
        }
        ops.is_some()
    }

    /// Returns whether claims may have been written since the last call.
    pub(super) fn take_claims(&mut self) -> bool {
        std::mem::take(&mut self.claims)
    }

    /// Returns the rows of a table.
    pub(super) fn table(&self, table: Table) -> impl Iterator<Item = (&Bytes, &Bytes)> {
        let rows =
            self.rows.range((table, Bytes::new())..).take_while(move |((of, _), _)| *of == table);
        rows.map(|((_, key), value)| (key, value))
    }

    /// Compares the store with the graph; returns the number of checked nodes.
    pub(super) fn check(&self, view: &StoredView<'_>) -> Result<u64, Violation> {
        let rows =
            self.rows.iter().map(|((table, key), value)| (*table, key.clone(), value.clone()));
        let snapshot = Snapshot::from_rows(rows)
            .map_err(|error| violation(&format!("cannot be read: {error}")))?;
        if snapshot.meta.is_some_and(|meta| meta.owner != view.own) {
            return Err(violation(&format!("it is {:?}, the node is {}", snapshot.meta, view.own)));
        }
        let mut contacts = snapshot.contacts;
        contacts.sort_unstable_by_key(|(node, _)| *node);
        let written: BTreeMap<_, _> =
            contacts.iter().map(|(node, contact)| (*node, contact)).collect();
        let there: BTreeMap<_, _> = view.contacts.iter().copied().collect();
        for (node, contact) in &there {
            match written.get(node) {
                None => return Err(violation(&format!("{node} is not in it"))),
                Some(row) if row != contact => {
                    return Err(violation(&format!("{node} is {row:?}, not {contact:?}")));
                }
                Some(_) => {}
            }
        }
        if let Some(node) = written.keys().find(|node| !there.contains_key(node)) {
            return Err(violation(&format!("{node} is in it")));
        }
        if snapshot.refreshed != view.refreshed {
            return Err(violation(&format!(
                "refreshed {:?}, not {:?}",
                snapshot.refreshed, view.refreshed
            )));
        }
        Ok(there.len() as u64)
    }
}

fn violation(what: &str) -> Violation {
    Violation::new("stored", format!("the store and the graph: {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::identity::{Key, genesis};
    use pk_proto::{
        Config, ContactMode, Instant, NodeContactAddressData, NodeManager, Request, RequestOptions,
        Scopes, SetNodeOptions, UnixMillis,
    };

    const UNIX: UnixMillis = UnixMillis(1_767_225_600_000);

    /// A machine that has been connected with two nodes, and all its transactions.
    fn written() -> (NodeManager, Vec<Output>) {
        let config = Config::default();
        let mut node = NodeManager::new(
            config,
            &genesis(&Key::numbered(1, 0), UNIX),
            Snapshot::default(),
            [1; 32],
            Instant::ORIGIN,
            UNIX,
        )
        .unwrap();
        let mut now = Instant::ORIGIN;
        let mut outputs = Vec::new();
        let mut drain = |node: &mut NodeManager| {
            let more: Vec<_> = std::iter::from_fn(|| node.poll_output()).collect();
            outputs.extend(more.iter().cloned());
            more
        };
        node.handle_input(Input::Listening { addrs: vec!["20.0.0.1:1314".parse().unwrap()] }, now);
        for peer in 1..=2 {
            let (leaf, remote) =
                (Key::numbered(1, peer).id(), format!("20.0.{peer}.1:1").parse().unwrap());
            let conn = pk_proto::ConnectionId(2 * peer + 1);
            node.handle_input(
                Input::Connected(pk_proto::Connected {
                    conn,
                    side: pk_proto::Side::Acceptor,
                    dialect: pk_proto::Dialect::Native,
                    leaf,
                    chain: vec![leaf],
                    matched_id: None,
                    remote,
                    local: "20.0.0.1:1314".parse().unwrap(),
                    shared_id: Bytes::from(vec![peer as u8; 32]),
                }),
                now,
            );
            let stream = pk_proto::StreamId(2 * peer + 1);
            node.handle_input(Input::StreamOpened { conn, stream }, now);
            let hello = pk_proto::native::Hello {
                version_min: 1,
                version_max: 1,
                features: 0,
                agent: "t".into(),
            };
            let hello = pk_proto::native::Message::V1(pk_proto::native::V1::Hello(hello));
            let bytes = pk_proto::native::encode(&hello).unwrap();
            node.handle_input(Input::StreamData { stream, bytes, fin: false }, now);
        }
        // Not proved, so that it is not stored.
        let data = NodeContactAddressData {
            mode: ContactMode::Direct,
            connected_time: UNIX,
            scopes: Scopes::GLOBAL,
        };
        let set = Request::SetNode {
            node: Key::numbered(1, 9).id(),
            address: "20.0.9.1:1".parse().unwrap(),
            data,
            how: SetNodeOptions::default(),
        };
        node.request(set, now).unwrap();
        node.request(
            Request::RefreshBucket {
                bucket: pk_proto::BucketIndex(255),
                options: RequestOptions::default(),
            },
            now,
        )
        .unwrap();
        drain(&mut node);
        while node.metrics().unwritten > 0 {
            now = now.max(node.poll_timeout().unwrap());
            node.handle_timeout(now);
            for output in drain(&mut node) {
                if let Output::Persist { id, .. } = output {
                    node.handle_input(Input::Persisted { id, result: Ok(()) }, now);
                }
            }
        }
        (node, outputs)
    }

    fn mirror(outputs: &[Output], plant: impl Fn(&mut Vec<StoreOp>)) -> Stored {
        let mut stored = Stored::new([]);
        for output in outputs {
            if let Output::Persist { id, ops, durable } = output {
                let (mut ops, id) = (ops.clone(), *id);
                plant(&mut ops);
                stored.output(&Output::Persist { id, ops, durable: *durable });
                assert!(stored.input(&Input::Persisted { id, result: Ok(()) }, Vec::new));
            }
        }
        stored
    }

    #[test]
    fn store_equals_graph_and_each_difference_is_caught() {
        use crate::machine::Machine;
        let (node, outputs) = written();
        let view = node.stored_view().unwrap();
        assert_eq!(mirror(&outputs, |_| {}).check(&view), Ok(2));
        assert_eq!(view.refreshed.len(), 1);
    }

    #[test]
    fn planted_bugs_are_caught() {
        use crate::machine::Machine;
        let (node, outputs) = written();
        let view = node.stored_view().unwrap();
        let contact = |op: &StoreOp| matches!(op, StoreOp::Put { table: Table::Contacts(_), .. });
        let found = |plant: &dyn Fn(&mut Vec<StoreOp>)| {
            mirror(&outputs, plant).check(&view).unwrap_err().what
        };
        assert!(found(&|ops| ops.retain(|op| !contact(op))).contains("is not in it"));
        assert!(
            found(&|ops| {
                let mut row = ops.iter().find(|op| contact(op)).cloned();
                if let Some(StoreOp::Put { key, .. }) = &mut row {
                    *key = Bytes::from(vec![9; 32]);
                }
                ops.extend(row);
            })
            .contains("is in it")
        );
        assert!(
            found(&|ops| {
                let values: Vec<_> = ops
                    .iter()
                    .filter(|op| contact(op))
                    .filter_map(|op| {
                        if let StoreOp::Put { value, .. } = op { Some(value.clone()) } else { None }
                    })
                    .collect();
                for (op, other) in
                    ops.iter_mut().filter(|op| contact(op)).zip(values.into_iter().rev())
                {
                    if let StoreOp::Put { value, .. } = op {
                        *value = other;
                    }
                }
            })
            .contains(", not NodeContact")
        );
        assert!(
            found(&|ops| ops.retain(|op| !matches!(op, StoreOp::Put { table: Table::Refresh, .. })))
                .contains("refreshed")
        );
        assert!(
            found(&|ops| ops.retain(|op| !matches!(op, StoreOp::Put { table: Table::Meta, .. })))
                .contains("owner row")
        );
        // A failed write is not counted as a successful one.
        let mut stored = mirror(&outputs, |_| {});
        stored.output(&Output::Persist {
            id: EffectId(99),
            ops: vec![StoreOp::Clear { table: Table::Refresh }],
            durable: false,
        });
        let refused = Err(WriteFailure::NotApplied(String::new()));
        assert!(!stored.input(&Input::Persisted { id: EffectId(99), result: refused }, Vec::new));
        assert_eq!(stored.check(&view), Ok(2));
    }
}

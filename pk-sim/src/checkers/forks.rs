//! A chain does not fork: no two claims of one node have the same predecessor, in anything that the
//! node has stored, or has read to send it, over all its restarts.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use pk_proto::claims::{Claim, ClaimId};
use pk_proto::{StoreRow, Table};

use super::stored::Stored;
use super::violation::Violation;

/// The claims of one node.
#[derive(Debug, Default)]
pub(super) struct Forks {
    /// Claim that follows each claim.
    after: BTreeMap<Option<ClaimId>, ClaimId>,
    seen: BTreeSet<Bytes>,
}

impl Forks {
    /// Checks a transaction. Returns the number of new claims.
    pub(super) fn stored(&mut self, stored: &Stored) -> Result<u64, Violation> {
        stored
            .table(Table::Claims)
            .try_fold(0, |new, (key, value)| Ok(new + self.claim(key, value)?))
    }

    /// Checks rows of any table that were read. Returns the number of new claims.
    pub(super) fn read(&mut self, rows: &[StoreRow]) -> Result<u64, Violation> {
        rows.iter().try_fold(0, |new, (key, value)| Ok(new + self.claim(key, value)?))
    }

    fn claim(&mut self, key: &Bytes, value: &Bytes) -> Result<u64, Violation> {
        // The keys of claims are their ids; those of other tables are of other lengths.
        if key.len() != 16 || !self.seen.insert(key.clone()) {
            return Ok(0);
        }
        let Some(claim) = parse(value) else { return Ok(0) };
        match self.after.insert(claim.prev_claim_id(), claim.id()) {
            Some(other) if other != claim.id() => {
                let what = format!(
                    "the chain is forked: {other} and {} both follow {:?}",
                    claim.id(),
                    claim.prev_claim_id()
                );
                Err(Violation::new("forks", what))
            }
            _ => Ok(1),
        }
    }
}

/// The claim in a row: its JSON text, after a byte for the version and the length.
fn parse(value: &Bytes) -> Option<Claim> {
    let length = 1 + value.iter().skip(1).take_while(|byte| **byte >= 0x80).count();
    Claim::parse(value.get(length + 1..)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::identity::Key;
    use pk_proto::UnixMillis;
    use pk_proto::claims::{ChainHead, ClaimContent, DigestAlgorithm, claim_row};
    use pk_proto::{EffectId, Input, Output, StoreOp};

    const UNIX: UnixMillis = UnixMillis(1_767_225_600_000);

    fn claim(after: Option<&Claim>, number: u8) -> Claim {
        let key = Key::numbered(1, 0);
        let issuer = Some(key.id().to_string());
        let content =
            ClaimContent { typ: "ClaimColour".into(), issuer, subject: None, members: "{}".into() };
        let head = after.map(|claim| ChainHead::of(claim, DigestAlgorithm::Blake3));
        let draft =
            Claim::draft(&content, ClaimId::from_bytes([number; 16]), UNIX, head.as_ref()).unwrap();
        let signature = key.sign(&draft.signing_input(&key.id()));
        draft.sign(key.id(), signature).unwrap().into_claim()
    }

    fn row(claim: &Claim) -> StoreRow {
        match claim_row(claim) {
            StoreOp::Put { key, value, .. } => (key, value),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn chain_read_repeatedly_is_no_fork() {
        let first = claim(None, 1);
        let second = claim(Some(&first), 2);
        let (rows, mut forks) = ([row(&first), row(&second)], Forks::default());
        assert_eq!(forks.read(&rows), Ok(2));
        assert_eq!(forks.read(&rows), Ok(0));
    }

    #[test]
    fn planted_forks_are_caught() {
        let first = claim(None, 1);
        for (one, other) in [
            (claim(Some(&first), 2), claim(Some(&first), 3)),
            // Two first claims.
            (claim(None, 2), claim(None, 3)),
        ] {
            let mut forks = Forks::default();
            assert_eq!(forks.read(&[row(&one)]), Ok(1));
            let fault = forks.read(&[row(&other)]).unwrap_err();
            assert!(fault.what.contains("forked"), "{fault:?}");
            // In written rows as well.
            let mut stored = Stored::new([]);
            let ops = vec![claim_row(&one), claim_row(&other)];
            stored.output(&Output::Persist { id: EffectId(1), ops, durable: true });
            stored.input(&Input::Persisted { id: EffectId(1), result: Ok(()) }, Vec::new);
            assert!(Forks::default().stored(&stored).is_err());
        }
    }
}

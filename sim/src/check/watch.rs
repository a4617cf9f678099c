//! What a watcher must be told: everything that the log has changed in a range of revisions, once, as it is at the range's end; and when
//! it is refused as too old: exactly when the manager that is asked has not applied all of that entry by entry.

use std::collections::BTreeSet;

use rcluster_api::object::{Kind, Object};
use rcluster_manager::core::state::{CHANGES_MAX, Key};
use rcluster_manager::core::watch::Piece;

use super::{Checker, FIRST, Violation, hold};

/// What is of interest to a watcher of `kinds`; none: all. The cluster's own object is told to nobody.
fn is_wanted(kinds: &BTreeSet<Kind>, (kind, _): &Key) -> bool {
    *kind != Kind::Cluster && (kinds.is_empty() || kinds.contains(kind))
}

impl Checker {
    /// A watcher of `kinds` that had been told of everything through revision `after`, or of nothing, was told all of these.
    pub fn told(&self, kinds: &BTreeSet<Kind>, after: u64, range: &[Piece]) -> Result<(), Violation> {
        let Some(last) = range.last() else { return Err(Violation("a watcher was told nothing".to_owned())) };
        let revision = last.revision;
        let state = self.state_at(revision).filter(|state| state.revision() == revision);
        let state = state.ok_or_else(|| Violation(format!("a watcher was told of revision {revision}, which is not committed")))?;
        for piece in range {
            let whole = (piece.after, piece.revision) == (after, revision);
            hold!(whole, "a watcher that was at {after} was told of {} to {}: a gap", piece.after, piece.revision);
        }
        let mut expected: BTreeSet<Key> = match after {
            0 => state.keys().map(|(kind, id)| (kind, id.to_owned())).collect(),
            _ => self.changed(after, revision).cloned().collect(),
        };
        expected.retain(|key| is_wanted(kinds, key));
        let mut told = BTreeSet::new();
        for object in range.iter().flat_map(|piece| &piece.puts) {
            let (kind, id) = (object.kind(), object.id().to_owned());
            let is_so = state.object(kind, &id).is_some_and(|known| listed(known) == *object);
            hold!(is_so, "a watcher was told of {kind:?} {id} at revision {revision}, and it was not so");
            hold!(told.insert((kind, id)), "a watcher was told twice of one object by revision {revision}");
        }
        for (kind, id) in range.iter().flat_map(|piece| &piece.deletes) {
            hold!(
                state.object(*kind, id).is_none(),
                "a watcher was told that {kind:?} {id} is gone at revision {revision}, and it was not"
            );
            hold!(told.insert((*kind, id.clone())), "a watcher was told twice of one object by revision {revision}");
        }
        let difference: Vec<&Key> = expected.symmetric_difference(&told).collect();
        hold!(difference.is_empty(), "a watcher was told of {after} to {revision}, and it is not what has changed: {difference:?}");
        Ok(())
    }

    /// Whether a watcher that has been told of everything through `from` is too old for the process of `host`, whose tables are at
    /// `revision`.
    pub fn is_too_old(&self, host: usize, from: u64, revision: u64) -> bool {
        let base = self.bases.get(&host).copied().unwrap_or_default();
        let changes = |index| self.committed(index).map_or(0, |committed| committed.changes);
        // The oldest go when there are too many.
        let gone = changes(revision).saturating_sub(CHANGES_MAX);
        let place = self.log.partition_point(|committed| committed.changes < gone);
        let oldest = if gone > changes(base) { FIRST + place as u64 } else { base };
        self.state_at(oldest).is_some_and(|oldest| from < oldest.revision())
    }

    /// What the log has changed after one revision and through another.
    fn changed(&self, after: u64, revision: u64) -> impl Iterator<Item = &Key> {
        let place = |index: u64| usize::try_from(index.saturating_sub(FIRST)).unwrap_or(usize::MAX);
        let range = place(after + 1)..place(revision + 1);
        self.log.get(range).unwrap_or_default().iter().flat_map(|committed| &committed.keys)
    }
}

/// As it is told: secrets without their bytes.
fn listed(object: Object) -> Object {
    if let Object::Data(data) = object { Object::Data(data.listed()) } else { object }
}

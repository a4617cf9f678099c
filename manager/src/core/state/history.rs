//! Which objects the last revisions have changed: what a watch goes on from.
//!
//! Names of objects only: who reads on gets them as they are now. So a reader that is slow costs nothing, and several changes of one
//! object come to it as one. It is kept in memory alone and begins again with each start, from the snapshot and what the log holds after it.

use std::collections::BTreeSet;
use std::sync::Arc;

use imbl::OrdMap;
use rcluster_api::object::Kind;
use thiserror::Error;

/// Changes of objects that are kept at most, over all revisions: some megabytes.
pub const CHANGES_MAX: usize = 65_536;

/// An object's kind and id.
pub type Key = (Kind, String);

/// The changes of the last revisions.
#[derive(Debug, Clone, Default)]
pub struct History {
    /// Every change after this revision is here.
    oldest: u64,
    commits: OrdMap<u64, Arc<[Key]>>,
    changes: usize,
}

/// A revision that cannot be gone on from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the changes after revision {asked} are no longer kept: the oldest revision to go on from is {oldest}")]
pub struct Compacted {
    pub asked: u64,
    pub oldest: u64,
}

impl History {
    /// Nothing has changed after `revision` yet.
    pub(super) fn new(revision: u64) -> Self {
        Self { oldest: revision, ..Self::default() }
    }

    /// The oldest revision that can be gone on from.
    pub fn oldest(&self) -> u64 {
        self.oldest
    }

    /// `revision`, newer than all before, has changed these.
    pub(super) fn record(&mut self, revision: u64, keys: Vec<Key>) {
        // Answers alone: nothing to go on from.
        if keys.is_empty() {
            return;
        }
        self.changes += keys.len();
        self.commits.insert(revision, keys.into());
        while self.changes > CHANGES_MAX {
            let Some((oldest, keys)) = self.commits.get_min().map(|(oldest, keys)| (*oldest, keys.len())) else { return };
            self.commits.remove(&oldest);
            self.changes -= keys;
            self.oldest = oldest;
        }
    }

    /// What has changed after `revision`, each object once.
    pub fn after(&self, revision: u64) -> Result<BTreeSet<&Key>, Compacted> {
        if revision < self.oldest {
            return Err(Compacted { asked: revision, oldest: self.oldest });
        }
        Ok(self.commits.range(revision.saturating_add(1)..).flat_map(|(_, keys)| keys.iter()).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(id: usize) -> Key {
        (Kind::Event, id.to_string())
    }

    #[test]
    fn the_oldest_go_when_there_are_too_many() {
        let mut history = History::new(5);
        history.record(6, vec![key(1)]);
        history.record(9, vec![key(1), key(2)]);
        let told = |history: &History, from| history.after(from).map(|keys| keys.into_iter().cloned().collect::<Vec<_>>());
        assert_eq!(told(&history, 4), Err(Compacted { asked: 4, oldest: 5 }));
        assert_eq!(told(&history, 5), Ok(vec![key(1), key(2)]));
        assert_eq!(told(&history, 9), Ok(vec![]));
        let before = history.clone();
        history.record(10, (0..CHANGES_MAX - 2).map(key).collect());
        assert_eq!(history.oldest(), 6);
        assert_eq!(told(&history, 6).unwrap().len(), CHANGES_MAX - 2);
        history.record(11, (0..=CHANGES_MAX).map(key).collect());
        assert_eq!((history.oldest(), history.changes, history.commits.len()), (11, 0, 0), "more than there is room for");
        assert_eq!(before.oldest(), 5, "a copy stays as it was");
    }
}

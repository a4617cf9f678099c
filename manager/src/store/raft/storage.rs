//! The log as raft-rs reads it: terms and recent entries from memory, older entries from the disk.
//!
//! In: batches, which become durable first. Out: what [`raft::Storage`] asks for. A snapshot for a follower is never read from the disk:
//! it is the tables as they are applied now, whose copy costs nothing; they are encoded where they are sent.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};

use protobuf::Message as _;
use raft::eraftpb::{ConfState, Entry, HardState, Snapshot, SnapshotMetadata};
use raft::{GetEntriesContext, RaftState, StorageError};

use super::log::{Batch, Compaction, Loaded, LogError, LogStore, Saved, Saver};
use crate::core::state::State;

/// Recent entries kept in memory: followers that keep up, and the tables, are served from here.
const CACHE_BYTES_MAX: u64 = 2 << 20;
const CACHE_ENTRIES_MAX: usize = 2048;

/// The terms of a log's entries, as runs: a term changes rarely.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Terms {
    /// Index and term of the entry before the first.
    offset: (u64, u64),
    /// First index of each run, and its term.
    runs: VecDeque<(u64, u64)>,
    last: u64,
}

impl Terms {
    /// An empty log that goes on after `index`, which has `term`.
    pub fn new(index: u64, term: u64) -> Self {
        Self { offset: (index, term), runs: VecDeque::new(), last: index }
    }

    /// Index of the first entry, if there is one.
    pub fn first(&self) -> u64 {
        self.offset.0 + 1
    }

    /// Index of the last entry, or of the one before the first.
    pub fn last(&self) -> u64 {
        self.last
    }

    /// The term of the entry at `index`, or of the one before the first.
    pub fn term(&self, index: u64) -> Option<u64> {
        if index == self.offset.0 {
            return Some(self.offset.1);
        }
        if index < self.offset.0 || index > self.last {
            return None;
        }
        let run = self.runs.partition_point(|(first, _)| *first <= index);
        self.runs.get(run.checked_sub(1)?).map(|(_, term)| *term)
    }

    /// Puts an entry at `index`; what stands there or later goes. An index that leaves a gap is refused.
    #[must_use]
    pub fn put(&mut self, index: u64, term: u64) -> bool {
        if index <= self.offset.0 || index > self.last + 1 {
            return false;
        }
        while self.runs.back().is_some_and(|(first, _)| *first >= index) {
            self.runs.pop_back();
        }
        if self.runs.back().is_none_or(|(_, of)| *of != term) {
            self.runs.push_back((index, term));
        }
        self.last = index;
        true
    }

    /// Forgets the entries through `index`.
    pub fn compact(&mut self, index: u64) {
        let Some(term) = self.term(index) else { return };
        while self.runs.get(1).is_some_and(|(first, _)| *first <= index + 1) {
            self.runs.pop_front();
        }
        if let Some(run) = self.runs.front_mut() {
            run.0 = run.0.max(index + 1);
        }
        if index == self.last {
            self.runs.clear();
        }
        self.offset = (index, term);
    }
}

/// The last entries of the log, without a gap.
#[derive(Debug, Default)]
struct Cache {
    entries: VecDeque<Entry>,
    bytes: u64,
}

impl Cache {
    fn clear(&mut self) {
        *self = Self::default();
    }

    fn put(&mut self, entries: Vec<Entry>) {
        let Some(first) = entries.first() else { return };
        while self.entries.back().is_some_and(|last| last.index >= first.index) {
            let gone = self.entries.pop_back();
            self.bytes -= gone.map_or(0, |entry| size(&entry));
        }
        for entry in entries {
            self.bytes += size(&entry);
            self.entries.push_back(entry);
        }
        while self.entries.len() > 1 && (self.bytes > CACHE_BYTES_MAX || self.entries.len() > CACHE_ENTRIES_MAX) {
            let gone = self.entries.pop_front();
            self.bytes -= gone.map_or(0, |entry| size(&entry));
        }
    }

    fn get(&self, low: u64, high: u64, bytes_max: u64) -> Option<Vec<Entry>> {
        let skipped = low.checked_sub(self.entries.front()?.index)?;
        let wanted = self.entries.iter().skip(usize::try_from(skipped).ok()?).take_while(|entry| entry.index < high);
        Some(take_bytes(wanted.cloned(), bytes_max))
    }
}

/// Bytes of an entry in the log.
pub fn size(entry: &Entry) -> u64 {
    u64::from(entry.compute_size())
}

/// Entries up to `bytes_max`, but at least one.
pub fn take_bytes(entries: impl Iterator<Item = Entry>, bytes_max: u64) -> Vec<Entry> {
    let mut bytes = 0_u64;
    let mut taken = Vec::new();
    for entry in entries {
        bytes = bytes.saturating_add(size(&entry));
        if bytes > bytes_max && !taken.is_empty() {
            break;
        }
        taken.push(entry);
    }
    taken
}

/// The log, its memory, and the tables that a lagging follower would be sent.
#[derive(Debug)]
pub struct Storage<L> {
    log: L,
    hard_state: HardState,
    conf_state: ConfState,
    snapshot_index: u64,
    terms: Terms,
    cache: Cache,
    /// Bytes of log written since the snapshot.
    bytes: u64,
    applied: (u64, State),
    /// Tables for snapshots that raft-rs has asked for and not sent yet, by receiver.
    outgoing: RefCell<BTreeMap<u64, State>>,
}

impl<L: LogStore> Storage<L> {
    /// The log as it was loaded, with the tables of its snapshot.
    pub fn new(log: L, loaded: Loaded, state: State) -> Result<Self, LogError> {
        let Loaded { hard_state, snapshot, data: _, terms, bytes } = loaded;
        let (first, last) = (terms.first(), terms.last());
        let whole = first <= snapshot.index + 1 && snapshot.index <= hard_state.commit && hard_state.commit <= last;
        if !whole || terms.term(snapshot.index) != Some(snapshot.term) {
            return Err(LogError::Damaged(format!(
                "it holds entries {first} to {last}, a snapshot of {} (term {}) and says that {} is committed",
                snapshot.index, snapshot.term, hard_state.commit
            )));
        }
        Ok(Self {
            log,
            hard_state,
            snapshot_index: snapshot.index,
            applied: (snapshot.index, state),
            conf_state: { snapshot }.take_conf_state(),
            terms,
            cache: Cache::default(),
            bytes,
            outgoing: RefCell::default(),
        })
    }

    /// The applied tables.
    pub fn state(&self) -> &State {
        &self.applied.1
    }

    /// Index of the last applied entry.
    pub fn applied(&self) -> u64 {
        self.applied.0
    }

    /// Takes over the tables after the entry at `index` was applied.
    pub fn set_applied(&mut self, index: u64, state: State) {
        self.applied = (index, state);
    }

    /// Takes over the configuration after an applied entry has changed it.
    pub fn set_configuration(&mut self, conf_state: ConfState) {
        self.conf_state = conf_state;
    }

    /// Who votes and who is sent the log, as applied.
    pub fn configuration(&self) -> &ConfState {
        &self.conf_state
    }

    /// The tables for a snapshot message that raft-rs has just made.
    pub fn take_outgoing(&self, to: u64) -> Option<State> {
        self.outgoing.borrow_mut().remove(&to)
    }

    /// Index of the snapshot that the next start begins from.
    pub fn snapshot_index(&self) -> u64 {
        self.snapshot_index
    }

    /// Bytes of log that the next start would have to read.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What a snapshot of the applied tables stands for.
    pub fn applied_metadata(&self) -> SnapshotMetadata {
        let term = self.terms.term(self.applied.0).expect("the log keeps the term of the last applied entry");
        let mut metadata = SnapshotMetadata { index: self.applied.0, term, ..SnapshotMetadata::default() };
        metadata.set_conf_state(self.conf_state.clone());
        metadata
    }

    /// Writes a snapshot's data, on any thread.
    pub fn saver(&self) -> Saver {
        self.log.saver()
    }

    /// Whether something on the disk stands under another key than the newest.
    pub fn has_older_keys(&self) -> bool {
        self.log.has_older_keys()
    }

    /// Makes entries and the hard state durable.
    pub fn append(&mut self, hard_state: Option<HardState>, entries: Vec<Entry>) -> Result<(), LogError> {
        let hard_state = hard_state.unwrap_or_else(|| self.hard_state.clone());
        self.log.write(&Batch { hard_state: &hard_state, entries: &entries, snapshot: None, compaction: None })?;
        self.hard_state = hard_state;
        self.remember(entries)
    }

    /// A hard state of which only the commit index is new; it becomes durable with the next batch.
    pub fn set_commit(&mut self, commit: u64) {
        self.hard_state.commit = commit;
    }

    /// Begins again from a snapshot that came from the leader: its data, the hard state that knows of it and the end of the old log
    /// become durable in one step, since a commit index without its log could not be started from.
    pub fn install(&mut self, saved: &Saved, state: State, hard_state: Option<HardState>, entries: Vec<Entry>) -> Result<(), LogError> {
        let mut hard_state = hard_state.unwrap_or_else(|| self.hard_state.clone());
        let (index, term) = (saved.metadata.index, saved.metadata.term);
        hard_state.commit = hard_state.commit.max(index);
        let compaction = Some(Compaction::Reset { index, term });
        self.log.write(&Batch { hard_state: &hard_state, entries: &entries, snapshot: Some(saved), compaction })?;
        self.hard_state = hard_state;
        self.conf_state = saved.metadata.get_conf_state().clone();
        self.snapshot_index = index;
        self.applied = (index, state);
        self.terms = Terms::new(index, term);
        self.cache.clear();
        self.bytes = 0;
        self.remember(entries)
    }

    /// Takes an own snapshot into use and forgets all but `trailing` of the entries before it.
    pub fn compact(&mut self, saved: &Saved, trailing: u64) -> Result<(), LogError> {
        let index = saved.metadata.index;
        let through = index.saturating_sub(trailing).max(self.terms.first() - 1);
        let term = self.terms.term(through).ok_or_else(|| LogError::Damaged(format!("entry {through} has no term")))?;
        let compaction = Some(Compaction::Through { index: through, term });
        self.log.write(&Batch { hard_state: &self.hard_state, entries: &[], snapshot: Some(saved), compaction })?;
        self.snapshot_index = index;
        self.terms.compact(through);
        self.bytes = 0;
        while self.cache.entries.front().is_some_and(|first| first.index <= through) {
            let gone = self.cache.entries.pop_front();
            self.cache.bytes -= gone.map_or(0, |entry| size(&entry));
        }
        Ok(())
    }

    fn remember(&mut self, entries: Vec<Entry>) -> Result<(), LogError> {
        for entry in &entries {
            self.bytes += size(entry);
            if !self.terms.put(entry.index, entry.term) {
                return Err(LogError::Damaged(format!("entry {} does not follow {}", entry.index, self.terms.last())));
            }
        }
        self.cache.put(entries);
        Ok(())
    }
}

impl<L: LogStore> raft::Storage for Storage<L> {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(RaftState::new(self.hard_state.clone(), self.conf_state.clone()))
    }

    fn entries(&self, low: u64, high: u64, max_size: impl Into<Option<u64>>, _context: GetEntriesContext) -> raft::Result<Vec<Entry>> {
        if low < self.terms.first() {
            return Err(StorageError::Compacted.into());
        }
        if high > self.terms.last() + 1 {
            return Err(StorageError::Unavailable.into());
        }
        let bytes_max = max_size.into().unwrap_or(u64::MAX);
        match self.cache.get(low, high, bytes_max) {
            Some(entries) => Ok(entries),
            None => self.log.entries(low, high, bytes_max).map_err(|error| StorageError::Other(Box::new(error)).into()),
        }
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        let missing = if index < self.terms.first() { StorageError::Compacted } else { StorageError::Unavailable };
        self.terms.term(index).ok_or_else(|| missing.into())
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.terms.first())
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.terms.last())
    }

    fn snapshot(&self, request_index: u64, to: u64) -> raft::Result<Snapshot> {
        let ConfState { voters, learners, voters_outgoing, learners_next, .. } = &self.conf_state;
        let named = [voters, learners, voters_outgoing, learners_next].into_iter().any(|ids| ids.contains(&to));
        // One that does not name its receiver is refused there: it is asked for again once the change that adds it is applied.
        if self.applied.0 < request_index || !named {
            return Err(StorageError::SnapshotTemporarilyUnavailable.into());
        }
        self.outgoing.borrow_mut().insert(to, self.applied.1.clone());
        let mut snapshot = Snapshot::default();
        snapshot.set_metadata(self.applied_metadata());
        Ok(snapshot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn terms(of: &[(u64, u64)]) -> Terms {
        let mut terms = Terms::new(10, 1);
        for (index, term) in of {
            assert!(terms.put(*index, *term));
        }
        terms
    }

    fn listed(terms: &Terms) -> Vec<(u64, u64)> {
        (0..20).filter_map(|index| terms.term(index).map(|term| (index, term))).collect()
    }

    #[test]
    fn terms_are_known_from_the_entry_before_the_first_to_the_last() {
        let terms = terms(&[(11, 1), (12, 3), (13, 3)]);
        assert_eq!(listed(&terms), [(10, 1), (11, 1), (12, 3), (13, 3)]);
    }

    #[test]
    fn a_later_entry_replaces_what_stood_there_and_after() {
        let mut terms = terms(&[(11, 1), (12, 3), (13, 3)]);
        assert!(terms.put(12, 4));
        assert_eq!(listed(&terms), [(10, 1), (11, 1), (12, 4)]);
        assert!(!terms.put(14, 4), "a gap");
        assert!(!terms.put(10, 4), "before the first");
    }

    #[test]
    fn compaction_keeps_the_term_before_the_first() {
        let mut terms = terms(&[(11, 1), (12, 3), (13, 3), (14, 5)]);
        terms.compact(12);
        assert_eq!(listed(&terms), [(12, 3), (13, 3), (14, 5)]);
        terms.compact(14);
        assert_eq!(listed(&terms), [(14, 5)]);
        assert!(terms.put(15, 5));
        assert_eq!(listed(&terms), [(14, 5), (15, 5)]);
    }
}

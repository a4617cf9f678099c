//! A log in memory: what a log holds after its batches. Tests and the simulation keep it on disks of their own, which outlive a process
//! and fail when they are told to; no manager runs on it.

use std::collections::BTreeMap;

use raft::eraftpb::{Entry, HardState, Snapshot, SnapshotMetadata};

use super::log::{Batch, Compaction, Loaded, LogError, Saved, checksum};
use super::storage::{Terms, take_bytes};

/// What was written.
#[derive(Debug, Default)]
pub struct MemoryLog {
    hard_state: HardState,
    snapshot: Saved,
    /// Index and term of the entry before the first.
    offset: (u64, u64),
    entries: BTreeMap<u64, Entry>,
    /// Snapshots' data, by name.
    files: BTreeMap<String, Vec<u8>>,
    files_made: u64,
}

impl MemoryLog {
    /// A first log: it goes on after its snapshot.
    pub fn new(hard_state: HardState, mut snapshot: Snapshot) -> Self {
        let mut log = Self { hard_state, ..Self::default() };
        log.snapshot = log.save(snapshot.take_metadata(), &snapshot.take_data());
        log.offset = (log.snapshot.metadata.index, log.snapshot.metadata.term);
        log
    }

    pub fn hard_state(&self) -> &HardState {
        &self.hard_state
    }

    /// The snapshot that the next start begins from.
    pub fn snapshot(&self) -> &Saved {
        &self.snapshot
    }

    /// Index and term of the entry before the first.
    pub fn offset(&self) -> (u64, u64) {
        self.offset
    }

    /// All entries, by index.
    pub fn entries(&self) -> &BTreeMap<u64, Entry> {
        &self.entries
    }

    /// The term of the entry at `index`, or of the one before the first.
    pub fn term(&self, index: u64) -> Option<u64> {
        if index == self.offset.0 { Some(self.offset.1) } else { self.entries.get(&index).map(|entry| entry.term) }
    }

    /// As [`super::log::LogStore::write`].
    pub fn write(&mut self, batch: &Batch<'_>) {
        match batch.compaction {
            Some(Compaction::Through { index, term }) => {
                self.entries = self.entries.split_off(&(index + 1));
                self.offset = (index, term);
            }
            Some(Compaction::Reset { index, term }) => {
                self.entries.clear();
                self.offset = (index, term);
            }
            None => {}
        }
        if let Some(first) = batch.entries.first() {
            drop(self.entries.split_off(&first.index));
        }
        self.entries.extend(batch.entries.iter().map(|entry| (entry.index, entry.clone())));
        self.hard_state = batch.hard_state.clone();
        if let Some(saved) = batch.snapshot {
            self.snapshot = saved.clone();
            self.sweep();
        }
    }

    /// As [`super::log::LogStore::load`].
    pub fn load(&self) -> Result<Loaded, LogError> {
        let mut terms = Terms::new(self.offset.0, self.offset.1);
        if let Some(gap) = self.entries.values().find(|entry| !terms.put(entry.index, entry.term)) {
            return Err(LogError::Damaged(format!("there is a gap before entry {}", gap.index)));
        }
        let data = self.files.get(&self.snapshot.name).filter(|data| checksum(data) == self.snapshot.checksum).cloned();
        let data = data.ok_or_else(|| LogError::Damaged("a batch names a snapshot that is not there".to_owned()))?;
        let bytes = self.entries.values().map(|entry| entry.data.len() as u64).sum();
        Ok(Loaded { hard_state: self.hard_state.clone(), snapshot: self.snapshot.metadata.clone(), data, terms, bytes })
    }

    /// As [`super::log::LogStore::entries`].
    pub fn read(&self, low: u64, high: u64, bytes_max: u64) -> Vec<Entry> {
        take_bytes(self.entries.range(low..high).map(|(_, entry)| entry.clone()), bytes_max)
    }

    /// What a [`super::log::Saver`] does.
    pub fn save(&mut self, metadata: SnapshotMetadata, data: &[u8]) -> Saved {
        let name = self.files_made.to_string();
        self.files_made += 1;
        self.files.insert(name.clone(), data.to_vec());
        Saved { metadata, name, bytes: data.len() as u64, checksum: checksum(data) }
    }

    /// Forgets the data of snapshots that no batch has named.
    pub fn sweep(&mut self) {
        let used = &self.snapshot.name;
        self.files.retain(|name, _| name == used);
    }
}

//! A disk in memory that outlives the store on it and fails when told to.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use crate::world::founded;
use raft::eraftpb::{Entry, EntryType, HardState, Snapshot};
use rcluster_manager::core::state::{State, encode_snapshot};
use rcluster_manager::store::{Batch, Compaction, Loaded, LogError, LogStore, Saved, Saver, StoreConfig, Terms, checksum, first};

/// What a failing write leaves behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    Nothing,
    /// The write is on the disk although it was reported as failed.
    Everything,
}

/// The disk; clones share it.
#[derive(Debug, Clone)]
pub struct Disk(Arc<Mutex<Content>>);

#[derive(Debug, Default)]
struct Content {
    hard_state: HardState,
    snapshot: Saved,
    offset: (u64, u64),
    entries: BTreeMap<u64, Entry>,
    files: BTreeMap<String, Vec<u8>>,
    writes: u64,
    fails: Option<Failure>,
}

impl Disk {
    /// A disk with the first log of a cluster.
    pub fn new(config: &StoreConfig) -> Self {
        let (hard_state, snapshot) = first(&founded(&config.seeds));
        Self::with(&hard_state, snapshot)
    }

    /// A disk with the log of a manager that joins.
    pub fn empty(config: &StoreConfig) -> Self {
        let mut snapshot = Snapshot::default();
        snapshot.set_data(encode_snapshot(&State::new(config.cluster_id.clone())).into());
        Self::with(&HardState::default(), snapshot)
    }

    fn with(hard_state: &HardState, mut snapshot: Snapshot) -> Self {
        let disk = Self(Arc::default());
        let saved = disk.saver()(snapshot.take_metadata(), &snapshot.take_data()).unwrap();
        let (index, term) = (saved.metadata.index, saved.metadata.term);
        let compaction = Some(Compaction::Reset { index, term });
        disk.clone().write(&Batch { hard_state, entries: &[], snapshot: Some(&saved), compaction }).unwrap();
        disk
    }

    /// The next write fails.
    pub fn break_down(&self, failure: Failure) {
        self.content().fails = Some(failure);
    }

    pub fn mend(&self) {
        self.content().fails = None;
    }

    pub fn writes(&self) -> u64 {
        self.content().writes
    }

    pub fn entries_kept(&self) -> usize {
        self.content().entries.len()
    }

    pub fn snapshot_index(&self) -> u64 {
        self.content().snapshot.metadata.index
    }

    /// Index of the last entry, or of the one before the first.
    pub fn last(&self) -> u64 {
        self.content().last()
    }

    pub fn hard_state(&self) -> HardState {
        self.content().hard_state.clone()
    }

    /// Entries that change the configuration.
    pub fn changes(&self) -> usize {
        self.content().entries.values().filter(|entry| entry.get_entry_type() != EntryType::EntryNormal).count()
    }

    /// The disk says that more is committed than it has.
    pub fn claim_committed(&self, index: u64) {
        self.content().hard_state.commit = index;
    }

    fn content(&self) -> MutexGuard<'_, Content> {
        self.0.lock().unwrap()
    }
}

impl Content {
    fn last(&self) -> u64 {
        self.entries.last_key_value().map_or(self.offset.0, |(index, _)| *index)
    }

    /// A manager may die after any write, and raft-rs panics on a log whose parts do not fit together.
    fn check_start(&self) {
        let (offset, snapshot, commit, last) = (self.offset.0, self.snapshot.metadata.index, self.hard_state.commit, self.last());
        assert!(
            offset <= snapshot && snapshot <= commit && commit <= last,
            "after a write no manager could start: entries {offset} to {last}, snapshot {snapshot}, commit {commit}"
        );
    }

    fn take_in(&mut self, batch: &Batch<'_>) {
        match batch.compaction {
            Some(Compaction::Through { index, term }) => {
                self.entries.retain(|at, _| *at > index);
                self.offset = (index, term);
            }
            Some(Compaction::Reset { index, term }) => {
                self.entries.clear();
                self.offset = (index, term);
            }
            None => {}
        }
        if let Some(first) = batch.entries.first() {
            self.entries.retain(|at, _| *at < first.index);
        }
        self.entries.extend(batch.entries.iter().map(|entry| (entry.index, entry.clone())));
        self.hard_state = batch.hard_state.clone();
        if let Some(saved) = batch.snapshot {
            self.files.retain(|name, _| *name == saved.name);
            self.snapshot = saved.clone();
        }
        self.check_start();
    }
}

impl LogStore for Disk {
    fn load(&mut self) -> Result<Loaded, LogError> {
        let content = self.content();
        let mut terms = Terms::new(content.offset.0, content.offset.1);
        assert!(content.entries.iter().all(|(index, entry)| terms.put(*index, entry.term)), "the log has a gap");
        let data = content.files[&content.snapshot.name].clone();
        assert_eq!(checksum(&data), content.snapshot.checksum);
        let snapshot = content.snapshot.metadata.clone();
        let bytes = content.entries.values().map(|entry| entry.data.len() as u64).sum();
        Ok(Loaded { hard_state: content.hard_state.clone(), snapshot, data, terms, bytes })
    }

    fn write(&mut self, batch: &Batch<'_>) -> Result<(), LogError> {
        let mut content = self.content();
        content.writes += 1;
        match content.fails {
            Some(Failure::Nothing) => {}
            Some(Failure::Everything) | None => content.take_in(batch),
        }
        match content.fails {
            Some(_) => Err(LogError::Io { what: "write to the log", source: io::Error::other("the disk is broken") }),
            None => Ok(()),
        }
    }

    fn entries(&self, low: u64, high: u64, bytes_max: u64) -> Result<Vec<Entry>, LogError> {
        let content = self.content();
        let mut bytes = 0;
        let fits = |entry: &&Entry| {
            bytes += entry.data.len() as u64;
            bytes <= bytes_max || entry.index == low
        };
        Ok(content.entries.range(low..high).map(|(_, entry)| entry).take_while(fits).cloned().collect())
    }

    fn saver(&self) -> Saver {
        let disk = self.clone();
        Box::new(move |metadata, data| {
            let mut content = disk.content();
            let name = format!("{}-{}", metadata.index, content.files.len());
            content.files.insert(name.clone(), data.to_vec());
            Ok(Saved { metadata, name, bytes: data.len() as u64, checksum: checksum(data) })
        })
    }
}

//! A disk in memory that outlives the store on it and fails when told to.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use crate::world::founded;
use raft::eraftpb::{Entry, EntryType, HardState, Snapshot};
use rcluster_manager::core::state::{State, encode_snapshot};
use rcluster_manager::store::{Batch, Loaded, LogError, LogStore, MemoryLog, Saver, StoreConfig, first};

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
    log: MemoryLog,
    writes: u64,
    fails: Option<Failure>,
    /// Entries through this stand under keys of before, and so does the snapshot.
    rekeyed_at: Option<u64>,
    refuses_snapshots: bool,
    snapshots_refused: u64,
    read_at_once: usize,
}

impl Disk {
    /// A disk with the first log of a cluster.
    pub fn new(config: &StoreConfig) -> Self {
        let (hard_state, snapshot) = first(&founded(&config.seeds));
        Self::with(hard_state, snapshot)
    }

    /// A disk with the log of a manager that joins.
    pub fn empty(config: &StoreConfig) -> Self {
        let mut snapshot = Snapshot::default();
        snapshot.set_data(encode_snapshot(&State::new(config.cluster_id.clone())).into());
        Self::with(HardState::default(), snapshot)
    }

    fn with(hard_state: HardState, snapshot: Snapshot) -> Self {
        Self(Arc::new(Mutex::new(Content { log: MemoryLog::new(hard_state, snapshot), ..Content::default() })))
    }

    /// The next write fails.
    pub fn break_down(&self, failure: Failure) {
        self.content().fails = Some(failure);
    }

    pub fn mend(&self) {
        self.content().fails = None;
    }

    /// There are other keys: all that is on it stands under those before.
    pub fn rekey(&self) {
        let mut content = self.content();
        content.rekeyed_at = Some(content.last());
    }

    /// It has no room for a snapshot, or has again.
    pub fn refuse_snapshots(&self, refuses: bool) {
        self.content().refuses_snapshots = refuses;
    }

    pub fn snapshots_refused(&self) -> u64 {
        self.content().snapshots_refused
    }

    /// Bytes of entries, of the read that got most.
    pub fn read_at_once(&self) -> usize {
        self.content().read_at_once
    }

    pub fn writes(&self) -> u64 {
        self.content().writes
    }

    pub fn entries_kept(&self) -> usize {
        self.content().log.entries().len()
    }

    pub fn snapshot_index(&self) -> u64 {
        self.content().log.snapshot().metadata.index
    }

    /// Index of the last entry, or of the one before the first.
    pub fn last(&self) -> u64 {
        self.content().last()
    }

    pub fn hard_state(&self) -> HardState {
        self.content().log.hard_state().clone()
    }

    /// Entries that change the configuration.
    pub fn changes(&self) -> usize {
        self.content().log.entries().values().filter(|entry| entry.get_entry_type() != EntryType::EntryNormal).count()
    }

    /// The disk says that more is committed than it has.
    pub fn claim_committed(&self, index: u64) {
        let mut content = self.content();
        let hard_state = HardState { commit: index, ..content.log.hard_state().clone() };
        content.log.write(&Batch { hard_state: &hard_state, entries: &[], snapshot: None, compaction: None });
    }

    fn content(&self) -> MutexGuard<'_, Content> {
        self.0.lock().unwrap()
    }
}

impl Content {
    fn last(&self) -> u64 {
        self.log.entries().last_key_value().map_or(self.log.offset().0, |(index, _)| *index)
    }

    /// A manager may die after any write, and raft-rs panics on a log whose parts do not fit together.
    fn check_start(&self) {
        let (offset, snapshot) = (self.log.offset().0, self.log.snapshot().metadata.index);
        let (commit, last) = (self.log.hard_state().commit, self.last());
        assert!(
            offset <= snapshot && snapshot <= commit && commit <= last,
            "after a write no manager could start: entries {offset} to {last}, snapshot {snapshot}, commit {commit}"
        );
    }
}

impl LogStore for Disk {
    fn load(&mut self) -> Result<Loaded, LogError> {
        self.content().log.load()
    }

    fn write(&mut self, batch: &Batch<'_>) -> Result<(), LogError> {
        let mut content = self.content();
        content.writes += 1;
        match content.fails {
            Some(Failure::Nothing) => {}
            Some(Failure::Everything) | None => {
                content.log.write(batch);
                content.check_start();
                let offset = content.log.offset().0;
                if batch.snapshot.is_some() {
                    content.rekeyed_at = content.rekeyed_at.filter(|last| *last > offset);
                }
            }
        }
        match content.fails {
            Some(_) => Err(LogError::Io { what: "write to the log", source: io::Error::other("the disk is broken") }),
            None => Ok(()),
        }
    }

    fn entries(&self, low: u64, high: u64, bytes_max: u64) -> Result<Vec<Entry>, LogError> {
        let mut content = self.content();
        let read = content.log.read(low, high, bytes_max);
        content.read_at_once = content.read_at_once.max(read.iter().map(|entry| entry.data.len()).sum());
        Ok(read)
    }

    fn saver(&self) -> Saver {
        let disk = self.clone();
        Box::new(move |metadata, data| {
            let mut content = disk.content();
            if content.refuses_snapshots {
                content.snapshots_refused += 1;
                return Err(LogError::Io { what: "write the snapshot", source: io::ErrorKind::StorageFull.into() });
            }
            Ok(content.log.save(metadata, data))
        })
    }

    fn has_older_keys(&self) -> bool {
        self.content().rekeyed_at.is_some()
    }
}

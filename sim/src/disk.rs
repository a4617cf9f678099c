//! A disk in memory that outlives the process on it. A batch is on it as a whole or not at all; what no batch names may be gone after a
//! crash.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use raft::eraftpb::{Entry, HardState, Snapshot};
use rand::Rng;
use rcluster_manager::core::state::{State, encode_snapshot};
use rcluster_manager::store::{Batch, Compaction, Loaded, LogError, LogStore, Saved, Saver, Terms, checksum, first};

use crate::chance::Chance;
use crate::host::Local;
use crate::network::exponential;

/// What a failing write leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Left {
    Nothing,
    /// It is on the disk, although nobody was told so.
    Everything,
}

/// The disk; clones share it.
#[derive(Clone)]
pub struct Disk(Arc<Mutex<Content>>);

struct Content {
    chance: Chance,
    hard_state: HardState,
    snapshot: Saved,
    offset: (u64, u64),
    entries: BTreeMap<u64, Entry>,
    files: BTreeMap<String, Vec<u8>>,
    files_made: u64,
    /// The writes until one fails, and what that leaves.
    fails_in: Option<(u64, Left)>,
    /// Mean time of a write.
    write_us: u64,
    full: bool,
    /// The process on it.
    local: Option<Local>,
    /// What was written since the world last looked.
    news: News,
}

/// What a process has written.
#[derive(Debug, Default)]
pub struct News {
    /// Term of the entry before, and the entry.
    pub entries: Vec<(Option<u64>, Entry)>,
    /// Term and vote.
    pub votes: Vec<(u64, u64)>,
}

impl Disk {
    /// With the first log of a cluster, or of a manager that joins one.
    pub fn new(chance: Chance, write_us: u64, founded: Option<&State>, cluster_id: &str) -> Self {
        let (hard_state, mut snapshot) = match founded {
            Some(state) => first(state),
            None => {
                let mut snapshot = Snapshot::default();
                snapshot.set_data(encode_snapshot(&State::new(cluster_id.to_owned())).into());
                (HardState::default(), snapshot)
            }
        };
        let data = snapshot.take_data().to_vec();
        let (bytes, checksum, name) = (data.len() as u64, checksum(&data), "0".to_owned());
        let saved = Saved { metadata: snapshot.take_metadata(), name: name.clone(), bytes, checksum };
        Self(Arc::new(Mutex::new(Content {
            chance,
            hard_state,
            offset: (saved.metadata.index, saved.metadata.term),
            snapshot: saved,
            entries: BTreeMap::new(),
            files: BTreeMap::from([(name, data)]),
            files_made: 1,
            fails_in: None,
            write_us,
            full: false,
            local: None,
            news: News::default(),
        })))
    }

    fn content(&self) -> MutexGuard<'_, Content> {
        self.0.lock().expect("one thread runs everything")
    }

    /// The process that writes to it from now on.
    pub fn attach(&self, local: Local) {
        self.content().local = Some(local);
    }

    /// The process is gone, and with it what it had not made durable.
    pub fn crash(&self) {
        let mut content = self.content();
        let used = content.snapshot.name.clone();
        let keeps = content.chance.random_bool(0.5);
        content.files.retain(|name, _| keeps || *name == used);
        content.fails_in = None;
        content.news = News::default();
    }

    /// One of the next writes fails.
    pub fn fail_in(&self, writes: u64, left: Left) {
        self.content().fails_in = Some((writes, left));
    }

    /// No write fails that was to.
    pub fn mend(&self) {
        self.content().fails_in = None;
    }

    pub fn set_write_us(&self, write_us: u64) {
        self.content().write_us = write_us;
    }

    /// Whether snapshots find no room.
    pub fn set_full(&self, full: bool) {
        self.content().full = full;
    }

    pub fn take_news(&self) -> News {
        std::mem::take(&mut self.content().news)
    }

    /// The entry at `index`, unless it is gone.
    pub fn entry(&self, index: u64) -> Option<Entry> {
        self.content().entries.get(&index).cloned()
    }
}

/// The one error that the store never makes itself.
fn broken() -> LogError {
    LogError::Io { what: "write to the log", source: io::Error::other("the simulated disk has failed") }
}

impl Content {
    /// The time of a write, and whether it fails.
    fn begin_write(&mut self) -> Option<Left> {
        let took_us = exponential(&mut self.chance, self.write_us);
        if let Some(local) = &self.local {
            local.stall(took_us);
        }
        let (left_writes, left) = self.fails_in?;
        if left_writes > 0 {
            self.fails_in = Some((left_writes - 1, left));
            return None;
        }
        self.fails_in = None;
        Some(left)
    }

    fn term(&self, index: u64) -> Option<u64> {
        if index == self.offset.0 { Some(self.offset.1) } else { self.entries.get(&index).map(|entry| entry.term) }
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
            let cut = self.entries.split_off(&first.index);
            drop(cut);
        }
        for entry in batch.entries {
            let before = self.term(entry.index - 1);
            self.news.entries.push((before, entry.clone()));
            self.entries.insert(entry.index, entry.clone());
        }
        if batch.hard_state.vote != 0 && (batch.hard_state.term, batch.hard_state.vote) != (self.hard_state.term, self.hard_state.vote) {
            self.news.votes.push((batch.hard_state.term, batch.hard_state.vote));
        }
        self.hard_state = batch.hard_state.clone();
        if let Some(saved) = batch.snapshot {
            self.files.retain(|name, _| *name == saved.name);
            self.snapshot = saved.clone();
        }
    }
}

impl LogStore for Disk {
    fn load(&mut self) -> Result<Loaded, LogError> {
        let content = self.content();
        let mut terms = Terms::new(content.offset.0, content.offset.1);
        if let Some(gap) = content.entries.values().find(|entry| !terms.put(entry.index, entry.term)) {
            return Err(LogError::Damaged(format!("there is a gap before entry {}", gap.index)));
        }
        let data = content.files.get(&content.snapshot.name).filter(|data| checksum(data) == content.snapshot.checksum).cloned();
        let data = data.ok_or_else(|| LogError::Damaged("a batch names a snapshot that is not there".to_owned()))?;
        let bytes = content.entries.values().map(|entry| entry.data.len() as u64).sum();
        Ok(Loaded { hard_state: content.hard_state.clone(), snapshot: content.snapshot.metadata.clone(), data, terms, bytes })
    }

    fn write(&mut self, batch: &Batch<'_>) -> Result<(), LogError> {
        let mut content = self.content();
        let fails = content.begin_write();
        if fails != Some(Left::Nothing) {
            content.take_in(batch);
        }
        if fails.is_some() { Err(broken()) } else { Ok(()) }
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
            if content.begin_write().is_some() || content.full {
                return Err(broken());
            }
            let name = content.files_made.to_string();
            content.files_made += 1;
            content.files.insert(name.clone(), data.to_vec());
            Ok(Saved { metadata, name, bytes: data.len() as u64, checksum: checksum(data) })
        })
    }
}

//! A disk that outlives the process on it, in memory. A batch is on it as a whole or not at all; what no batch names may be gone after a
//! crash.
//!
//! Of some seeds the log is the managers' own, on a [`Platter`]: then what is here is what that must hold, and each start compares them.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use raft::eraftpb::{Entry, HardState, Snapshot};
use rand::Rng;
use rcluster_manager::core::state::{State, encode_snapshot};
use rcluster_manager::seal::Keys;
use rcluster_manager::store::{Batch, Compaction, Loaded, LogError, LogStore, MemoryLog, Saved, Saver, Wal, first};
use tempfile::TempDir;

use crate::chance::Chance;
use crate::host::Local;
use crate::network::exponential;
use crate::plan::Plan;
use crate::platter::Platter;

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
    log: MemoryLog,
    /// The writes until one fails, and what that leaves.
    fails_in: Option<(u64, Left)>,
    /// Mean time of a write.
    write_us: u64,
    full: bool,
    /// The process on it.
    local: Option<Local>,
    /// What was written since the world last looked.
    news: News,
    wal: Option<Log>,
}

/// The managers' own log.
struct Log {
    platter: Platter,
    /// Where its snapshots are: they are files beside it.
    dir: TempDir,
    segment_bytes: u64,
    keys: Option<Keys>,
    /// While a process has it open.
    open: Option<Wal<Platter>>,
    /// The batch whose write has failed: it may be there, or not.
    failed: Option<Written>,
    /// Something was done to the disk since it was last opened: a failure is no surprise.
    harmed: bool,
    /// A bit has turned.
    rotten: bool,
    /// What was confirmed was not there.
    lost: bool,
}

/// A batch that was to be written.
struct Written {
    hard_state: HardState,
    entries: Vec<Entry>,
    snapshot: Option<Saved>,
    compaction: Option<Compaction>,
}

impl Written {
    fn batch(&self) -> Batch<'_> {
        Batch { hard_state: &self.hard_state, entries: &self.entries, snapshot: self.snapshot.as_ref(), compaction: self.compaction }
    }
}

/// What a process has written.
#[derive(Debug, Default)]
pub struct News {
    /// Term of the entry before, and the entry.
    pub entries: Vec<(Option<u64>, Entry)>,
    /// Term and vote.
    pub votes: Vec<(u64, u64)>,
    /// Index of the tables that came from a leader in one piece, and that it goes on from.
    pub installed: Option<u64>,
}

impl Disk {
    /// With the first log of a cluster, or of a manager that joins one.
    pub fn new(chance: Chance, plan: &Plan, founded: Option<&State>, cluster_id: &str) -> Result<Self, LogError> {
        let (hard_state, snapshot) = match founded {
            Some(state) => first(state),
            None => {
                let mut snapshot = Snapshot::default();
                snapshot.set_data(encode_snapshot(&State::new(cluster_id.to_owned())).into());
                (HardState::default(), snapshot)
            }
        };
        let wal = plan
            .segment_bytes
            .map(|segment_bytes| Log::new(segment_bytes, plan.sealed.then(Keys::random), &hard_state, &snapshot))
            .transpose()?;
        Ok(Self(Arc::new(Mutex::new(Content {
            chance,
            log: MemoryLog::new(hard_state, snapshot),
            fails_in: None,
            write_us: plan.write_us,
            full: false,
            local: None,
            news: News::default(),
            wal,
        }))))
    }

    fn content(&self) -> MutexGuard<'_, Content> {
        self.0.lock().expect("one thread runs everything")
    }

    /// The process that writes to it from now on.
    pub fn attach(&self, local: Local) {
        let mut content = self.content();
        if let Some(log) = &content.wal {
            log.platter.attach(local.clone());
        }
        content.local = Some(local);
    }

    /// The process is gone, and with it what it had not made durable.
    pub fn crash(&self) {
        let mut content = self.content();
        if !content.chance.random_bool(0.5) {
            content.log.sweep();
        }
        content.fails_in = None;
        content.news = News::default();
        let Content { chance, wal, .. } = &mut *content;
        if let Some(log) = wal {
            log.open = None;
            log.platter.mend();
            // The process was killed, or its host as well.
            if chance.random_bool(0.5) {
                log.platter.lose_power(chance);
            }
        }
    }

    /// A bit of it turns; whether any was there that may.
    pub fn rot(&self) -> bool {
        let Content { chance, wal, .. } = &mut *self.content();
        wal.as_mut().is_some_and(|log| {
            log.rotten = log.platter.rot(chance);
            log.harmed |= log.rotten;
            log.rotten
        })
    }

    pub fn is_rotten(&self) -> bool {
        self.content().wal.as_ref().is_some_and(|log| log.rotten)
    }

    /// Whether what it had confirmed was not there at a start.
    pub fn has_lost(&self) -> bool {
        self.content().wal.as_ref().is_some_and(|log| log.lost)
    }

    /// Whether something was done to it since it was last opened that a manager need not survive.
    pub fn is_harmed(&self) -> bool {
        let content = self.content();
        content.full || content.wal.as_ref().is_some_and(|log| log.harmed)
    }

    /// One of the next writes fails.
    pub fn fail_in(&self, writes: u64, left: Left) {
        let mut content = self.content();
        match &mut content.wal {
            // Each call is a place to fail at.
            Some(log) => {
                log.harmed = true;
                log.platter.fail_in(writes);
            }
            None => content.fails_in = Some((writes, left)),
        }
    }

    /// The next sync fails; where the log is kept in memory, a write.
    pub fn fail_sync(&self, left: Left) {
        let mut content = self.content();
        match &mut content.wal {
            Some(log) => {
                log.harmed = true;
                log.platter.fail_sync();
            }
            None => content.fails_in = Some((0, left)),
        }
    }

    /// No write fails that was to.
    pub fn mend(&self) {
        let mut content = self.content();
        content.fails_in = None;
        if let Some(log) = &content.wal {
            log.platter.mend();
        }
    }

    pub fn set_write_us(&self, write_us: u64) {
        self.content().write_us = write_us;
    }

    /// Whether there is no room: for snapshots, and for another segment of the log.
    pub fn set_full(&self, full: bool) {
        let mut content = self.content();
        content.full = full;
        if let Some(log) = &mut content.wal {
            log.harmed |= full;
            log.platter.set_full(full);
        }
    }

    pub fn take_news(&self) -> News {
        std::mem::take(&mut self.content().news)
    }

    /// Index of the snapshot that the next start begins from.
    pub fn snapshot_index(&self) -> u64 {
        self.content().log.snapshot().metadata.index
    }

    /// The entry at `index`, unless it is gone.
    pub fn entry(&self, index: u64) -> Option<Entry> {
        self.content().log.entries().get(&index).cloned()
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

    fn take_in(&mut self, batch: &Batch<'_>) {
        let Self { log, news, .. } = self;
        let (known, said) = (log.hard_state(), batch.hard_state);
        if said.vote != 0 && (said.term, said.vote) != (known.term, known.vote) {
            news.votes.push((said.term, said.vote));
        }
        log.write(batch);
        news.entries.extend(batch.entries.iter().map(|entry| (log.term(entry.index - 1), entry.clone())));
        if let (Some(saved), Some(Compaction::Reset { .. })) = (batch.snapshot, batch.compaction) {
            news.installed = Some(saved.metadata.index);
        }
    }
}

impl Log {
    fn new(segment_bytes: u64, keys: Option<Keys>, hard_state: &HardState, snapshot: &Snapshot) -> Result<Self, LogError> {
        let dir = tempfile::tempdir().map_err(|source| LogError::Io { what: "make a directory for snapshots", source })?;
        let platter = Platter::default();
        drop(Wal::create_on(platter.clone(), dir.path(), segment_bytes, keys.clone(), b"simulated", hard_state, snapshot.clone())?);
        Ok(Self { platter, dir, segment_bytes, keys, open: None, failed: None, harmed: false, rotten: false, lost: false })
    }

    fn opened(&self) -> Result<&Wal<Platter>, LogError> {
        self.open.as_ref().ok_or_else(|| LogError::Damaged("the log is not open".to_owned()))
    }
}

impl Content {
    /// Opens the managers' own log, and compares what it holds with what was confirmed.
    fn open(&mut self) -> Result<Loaded, LogError> {
        let Some(log) = &mut self.wal else { return self.log.load() };
        let mut wal = Wal::open_on(log.platter.clone(), log.dir.path(), log.segment_bytes, log.keys.clone())?.0;
        let found = wal.load()?;
        let (first, last) = (found.terms.first(), found.terms.last());
        let entries = if last < first { Vec::new() } else { wal.entries(first, last + 1, u64::MAX)? };
        let failed = log.failed.take();
        log.open = Some(wal);
        // What is still to fail was asked for before it was opened.
        log.harmed = log.platter.is_to_fail();
        if self.holds(&found, &entries) {
            return Ok(found);
        }
        if let Some(failed) = failed {
            self.take_in(&failed.batch());
        }
        if self.holds(&found, &entries) {
            return Ok(found);
        }
        if let Some(log) = &mut self.wal {
            log.lost = true;
        }
        Err(lost(&found))
    }

    fn holds(&self, found: &Loaded, entries: &[Entry]) -> bool {
        let (log, (index, term)) = (&self.log, self.log.offset());
        let snapshot = &log.snapshot().metadata;
        found.terms.first() == index + 1
            && found.terms.term(index) == Some(term)
            && found.hard_state == *log.hard_state()
            && (found.snapshot.index, found.snapshot.term) == (snapshot.index, snapshot.term)
            && found.snapshot.get_conf_state() == snapshot.get_conf_state()
            && entries.iter().eq(log.entries().values())
    }

    fn write(&mut self, batch: &Batch<'_>) -> Result<(), LogError> {
        let fails = self.begin_write();
        if let Some(wal) = self.wal.as_mut().and_then(|log| log.open.as_mut()) {
            if let Err(error) = wal.write(batch) {
                let Batch { hard_state, entries, snapshot, compaction } = *batch;
                let failed = Written { hard_state: hard_state.clone(), entries: entries.to_vec(), snapshot: snapshot.cloned(), compaction };
                if let Some(log) = &mut self.wal {
                    log.failed = Some(failed);
                }
                return Err(error);
            }
            self.take_in(batch);
            return Ok(());
        }
        if fails != Some(Left::Nothing) {
            self.take_in(batch);
        }
        if fails.is_some() { Err(broken()) } else { Ok(()) }
    }
}

/// What was confirmed is not what is there.
fn lost(found: &Loaded) -> LogError {
    LogError::Damaged(format!("it lost what was confirmed: it holds {} to {}", found.terms.first(), found.terms.last()))
}

impl LogStore for Disk {
    fn load(&mut self) -> Result<Loaded, LogError> {
        self.content().open()
    }

    fn write(&mut self, batch: &Batch<'_>) -> Result<(), LogError> {
        self.content().write(batch)
    }

    fn entries(&self, low: u64, high: u64, bytes_max: u64) -> Result<Vec<Entry>, LogError> {
        let content = self.content();
        if let Some(log) = &content.wal {
            return log.opened()?.entries(low, high, bytes_max);
        }
        Ok(content.log.read(low, high, bytes_max))
    }

    fn saver(&self) -> Saver {
        let disk = self.clone();
        Box::new(move |metadata, data| {
            let mut content = disk.content();
            if content.begin_write().is_some() || content.full {
                return Err(broken());
            }
            if let Some(log) = &content.wal {
                return log.opened()?.saver()(metadata, data);
            }
            Ok(content.log.save(metadata, data))
        })
    }
}

//! The log on a disk that loses power: of the writes that were not synced, each sector is there as it was before one of them, or after;
//! names that were not synced come back in the order in which they were made, up to some point. And on one whose manager is killed: the
//! next one finds what was written, synced or not.

use std::collections::BTreeMap;
use std::io;
use std::mem;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;

use raft::eraftpb::{Entry, HardState, SnapshotMetadata};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rcluster_manager::seal::Keys;
use rcluster_manager::store::{Batch, Compaction, Disk, DiskFile, LogError, LogStore, Saved, Wal, first};

use crate::world::{config, founded};

const SECTOR_BYTES: usize = 512;

#[derive(Debug, Clone, Default)]
struct Content {
    durable: Vec<u8>,
    current: Vec<u8>,
    /// Writes since the last sync: where and what.
    unsynced: Vec<(usize, Vec<u8>)>,
}

type Names = BTreeMap<String, usize>;
type Work = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct Platter {
    contents: Vec<Content>,
    names: Names,
    /// The names as they were after each change since the last sync, and at it.
    unsynced: Vec<Names>,
    /// Calls left until the power goes.
    left: Option<u64>,
    /// A sync that fails takes what it should have written for written, as Linux does.
    forgetful: bool,
    beside: Vec<Work>,
}

/// A disk; clones share it.
#[derive(Clone, Default)]
struct Fragile(Arc<Mutex<Platter>>);

struct File {
    disk: Fragile,
    content: usize,
}

impl Content {
    fn after_power_cut(&self, rng: &mut StdRng) -> Vec<u8> {
        let mut found = self.durable.clone();
        let touched = self.unsynced.iter().map(|(offset, data)| offset + data.len()).max().unwrap_or(0);
        for begin in (0..touched).step_by(SECTOR_BYTES) {
            let here = |(offset, data): &&(usize, Vec<u8>)| *offset < begin + SECTOR_BYTES && offset + data.len() > begin;
            let writes: Vec<_> = self.unsynced.iter().filter(here).collect();
            let kept = rng.random_range(0..=writes.len());
            for (offset, data) in &writes[..kept] {
                let (from, to) = ((*offset).max(begin), (offset + data.len()).min(begin + SECTOR_BYTES));
                if found.len() < to {
                    found.resize(to, 0);
                }
                found[from..to].copy_from_slice(&data[from - offset..to - offset]);
            }
        }
        found
    }
}

impl Platter {
    fn call(&mut self) -> io::Result<()> {
        match &mut self.left {
            Some(0) => Err(io::Error::other("no power")),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn change_names(&mut self, change: impl FnOnce(&mut Names)) {
        if self.unsynced.is_empty() {
            self.unsynced.push(self.names.clone());
        }
        change(&mut self.names);
        self.unsynced.push(self.names.clone());
    }
}

impl Fragile {
    fn platter(&self) -> MutexGuard<'_, Platter> {
        self.0.lock().unwrap()
    }

    /// The power goes, or calls fail, after so many.
    fn fail_after(&self, calls: u64, forgetful: bool) {
        let mut platter = self.platter();
        (platter.left, platter.forgetful) = (Some(calls), forgetful);
    }

    /// The manager is killed: the kernel has everything that was written.
    fn after_kill(&self) -> Self {
        let mut platter = self.platter();
        platter.left = None;
        platter.beside.clear();
        drop(platter);
        self.clone()
    }

    /// What is there when the power is back.
    fn after_power_cut(&self, rng: &mut StdRng) -> Self {
        let mut platter = self.platter();
        platter.beside.clear();
        let at = platter.unsynced.len().checked_sub(1).map(|last| rng.random_range(0..=last));
        let names = at.map_or_else(|| platter.names.clone(), |at| platter.unsynced[at].clone());
        let found = platter.contents.iter().map(|content| content.after_power_cut(rng));
        let contents = found.map(|found| Content { durable: found.clone(), current: found, unsynced: Vec::new() }).collect();
        Self(Arc::new(Mutex::new(Platter { contents, names, ..Platter::default() })))
    }

    /// Does what was to be done beside the log's thread.
    fn catch_up(&self) {
        let work = mem::take(&mut self.platter().beside);
        work.into_iter().for_each(|work| work());
    }

    fn file(&self, content: usize) -> File {
        File { disk: self.clone(), content }
    }
}

fn absent() -> io::Error {
    io::ErrorKind::NotFound.into()
}

impl Disk for Fragile {
    type File = File;

    fn path(&self, name: &str) -> PathBuf {
        PathBuf::from(name)
    }

    fn names(&self) -> io::Result<Vec<String>> {
        Ok(self.platter().names.keys().cloned().collect())
    }

    fn open(&self, name: &str) -> io::Result<File> {
        let content = *self.platter().names.get(name).ok_or_else(absent)?;
        Ok(self.file(content))
    }

    fn create(&self, name: &str) -> io::Result<File> {
        let mut platter = self.platter();
        platter.call()?;
        platter.contents.push(Content::default());
        let content = platter.contents.len() - 1;
        platter.change_names(|names| {
            names.insert(name.to_owned(), content);
        });
        drop(platter);
        Ok(self.file(content))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut platter = self.platter();
        platter.call()?;
        let content = *platter.names.get(from).ok_or_else(absent)?;
        platter.change_names(|names| {
            names.remove(from);
            names.insert(to.to_owned(), content);
        });
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut platter = self.platter();
        platter.call()?;
        platter.change_names(|names| {
            names.remove(name);
        });
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut platter = self.platter();
        platter.call()?;
        platter.unsynced.clear();
        Ok(())
    }

    fn beside(&self, work: Work) -> io::Result<Option<JoinHandle<()>>> {
        self.platter().beside.push(work);
        Ok(None)
    }
}

impl DiskFile for File {
    fn length(&self) -> io::Result<u64> {
        Ok(self.disk.platter().contents[self.content].current.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let start = usize::try_from(offset).unwrap();
        let platter = self.disk.platter();
        let there = platter.contents[self.content].current.get(start..start + out.len());
        out.copy_from_slice(there.ok_or_else(|| io::Error::other("beyond the end"))?);
        Ok(())
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut platter = self.disk.platter();
        platter.call()?;
        let content = &mut platter.contents[self.content];
        let start = usize::try_from(offset).unwrap();
        if content.current.len() < start + bytes.len() {
            content.current.resize(start + bytes.len(), 0);
        }
        content.current[start..start + bytes.len()].copy_from_slice(bytes);
        content.unsynced.push((start, bytes.to_vec()));
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut platter = self.disk.platter();
        let called = platter.call();
        let forgetful = platter.forgetful;
        let Content { durable, unsynced, .. } = &mut platter.contents[self.content];
        if called.is_err() && forgetful {
            unsynced.clear();
        }
        called?;
        for (offset, data) in unsynced.drain(..) {
            if durable.len() < offset + data.len() {
                durable.resize(offset + data.len(), 0);
            }
            durable[offset..offset + data.len()].copy_from_slice(&data);
        }
        Ok(())
    }
}

/// What a log holds, as a test expects it.
#[derive(Debug, Clone, PartialEq)]
struct Expected {
    offset: u64,
    snapshot: u64,
    entries: BTreeMap<u64, Entry>,
    term: u64,
}

fn found(log: &mut Wal<Fragile>) -> Expected {
    let loaded = log.load().unwrap();
    let (first, last) = (loaded.terms.first(), loaded.terms.last());
    let entries = if last < first { Vec::new() } else { log.entries(first, last + 1, u64::MAX).unwrap() };
    assert_eq!(entries.len() as u64, last + 1 - first);
    assert!(entries.iter().all(|entry| loaded.terms.term(entry.index) == Some(entry.term)));
    let entries = entries.into_iter().map(|entry| (entry.index, entry)).collect();
    Expected { offset: first - 1, snapshot: loaded.snapshot.index, entries, term: loaded.hard_state.term }
}

impl Expected {
    fn last(&self) -> u64 {
        self.entries.keys().last().copied().unwrap_or(self.offset)
    }

    fn term_of(&self, index: u64) -> u64 {
        self.entries.get(&index).map_or(1, |entry| entry.term)
    }

    /// Entries of the next term; some overwrite the end of the log, as a new leader's do.
    fn draw_entries(&self, rng: &mut StdRng) -> Vec<Entry> {
        let from = rng.random_range(self.last().saturating_sub(3).max(self.snapshot).max(self.offset)..=self.last()) + 1;
        let count = rng.random_range(0..4);
        let make = |index| {
            let mut entry = Entry::default();
            (entry.index, entry.term) = (index, self.term + 1);
            let fill = if rng.random_bool(0.3) { 0 } else { u8::try_from(index % 251).unwrap() };
            entry.data = vec![fill; rng.random_range(0..6000)].into();
            entry
        };
        (from..from + count).map(make).collect()
    }

    fn after(&self, batch: &Batch<'_>) -> Self {
        let mut after = self.clone();
        match batch.compaction {
            Some(Compaction::Through { index, .. }) => {
                after.entries.retain(|at, _| *at > index);
                after.offset = index;
            }
            Some(Compaction::Reset { index, .. }) => {
                after.entries.clear();
                after.offset = index;
            }
            None => {}
        }
        if let Some(first) = batch.entries.first() {
            after.entries.retain(|at, _| *at < first.index);
        }
        after.entries.extend(batch.entries.iter().map(|entry| (entry.index, entry.clone())));
        after.snapshot = batch.snapshot.map_or(after.snapshot, |saved| saved.metadata.index);
        after.term = batch.hard_state.term;
        after
    }
}

/// Writes until the power goes; what was confirmed, and what was being written then.
fn write_until_the_power_goes(
    log: &mut Wal<Fragile>,
    disk: &Fragile,
    mut confirmed: Expected,
    rng: &mut StdRng,
    rolled: &mut u64,
) -> [Expected; 2] {
    loop {
        if rng.random_bool(0.5) {
            disk.catch_up();
        }
        let hard_state = HardState { term: confirmed.term + 1, commit: 1, ..HardState::default() };
        let entries = confirmed.draw_entries(rng);
        let saved = |index, term| log.saver()(SnapshotMetadata { index, term, ..SnapshotMetadata::default() }, b"tables").unwrap();
        let (snapshot, compaction): (Option<Saved>, _) = match rng.random_range(0..12) {
            0 if entries.is_empty() => {
                let (index, term) = (confirmed.last() + rng.random_range(1..5), 1);
                (Some(saved(index, term)), Some(Compaction::Reset { index, term }))
            }
            1 if entries.is_empty() => {
                let (snapshot, index) = (confirmed.last(), rng.random_range(confirmed.offset..=confirmed.last()));
                let compaction = Compaction::Through { index, term: confirmed.term_of(index) };
                (Some(saved(snapshot, confirmed.term_of(snapshot))), Some(compaction))
            }
            _ => (None, None),
        };
        let batch = Batch { hard_state: &hard_state, entries: &entries, snapshot: snapshot.as_ref(), compaction };
        let attempted = confirmed.after(&batch);
        if log.write(&batch).is_err() {
            return [confirmed, attempted];
        }
        *rolled = (*rolled).max(disk.names().unwrap().iter().filter(|name| name.starts_with("segment-")).count() as u64);
        confirmed = attempted;
    }
}

/// The log after a power cut or a kill; the same may happen again while it is opened.
fn open_again(disk: &mut Fragile, dir: &Path, segment_bytes: u64, keys: Option<&Keys>, rng: &mut StdRng, seed: u64) -> Wal<Fragile> {
    loop {
        *disk = if rng.random_bool(0.3) { disk.after_kill() } else { disk.after_power_cut(rng) };
        let cut_again = rng.random_bool(0.4);
        if cut_again {
            disk.fail_after(rng.random_range(0..8), rng.random_bool(0.5));
        }
        match Wal::open_on(disk.clone(), dir, segment_bytes, keys.cloned()) {
            Ok((log, identity)) => {
                assert_eq!(identity, b"m1");
                assert!(!disk.names().unwrap().iter().any(|name| name == "new"), "seed {seed}: an unfinished segment stays");
                return log;
            }
            Err(LogError::File { .. }) if cut_again => {}
            Err(error) => panic!("seed {seed}: {error}"),
        }
    }
}

#[test]
fn a_batch_is_there_as_a_whole_or_not_at_all_and_always_once_it_was_confirmed() {
    let (mut cuts, mut kept, mut rolled) = (0, 0, 0);
    for seed in 0..150 {
        let mut rng = StdRng::seed_from_u64(seed);
        let dir = tempfile::tempdir().unwrap();
        let mut disk = Fragile::default();
        let segment_bytes = [4 << 10, 20 << 10, 100 << 10][rng.random_range(0..3)];
        let (hard_state, snapshot) = first(&founded(&config(1, 1).seeds));
        // Half of them are sealed.
        let keys = (seed % 2 == 0).then(Keys::random);
        let mut log = Wal::create_on(disk.clone(), dir.path(), segment_bytes, keys.clone(), b"m1", &hard_state, snapshot).unwrap();
        let mut confirmed = found(&mut log);
        for _ in 0..6 {
            let calls = if rng.random_bool(0.2) { 0 } else { rng.random_range(1..150) };
            disk.fail_after(calls, rng.random_bool(0.5));
            let attempts = write_until_the_power_goes(&mut log, &disk, confirmed, &mut rng, &mut rolled);
            drop(log);
            log = open_again(&mut disk, dir.path(), segment_bytes, keys.as_ref(), &mut rng, seed);
            confirmed = found(&mut log);
            assert!(attempts.contains(&confirmed), "seed {seed}: found {confirmed:?}, confirmed and attempted {attempts:?}");
            cuts += 1;
            kept += usize::from(confirmed == attempts[1]);
        }
    }
    assert!(kept > cuts / 20 && kept < cuts / 2, "{kept} of {cuts} last batches were kept: the test does not cut where it should");
    assert!(rolled > 3, "no more than {rolled} segments at once: the test does not go through segments");
}

#[test]
fn a_first_log_is_there_as_a_whole_or_not_at_all() {
    let (mut whole, mut absent) = (0, 0);
    for seed in 0..200 {
        let mut rng = StdRng::seed_from_u64(seed);
        let dir = tempfile::tempdir().unwrap();
        let disk = Fragile::default();
        let (hard_state, snapshot) = first(&founded(&config(1, 1).seeds));
        disk.fail_after(rng.random_range(0..6), false);
        let keys = (seed % 2 == 0).then(Keys::random);
        let made = Wal::create_on(disk.clone(), dir.path(), 8 << 10, keys.clone(), b"m1", &hard_state, snapshot.clone()).is_ok();
        let disk = disk.after_power_cut(&mut rng);
        let exists = disk.names().unwrap().iter().any(|name| name.starts_with("segment-"));
        assert!(exists || !made, "seed {seed}: it was made and is gone");
        if !exists {
            absent += 1;
            Wal::create_on(disk.clone(), dir.path(), 8 << 10, keys.clone(), b"m1", &hard_state, snapshot).unwrap();
        } else {
            whole += 1;
        }
        let (mut log, _) = Wal::open_on(disk, dir.path(), 8 << 10, keys).unwrap();
        assert_eq!(found(&mut log).snapshot, 1);
    }
    assert!(whole > 20 && absent > 20, "{whole} whole, {absent} absent");
}

//! redb under our log, on a disk that loses power: writes that were not synced are lost, whole or in part, in any combination.

use std::io;
use std::sync::{Arc, Mutex};

use raft::eraftpb::{Entry, HardState};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rcluster_manager::store::{Batch, LogStore, RedbLog, first};
use redb::{Database, StorageBackend};

use crate::world::{config, founded};

#[derive(Debug, Default)]
struct Platter {
    durable: Vec<u8>,
    current: Vec<u8>,
    /// Writes since the last sync: where and what.
    unsynced: Vec<(usize, Vec<u8>)>,
    /// Calls left until the power goes.
    left: Option<u64>,
}

/// A disk; clones share it.
#[derive(Debug, Clone, Default)]
struct Disk(Arc<Mutex<Platter>>);

impl Disk {
    /// The power goes after so many calls.
    fn fail_after(&self, calls: u64) {
        self.0.lock().unwrap().left = Some(calls);
    }

    /// What is there when the power is back: each unsynced write as a whole, in part, or not at all.
    fn after_power_cut(&self, rng: &mut StdRng) -> Self {
        let platter = self.0.lock().unwrap();
        let mut durable = platter.durable.clone();
        for (offset, data) in &platter.unsynced {
            let sectors = data.len().div_ceil(512);
            let kept = match rng.random_range(0..3) {
                0 => 0,
                1 => data.len(),
                _ => (rng.random_range(0..=sectors) * 512).min(data.len()),
            };
            if durable.len() < offset + kept {
                durable.resize(offset + kept, 0);
            }
            durable[*offset..offset + kept].copy_from_slice(&data[..kept]);
        }
        Self(Arc::new(Mutex::new(Platter { current: durable.clone(), durable, ..Platter::default() })))
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
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().unwrap().current.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let platter = self.0.lock().unwrap();
        let start = usize::try_from(offset).unwrap();
        let there = platter.current.get(start..start + out.len()).ok_or_else(|| io::Error::other("beyond the end"))?;
        out.copy_from_slice(there);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut platter = self.0.lock().unwrap();
        platter.call()?;
        // A file system journals lengths: they are not what this test takes away.
        let len = usize::try_from(len).unwrap();
        platter.current.resize(len, 0);
        platter.durable.resize(len, 0);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut platter = self.0.lock().unwrap();
        platter.call()?;
        platter.durable = platter.current.clone();
        platter.unsynced.clear();
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut platter = self.0.lock().unwrap();
        platter.call()?;
        let start = usize::try_from(offset).unwrap();
        if platter.current.len() < start + data.len() {
            platter.current.resize(start + data.len(), 0);
        }
        platter.current[start..start + data.len()].copy_from_slice(data);
        platter.unsynced.push((start, data.to_vec()));
        Ok(())
    }
}

fn open(disk: &Disk) -> Database {
    Database::builder().set_cache_size(1 << 20).create_with_backend(disk.clone()).unwrap()
}

/// The log's content: term and length of each entry, and the term of the hard state.
type Content = (Vec<(u64, u64, usize)>, u64);

fn content(log: &mut RedbLog) -> Content {
    let loaded = log.load().unwrap();
    let (first, last) = (loaded.terms.first(), loaded.terms.last());
    let entries = if last < first { Vec::new() } else { log.entries(first, last + 1, u64::MAX).unwrap() };
    (entries.iter().map(|entry| (entry.index, entry.term, entry.data.len())).collect(), loaded.hard_state.term)
}

#[test]
fn a_batch_is_there_as_a_whole_or_not_at_all_and_always_once_it_was_confirmed() {
    let (mut cuts, mut kept) = (0, 0);
    for seed in 0..150 {
        let mut rng = StdRng::seed_from_u64(seed);
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::default();
        let (hard_state, snapshot) = first(&founded(&config(1, 1).seeds));
        let mut log = RedbLog::create_on(open(&disk), dir.path(), b"m1", &hard_state, snapshot).unwrap();
        disk.fail_after(rng.random_range(1..200));
        let mut confirmed = content(&mut log);
        let mut attempted = confirmed.clone();
        for term in 2.. {
            let last = confirmed.0.last().map_or(1, |(index, _, _)| *index);
            // Some batches overwrite the end of the log, as a new leader's do.
            let from = rng.random_range(last.saturating_sub(3).max(1)..=last) + 1;
            let lengths: Vec<usize> = (0..rng.random_range(0..4)).map(|_| rng.random_range(1..6000)).collect();
            let entries: Vec<Entry> = (from..)
                .zip(&lengths)
                .map(|(index, length)| {
                    let mut entry = Entry::default();
                    (entry.index, entry.term) = (index, term);
                    entry.data = vec![7; *length].into();
                    entry
                })
                .collect();
            let mut hard_state = HardState::default();
            (hard_state.term, hard_state.commit) = (term, 1);
            attempted = confirmed.clone();
            attempted.1 = term;
            if !entries.is_empty() {
                attempted.0.retain(|(index, _, _)| *index < from);
                attempted.0.extend(entries.iter().map(|entry| (entry.index, term, entry.data.len())));
            }
            if log.write(&Batch { hard_state: &hard_state, entries: &entries, snapshot: None, compaction: None }).is_err() {
                break;
            }
            confirmed = attempted.clone();
        }
        drop(log);
        let (mut log, identity) = RedbLog::open_on(open(&disk.after_power_cut(&mut rng)), dir.path()).unwrap();
        assert_eq!(identity, b"m1");
        let found = content(&mut log);
        assert!(found == confirmed || found == attempted, "seed {seed}: found {found:?}, confirmed {confirmed:?}, attempted {attempted:?}");
        cuts += 1;
        kept += usize::from(found == attempted);
    }
    assert!(kept > 0 && kept < cuts, "{kept} of {cuts} last batches were kept: the test does not cut where it should");
}

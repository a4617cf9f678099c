//! The directory of a log on a disk that loses power, fills up, fails and rots.
//!
//! Of the writes that were not synced each sector is there as it was before one of them, or after; names that were not synced come back in
//! the order in which they were made, up to some point. A manager that is only killed leaves all of it to the kernel.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;

use rand::Rng;
use rand::seq::IteratorRandom;
use rcluster_manager::store::{Disk, DiskFile, Environment as _};

use crate::chance::Chance;
use crate::host::Local;

const SECTOR_BYTES: usize = 512;

#[derive(Default)]
struct Content {
    durable: Vec<u8>,
    current: Vec<u8>,
    /// Writes since the last sync: where and what.
    unsynced: Vec<(usize, Vec<u8>)>,
    /// Where the last write began that was not of zeros: what stands before it may rot and is missed, what stands there looks torn.
    last: usize,
}

type Shared = Arc<Mutex<Content>>;
type Names = BTreeMap<String, Shared>;

#[derive(Default)]
struct Surface {
    names: Names,
    /// The names as they were before each change since the last sync.
    unsynced: Vec<Names>,
    /// Calls until one fails, and all after it.
    left: Option<u64>,
    /// The next sync fails, and all calls after it.
    fails_sync: bool,
    full: bool,
    /// The process that writes.
    local: Option<Local>,
}

/// The directory; clones share it.
#[derive(Clone, Default)]
pub struct Platter(Arc<Mutex<Surface>>);

/// A file in it.
pub struct File {
    platter: Platter,
    content: Shared,
}

fn hold<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("one thread runs everything")
}

impl Content {
    fn put(bytes: &mut Vec<u8>, offset: usize, data: &[u8]) {
        if bytes.len() < offset + data.len() {
            bytes.resize(offset + data.len(), 0);
        }
        bytes[offset..offset + data.len()].copy_from_slice(data);
    }

    fn lose_power(&mut self, chance: &mut Chance) {
        let mut found = std::mem::take(&mut self.durable);
        let touched = self.unsynced.iter().map(|(offset, data)| offset + data.len()).max().unwrap_or(0);
        for begin in (0..touched).step_by(SECTOR_BYTES) {
            let here = |(offset, data): &&(usize, Vec<u8>)| *offset < begin + SECTOR_BYTES && offset + data.len() > begin;
            let writes: Vec<_> = self.unsynced.iter().filter(here).collect();
            let kept = chance.random_range(0..=writes.len());
            for (offset, data) in &writes[..kept] {
                let (from, to) = ((*offset).max(begin), (offset + data.len()).min(begin + SECTOR_BYTES));
                Self::put(&mut found, from, &data[from - offset..to - offset]);
            }
        }
        self.unsynced.clear();
        self.current.clone_from(&found);
        self.durable = found;
    }
}

impl Surface {
    fn call(&mut self) -> io::Result<()> {
        match &mut self.left {
            Some(0) => Err(io::Error::other("the simulated disk has failed")),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn sync(&mut self) -> io::Result<()> {
        if std::mem::take(&mut self.fails_sync) {
            self.left = Some(0);
        }
        self.call()
    }
}

impl Platter {
    fn surface(&self) -> MutexGuard<'_, Surface> {
        hold(&self.0)
    }

    pub fn attach(&self, local: Local) {
        self.surface().local = Some(local);
    }

    /// Calls fail after so many.
    pub fn fail_in(&self, calls: u64) {
        self.surface().left = Some(calls);
    }

    /// The next sync fails: what was written before it may be there or not.
    pub fn fail_sync(&self) {
        self.surface().fails_sync = true;
    }

    /// Whether a call is to fail.
    pub fn is_to_fail(&self) -> bool {
        let surface = self.surface();
        surface.fails_sync || surface.left.is_some()
    }

    /// No call fails that was to.
    pub fn mend(&self) {
        let mut surface = self.surface();
        (surface.left, surface.fails_sync) = (None, false);
    }

    pub fn set_full(&self, full: bool) {
        self.surface().full = full;
    }

    /// What is there when the power is back.
    pub fn lose_power(&self, chance: &mut Chance) {
        let mut surface = self.surface();
        let mut histories = std::mem::take(&mut surface.unsynced);
        if !histories.is_empty() {
            let at = chance.random_range(0..=histories.len());
            if at < histories.len() {
                surface.names = histories.swap_remove(at);
            }
        }
        for content in surface.names.values() {
            hold(content).lose_power(chance);
        }
    }

    /// A bit of what was made durable some time ago turns; whether there was one.
    pub fn rot(&self, chance: &mut Chance) -> bool {
        let surface = self.surface();
        let segments = surface.names.iter().filter(|(name, content)| {
            name.starts_with("segment-") && {
                let content = hold(content);
                content.last.min(content.durable.len()) > 0
            }
        });
        let Some((_, content)) = segments.choose(chance) else { return false };
        let mut content = hold(content);
        let end = content.last.min(content.durable.len());
        let (at, bit) = (chance.random_range(0..end), 1 << chance.random_range(0..8));
        content.durable[at] ^= bit;
        content.current[at] ^= bit;
        true
    }
}

fn absent() -> io::Error {
    io::ErrorKind::NotFound.into()
}

impl Disk for Platter {
    type File = File;

    fn path(&self, name: &str) -> PathBuf {
        PathBuf::from(name)
    }

    fn names(&self) -> io::Result<Vec<String>> {
        Ok(self.surface().names.keys().cloned().collect())
    }

    fn open(&self, name: &str) -> io::Result<File> {
        let content = self.surface().names.get(name).ok_or_else(absent)?.clone();
        Ok(File { platter: self.clone(), content })
    }

    fn create(&self, name: &str) -> io::Result<File> {
        let mut surface = self.surface();
        surface.call()?;
        if surface.full {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let (before, content) = (surface.names.clone(), Shared::default());
        surface.unsynced.push(before);
        surface.names.insert(name.to_owned(), content.clone());
        Ok(File { platter: self.clone(), content })
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut surface = self.surface();
        surface.call()?;
        let before = surface.names.clone();
        let content = surface.names.remove(from).ok_or_else(absent)?;
        surface.names.insert(to.to_owned(), content);
        surface.unsynced.push(before);
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut surface = self.surface();
        surface.call()?;
        let before = surface.names.clone();
        surface.names.remove(name);
        surface.unsynced.push(before);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut surface = self.surface();
        surface.sync()?;
        surface.unsynced.clear();
        Ok(())
    }

    fn beside(&self, work: Box<dyn FnOnce() + Send>) -> io::Result<Option<JoinHandle<()>>> {
        let local = self.surface().local.clone();
        match local {
            Some(mut local) => local.beside(work)?,
            // The log is being made, and no process runs on it yet.
            None => work(),
        }
        Ok(None)
    }
}

impl DiskFile for File {
    fn length(&self) -> io::Result<u64> {
        Ok(hold(&self.content).current.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let start = usize::try_from(offset).map_err(io::Error::other)?;
        let content = hold(&self.content);
        let there = content.current.get(start..start + out.len());
        out.copy_from_slice(there.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?);
        Ok(())
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut surface = self.platter.surface();
        surface.call()?;
        let mut content = hold(&self.content);
        let start = usize::try_from(offset).map_err(io::Error::other)?;
        if surface.full && content.current.len() < start + bytes.len() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Content::put(&mut content.current, start, bytes);
        content.unsynced.push((start, bytes.to_vec()));
        if bytes.iter().any(|byte| *byte != 0) {
            content.last = start;
        } else if start < content.last {
            // A segment that is used again.
            content.last = 0;
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let called = self.platter.surface().sync();
        let mut content = hold(&self.content);
        let Content { durable, unsynced, .. } = &mut *content;
        if called.is_err() {
            // As Linux does: what could not be written counts as written, and is not written again.
            unsynced.clear();
        }
        called?;
        for (offset, data) in unsynced.drain(..) {
            Content::put(durable, offset, &data);
        }
        Ok(())
    }
}

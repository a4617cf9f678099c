//! The next segment, filled with zeros before it is needed: a write into blocks that are there changes no length and no map of the file
//! system, and is durable in half the time. Filling takes a tenth of a second, which the owner thread cannot wait; it is done beside it.
//!
//! Segments that nothing needs any more are used again, so that a log that goes round needs no new room.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use tracing::warn;

use super::disk::{Disk, DiskFile};
use super::segment_name;

/// A segment to be; what it holds is never read.
pub const SPARE: &str = "spare";
/// Zeros written at a time.
const PIECE_BYTES: usize = 64 << 10;

/// The spare segment and who makes it.
#[derive(Debug)]
pub struct Spares<D: Disk> {
    disk: D,
    segment_bytes: u64,
    shared: Arc<Shared<D::File>>,
    /// Segments that nothing needs any more.
    dead: Vec<u64>,
    worker: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared<F> {
    spare: Mutex<Option<F>>,
    working: AtomicBool,
    stop: AtomicBool,
}

impl<F> Shared<F> {
    fn spare(&self) -> MutexGuard<'_, Option<F>> {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<D: Disk> Spares<D> {
    pub fn new(disk: D, segment_bytes: u64) -> Self {
        let shared = Shared { spare: Mutex::new(None), working: AtomicBool::new(false), stop: AtomicBool::new(false) };
        Self { disk, segment_bytes, shared: Arc::new(shared), dead: Vec::new(), worker: None }
    }

    /// The spare segment, called [`SPARE`], if it is ready.
    pub fn take(&mut self) -> Option<D::File> {
        if self.shared.working.load(Ordering::Acquire) {
            return None;
        }
        self.shared.spare().take()
    }

    /// Nothing needs these segments any more.
    pub fn retire(&mut self, segments: impl Iterator<Item = u64>) {
        self.dead.extend(segments);
    }

    /// Has a spare made and dead segments removed, unless that is being done or there is nothing to do.
    pub fn work(&mut self) {
        let idle = self.dead.is_empty() && self.shared.spare().is_some();
        if idle || self.shared.working.swap(true, Ordering::AcqRel) {
            return;
        }
        let (disk, shared, segment_bytes) = (self.disk.clone(), self.shared.clone(), self.segment_bytes);
        let dead = std::mem::take(&mut self.dead);
        let work = move || {
            if let Err(error) = work(&disk, &shared, &dead, segment_bytes) {
                warn!(%error, "no segment of the log can be made ready: its writes will be slower; does the disk have room?");
            }
            shared.working.store(false, Ordering::Release);
        };
        match self.disk.beside(Box::new(work)) {
            Ok(worker) => self.worker = worker,
            Err(error) => {
                self.shared.working.store(false, Ordering::Release);
                warn!(%error, "no thread to make the log's next segment ready");
            }
        }
    }
}

impl<D: Disk> Drop for Spares<D> {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        if let Some(worker) = self.worker.take() {
            // One that has panicked has ended as well.
            drop(worker.join());
        }
    }
}

fn work<D: Disk>(disk: &D, shared: &Shared<D::File>, dead: &[u64], segment_bytes: u64) -> io::Result<()> {
    let mut reused = None;
    for number in dead {
        let name = segment_name(*number);
        if reused.is_none() && shared.spare().is_none() && disk.open(&name)?.length()? == segment_bytes {
            disk.rename(&name, SPARE)?;
            // Before its content goes: a segment that came back under its name without it would be taken for damage.
            disk.sync()?;
            reused = Some(disk.open(SPARE)?);
        } else {
            disk.remove(&name)?;
        }
    }
    if shared.spare().is_some() {
        return Ok(());
    }
    let file = match reused {
        Some(file) => file,
        None => disk.create(SPARE)?,
    };
    if fill(&file, 0, segment_bytes, &shared.stop)? {
        *shared.spare() = Some(file);
    }
    Ok(())
}

/// Fills a file with zeros from `begin` to `end`, durably; `false` when it was told to stop.
pub fn fill(file: &impl DiskFile, begin: u64, end: u64, stop: &AtomicBool) -> io::Result<bool> {
    let zeros = vec![0; PIECE_BYTES];
    let mut at = begin;
    while at < end {
        if stop.load(Ordering::Acquire) {
            return Ok(false);
        }
        let piece = PIECE_BYTES.min(usize::try_from(end - at).unwrap_or(PIECE_BYTES));
        file.write(at, &zeros[..piece])?;
        at += piece as u64;
    }
    file.sync()?;
    Ok(true)
}

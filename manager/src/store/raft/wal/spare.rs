//! The next segment, filled with zeros before it is needed: a write into blocks that are there changes no length and no map of the file
//! system, and is durable in half the time. Filling takes a tenth of a second, which the owner thread cannot wait; it is done beside it.
//!
//! Segments that nothing needs any more are used again, so that a log that goes round needs no new room.

use std::collections::BTreeSet;
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
    worker: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared<F> {
    work: Mutex<Work<F>>,
    stop: AtomicBool,
}

#[derive(Debug)]
struct Work<F> {
    spare: Option<F>,
    /// Segments that nothing needs any more; one leaves once its file is gone.
    dead: BTreeSet<u64>,
    /// Somebody is at it, and has [`SPARE`] to itself.
    taken: bool,
}

impl<F> Shared<F> {
    fn work(&self) -> MutexGuard<'_, Work<F>> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<D: Disk> Spares<D> {
    pub fn new(disk: D, segment_bytes: u64) -> Self {
        let work = Work { spare: None, dead: BTreeSet::new(), taken: false };
        Self { disk, segment_bytes, shared: Arc::new(Shared { work: Mutex::new(work), stop: AtomicBool::new(false) }), worker: None }
    }

    /// The spare segment, called [`SPARE`], if it is ready.
    pub fn take(&mut self) -> Option<D::File> {
        let mut work = self.shared.work();
        if work.taken { None } else { work.spare.take() }
    }

    /// Nothing needs these segments any more.
    pub fn retire(&mut self, segments: impl Iterator<Item = u64>) {
        self.shared.work().dead.extend(segments);
    }

    /// Has a spare made and dead segments removed, unless there is nothing to do. Whoever is at it already does what has come since, too.
    pub fn work(&mut self) {
        let mut work = self.shared.work();
        let idle = work.dead.is_empty() && work.spare.is_some();
        if idle || work.taken {
            return;
        }
        work.taken = true;
        drop(work);
        let (disk, shared, segment_bytes) = (self.disk.clone(), self.shared.clone(), self.segment_bytes);
        match self.disk.beside(Box::new(move || work_off(&disk, &shared, segment_bytes))) {
            Ok(worker) => self.worker = worker,
            Err(error) => {
                self.shared.work().taken = false;
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

/// Removes dead segments, and makes a spare if there is none, until nothing is left to do but what has failed. That is tried again with the
/// next work.
fn work_off<D: Disk>(disk: &D, shared: &Shared<D::File>, segment_bytes: u64) {
    let (mut tried, mut failed) = (BTreeSet::new(), None);
    let mut may_make = true;
    loop {
        let mut work = shared.work();
        let (next, wanted) = (work.dead.iter().find(|number| !tried.contains(*number)).copied(), work.spare.is_none() && may_make);
        if shared.stop.load(Ordering::Acquire) || (next.is_none() && !wanted) {
            work.taken = false;
            break;
        }
        drop(work);
        let made = match next {
            Some(number) => {
                tried.insert(number);
                let name = segment_name(number);
                match bury(disk, &name, wanted.then_some(segment_bytes)) {
                    Ok(reused) => {
                        shared.work().dead.remove(&number);
                        reused
                    }
                    Err(error) => {
                        failed = Some((name, error));
                        continue;
                    }
                }
            }
            None => Some(create(disk)),
        };
        let Some(made) = made else { continue };
        // Once: the spare is missing also when the filling was cut short.
        may_make = false;
        match made.and_then(|file| fill(&file, 0, segment_bytes, &shared.stop).map(|whole| whole.then_some(file))) {
            Ok(file) => shared.work().spare = file,
            Err(error) => {
                warn!(%error, "no segment of the log can be made ready: its writes will be slower; does the disk have room?");
            }
        }
    }
    if let Some((name, error)) = failed {
        warn!(name, %error, "a segment of the log that nothing needs any more cannot be removed: it takes room");
    }
}

/// Does away with a dead segment; one of this length becomes the file of the spare.
fn bury<D: Disk>(disk: &D, name: &str, reused_bytes: Option<u64>) -> io::Result<Option<io::Result<D::File>>> {
    let absent = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
    let length = match disk.open(name).and_then(|file| file.length()) {
        Ok(length) => length,
        Err(error) if absent(&error) => return Ok(None),
        Err(error) => return Err(error),
    };
    if reused_bytes != Some(length) {
        return disk.remove(name).map(|()| None);
    }
    disk.rename(name, SPARE)?;
    // Before its content goes: a segment that came back under its name without it would be taken for damage.
    Ok(Some(disk.sync().and_then(|()| disk.open(SPARE))))
}

/// An empty file for the spare. What stands under its name may be a segment whose new name is not durable: that comes first.
fn create<D: Disk>(disk: &D) -> io::Result<D::File> {
    disk.sync()?;
    disk.create(SPARE)
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

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::path::{Path, PathBuf};

    use super::*;
    use crate::store::Directory;

    const BYTES: u64 = 4096;

    type Job = Box<dyn FnOnce() + Send>;

    /// A directory; what is to be done beside the log waits until it is asked for.
    #[derive(Clone)]
    struct Slow(Directory, Arc<Mutex<Vec<Job>>>);

    impl Slow {
        fn catch_up(&self) {
            let jobs = std::mem::take(&mut *self.1.lock().unwrap());
            assert!(jobs.len() <= 1, "one at a time works");
            jobs.into_iter().for_each(|job| job());
        }
    }

    impl Disk for Slow {
        type File = File;

        fn path(&self, name: &str) -> PathBuf {
            self.0.path(name)
        }

        fn names(&self) -> io::Result<Vec<String>> {
            self.0.names()
        }

        fn open(&self, name: &str) -> io::Result<File> {
            self.0.open(name)
        }

        fn create(&self, name: &str) -> io::Result<File> {
            self.0.create(name)
        }

        fn rename(&self, from: &str, to: &str) -> io::Result<()> {
            self.0.rename(from, to)
        }

        fn remove(&self, name: &str) -> io::Result<()> {
            self.0.remove(name)
        }

        fn sync(&self) -> io::Result<()> {
            self.0.sync()
        }

        fn beside(&self, work: Job) -> io::Result<Option<JoinHandle<()>>> {
            self.1.lock().unwrap().push(work);
            Ok(None)
        }
    }

    fn spares(dir: &Path) -> (Slow, Spares<Slow>) {
        let disk = Slow(Directory::new(dir), Arc::default());
        (disk.clone(), Spares::new(disk, BYTES))
    }

    fn segment(dir: &Path, number: u64) -> PathBuf {
        let path = dir.join(segment_name(number));
        fs::write(&path, vec![1; 4096]).unwrap();
        path
    }

    #[test]
    fn segments_that_die_while_another_is_removed_go_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let (disk, mut spares) = spares(dir.path());
        let paths = [1, 2, 3].map(|number| segment(dir.path(), number));
        spares.retire([1].into_iter());
        spares.work();
        spares.retire([2, 3].into_iter());
        spares.work();
        assert!(spares.take().is_none(), "it is being made");
        disk.catch_up();
        assert!(paths.iter().all(|path| !path.exists()));
        assert!(spares.take().is_some());
        assert_eq!(fs::read(dir.path().join(SPARE)).unwrap(), [0; 4096]);
    }

    #[test]
    fn a_segment_that_cannot_be_removed_keeps_no_other_and_is_tried_again() {
        let dir = tempfile::tempdir().unwrap();
        let (disk, mut spares) = spares(dir.path());
        let first = dir.path().join(segment_name(1));
        fs::create_dir(&first).unwrap();
        let others = [2, 3].map(|number| segment(dir.path(), number));
        spares.retire([1, 2, 3, 4].into_iter());
        spares.work();
        disk.catch_up();
        assert!(first.exists() && others.iter().all(|path| !path.exists()));
        assert!(spares.take().is_some());
        fs::remove_dir(&first).unwrap();
        segment(dir.path(), 1);
        spares.work();
        disk.catch_up();
        assert!(!first.exists() && spares.take().is_some());
    }
}

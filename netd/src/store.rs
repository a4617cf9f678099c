//! What netd remembers: the picture in force and the pods attached here, in the run directory, which goes with a reboot; and a copy of the
//! picture in the state directory, which outlives a power cut.
//!
//! ```text
//! picture ──► R/picture.now.json ──► the answer
//!    └──────► the keeper's thread ──fsync──► S/picture.json
//! ```
//!
//! Whoever gives a picture does not wait for the disk. At a start the newer of the two files counts: on the same boot that is the one in the
//! run directory, unless it could not be written. One that cannot be read is left aside for the other. Never: leaves an older file where a
//! newer one could not be written.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use rcluster_base::ledger::{self, LedgerError};
use tracing::warn;

use crate::core::picture::{Attachments, Picture};
use crate::drive::in_full;

/// A disk that did not take the picture is asked again after this, or with the next one.
const KEEP_AGAIN_AFTER: Duration = Duration::from_secs(5);

/// The files.
#[derive(Debug)]
pub struct Store {
    /// The picture in force, on this boot.
    now: PathBuf,
    attachments: PathBuf,
    keeper: Keeper,
}

impl Store {
    /// Files in these directories, which exist.
    pub fn start(state_dir: &Path, run_dir: &Path) -> io::Result<Self> {
        let keeper = Keeper::start(state_dir.join("picture.json"))?;
        Ok(Self { now: run_dir.join("picture.now.json"), attachments: run_dir.join("attachments.json"), keeper })
    }

    /// The picture in force when netd last ran; an empty one on a fresh disk.
    pub fn load_picture(&self) -> Result<Picture, LedgerError> {
        let now: Option<Picture> = ledger::read(&self.now).unwrap_or_else(|error| {
            warn!(error = in_full(&error), "the picture in the run directory is left aside");
            None
        });
        let kept: Option<Picture> = match (ledger::read(&self.keeper.path), &now) {
            (Ok(kept), _) => kept,
            (Err(error), Some(_)) => {
                warn!(error = in_full(&error), "the picture on the disk is left aside for that of the run directory, and written anew");
                None
            }
            (Err(error), None) => return Err(error),
        };
        Ok(match (now, kept) {
            (Some(now), Some(kept)) if now.node_id == kept.node_id && now.version() < kept.version() => kept,
            (Some(now), _) => now,
            (None, kept) => kept.unwrap_or_default(),
        })
    }

    /// The pods that were attached when netd last ran on this boot.
    pub fn load_attachments(&self) -> Result<Attachments, LedgerError> {
        Ok(ledger::read(&self.attachments)?.unwrap_or_default())
    }

    /// Remembers the picture over a restart at once, over a reboot when the disk has taken it; one line of JSON, for it is long.
    pub fn save_picture(&self, picture: &Picture) -> Result<(), LedgerError> {
        let bytes = serde_json::to_vec(picture).map_err(|source| LedgerError::Encode { path: self.now.clone(), source })?;
        let written = ledger::write_fleeting_bytes(&self.now, &bytes);
        if written.is_err() {
            // What is there is older, and must not pass for the newest.
            drop(fs::remove_file(&self.now));
        }
        self.keeper.keep(bytes);
        written
    }

    /// Why the disk has not taken the last picture.
    pub fn trouble(&self) -> Option<String> {
        self.keeper.desk.lock().failed.clone()
    }

    /// Remembers the pods.
    pub fn save_attachments(&self, attachments: &Attachments) -> Result<(), LedgerError> {
        let path = &self.attachments;
        let bytes = serde_json::to_vec(attachments).map_err(|source| LedgerError::Encode { path: path.clone(), source })?;
        ledger::write_fleeting_bytes(path, &bytes)
    }
}

/// Copies the last picture to the disk, in a thread of its own; of several that come while it writes only the last. Dropped, it writes what
/// it has.
#[derive(Debug)]
struct Keeper {
    path: PathBuf,
    desk: Arc<Desk>,
    thread: Option<thread::JoinHandle<()>>,
}

/// Where the thread finds what is to be written.
#[derive(Debug, Default)]
struct Desk {
    inner: Mutex<Inner>,
    news: Condvar,
}

#[derive(Debug, Default)]
struct Inner {
    due: Option<Vec<u8>>,
    failed: Option<String>,
    /// Nothing more will come.
    ended: bool,
}

impl Desk {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Keeper {
    fn start(path: PathBuf) -> io::Result<Self> {
        let desk = Arc::<Desk>::default();
        let (theirs, to) = (desk.clone(), path.clone());
        let thread = thread::Builder::new().name("keeper".to_owned()).spawn(move || keep(&theirs, &to))?;
        Ok(Self { path, desk, thread: Some(thread) })
    }

    fn keep(&self, bytes: Vec<u8>) {
        self.desk.lock().due = Some(bytes);
        self.desk.news.notify_one();
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.desk.lock().ended = true;
        self.desk.news.notify_one();
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            warn!("the thread that writes the picture panicked");
        }
    }
}

fn keep(desk: &Desk, path: &Path) {
    let mut inner = desk.lock();
    loop {
        let Some(bytes) = inner.due.take() else {
            if inner.ended {
                return;
            }
            inner = desk.news.wait(inner).unwrap_or_else(PoisonError::into_inner);
            continue;
        };
        drop(inner);
        let written = ledger::write_bytes(path, &bytes);
        inner = desk.lock();
        let Err(error) = written else {
            inner.failed = None;
            continue;
        };
        inner.failed = Some(in_full(&error));
        if inner.ended {
            warn!(error = in_full(&error), "the picture in force is not on the disk");
            return;
        }
        if inner.due.is_none() {
            inner.due = Some(bytes);
            inner = desk.news.wait_timeout(inner, KEEP_AGAIN_AFTER).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture(node_id: &str, revision: u64) -> Picture {
        Picture { term: 1, revision, node_id: node_id.to_owned(), ..Picture::default() }
    }

    #[test]
    fn the_newer_of_the_two_files_counts() {
        let dir = tempfile::tempdir().unwrap();
        let (state_dir, run_dir) = (dir.path().join("state"), dir.path().join("run"));
        fs::create_dir(&state_dir).unwrap();
        fs::create_dir(&run_dir).unwrap();
        let loaded = || Store::start(&state_dir, &run_dir).unwrap().load_picture().unwrap();
        let save = |picture: &Picture| Store::start(&state_dir, &run_dir).unwrap().save_picture(picture);
        assert_eq!(loaded(), Picture::default());
        save(&picture("n1", 3)).unwrap();
        assert_eq!(loaded().revision, 3);
        // After a reboot there is the disk's alone.
        fs::remove_file(run_dir.join("picture.now.json")).unwrap();
        assert_eq!(loaded().revision, 3);
        // netd was killed before the disk had the next one.
        let next = serde_json::to_vec(&picture("n1", 4)).unwrap();
        fs::write(run_dir.join("picture.now.json"), &next).unwrap();
        assert_eq!(loaded().revision, 4);
        // The run directory did not take the one after that.
        fs::write(state_dir.join("picture.json"), serde_json::to_vec(&picture("n1", 5)).unwrap()).unwrap();
        assert_eq!(loaded().revision, 5);
        // Pictures of another node id are in another order.
        fs::write(run_dir.join("picture.now.json"), serde_json::to_vec(&picture("n7", 1)).unwrap()).unwrap();
        assert_eq!((loaded().node_id.as_str(), loaded().revision), ("n7", 1));
        // Cut short by a power cut, where the run directory is no tmpfs.
        fs::write(run_dir.join("picture.now.json"), &next[..next.len() / 2]).unwrap();
        assert_eq!(loaded().revision, 5);
        // Broken on the disk: on the same boot that of the run directory is as good, and after a reboot there is none to go by.
        fs::write(state_dir.join("picture.json"), b"{").unwrap();
        fs::write(run_dir.join("picture.now.json"), &next).unwrap();
        assert_eq!(loaded().revision, 4);
        fs::remove_file(run_dir.join("picture.now.json")).unwrap();
        Store::start(&state_dir, &run_dir).unwrap().load_picture().unwrap_err();
    }

    #[test]
    fn a_disk_that_does_not_take_the_picture_is_told_of_and_the_picture_outlives_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let state_dir = dir.path().join("nowhere");
        let store = Store::start(&state_dir, dir.path()).unwrap();
        store.save_picture(&picture("n1", 2)).unwrap();
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        let trouble = loop {
            match store.trouble() {
                Some(trouble) => break trouble,
                None => assert!(std::time::Instant::now() < deadline, "the disk is not complained of"),
            }
            thread::yield_now();
        };
        assert!(trouble.starts_with(&format!("write {}", state_dir.join("picture.json").display())), "{trouble}");
        assert_eq!(store.load_picture().unwrap().revision, 2);
        // With the next one, or when netd ends, it is tried again.
        fs::create_dir(&state_dir).unwrap();
        store.save_picture(&picture("n1", 3)).unwrap();
        drop(store);
        fs::remove_file(dir.path().join("picture.now.json")).unwrap();
        assert_eq!(Store::start(&state_dir, dir.path()).unwrap().load_picture().unwrap().revision, 3);
    }
}

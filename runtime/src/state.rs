//! What is remembered of a container between two calls: `<root>/<id>/state.json` and the FIFOs of its start.
//!
//! In: a record. Out: the record, or that there is none. The directory itself takes the id: whoever makes it owns the container until it is
//! removed. The record is written before the first effect and replaced whole (write, rename), so that whatever `create` leaves behind
//! when it is killed can be found and removed by `delete --force`.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::fs::FlockOperation;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::core::hooks::Hooks;
use crate::core::resctrl::ResctrlRecord;
use crate::core::status::{Identity, Seen, Status, parse_stat, status};
use crate::{kernel_file, sync};

/// The form of the record; it only grows.
const FORMAT: u32 = 1;
const RECORD: &str = "state.json";
const ID_BYTES_MAX: usize = 128;
const LOCK_WAIT: Duration = Duration::from_secs(10);
const LOCK_POLL: Duration = Duration::from_millis(5);

/// What is recorded of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub format: u32,
    pub id: String,
    pub oci_version: String,
    /// Absolute.
    pub bundle: PathBuf,
    /// Absolute; not recorded by earlier versions.
    #[serde(default)]
    pub rootfs: Option<PathBuf>,
    pub annotations: BTreeMap<String, String>,
    /// RFC 3339.
    pub created_at: String,
    /// `None` until the first process waits at the gate.
    pub init: Option<Identity>,
    /// Whether the first process's death ends every other one.
    pub own_pid_namespace: bool,
    /// The container's cgroups, absolute.
    pub cgroups: Vec<PathBuf>,
    /// Those of them that can freeze it; not recorded by earlier versions.
    #[serde(default)]
    pub freezers: Option<Vec<PathBuf>>,
    /// Directories above them that were made for it, lowest last.
    pub cgroup_parents: Vec<PathBuf>,
    /// Those that run after the creation.
    #[serde(default)]
    pub hooks: Hooks,
    /// What it has of resctrl.
    #[serde(default)]
    pub resctrl: Option<ResctrlRecord>,
    /// The session keyring it began.
    #[serde(default)]
    pub keyring: Option<String>,
}

impl Record {
    /// A record of a container that is about to be created.
    pub fn new(id: &str, oci_version: &str, bundle: &Path, created_at: String) -> Self {
        Self {
            format: FORMAT,
            id: id.to_owned(),
            oci_version: oci_version.to_owned(),
            bundle: bundle.to_owned(),
            rootfs: None,
            annotations: BTreeMap::new(),
            created_at,
            init: None,
            own_pid_namespace: false,
            cgroups: Vec::new(),
            freezers: None,
            cgroup_parents: Vec::new(),
            hooks: Hooks::default(),
            resctrl: None,
            keyring: None,
        }
    }

    /// The cgroups to ask whether it is frozen.
    fn freezers(&self) -> &[PathBuf] {
        self.freezers.as_deref().unwrap_or(&self.cgroups)
    }
}

/// Refuses an id that is no plain file name.
pub fn check_id(id: &str) -> Result<()> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_+-.".contains(c);
    if id.is_empty() || id.len() > ID_BYTES_MAX || id == "." || id == ".." || !id.chars().all(plain) {
        bail!("container id {id:?}: use 1 to {ID_BYTES_MAX} of the letters a-z A-Z 0-9 _ + - .");
    }
    Ok(())
}

/// A container's state directory.
#[derive(Debug, Clone)]
pub struct StateDir {
    path: PathBuf,
}

/// Held while a call changes a container; released when dropped.
#[derive(Debug)]
pub struct Lock(RefCell<Option<File>>);

impl Drop for Lock {
    /// Closing would not do: the container's process inherits the descriptor and keeps it until its exec, and the lock with it.
    fn drop(&mut self) {
        // The directory may be gone, and the lock with it.
        if let Some(directory) = self.0.take() {
            let _ = rustix::fs::flock(&directory, FlockOperation::Unlock);
        }
    }
}

impl Lock {
    /// In a process that inherited it: it is the other's alone, and ends with that one even if it is killed.
    pub fn leave(&self) {
        drop(self.0.take());
    }
}

impl StateDir {
    /// The directory of an id, whether it exists or not.
    pub fn of(root: &Path, id: &str) -> Result<Self> {
        check_id(id)?;
        Ok(Self { path: root.join(id) })
    }

    /// Takes the id: makes the directory, which must not exist, and locks it.
    pub fn create(root: &Path, id: &str) -> Result<(Self, Lock)> {
        let dir = Self::of(root, id)?;
        DirBuilder::new().recursive(true).mode(0o700).create(root).with_context(|| format!("make {}", root.display()))?;
        match DirBuilder::new().mode(0o700).create(&dir.path) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                bail!("container {id} exists already: delete it first, or take another id")
            }
            made => made.with_context(|| format!("make {}", dir.path.display()))?,
        }
        let lock = dir.lock()?;
        Ok((dir, lock))
    }

    /// The user whose container it is.
    pub fn owner(&self) -> Result<u32> {
        let seen = fs::metadata(&self.path).with_context(|| format!("look at {}", self.path.display()))?;
        Ok(seen.uid())
    }

    /// Whether anything is remembered.
    pub fn exists(&self) -> bool {
        self.path.exists()
    }

    /// Waits for its turn to change the container, but not for ever.
    pub fn lock(&self) -> Result<Lock> {
        let directory = File::open(&self.path).with_context(|| format!("open {}", self.path.display()))?;
        let deadline = Instant::now() + LOCK_WAIT;
        loop {
            match rustix::fs::flock(&directory, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Lock(RefCell::new(Some(directory)))),
                Err(Errno::WOULDBLOCK | Errno::INTR) if Instant::now() < deadline => std::thread::sleep(LOCK_POLL),
                Err(Errno::WOULDBLOCK) => bail!("another call has held {} for {} s", self.path.display(), LOCK_WAIT.as_secs()),
                Err(errno) => return Err(io::Error::from(errno)).with_context(|| format!("lock {}", self.path.display())),
            }
        }
    }

    /// Reads the record; `None` when none was written.
    pub fn read(&self) -> Result<Option<Record>> {
        let path = self.path.join(RECORD);
        let bytes = match fs::read(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            read => read.with_context(|| format!("read {}", path.display()))?,
        };
        let record: Record = serde_json::from_slice(&bytes).with_context(|| format!("read {}", path.display()))?;
        if record.format > FORMAT {
            bail!("{}: format {} is newer than this runtime's {FORMAT}: use the runtime that wrote it", path.display(), record.format);
        }
        Ok(Some(record))
    }

    /// Replaces the record.
    pub fn write(&self, record: &Record) -> Result<()> {
        let bytes = serde_json::to_vec(record).context("encode the state")?;
        replace(&self.path.join(RECORD), &bytes)
    }

    /// Where a file of the directory is.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Takes the start gate away.
    pub fn open_gate(&self) {
        for name in [sync::GATE, sync::RESULT] {
            // What stays is removed with the directory; a gate that stays shows the state as `created`, never as more.
            let _ = fs::remove_file(self.path.join(name));
        }
    }

    /// Forgets the container and frees its id.
    pub fn remove(&self) -> Result<()> {
        match fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            removed => removed.with_context(|| format!("remove {}", self.path.display())),
        }
    }

    /// The state of the container now.
    pub fn status(&self, record: &Record) -> Result<Status> {
        let seen = record.init.as_ref().and_then(|init| observe(init.pid));
        let frozen = seen.is_some() && record.freezers().iter().any(|group| is_frozen(group) == Some(true));
        Ok(status(record.init.as_ref(), &boot_id()?, seen, self.path.join(sync::GATE).exists(), frozen))
    }
}

/// The ids under a root, sorted.
pub fn ids(root: &Path) -> Result<Vec<String>> {
    let entries = match fs::read_dir(root) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        read => read.with_context(|| format!("read {}", root.display()))?,
    };
    let mut ids: Vec<String> = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    ids.sort();
    Ok(ids)
}

/// Writes a file that is either the old or the new one at any time.
pub fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}", std::process::id()));
    let new = path.with_file_name(name);
    let written = fs::write(&new, bytes).and_then(|()| fs::rename(&new, path));
    written.inspect_err(|_| drop(fs::remove_file(&new))).with_context(|| format!("write {}", path.display()))
}

/// What `/proc` says of the process that has an id now.
pub fn observe(pid: i32) -> Option<Seen> {
    parse_stat(&kernel_file::read(format!("/proc/{pid}/stat")).ok()?)
}

/// Whether a cgroup is frozen, or about to be; `None` when it is of no kind that can be (`freezer-subsystem.rst`; `cgroup-v2.rst`).
pub fn is_frozen(group: &Path) -> Option<bool> {
    if let Ok(state) = kernel_file::read(group.join("freezer.state")) {
        return Some(state.trim() != "THAWED");
    }
    let events = kernel_file::read(group.join("cgroup.events")).ok()?;
    events.lines().find_map(|line| line.strip_prefix("frozen ")).map(|value| value.trim() != "0")
}

/// Names this boot of the kernel.
pub fn boot_id() -> Result<String> {
    const PATH: &str = "/proc/sys/kernel/random/boot_id";
    Ok(kernel_file::read(PATH).with_context(|| format!("read {PATH}"))?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_plain_file_names() {
        for id in ["a", "web.1-x_y+z", "...", &"a".repeat(128)] {
            assert!(check_id(id).is_ok(), "{id}");
        }
        for id in ["", ".", "..", "a/b", "a b", "ä", "../a", &"a".repeat(129)] {
            assert!(check_id(id).is_err(), "{id}");
        }
    }

    #[test]
    fn an_id_is_taken_once() {
        let root = tempfile::tempdir().unwrap();
        let (dir, lock) = StateDir::create(root.path(), "a").unwrap();
        assert!(StateDir::create(root.path(), "a").unwrap_err().to_string().contains("exists already"));
        drop(lock);
        dir.remove().unwrap();
        assert!(StateDir::create(root.path(), "a").is_ok());
    }

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let root = tempfile::tempdir().unwrap();
        let (dir, _lock) = StateDir::create(root.path(), "a").unwrap();
        assert_eq!(dir.read().unwrap(), None);
        let mut record = Record::new("a", "1.2.0", Path::new("/b"), "now".into());
        dir.write(&record).unwrap();
        assert_eq!(dir.read().unwrap().as_ref(), Some(&record));
        assert_eq!(dir.status(&record).unwrap(), Status::Creating);
        record.format = FORMAT + 1;
        dir.write(&record).unwrap();
        assert!(dir.read().unwrap_err().to_string().contains("newer"));
    }

    /// The record as the first release wrote it: later ones must read it.
    #[test]
    fn format_1_stays_readable() {
        let text = r#"{"format":1,"id":"a","oci_version":"1.2.0","bundle":"/b","annotations":{"k":"v"},"created_at":"2026-01-01T00:00:00Z",
            "init":{"pid":7,"start_time":9,"boot_id":"x"},"own_pid_namespace":true,"cgroups":["/sys/fs/cgroup/pids/a"],"cgroup_parents":[]}"#;
        let root = tempfile::tempdir().unwrap();
        let (dir, _lock) = StateDir::create(root.path(), "a").unwrap();
        fs::write(dir.file(RECORD), text).unwrap();
        assert_eq!(dir.read().unwrap().unwrap().init.unwrap().pid, 7);
    }
}

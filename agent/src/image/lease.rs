//! Content that is not named yet, or about to be mounted, is leased so that no collection takes it away meanwhile.
//!
//! A lease is a file that lists digests, locked for as long as its owner lives; one whose lock is free was left by a process that
//! was killed. Leases are written while the store's gate is held shared, collections run while it is held alone.

use std::collections::BTreeSet;
use std::fs::{self, File, TryLockError};
use std::io::{Read as _, Write as _};
use std::path::PathBuf;

use super::{Image, ImageError, Store, io_error, lock};

/// Keeps content of the store until dropped.
#[derive(Debug)]
pub struct Lease {
    path: PathBuf,
    _file: File,
}

impl Drop for Lease {
    fn drop(&mut self) {
        // A file that stays is taken for that of a killed process, which is what it is then.
        drop(fs::remove_file(&self.path));
    }
}

impl Store {
    /// Keeps the content with these digests, in hexadecimal, whether it is there already or not.
    pub fn lease<'a>(&self, digests: impl IntoIterator<Item = &'a str>) -> Result<Lease, ImageError> {
        let _gate = self.gate_shared()?;
        self.lease_gated(digests)
    }

    /// The image of that name and a lease on all that it needs.
    pub fn hold(&self, name: &str) -> Result<(Image, Lease), ImageError> {
        let _gate = self.gate_shared()?;
        let image = self.find(name)?;
        self.note_use(&image.digest);
        let lease = self.lease_gated(self.content_of(&image)?.iter().map(String::as_str))?;
        Ok((image, lease))
    }

    fn lease_gated<'a>(&self, digests: impl IntoIterator<Item = &'a str>) -> Result<Lease, ImageError> {
        let path = self.dir.join("leases").join(format!("{:016x}", rand::random::<u64>()));
        let file = File::options().create_new(true).write(true).open(&path).map_err(io_error("make lease", &path))?;
        let mut lease = Lease { path: path.clone(), _file: file };
        lease._file.lock().map_err(io_error("lock lease", &path))?;
        let list: Vec<&str> = digests.into_iter().collect();
        lease._file.write_all(list.join("\n").as_bytes()).map_err(io_error("write lease", &path))?;
        Ok(lease)
    }

    /// What living leases keep; removes those of killed processes. The gate has to be held alone.
    pub(super) fn leased(&self) -> Result<BTreeSet<String>, ImageError> {
        let dir = self.dir.join("leases");
        let mut kept = BTreeSet::new();
        for entry in fs::read_dir(&dir).map_err(io_error("list", &dir))? {
            let path = entry.map_err(io_error("list", &dir))?.path();
            let mut file = match File::open(&path) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                opened => opened.map_err(io_error("open lease", &path))?,
            };
            match file.try_lock() {
                Ok(()) => drop(fs::remove_file(&path)),
                Err(TryLockError::WouldBlock) => {
                    let mut text = String::new();
                    file.read_to_string(&mut text).map_err(io_error("read lease", &path))?;
                    kept.extend(text.lines().map(str::to_owned));
                }
                Err(TryLockError::Error(error)) => return Err(io_error("lock lease", &path)(error)),
            }
        }
        Ok(kept)
    }

    /// No collection begins while this is held.
    pub(super) fn gate_shared(&self) -> Result<File, ImageError> {
        let path = self.gate();
        let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(io_error("open lock", &path))?;
        file.lock_shared().map_err(io_error("lock", &path))?;
        Ok(file)
    }

    /// Nobody writes a lease or loads an archive while this is held.
    pub(super) fn gate_alone(&self) -> Result<File, ImageError> {
        lock(&self.gate())
    }

    fn gate(&self) -> PathBuf {
        self.dir.join("gate.lock")
    }
}

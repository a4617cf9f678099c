//! Small files that are whole or absent after a crash: written aside, synced, renamed, the directory synced. Those that need not outlive a
//! power cut are not synced.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

/// Why a ledger file could not be read or written.
#[derive(Debug, Error)]
pub enum LedgerError {
    #[error("read {path}")]
    Read { path: PathBuf, source: io::Error },
    #[error("write {path}")]
    Write { path: PathBuf, source: io::Error },
    #[error("{path} does not hold what this version writes")]
    Decode { path: PathBuf, source: serde_json::Error },
    #[error("encode {path}")]
    Encode { path: PathBuf, source: serde_json::Error },
}

/// What a file outlives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Life {
    /// A power cut.
    Synced,
    /// Its writer, however it ends: the kernel has it.
    Fleeting,
}

/// Replaces `path` with `bytes`; afterwards the file holds the old or the new content, never a part.
pub fn write_bytes(path: &Path, bytes: &[u8]) -> Result<(), LedgerError> {
    replace(path, bytes, 0o644, Life::Synced)
}

/// The same for what only the file's owner may read.
pub fn write_secret_bytes(path: &Path, bytes: &[u8]) -> Result<(), LedgerError> {
    replace(path, bytes, 0o600, Life::Synced)
}

/// The same for what is of no use after a reboot: whole whenever its writer is killed, and nothing is waited for.
pub fn write_fleeting_bytes(path: &Path, bytes: &[u8]) -> Result<(), LedgerError> {
    replace(path, bytes, 0o644, Life::Fleeting)
}

/// Replaces `path` with `value` as JSON, which only the file's owner may read.
pub fn write_secret<T: Serialize>(path: &Path, value: &T) -> Result<(), LedgerError> {
    let bytes = serde_json::to_vec_pretty(value).map_err(|source| LedgerError::Encode { path: path.to_path_buf(), source })?;
    write_secret_bytes(path, &bytes)
}

fn replace(path: &Path, bytes: &[u8], mode: u32, life: Life) -> Result<(), LedgerError> {
    let failed = |source| LedgerError::Write { path: path.to_path_buf(), source };
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let aside = dir.join(format!(".{name}.{}", rand::random::<u32>()));
    let written = (|| {
        let mut file = File::options().write(true).create_new(true).mode(mode).open(&aside)?;
        file.write_all(bytes)?;
        match life {
            Life::Synced => {
                file.sync_all()?;
                fs::rename(&aside, path)?;
                File::open(dir)?.sync_all()
            }
            Life::Fleeting => fs::rename(&aside, path),
        }
    })();
    written.map_err(|source| {
        // The error that matters is the first; a file left aside has a name that is never read.
        drop(fs::remove_file(&aside));
        failed(source)
    })
}

/// Replaces `path` with `value` as JSON.
pub fn write<T: Serialize>(path: &Path, value: &T) -> Result<(), LedgerError> {
    let bytes = serde_json::to_vec_pretty(value).map_err(|source| LedgerError::Encode { path: path.to_path_buf(), source })?;
    write_bytes(path, &bytes)
}

/// The value in `path`, or `None` when there is no such file.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, LedgerError> {
    match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|source| LedgerError::Decode { path: path.to_path_buf(), source }),
        Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(LedgerError::Read { path: path.to_path_buf(), source }),
    }
}

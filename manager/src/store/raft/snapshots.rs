//! Snapshots' data: files beside the log.
//!
//! ```text
//! D/snapshot-<index>-<hex>    data of the snapshot in use; written and synced before the log names it, removed after it names another
//! ```

use std::fs;
use std::path::Path;

use rcluster_base::ledger::{self, LedgerError};
use tracing::warn;

use super::log::{LogError, Saved, Saver, checksum};

/// Writes a snapshot's data into `dir`.
pub fn saver(dir: &Path) -> Saver {
    let dir = dir.to_path_buf();
    Box::new(move |metadata, data| {
        let name = format!("snapshot-{:020}-{:08x}", metadata.index, rand::random::<u32>());
        ledger::write_secret_bytes(&dir.join(&name), data).map_err(|error| {
            let path = dir.join(&name);
            let source = match error {
                LedgerError::Write { source, .. } | LedgerError::Read { source, .. } => source,
                LedgerError::Decode { source, .. } | LedgerError::Encode { source, .. } => source.into(),
            };
            LogError::File { what: "write the snapshot", path, source }
        })?;
        Ok(Saved { metadata, name, bytes: data.len() as u64, checksum: checksum(data) })
    })
}

/// The data of the snapshot in use.
pub fn read(dir: &Path, used: &Saved) -> Result<Vec<u8>, LogError> {
    let path = dir.join(&used.name);
    let data = fs::read(&path).map_err(|source| LogError::File { what: "read the snapshot", path, source })?;
    if data.len() as u64 != used.bytes || checksum(&data) != used.checksum {
        let (name, found, written) = (&used.name, data.len(), used.bytes);
        return Err(LogError::Damaged(format!("{name} has {found} bytes and is not what was written ({written} bytes)")));
    }
    Ok(data)
}

/// Removes the data of snapshots that are older than the one in use.
pub fn sweep(dir: &Path, used: &Saved) {
    let Ok(files) = fs::read_dir(dir) else { return };
    for file in files.flatten() {
        let name = file.file_name().to_string_lossy().into_owned();
        let index = name.strip_prefix("snapshot-").and_then(|rest| rest.split_once('-')).and_then(|(index, _)| index.parse::<u64>().ok());
        let old = index.is_some_and(|index| index <= used.metadata.index) && name != used.name;
        if old && let Err(error) = fs::remove_file(file.path()) {
            warn!(file = name, %error, "an old snapshot cannot be removed");
        }
    }
}
